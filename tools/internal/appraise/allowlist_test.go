package appraise

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meta-attest/meta-attest/tools/internal/manifest"
)

// TestSumsOfCoreutils: what sha256sum writes of odd names comes back as it wrote it.
func TestSumsOfCoreutils(t *testing.T) {
	dir := t.TempDir()
	script := `printf 1 >plain; printf 2 >'two words'; printf 3 >'back\slash'; printf 4 >"$(printf 'new\nline')"; printf 5 >.hidden
find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum`
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", script)
	cmd.Dir = dir
	text, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	a, err := ReadSums(text)
	if err != nil {
		t.Fatal(err)
	}
	if got := a.Digests["/new\nline"]; len(a.Digests) != 5 || len(got) != 1 || got[0] != "4b227777d4dd1fc61c6f884f48641d02b4d121d3fd328cb08b5531fcacdabf8a" {
		t.Errorf("%q", a.Digests)
	}
	var out bytes.Buffer
	if err := a.WriteSums(&out); err != nil {
		t.Fatal(err)
	}
	check := exec.CommandContext(t.Context(), "sha256sum", "--check", "--strict", "--quiet")
	check.Dir, check.Stdin = dir, strings.NewReader(strings.ReplaceAll(out.String(), "  /", "  ./"))
	if msg, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v: %s\n%s", err, msg, out.String())
	}
}

func TestReadSumsRefuses(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	for text, want := range map[string]string{
		"":                             "it is empty",
		"\n":                           "line 1",
		sum + "  ok\n" + sum + " bad":  "line 2",
		strings.ToUpper(sum) + "  a\n": "lower-case",
		sum[2:] + "  a\n":              "line 1",
		sum + "  a/../b\n":             `component ".."`,
		sum + "  //b\n":                `component ""`,
		`\` + sum + "  a\\t\n":         "unknown escape",
		`\` + sum + "  a\\\n":          "unknown escape",
	} {
		if _, err := ReadSums([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// TestRuntimePolicy: a manifest as Keylime's policy judges as the manifest does.
func TestRuntimePolicy(t *testing.T) {
	var a Allowlist
	if err := a.AddManifest(files("usr/bin/ls", "ls", "coreutils", "opt/my app/a", "app", ""), "sha256"); err != nil {
		t.Fatal(err)
	}
	a.Excludes = []string{"/var/lib/app/"}
	var text bytes.Buffer
	if err := a.WriteRuntimePolicy(&text, time.Unix(1_700_000_000, 0)); err != nil {
		t.Fatal(err)
	}
	back, lost, err := ReadRuntimePolicy(text.Bytes())
	if err != nil || lost != nil {
		t.Fatal(lost, err)
	}
	want := Allowlist{Digests: map[string][]string{"/usr/bin/ls": {hex.EncodeToString(content("ls"))}, "/opt/my_app/a": {hex.EncodeToString(content("app"))}}, Excludes: a.Excludes}
	if d := cmp.Diff(want, *back); d != "" {
		t.Error(d)
	}
	ref := compile(t, "", Release{Name: "1", Keylime: text.Bytes()})
	d := newDevice(t)
	d.file("/usr/bin/ls", content("ls"))
	d.file("/opt/my_app/a", content("app"))
	d.file("/var/lib/app/x", content("x"))
	if v, _ := judged(t, d.attest(0), ref, State{}); told(v) != "trusted 1" || v.Counts.Excluded != 1 {
		t.Errorf("%s %+v", told(v), v.Counts)
	}

	if err := a.AddManifest(files("a", "a", ""), "sha512"); err == nil || !strings.Contains(err.Error(), `has no digest "sha512"`) {
		t.Error(err)
	}
	bad := Allowlist{Digests: map[string][]string{"/\xff": want.Digests["/usr/bin/ls"]}}
	if err := bad.WriteRuntimePolicy(&text, time.Time{}); err == nil || !strings.Contains(err.Error(), "not UTF-8") {
		t.Error(err)
	}
	errBroken := errors.New("broken")
	broken := func(yield func(manifest.Entry, error) bool) { yield(manifest.Entry{}, errBroken) }
	if err := a.AddManifest(broken, "sha256"); !errors.Is(err, errBroken) {
		t.Error(err)
	}
}

// FuzzReadSums: what was read is written so that it reads the same.
func FuzzReadSums(f *testing.F) {
	sum := strings.Repeat("0a", 32)
	f.Add([]byte(sum + "  ./a\n" + `\` + sum + "  b\\\\\\n\n"))
	f.Add([]byte(strings.Repeat("0b", 20) + " *a b\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := ReadSums(text)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := a.WriteSums(&out); err != nil {
			t.Fatal(err)
		}
		again, err := ReadSums(out.Bytes())
		if err != nil || !cmp.Equal(a, again) {
			t.Errorf("%v: %q became %q", err, text, out.String())
		}
	})
}
