package policy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// vector is a policy and what kernels say to it.
type vector struct {
	text   string
	expect map[string]string // by version, from which it holds; "" is Linux 6.1
}

// readVector reads testdata/kernel/*.txt: a header, an empty line, a policy. The header
// has "expect: RESULT" for Linux 6.1 and "expect-VERSION: RESULT" where it changes;
// RESULT is ok, "line N" for the line that is refused, or empty for a policy without
// rules. "config:" names what the kernel must be built with.
//
// The results are those of ima_parse_add_rule of each kernel in measured, compiled for
// user space: no result was made by this package.
func readVector(t *testing.T, path string) vector {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	header, text, ok := strings.Cut(string(b), "\n\n")
	if !ok {
		t.Fatalf("%s: no empty line after the header", path)
	}
	v := vector{text, map[string]string{}}
	for line := range strings.Lines(header) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		version, expect := strings.CutPrefix(key, "expect")
		switch {
		case expect:
			v.expect[strings.TrimPrefix(version, "-")] = value
		case key != "config":
			t.Fatalf("%s: unknown header %q", path, line)
		}
	}
	return v
}

// measured are the kernels whose results are in the vectors.
var measured = []string{"4.15", "4.16", "4.17", "4.19", "5.3", "5.4", "5.6", "5.8", "5.9", "5.11", "5.12", "5.14", "5.15", "5.17", "5.19",
	"6.0", "6.1", "6.2", "6.3", "6.5", "6.6", "6.12", "6.13", "6.14", "6.18", "6.19", "7.0", "7.1", "7.2"}

// result is what Parse says, in the words of a vector.
func result(text []byte, kernel Version) string {
	_, err := Parse(text, kernel)
	var errs Errors
	switch {
	case err == nil:
		return "ok"
	case !errors.As(err, &errs):
		return err.Error()
	case errs[0].Line == 0:
		return "empty"
	default:
		return fmt.Sprintf("line %d", errs[0].Line)
	}
}

func TestKernelVectors(t *testing.T) {
	paths, err := filepath.Glob("testdata/kernel/*.txt")
	if err != nil || len(paths) < 100 {
		t.Fatalf("found %d vectors: %v", len(paths), err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			v := readVector(t, path)
			want := ""
			for _, text := range measured {
				if w, ok := v.expect[text]; ok {
					want = w
				}
				kernel, err := ParseVersion(text)
				if err != nil {
					t.Fatal(err)
				}
				if got := result([]byte(v.text), kernel); got != want {
					t.Errorf("Linux %s: got %s, want %s", text, got, want)
				}
				if text == "6.1" && v.expect[""] != want {
					t.Errorf("expect: %s, but expect-6.1 is %s", v.expect[""], want)
				}
			}
		})
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct{ kernel, text, want string }{
		{"6.1", "dont_measure fsmagic=0x9fa0\n\n  dnt_measure  func=X\n", `line 3, column 3: "dnt_measure": no kernel knows this word: is it dont_measure?`},
		{"6.1", "measure  fun=BPRM_CHECK\n", `line 1, column 10: "fun=BPRM_CHECK": no kernel knows this word: is it func?`},
		{"6.1", "measure func=BPRM_CHEC\n", `line 1, column 9: "func=BPRM_CHEC": no kernel knows this hook: is it BPRM_CHECK?`},
		{"6.1", "measure func=WHATEVER\n", `line 1, column 9: "func=WHATEVER": no kernel knows this hook`},
		{"6.1", "measure func=\n", `line 1, column 9: "func=": func needs a value: func=...`},
		{"6.1", "measure func>X\n", `line 1, column 9: "func>X": func takes no >`},
		{"5.15", "measure\tgid=0\n", `line 1, column 9: "gid=0": Linux 5.15 does not know it, 5.16 is the first that does`},
		{"4.4", "measure uid>0\n", `line 1, column 9: "uid>0": Linux 4.4 does not know it, 4.11 is the first that does`},
		{"6.1", "measure # all\n", `line 1, column 9: "#": a comment needs a line of its own before Linux 6.14, and this is for 6.1`},
		{"6.1", "appraise appraise_type=sigv3\n", `line 1, column 10: "appraise_type=sigv3": digest_type=verity must stand before appraise_type=sigv3 before Linux 7.1, and this is for 6.1`},
		{"6.1", "appraise func=MODULE_CHECK pcr=10\n", `line 1, column 28: "pcr=10": only a measure rule can have it`},
		{"6.1", "measure func=KEY_CHECK subj_user=x\n", `line 1, column 24: "subj_user=x": a rule for func=KEY_CHECK cannot have it`},
		{"6.1", "measure keyrings=.ima\n", `line 1, column 9: "keyrings=.ima": a rule without func= cannot have it`},
		{"6.1", "measure template=ima-sigv3\n", `line 1, column 9: "template=ima-sigv3": no kernel has this template: is it ima-sigv2?`},
		{"6.1", "func=BPRM_CHECK\n", `line 1: the rule has no action`},
		{"6.1", "measure\r\n", `line 1, column 1: "measure\r": the line ends in a carriage return, which the kernel takes for a part of the word`},
		{"6.1", "measure fsname=a\x00b\n", `line 1, column 17: "\x00": the kernel takes a NUL byte for the end of the policy`},
		{"6.1", "x\ny\nz\n", `line 1, column 1: "x": no kernel knows this word (and 2 more)`},
		{"6.1", "# nothing\n", `there is no rule in it: the kernel refuses an empty policy`},
		{"6.1", "", `there is no rule in it: the kernel refuses an empty policy`},
		{"6.1", strings.Repeat("#", MaxSize+1), `policy is larger than 1048576 bytes`},
	} {
		kernel, err := ParseVersion(c.kernel)
		if err != nil {
			t.Fatal(err)
		}
		p, err := Parse([]byte(c.text), kernel)
		if err == nil || err.Error() != c.want || p != nil {
			t.Errorf("%q: got %v, %v\nwant %s", c.text, p, err, c.want)
		}
	}
}

