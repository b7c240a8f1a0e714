package appraise

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// happened draws what a device did: files of three releases, copies, strangers, violations
// and keys. Few names, so that mixtures come often.
type happened struct{ kind, file, text int }

func (h happened) measure(d *device) {
	path := []string{"/usr/bin/a", "/usr/bin/b", "/usr/bin/c", "/var/d", "/sysroot/usr/bin/a"}[h.file]
	switch h.kind {
	case 8:
		d.violation(path)
	case 9:
		d.buffer([]string{".ima", "kexec-cmdline"}[h.file%2], []byte(fmt.Sprint(h.text)))
	default:
		d.file(path, content(fmt.Sprint(h.text)))
	}
}

func draw(t *rapid.T) []happened {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) happened {
		return happened{rapid.IntRange(0, 9).Draw(t, "kind"), rapid.IntRange(0, 4).Draw(t, "file"), rapid.IntRange(0, 3).Draw(t, "text")}
	}), 0, 12).Draw(t, "entries")
}

// allowed draws releases: which of four contents each file has.
func allowed(t *rapid.T) []Release {
	n := rapid.IntRange(1, 4).Draw(t, "releases")
	var all []Release
	for i := range n {
		var list []string
		for f, path := range []string{"usr/bin/a", "usr/bin/b", "usr/bin/c"} {
			list = append(list, path, fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "content")), fmt.Sprint("package", f))
		}
		all = append(all, release(fmt.Sprint("r", i), list...))
	}
	return all
}

func reference(t *rapid.T, releases []Release) *Reference {
	rules := Rules{Kexec: rapid.Bool().Draw(t, "kexec")}
	if rapid.Bool().Draw(t, "lax") {
		rules.Excludes = []Exclude{{"/var/**/*"}}
		rules.Relocated = []Glob{"/sysroot/**/*"}
		rules.Violations = Warn
		rules.Buffers = []BufferRule{{Name: ".ima", Any: true}}
	}
	ref, err := Compile(rules, releases...)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// polls attests after every so many entries, and returns each verdict. The state goes
// through its encoding.
func polls(t *rapid.T, ref *Reference, entries []happened, after []bool) []Verdict {
	d := newDevice(t)
	var s State
	var verdicts []Verdict
	for i, h := range entries {
		h.measure(d)
		if i == len(entries)-1 || after[i] {
			v, next, err := Appraise(d.attest(-1), ref, s)
			if err != nil {
				t.Fatal(err)
			}
			b, err := next.MarshalBinary()
			if err == nil {
				s = State{}
				err = s.UnmarshalBinary(b)
			}
			if err != nil {
				t.Fatal(err)
			}
			verdicts = append(verdicts, v)
		}
	}
	return verdicts
}

// TestPolls: however a list is cut into polls, the last verdict is that of the whole list;
// and a boot that was lost stays so.
func TestPolls(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ref := reference(t, allowed(t))
		entries := draw(t)
		if len(entries) == 0 {
			return
		}
		cuts := rapid.SliceOfN(rapid.Bool(), len(entries), len(entries)).Draw(t, "polls")
		whole := polls(t, ref, entries, make([]bool, len(entries)))
		parts := polls(t, ref, entries, cuts)
		if diff := cmp.Diff(whole[0], parts[len(parts)-1]); diff != "" {
			t.Fatalf("-whole +parts\n%s", diff)
		}
		for i := 1; i < len(parts); i++ {
			if parts[i-1].Status == Untrusted && parts[i].Status != Untrusted {
				t.Fatalf("%s, then %s", told(parts[i-1]), told(parts[i]))
			}
			if parts[i].Status == Trusted && parts[i-1].Status == Trusted {
				for _, name := range parts[i].Releases {
					if !slices.Contains(parts[i-1].Releases, name) {
						t.Fatalf("%s fits again", name)
					}
				}
			}
		}
	})
}

// TestOracle: the verdict is that of the plainest reading of the rules.
func TestOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		releases := allowed(t)
		ref := reference(t, releases)
		entries := draw(t)
		if len(entries) == 0 {
			return
		}
		var fits []string
		for _, r := range releases {
			if fitsAll(r, ref.rules, entries) {
				fits = append(fits, r.Name)
			}
		}
		v := polls(t, ref, entries, make([]bool, len(entries)))[0]
		if !slices.Equal(v.Releases, fits) || (v.Status == Untrusted) != (len(fits) == 0) {
			t.Fatalf("%s fits %v, want %v", told(v), v.Releases, fits)
		}
		measured := slices.ContainsFunc(entries, func(h happened) bool {
			return h.kind < 8 && (h.file < 3 || h.file == 4 && len(ref.rules.Relocated) > 0)
		})
		if len(fits) > 0 && (v.Status == Trusted) != measured {
			t.Fatalf("%s, files measured: %v", told(v), measured)
		}
	})
}

func fitsAll(r Release, rules Rules, entries []happened) bool {
	lax := len(rules.Excludes) > 0
	has := func(file, text int) (found bool) {
		for e := range r.Files[0] {
			sum := fmt.Sprintf("%x", content(fmt.Sprint(text)))
			if e.Digests.SHA256 == sum && (file < 0 || e.Path == []string{"usr/bin/a", "usr/bin/b", "usr/bin/c", "", ""}[file]) {
				found = true
			}
		}
		return found
	}
	for _, h := range entries {
		ok := false
		switch {
		case h.kind == 8:
			ok = lax
		case h.kind == 9:
			ok = lax && h.file%2 == 0
		case h.file == 3:
			ok = lax
		case h.file == 4:
			ok = lax && has(-1, h.text)
		default:
			ok = has(h.file, h.text)
		}
		if !ok {
			return false
		}
	}
	return true
}

// TestOrderOfReleases is of no importance, for the digest neither.
func TestOrderOfReleases(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		releases := allowed(t)
		shuffled := rapid.Permutation(releases).Draw(t, "order")
		a, err := Compile(Rules{}, releases...)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Compile(Rules{}, shuffled...)
		if err != nil {
			t.Fatal(err)
		}
		entries := draw(t)
		if a.Digest() != b.Digest() {
			t.Fatal("another digest")
		}
		if len(entries) == 0 {
			return
		}
		cut := make([]bool, len(entries))
		if diff := cmp.Diff(polls(t, a, entries, cut), polls(t, b, entries, cut)); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestEmptyNeverTrusted: with no release, or after entries none of which a release has.
func TestEmptyNeverTrusted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries := draw(t)
		if len(entries) == 0 {
			return
		}
		for _, releases := range [][]Release{nil, {release("r", "other", "other", "")}} {
			rules := Rules{Violations: Warn, Excludes: []Exclude{{"/var/**/*"}}, Buffers: []BufferRule{{Name: ".ima", Any: true}, {Name: "kexec-cmdline", Any: true}}}
			ref, err := Compile(rules, releases...)
			if err != nil {
				t.Fatal(err)
			}
			d := newDevice(t)
			for _, h := range entries {
				h.measure(d)
			}
			if v, _, _ := Appraise(d.attest(0), ref, State{}); v.Status == Trusted {
				t.Fatal(told(v))
			}
		}
	})
}
