package manifest

import (
	"crypto/x509"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// compare writes want as a manifest and compares got with it.
func compare(t testing.TB, id identity, want, got []Entry) []Finding {
	t.Helper()
	path := filepath.Join(t.TempDir(), "i.attest.json")
	write(t, path, id, want)
	m, err := Open(path, []*x509.Certificate{id.cert})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var out []Finding
	d, err := m.Diff(func(f Finding) error { out = append(out, f); return nil })
	for i := 0; err == nil && i < len(got); i++ {
		err = d.Add(got[i])
	}
	if err == nil {
		err = d.Finish()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDiffFields(t *testing.T) {
	id := newP256(t, "id")
	file := Entry{
		Path: "f", Type: File, Mode: 0o644, Size: 5, Digests: Digests{SHA256: sum256, SHA512: sum512},
		Label: "sigv2", KeyID: "6aa320f1", EVM: "portable", Verity: "sha256:" + sum256, Capability: "01", Package: "p",
	}
	link := Entry{Path: "l", Type: Symlink, Mode: 0o777, Target: "f"}
	null := Entry{Path: "n", Type: Char, Mode: 0o666, Major: 1, Minor: 3}
	zeros := strings.Repeat("00", 32)
	for _, tt := range []struct {
		name string
		e    Entry
		edit func(*Entry)
		want []string
	}{
		{"same", file, func(*Entry) {}, nil},
		{"mode", file, func(e *Entry) { e.Mode = 0o4755 }, []string{"mode 4755, want 0644"}},
		{"owner", file, func(e *Entry) { e.UID, e.GID = 1000, 100 }, []string{"uid 1000, want 0", "gid 100, want 0"}},
		{"size", file, func(e *Entry) { e.Size = 6 }, []string{"size 6, want 5"}},
		{"content", file, func(e *Entry) { e.Digests = Digests{SHA256: zeros} }, []string{"sha256 " + zeros + ", want " + sum256}},
		{"other digest only", file, func(e *Entry) { e.Digests = Digests{SHA512: sum512} }, nil},
		{"no common digest", file, func(e *Entry) { e.Digests = Digests{SHA384: sum384} }, []string{"digest none, want sha256"}},
		{"no digest", file, func(e *Entry) { e.Digests = Digests{} }, []string{"digest none, want sha256"}},
		{"label lost", file, func(e *Entry) { e.Label, e.KeyID = "", "" }, []string{"label none, want sigv2", "keyid none, want 6aa320f1"}},
		{"other key", file, func(e *Entry) { e.KeyID = "00000000" }, []string{"keyid 00000000, want 6aa320f1"}},
		{"evm lost", file, func(e *Entry) { e.EVM = "" }, []string{"evm none, want portable"}},
		{"verity not known", file, func(e *Entry) { e.Verity = "" }, nil},
		{"verity", file, func(e *Entry) { e.Verity = "sha256:" + zeros }, []string{"verity sha256:" + zeros + ", want sha256:" + sum256}},
		{"capability", file, func(e *Entry) { e.Capability = "" }, []string{"capability none, want 01"}},
		{"package not known", file, func(e *Entry) { e.Package = "" }, nil},
		{"type", file, func(e *Entry) { *e = link; e.Path = "f" }, []string{"type symlink, want file", "mode 0777, want 0644"}},
		{"target", link, func(e *Entry) { e.Target = "\x1b[2J\xff" }, []string{`target "\x1b[2J\xff", want "f"`}},
		{"device", null, func(e *Entry) { e.Minor = 5 }, []string{"device 1:5, want 1:3"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := tt.e
			tt.edit(&e)
			var got []string
			for _, f := range compare(t, id, []Entry{tt.e}, []Entry{e}) {
				if f.Path != e.Path || f.Kind != Changed {
					t.Errorf("%s is %s", f.Path, f.Kind)
				}
				for _, d := range f.Differences {
					got = append(got, d.String())
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestDiffMerge compares the streaming merge with sets.
func TestDiffMerge(t *testing.T) {
	id := newP256(t, "id")
	rapid.Check(t, func(rt *rapid.T) {
		all := entries().Draw(rt, "entries")
		var want, got []Entry
		var findings []Finding
		for _, e := range all {
			switch rapid.SampledFrom([]string{"same", "changed", "added", "missing"}).Draw(rt, "fate") {
			case "same":
				want, got = append(want, e), append(got, e)
			case "changed":
				c := e
				c.GID++
				want, got = append(want, e), append(got, c)
				findings = append(findings, Finding{e.Path, Changed, differences(&c, &e)})
			case "added":
				got = append(got, e)
				findings = append(findings, Finding{Path: e.Path, Kind: Added})
			case "missing":
				want = append(want, e)
				findings = append(findings, Finding{Path: e.Path, Kind: Missing})
			}
		}
		if diff := cmp.Diff(findings, compare(t, id, want, got)); diff != "" {
			rt.Fatal(diff)
		}
	})
}

func TestDiffStops(t *testing.T) {
	id := newP256(t, "id")
	path := filepath.Join(t.TempDir(), "i.attest.json")
	write(t, path, id, example)
	m, err := Open(path, []*x509.Certificate{id.cert})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	full := errors.New("report is full")
	for name, do := range map[string]func(*Differ) error{
		"missing on Add":    func(d *Differ) error { return d.Add(example[3]) },
		"missing on Finish": (*Differ).Finish,
		"added":             func(d *Differ) error { return d.Add(Entry{Path: "a", Type: File}) },
		"changed":           func(d *Differ) error { return d.Add(Entry{Path: "bin", Type: Dir}) },
	} {
		d, err := m.Diff(func(Finding) error { return full })
		if err != nil {
			t.Fatal(err)
		}
		if err := do(d); !errors.Is(err, full) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for want, es := range map[string][]Entry{
		`compare "bin": path is not in order`: {example[1], example[0]},
		`compare "bin": path is listed twice`: {example[0], example[0]},
		`compare "bin/sh": path lies below`:   {{Path: "bin", Type: File}, {Path: "bin/sh", Type: File}},
	} {
		d, err := m.Diff(func(Finding) error { return nil })
		if err == nil {
			err = d.Add(es[0])
		}
		if err != nil {
			t.Fatal(err)
		}
		checkErr(t, d.Add(es[1]), want)
	}
}
