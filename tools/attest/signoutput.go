package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

// signOutput says what attest sign found and did.
type signOutput struct {
	flags  *signFlags
	stdout io.Writer
	stderr io.Writer
	doc    *document // nil for text
	counts map[rootfs.NoteKind]int64
}

func newSignOutput(o *signFlags, stdout, stderr io.Writer) *signOutput {
	out := &signOutput{flags: o, stdout: stdout, stderr: stderr, counts: map[rootfs.NoteKind]int64{}}
	if o.labels == labelsDump && o.output == "-" {
		out.stdout = stderr // standard output is the dump
	}
	if o.json {
		out.doc = newDocument(out.stdout, "attest.sign/v1", "notes")
	}
	return out
}

// jsonNote is a [rootfs.Note] in the document.
type jsonNote struct {
	Kind rootfs.NoteKind `json:"kind"`
	jsonPath
	Links   []jsonPath `json:"links,omitempty"`
	Message string     `json:"message,omitempty"`
}

// note takes one note. Those that spoil the result are always said.
func (out *signOutput) note(n rootfs.Note) {
	out.counts[n.Kind]++
	if out.doc != nil {
		j := jsonNote{Kind: n.Kind, jsonPath: newJSONPath(n.Path), Message: n.Message}
		for _, path := range n.Other {
			j.Links = append(j.Links, newJSONPath(path))
		}
		out.doc.add(j)
	}
	switch {
	case n.Kind.Bad():
		fmt.Fprintf(out.stderr, "attest: %s: %s\n", showPath(n.Path), showText(n.Message))
	case n.Kind == rootfs.NoteUnusedRule:
		fmt.Fprintf(out.stderr, "attest: warning: %s: %s\n", showPath(n.Path), n.Message)
	case out.flags.verbose && n.Kind == rootfs.NoteLinks:
		names := make([]string, len(n.Other))
		for i, path := range n.Other {
			names[i] = showPath(path)
		}
		fmt.Fprintf(out.stderr, "attest: %s: is also %s\n", showPath(n.Path), strings.Join(names, ", "))
	case out.flags.verbose:
		fmt.Fprintf(out.stderr, "attest: %s: %s\n", showPath(n.Path), n.Message)
	}
}

// signSummary is the end of the document.
type signSummary struct {
	Files     int64 `json:"files"`
	Signed    int64 `json:"signed"`
	Hashed    int64 `json:"hashed"`
	Written   int64 `json:"written"`
	Unchanged int64 `json:"unchanged"`
	Skipped   int64 `json:"skipped"`
	Cleared   int64 `json:"cleared"`
	Links     int64 `json:"links"`
	Failed    int64 `json:"failed"`
	Bytes     int64 `json:"bytes"`
	DryRun    bool  `json:"dry_run"`
	Complete  bool  `json:"complete"`
}

// end prints the summary, and returns the error that the program ends with.
func (out *signOutput) end(r *rootfs.SignReport, err error) error {
	complete := err == nil && r.Complete()
	if out.doc != nil {
		if err := out.doc.end(signSummary{r.Files, r.Signed, r.Hashed, r.Written, r.Unchanged, r.Skipped, r.Cleared,
			r.Links, r.Failed, r.Bytes, out.flags.dryRun, complete}); err != nil {
			return err
		}
	} else if err == nil || r.Files > 0 {
		err = errors.Join(err, out.text(r))
	}
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted after %d of %d files: %w", r.Signed, r.Files, errInterrupted)
	case err != nil:
		return err
	case !complete:
		return &exitError{exitFindings, fmt.Errorf("%w: signed %d of %d, %d %s%s", errIncomplete,
			r.Signed, r.Files, r.Failed, plural(r.Failed, "problem"), out.notWritten())}
	}
	return nil
}

// text prints the summary for a person; its last line is "signed N of M".
func (out *signOutput) text(r *rootfs.SignReport) error {
	for _, note := range []struct {
		kind rootfs.NoteKind
		text string
	}{
		{rootfs.NoteOutside, "files with further names outside of the tree, which share the label"},
		{rootfs.NoteStale, "skipped files that have a label, which --clear-skipped removes"},
		{rootfs.NoteNoEVM, "skipped files without security.evm, which a policy that appraises them refuses once EVM is on"},
	} {
		if n := out.counts[note.kind]; n > 0 {
			fmt.Fprintf(out.stderr, "attest: %s: %d\n", note.text, n)
		}
	}
	verb := "signed"
	if out.flags.dryRun {
		verb = "would have signed"
	}
	var more []string
	for _, part := range []struct {
		text string
		n    int64
	}{{"hashed only", r.Hashed}, {"skipped", r.Skipped}, {"labels removed", r.Cleared}, {"hard links", r.Links}} {
		if part.n > 0 {
			more = append(more, fmt.Sprintf(", %s %d", part.text, part.n))
		}
	}
	_, err := fmt.Fprintf(out.stdout, "%s %d of %d (written %d, unchanged %d%s)\n", verb, r.Signed, r.Files, r.Written, r.Unchanged, strings.Join(more, ""))
	return err
}

// notWritten names the results that an incomplete run does not leave.
func (out *signOutput) notWritten() string {
	text := ""
	if out.flags.manifest != "" {
		text += "; " + out.flags.manifest + " was not written"
	}
	if out.flags.labels == labelsDump && out.flags.output != "-" {
		text += "; " + out.flags.output + " was not written"
	}
	return text
}
