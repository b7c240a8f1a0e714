package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/release"
)

var (
	errEvidence = errors.New("the evidence is not authentic")
	errVerdict  = errors.New("the device is not trusted")
)

const schemaExplain = "attest.explain/v1"

// explainFlags are the flags of attest explain.
type explainFlags struct {
	releaseFlags
	policies []string
	json     bool
}

func newExplain() *cobra.Command {
	var o explainFlags
	c := &cobra.Command{
		Use:   "explain EVIDENCE",
		Short: "Judge kept evidence again, without the verifier",
		Long: `explain verifies evidence that a verifier kept (attest fleet evidence): the TPM's signature,
the challenge, the measurement list against the quoted PCRs. Then it compares what is proven
with releases that are given as manifests, as a runtime policy of Keylime, or as policies
of the verifier (attest fleet policy show). All that the device ran has to fit one of them.

That the key was enrolled and the challenge fresh is for who kept the evidence. A device
that is polled proves what is new since the last time; what the verifier made of the rest is
in the evidence. Given the policies that the verifier had, the verdict is the verifier's.
With others, evidence that begins in the middle of the list names what does not fit, and is
never enough for "trusted".

Exit code 0: trusted; 2: the evidence or a manifest is not authentic; 3: not trusted.`,
		Example: `  attest fleet evidence 5f3c... --output evidence.json
  attest explain evidence.json --manifest image.attest.json --cert ima.crt --rules rules.toml
  attest explain evidence.json --policy image@2.json --policy image@3.json --cert ima.crt --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return o.run(args[0], c.OutOrStdout()) },
	}
	f := c.Flags()
	o.addFlags(f)
	f.StringArrayVar(&o.policies, "policy", nil, "policy of a verifier in `FILE`: one release; may be repeated")
	f.BoolVar(&o.json, "json", false, "print one JSON document (schema "+schemaExplain+")")
	return c
}

// run does what the flags say.
func (o *explainFlags) run(path string, stdout io.Writer) error {
	text, err := readBounded(path, 2*evidence.MaxSize)
	if err != nil {
		return err
	}
	b, err := evidence.DecodeBody[evidence.Bundle](bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	ref, err := o.reference(b)
	if err != nil {
		return err
	}
	e, err := explain(b, ref)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := e.print(stdout, o.json); err != nil {
		return err
	}
	return e.err(path, ref)
}

// reference compiles what the flags name; nil for nothing. A policy that b was compared
// with has the name and the place that it had there, whatever its file is called.
func (o *explainFlags) reference(b *evidence.Bundle) (*appraise.Reference, error) {
	trusted, err := o.trusted()
	if err != nil {
		return nil, err
	}
	var policies []release.Named
	if o.given() {
		r, err := o.read()
		if err != nil {
			return nil, err
		}
		if r.Release == "" {
			r.Release = filepath.Base(append(o.manifests, o.runtime)[0])
		}
		policies = append(policies, release.Named{Policy: r})
	} else if o.rules != "" || o.tpm != "" {
		return nil, fmt.Errorf("--rules and --tpm-policy: %w", errNoRelease)
	}
	kept, err := o.readPolicies(b)
	if err != nil {
		return nil, err
	}
	policies = append(policies, kept...)
	if len(policies) == 0 {
		return nil, nil
	}
	return compile(trusted, policies...)
}

// readPolicies reads the files of --policy: first those that b was compared with.
func (o *explainFlags) readPolicies(b *evidence.Bundle) (policies []release.Named, err error) {
	known := make([]release.Named, len(b.Policies))
	for _, path := range o.policies {
		text, err := readBounded(path, maxUpload)
		if err != nil {
			return nil, err
		}
		p, err := release.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("read policy %s: %w", path, err)
		}
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		if i := placeOf(b.Policies, known, name, sha256.Sum256(text)); i >= 0 {
			known[i] = release.Named{Name: b.Policies[i].Name, Policy: p}
		} else {
			policies = append(policies, release.Named{Name: name, Policy: p})
		}
	}
	known = slices.DeleteFunc(known, func(p release.Named) bool { return p.Policy == nil })
	return append(known, policies...), nil
}

// placeOf is the index in compared of a policy with this text, -1 without. Of several with
// the same text it is that of the name, or the first that is still to be filled.
func placeOf(compared []evidence.ComparedPolicy, filled []release.Named, name string, sum [sha256.Size]byte) int {
	place := -1
	for i, p := range compared {
		if filled[i].Policy != nil || !bytes.Equal(p.Digest, sum[:]) {
			continue
		}
		if p.Name == name {
			return i
		}
		if place < 0 {
			place = i
		}
	}
	return place
}

// evidenceExplanation is what evidence proves, and what becomes of it.
type evidenceExplanation struct {
	Schema    string           `json:"schema"`
	Device    string           `json:"device"`
	At        time.Time        `json:"at"`
	Authentic bool             `json:"authentic"`
	First     int              `json:"first"`              // entry of the measurement list
	Entries   int              `json:"entries"`            // that the quote covers, from First on
	Compared  []string         `json:"compared,omitempty"` // policies that the verifier compared it with
	Verdict   appraise.Verdict `json:"verdict"`
}

// explain judges a bundle as the verifier does that kept it, or would with the policies of
// ref, which may be nil.
func explain(b *evidence.Bundle, ref *appraise.Reference) (*evidenceExplanation, error) {
	e := &evidenceExplanation{Schema: schemaExplain, Device: b.Device, At: b.At.UTC()}
	for _, p := range b.Policies {
		e.Compared = append(e.Compared, p.Name)
	}
	held := *b
	if ref != nil && b.Asked.Whole() { // of a part other policies are never enough
		held.Terms = ref.Terms()
	}
	claims, _, err := held.Verify()
	if err != nil {
		e.Verdict = appraise.Refused(err)
		return e, nil
	}
	e.Authentic, e.First, e.Entries = true, claims.First(), claims.Covered()-claims.First()
	var before appraise.State
	if len(b.Appraised) > 0 {
		if err := before.UnmarshalBinary(b.Appraised); err != nil {
			return nil, err
		}
	}
	e.Verdict, _, err = appraise.Appraise(claims, ref, before)
	if errors.Is(err, appraise.ErrNeedWhole) {
		e.Verdict, err = appraise.Part(claims, ref), nil
	}
	return e, err
}

func (e *evidenceExplanation) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(e)
	}
	what := "not authentic"
	if e.Authentic {
		what = fmt.Sprintf("authentic, %d %s from entry %d on", e.Entries, entries(e.Entries), e.First)
	}
	fmt.Fprintf(w, "device %s at %s: %s\n", showText(e.Device), e.At.Format(time.RFC3339), what)
	if len(e.Compared) > 0 {
		fmt.Fprintf(w, "the verifier compared it with %s\n", showText(strings.Join(e.Compared, ", ")))
	}
	return printVerdict(w, e.Verdict)
}

func entries(n int) string {
	if n == 1 {
		return "entry"
	}
	return "entries"
}

// err is the error that the program ends with.
func (e *evidenceExplanation) err(path string, ref *appraise.Reference) error {
	switch {
	case !e.Authentic:
		return &exitError{exitNotAuthentic, fmt.Errorf("%s: %w", path, errEvidence)}
	case ref == nil:
		return &exitError{exitNotAcceptable, fmt.Errorf("%s: %w", path, errNoRelease)}
	case e.Verdict.Status != appraise.Trusted:
		return &exitError{exitNotAcceptable, fmt.Errorf("%s: %w", path, errVerdict)}
	}
	return nil
}

// printVerdict prints a verdict, whose text may have come from a device.
func printVerdict(w io.Writer, v appraise.Verdict) error {
	var text bytes.Buffer
	if err := v.WriteText(&text); err != nil {
		return err
	}
	for line := range strings.Lines(text.String()) {
		if _, err := fmt.Fprintln(w, showText(strings.TrimSuffix(line, "\n"))); err != nil {
			return err
		}
	}
	return nil
}