func TestString(t *testing.T) {
	for _, c := range []struct{ kernel, text, want string }{
		{"6.1", "mask=MAY_EXEC measure  func=FILE_MMAP", "measure func=MMAP_CHECK mask=MAY_EXEC"},
		{"6.1", "measure fsmagic=9FA0 uid>007 mask=^MAY_READ", "measure mask=^MAY_READ fsmagic=0x9fa0 uid>7"},
		{"6.1", "appraise fsuuid=8BCBE394-4F13-4144-BE8E-5AA9EA2CE2F6zz appraise_algos=sha512,sha256,sha512",
			"appraise fsuuid=8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6 appraise_algos=sha256,sha512"},
		{"6.1", "measure template=d-ng|n-ng pcr=+11 obj_type=t gid<5 fgroup=1", "measure pcr=11 gid<5 fgroup=1 obj_type=t template=d-ng|n-ng"},
		{"6.1", "appraise digest_type=verity appraise_type=sigv3 permit_directio", "appraise digest_type=verity appraise_type=sigv3 permit_directio"},
		{"7.2", "appraise appraise_type=imasig digest_type=verity", "appraise appraise_type=imasig digest_type=verity"},
		{"7.2", "appraise func=MODULE_CHECK appraise_type=imasig|modsig appraise_type=sigv3 appraise_flag=x", "appraise func=MODULE_CHECK appraise_type=imasig|modsig appraise_type=sigv3"},
		{"6.1", "appraise func=MODULE_CHECK appraise_flag=check_blacklist appraise_type=imasig|modsig", "appraise func=MODULE_CHECK appraise_type=imasig|modsig appraise_flag=check_blacklist"},
		{"6.19", "measure fs_subtype=sshfs fsname=fuse # remote", "measure fsname=fuse fs_subtype=sshfs"},
		{"6.1", "measure func=CRITICAL_DATA label=a|b", "measure func=CRITICAL_DATA label=a|b"},
		{"6.1", "measure func=KEY_CHECK keyrings=.ima|.evm", "measure func=KEY_CHECK keyrings=.ima|.evm"},
	} {
		kernel, _ := ParseVersion(c.kernel)
		p, err := Parse([]byte(c.text+"\n"), kernel)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if got := p.Rules()[0].String(); got != c.want {
			t.Errorf("%q: got %q, want %q", c.text, got, c.want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for in, want := range map[string]Version{"6.1": {6, 1}, "6.1.192": {6, 1}, "v7.2": {7, 2}, "6.12.57+deb13-amd64": {6, 12}, "5.15-rc3": {5, 15}, "9.0": {9, 0}} {
		if got, err := ParseVersion(in); got != want || err != nil {
			t.Errorf("%q: got %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "6", "6.", ".1", "6.x", "6.1x", "-6.1", "4.3", "6.1000", "6 .1"} {
		if got, err := ParseVersion(in); err == nil {
			t.Errorf("%q: got %v", in, got)
		}
	}
}

func TestOldestFor(t *testing.T) {
	for text, want := range map[string]Version{
		"measure func=BPRM_CHECK\n":                     {4, 4},
		"measure func=KEXEC_CMDLINE\n":                  {5, 3},
		"measure\ndont_hash fsmagic=1\nhash\n":          {4, 16},
		"appraise appraise_type=sigv3\n":                {7, 1},
		"measure # comment\n":                           {6, 14},
		"dont_audit func=BPRM_CHECK\n":                  {6, 19},
		"measure func=MMAP_CHECK_REQPROT gid=0\n":       {6, 3},
		"appraise func=BPRM_CHECK appraise_algos=sm3\n": {5, 15},
	} {
		if got, ok := OldestFor([]byte(text)); got != want || !ok {
			t.Errorf("%q: got %v, %v, want %v", text, got, ok, want)
		}
	}
	if got, ok := OldestFor([]byte("nonsense\n")); ok {
		t.Errorf("got %v for nonsense", got)
	}
}

// FuzzParse: what is read can be written, byte for byte, and each rule in the kernel's
// own words is the same rule again.
func FuzzParse(f *testing.F) {
	paths, err := filepath.Glob("testdata/kernel/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		_, text, _ := strings.Cut(string(b), "\n\n")
		f.Add([]byte(text), uint8(6), uint8(1))
		f.Add([]byte(text), uint8(7), uint8(2))
	}
	f.Fuzz(func(t *testing.T, text []byte, major, minor uint8) {
		kernel := Version{int(major), int(minor)}
		p, err := Parse(text, kernel)
		if err != nil {
			if p != nil {
				t.Fatalf("kept a policy with %v", err)
			}
			return
		}
		if got := p.Append(nil); string(got) != string(text) {
			t.Fatalf("wrote back %q", got)
		}
		for _, r := range p.Rules() {
			again, err := Parse([]byte(r.String()+"\n"), kernel)
			if err != nil {
				t.Fatalf("%q: %v", r, err)
			}
			if got := again.Rules()[0].String(); got != r.String() {
				t.Fatalf("%q became %q", r, got)
			}
		}
		Check(text, Options{Kernel: kernel})
	})
}
