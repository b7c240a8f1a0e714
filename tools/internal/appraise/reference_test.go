package appraise

import (
	"errors"
	"iter"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
)

func TestParseRules(t *testing.T) {
	for text, want := range map[string]string{
		"weak = true":                                    `r.toml:1: unknown key "weak"`,
		"exclude = [{path = \"var\"}]":                   "must start with a slash",
		"exclude = [{path = \"/[\"}]":                    "not a valid pattern",
		"exclude = [{path = \"/**\"}]":                   "leaves nothing to be judged",
		"exclude = [{}]":                                 "exclude 1 has no path",
		"violations = \"ignore\"":                        "use fail or warn",
		"violation = [{path = \"/a\"}]":                  "needs both",
		"signature = [{path = \"/a\"}]":                  "needs both",
		"buffer = [{name = \".ima\"}]":                   "either any",
		"buffer = [{name = \"/a\", any = true}]":         "not that of an event",
		"pcr = [{index = 10, values = [\"sha256:00\"]}]": "other than IMA's",
		"pcr = [{index = 24, values = [\"sha256:00\"]}]": "an index of 0 to 23",
		"pcr = [{index = 7}]":                            "and values",
		"bank = \"sha1\"":                                "weak",
		"bank = \"md5\"":                                 "unknown",
		"padding = \"before-5.8\"":                       "as weak as SHA-1",
		"weak_digests = true\npadding = \"yes\"":         "use before-5.8 or no-hash",
		"ima_pcrs = [7]":                                 "each of 8 to 15",
		"ima_pcrs = [16]":                                "each of 8 to 15",
		"ima_pcrs = [11, 11]":                            "each of 8 to 15",
		"ima_pcrs = [11]\npcr = [{index = 11, values = [\"sha256:00\"]}]": "other than IMA's",
		"required = [\"a\"]": "must start with a slash",
	} {
		if _, err := ParseRules("r.toml", text); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "r.toml:") {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestCompileErrors(t *testing.T) {
	broken := func(yield func(manifest.Entry, error) bool) { yield(manifest.Entry{}, errors.New("unreadable")) }
	many := make([]Release, maxReleases+1)
	for i := range many {
		many[i] = release(strings.Repeat("x", i+1), "a", "a", "")
	}
	for name, tt := range map[string]struct {
		rules    string
		releases []Release
		want     string
	}{
		"two of a name":       {"", []Release{one, one}, "another has the same"},
		"no name":             {"", []Release{release("", "a", "a", "")}, "has no name"},
		"too many":            {"", many, "at most 64"},
		"nothing in it":       {"", []Release{release("x")}, "no digest of any file"},
		"unreadable":          {"", []Release{{Name: "x", Files: []iter.Seq2[manifest.Entry, error]{broken}}}, "release x: unreadable"},
		"unknown release":     {`pcr = [{index = 1, release = "9", values = ["sha256:` + strings.Repeat("00", 32) + `"]}]`, []Release{one}, "not one of the allowed"},
		"bad value":           {`pcr = [{index = 1, values = ["sha256:00"]}]`, []Release{one}, "64 hexadecimal digits"},
		"weak value":          {`pcr = [{index = 1, values = ["sha1:` + strings.Repeat("00", 20) + `"]}]`, []Release{one}, "weak"},
		"no certificate":      {`signature = [{path = "/a", certificates = ["x"]}]`, []Release{one}, "not one certificate"},
		"required of no file": {`required = ["/usr/bin/new"]`, []Release{one, two}, "not in release 1.0"},
	} {
		r, err := ParseRules("r.toml", tt.rules)
		if err != nil {
			t.Fatal(err)
		}
		if ref, err := Compile(r, tt.releases...); err == nil || ref != nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDigest: whatever changes the judgement changes the address.
func TestDigest(t *testing.T) {
	pcr := `pcr = [{index = 1, values = ["sha256:` + strings.Repeat("00", 32) + `"]}]`
	seen := map[[32]byte]string{}
	for name, ref := range map[string]*Reference{
		"one":          compile(t, "", one),
		"two":          compile(t, "", two),
		"both":         compile(t, "", one, two),
		"other name":   compile(t, "", Release{Name: "1.1", Files: one.Files}),
		"other bytes":  compile(t, "", release("1.0", "a", "b", "c")),
		"other path":   compile(t, "", release("1.0", "b", "b", "c")),
		"package":      compile(t, "", release("1.0", "a", "b", "d")),
		"rule":         compile(t, "kexec = true", one),
		"pin":          compile(t, pcr, one),
		"pin of one":   compile(t, strings.Replace(pcr, "{", `{release = "1.0", `, 1), one),
		"keylime":      compile(t, "", Release{Name: "k", Keylime: []byte(goodPolicy)}),
		"keylime rule": compile(t, "", Release{Name: "k", Keylime: []byte(strings.Replace(goodPolicy, `"excludes":[]`, `"excludes":["/tmp"]`, 1))}),
		"ignored":      compile(t, "", Release{Name: "k", Keylime: []byte(strings.Replace(goodPolicy, `"ignored_keyrings":[]`, `"ignored_keyrings":[".x"]`, 1))}),
		"tpm policy":   compile(t, "", Release{Name: "k", Keylime: []byte(goodPolicy), TPMPolicy: []byte(`{"7":"` + strings.Repeat("00", 32) + `"}`)}),
	} {
		if other, ok := seen[ref.Digest()]; ok {
			t.Errorf("%s and %s have the same digest", name, other)
		}
		seen[ref.Digest()] = name
	}
	if compile(t, "", one, two).Digest() != compile(t, "", two, one).Digest() {
		t.Error("the digest depends on the order")
	}
}

func TestSelection(t *testing.T) {
	base := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	ref := compile(t, `weak_digests = true
pcr = [{index = 11, values = ["sha256:`+strings.Repeat("00", 32)+`", "sha384:`+strings.Repeat("00", 48)+`"]}]`, one)
	if diff := cmp.Diff(evidence.Selection{"sha256": append(base, 11), "sha384": {11}}, ref.Selection()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(evidence.Selection{"sha256": append(base, 11), "sha384": {11}, "sha1": base[:8]}, ref.Selection("sha1", "sha256")); diff != "" {
		t.Error(diff)
	}
	// A PCR that is pinned in a weak bank is quoted in the other one, too.
	ref = compile(t, `weak_digests = true
ima_pcrs = [10, 12]
pcr = [{index = 14, values = ["sha1:`+strings.Repeat("00", 20)+`"]}]`, one)
	if diff := cmp.Diff(evidence.Selection{"sha256": append(base, 12, 14), "sha1": {14}}, ref.Selection()); diff != "" {
		t.Error(diff)
	}
	if terms := ref.Terms(); !terms.Equal(evidence.Terms{IMAPCRs: []int{10, 12}}) {
		t.Errorf("%+v", terms)
	}
}

func TestWarnings(t *testing.T) {
	const log = `exclude = [{path = "/srv/data/*.log"}]`
	pinned := compile(t, log, Release{Name: "k", Keylime: []byte(goodPolicy), TPMPolicy: []byte(`{"4": "` + strings.Repeat("00", 32) + `"}`)})
	for _, w := range [][]string{compile(t, log+"\nfirmware.secure_boot = true", one).Warnings(), pinned.Warnings()} {
		if len(w) != 0 {
			t.Error(w)
		}
	}
	for rules, want := range map[string]string{
		`exclude = [{path = "/usr/**"}]`:                    "exclude /usr/**: what runs from /usr/bin is not judged",
		`exclude = [{path = "/tmp/**"}]`:                    "exclude /tmp/**: whoever may write to /tmp runs programs unseen",
		`violation = [{path = "/var/**", action = "warn"}]`: "violation /var/**: no PCR proves",
		`violations = "warn"`:                               "violations",
		log:                                                 "nothing says which kernel was booted",
		`weak_digests = true`:                               "weak_digests",
		"weak_digests = true\nbank = \"sha1\"":              "two measurement lists can be made",
		`buffer = [{name = ".ima", any = true}]`:            "any key may be added",
	} {
		if w := strings.Join(compile(t, rules, one).Warnings(), "\n"); !strings.Contains(w, want) {
			t.Errorf("%s: %s", rules, w)
		}
	}
}

// TestStateStrict: one change each to a state that is read.
func TestStateStrict(t *testing.T) {
	ref := compile(t, "", one, two)
	d := newDevice(t)
	d.file("/usr/bin/bash", content("bash 1"))
	_, s := judged(t, d.attest(0), ref, State{})
	good, err := s.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{`"version":1`, `"version":2`}, {`"version":1`, `"version":1,"more":1`}, {`"version"`, `"Version"`}, {`"fits":1`, `"fits":3`}, {`"fits":1`, `"fits":0`},
		{`"fits":1`, `"fits":5`}, {`"left":[-1,1]`, `"left":[-1,-1]`}, {`"left":[-1,1]`, `"left":[-1,9]`}, {`"left":[-1,1]`, `"left":[-1]`},
		{`"misfits":[0,1]`, `"misfits":[0,0]`}, {`"secureBoot":""`, `"secureBoot":"maybe"`}, {`"next":2`, `"next":-1`}, {`"entry":1`, `"entry":2`}, {`{"version"`, ` {"version"`}, {`}}`, `}} `}, {`}}`, `}`},
	} {
		text := strings.Replace(string(good), change[0], change[1], 1)
		if text == string(good) {
			t.Fatalf("%s is not in %s", change[0], good)
		}
		var got State
		if err := got.UnmarshalBinary([]byte(text)); err == nil || !cmp.Equal(got, State{}, cmp.AllowUnexported(State{}, state{})) {
			t.Errorf("%s for %s was read", change[1], change[0])
		}
	}
	b, err := State{}.MarshalBinary()
	if err == nil {
		err = new(State).UnmarshalBinary(b)
	}
	if err != nil {
		t.Error(err)
	}
}

// FuzzState: what is read is written back, and no state makes a boot trusted that is not,
// or breaks an appraisal, whatever claims come next.
func FuzzState(f *testing.F) {
	r, err := ParseRules("r.toml", `exclude = [{path = "/var/**"}]`)
	if err != nil {
		f.Fatal(err)
	}
	ref, err := Compile(r, one, two)
	if err != nil {
		f.Fatal(err)
	}
	d := newDevice(f)
	d.file("/usr/bin/bash", content("bash 1"))
	_, s := judged(f, d.attest(0), ref, State{})
	d.file("/tmp/evil", content("evil"))
	_, bad := judged(f, d.attest(-1), ref, s)
	for _, s := range []State{{}, s, bad} {
		b, err := s.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	d.file("/tmp/evil2", content("evil"))
	c := d.attest(-1)
	f.Fuzz(func(t *testing.T, b []byte) {
		var s State
		if s.UnmarshalBinary(b) != nil {
			return
		}
		again, err := s.MarshalBinary()
		if err != nil || string(again) != string(b) {
			t.Fatalf("%s is written back as %s, %v", b, again, err)
		}
		v, next, err := Appraise(c, ref, s)
		if v.Status == Trusted || err != nil && !errors.Is(err, ErrNeedWhole) {
			t.Fatalf("%s, %v", told(v), err)
		}
		if b, err = next.MarshalBinary(); err != nil || new(State).UnmarshalBinary(b) != nil {
			t.Fatalf("%s is not read again, %v", b, err)
		}
	})
}

func FuzzRules(f *testing.F) {
	f.Add("weak_digests = true\nexclude = [{path = \"/var/**\"}]\nbuffer = [{name = \".ima\", any = true}]\n")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRules("r.toml", text)
		if err != nil {
			return
		}
		if ref, err := Compile(r, one, two); err == nil {
			_, _ = ref.Warnings(), ref.Selection("sha1")
		}
	})
}
