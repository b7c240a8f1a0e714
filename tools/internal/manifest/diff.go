package manifest

import (
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Kind says how a tree departs from its manifest.
type Kind string

// The kinds of [Finding].
const (
	Added   Kind = "added"   // in the tree only
	Missing Kind = "missing" // in the manifest only
	Changed Kind = "changed" // in both, but not alike
)

// Finding is one path at which the tree departs from the manifest.
type Finding struct {
	Path        string       `json:"path"`
	Kind        Kind         `json:"kind"`
	Differences []Difference `json:"differences,omitempty"` // of a changed file, at least one
}

// Difference is one field of an entry, its values in words for people.
type Difference struct {
	Field string `json:"field"`
	Got   string `json:"got"`
	Want  string `json:"want"`
}

// String reads as in "mode 0755, want 0644".
func (d Difference) String() string {
	return fmt.Sprintf("%s %s, want %s", d.Field, d.Got, d.Want)
}

// Differ compares a tree with a manifest, both in path order, neither held in memory.
type Differ struct {
	dec    *decoder
	file   string
	want   Entry // the manifest's next entry, while more
	more   bool
	last   Entry
	report func(Finding) error
}

// Diff starts a comparison: the caller gives it each entry of the tree with
// [Differ.Add], in order, then calls [Differ.Finish]. Findings go to report, in path
// order; an error of report comes back as it is.
func (m *Manifest) Diff(report func(Finding) error) (*Differ, error) {
	dec, err := newDecoder(m.e.payload(m.s))
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", m.path, err)
	}
	d := &Differ{dec: dec, file: m.path, report: report}
	return d, d.advance()
}

func (d *Differ) advance() error {
	var err error
	d.want, err = d.dec.next()
	d.more = err == nil
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read manifest %s: %w", d.file, err)
	}
	return nil
}

// Add takes the next entry of the tree. Package is not compared, and Verity only if got
// has it; a file whose digests share no algorithm with the manifest's counts as changed.
func (d *Differ) Add(got Entry) error {
	if err := got.follows(&d.last); err != nil {
		return fmt.Errorf("compare %q: %w", got.Path, err)
	}
	d.last = Entry{Path: got.Path, Type: got.Type}
	for d.more && Compare(d.want.Path, got.Path) < 0 {
		if err := d.missing(); err != nil {
			return err
		}
	}
	if !d.more || d.want.Path != got.Path {
		return d.report(Finding{Path: got.Path, Kind: Added})
	}
	if diffs := differences(&got, &d.want); len(diffs) > 0 {
		if err := d.report(Finding{Path: got.Path, Kind: Changed, Differences: diffs}); err != nil {
			return err
		}
	}
	return d.advance()
}

// Finish reports what the tree did not have.
func (d *Differ) Finish() error {
	for d.more {
		if err := d.missing(); err != nil {
			return err
		}
	}
	return nil
}

func (d *Differ) missing() error {
	if err := d.report(Finding{Path: d.want.Path, Kind: Missing}); err != nil {
		return err
	}
	return d.advance()
}

// differences lists what sets got apart from want. Where their types differ the fields
// that belong to a type say nothing more.
func differences(got, want *Entry) []Difference {
	var out []Difference
	add := func(field, g, w string) {
		if g != w {
			out = append(out, Difference{field, orNone(g), orNone(w)})
		}
	}
	add("type", string(got.Type), string(want.Type))
	add("mode", fmt.Sprintf("%04o", got.Mode), fmt.Sprintf("%04o", want.Mode))
	add("uid", fmt.Sprint(got.UID), fmt.Sprint(want.UID))
	add("gid", fmt.Sprint(got.GID), fmt.Sprint(want.GID))
	if got.Type != want.Type {
		return out
	}
	switch want.Type {
	case File:
		add("size", fmt.Sprint(got.Size), fmt.Sprint(want.Size))
		addDigests(&got.Digests, &want.Digests, add)
		add("label", got.Label, want.Label)
		add("keyid", got.KeyID, want.KeyID)
		add("evm", got.EVM, want.EVM)
		if got.Verity != "" && want.Verity != "" {
			add("verity", got.Verity, want.Verity)
		}
		add("capability", got.Capability, want.Capability)
	case Symlink:
		add("target", strconv.Quote(got.Target), strconv.Quote(want.Target))
	case Char, Block:
		add("device", fmt.Sprintf("%d:%d", got.Major, got.Minor), fmt.Sprintf("%d:%d", want.Major, want.Minor))
	}
	return out
}

// addDigests compares the algorithms that both have. Without a common one the content
// was not compared at all, and that must not pass for equal.
func addDigests(got, want *Digests, add func(field, got, want string)) {
	common, first := 0, ""
	for _, k := range digestKinds {
		g, w := *k.of(got), *k.of(want)
		if g != "" && w != "" {
			common++
			add(k.name, g, w)
		}
		if first == "" && w != "" {
			first = k.name
		}
	}
	if common == 0 && first != "" {
		add("digest", "", first)
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
