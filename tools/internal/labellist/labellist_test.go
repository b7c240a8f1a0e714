package labellist

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Values in the shape of a digest and of a portable signature.
var (
	imaValue = []byte("\x04\x04" + strings.Repeat("d", 32))
	evmValue = []byte("\x05\x02\x04\x6a\xa3\x20\xf1\x00\x03sig")
)

var example = []Entry{
	{Path: "DEBIAN/postinst", IMA: imaValue},
	{Path: "usr/bin/program", IMA: imaValue, EVM: evmValue},
	{Path: "usr/share/new\nline and back\\slash", IMA: imaValue},
	{Path: "var/lib/program/\xff"},
}

func appendAll(entries []Entry) []byte {
	var b []byte
	for _, e := range entries {
		b = e.Append(b)
	}
	return b
}

func TestParse(t *testing.T) {
	text := List{Signature: []byte("signature"), Body: appendAll(example)}.Append(nil)
	l, err := Split(text)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(l.Body)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(example, got); diff != "" || string(l.Signature) != "signature" {
		t.Errorf("signature %q, %s", l.Signature, diff)
	}
}

func TestSplitRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":          "",
		"no first line":    "# file: a\n\n",
		"first line alone": head + "c2ln",
		"another version":  "# attest-labels/v2 0sc2ln\n",
		"empty signature":  head + "\n",
		"not base64":       head + "c2l!\n",
		"loose base64":     head + "c2lnb=\n",
		"long signature":   head + strings.Repeat("AAAA", maxValue/3+1) + "\n",
	} {
		if _, err := Split([]byte(text)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	const value = "security.ima=0sBARkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZA==\n"
	if _, err := Parse([]byte("# file: a\n" + value + "\n")); err != nil {
		t.Fatalf("what is right: %v", err)
	}
	for name, body := range map[string]string{
		"no end":            "# file: a\n" + value,
		"no path":           value + "\n",
		"twice":             "# file: a\n\n# file: a\n\n",
		"absolute":          "# file: /a\n\n",
		"upwards":           "# file: a/../../b\n\n",
		"here":              "# file: ./a\n\n",
		"empty path":        "# file: \n\n",
		"NUL":               "# file: a\\000\n\n",
		"not octal":         "# file: a\\09x\n\n",
		"cut backslash":     "# file: a\\01\n\n",
		"above a byte":      "# file: a\\777\n\n",
		"needless octal":    "# file: \\141\n\n",
		"long path":         "# file: " + strings.Repeat("a", maxPath+1) + "\n\n",
		"other attribute":   "# file: a\nsecurity.capability=0sAQ==\n\n",
		"text":              "# file: a\nsecurity.ima=\"x\"\n\n",
		"not a label":       "# file: a\nsecurity.ima=0sAQ==\n\n",
		"label twice":       "# file: a\n" + value + value + "\n",
		"order of labels":   "# file: a\n" + value + "security.evm=0sBQIEaqMg8QADc2ln\n\n",
		"EVM without IMA":   "# file: a\nsecurity.evm=0sBQIEaqMg8QADc2ln\n\n",
		"empty line":        "# file: a\n\n\n",
		"too many bytes":    strings.Repeat("x", MaxSize+1),
		"carriage return":   "# file: a\r\n\n",
		"after the records": "# file: a\n\nx",
	} {
		if got, err := Parse([]byte(body)); !errors.Is(err, ErrMalformed) || got != nil {
			t.Errorf("%s: %v, %d entries", name, err, len(got))
		}
	}
}

// TestGetfattrAgrees has getfattr write what Append does, and setfattr read it.
func TestGetfattrAgrees(t *testing.T) {
	for _, program := range []string{"getfattr", "setfattr"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("labels need root")
	}
	dir := t.TempDir()
	for _, e := range example[:3] {
		path := filepath.Join(dir, e.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(stdin []byte, args ...string) []byte {
		c := exec.CommandContext(t.Context(), args[0], args[1:]...)
		c.Dir, c.Stdin = dir, bytes.NewReader(stdin)
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return out
	}
	want := appendAll(example[:3])
	run(want, "setfattr", "-h", "--restore=-")
	for _, e := range example[:3] {
		value := make([]byte, 256)
		if n, err := unix.Getxattr(filepath.Join(dir, e.Path), "security.ima", value); err != nil || !bytes.Equal(value[:n], e.IMA) {
			t.Errorf("%q: %x, %v", e.Path, value[:max(n, 0)], err)
		}
	}
	args := []string{"getfattr", "-m", "security.(ima|evm)", "-d", "-e", "base64"}
	for _, e := range example[:3] {
		args = append(args, e.Path)
	}
	if diff := cmp.Diff(string(want), string(run(nil, args...))); diff != "" {
		t.Error(diff)
	}
}

func TestPathsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		path := string(rapid.SliceOf(rapid.ByteRange(1, 255)).Draw(t, "path"))
		quoted := string(appendQuoted(nil, path))
		if strings.ContainsAny(quoted, "\n\r") {
			t.Fatalf("%q ends a line", quoted)
		}
		if back, err := unquote(quoted); back != path || err != nil {
			t.Fatalf("%q comes back as %q, %v", path, back, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(appendAll(example))
	f.Add([]byte("# file: a\\134\n\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		entries, err := Parse(body)
		if err != nil && entries != nil {
			t.Fatalf("%d entries with %v", len(entries), err)
		}
		if err == nil && !bytes.Equal(appendAll(entries), body) {
			t.Fatalf("wrote back\n%s", appendAll(entries))
		}
	})
}

func FuzzSplit(f *testing.F) {
	f.Add(List{Signature: imaValue, Body: appendAll(example)}.Append(nil))
	f.Add([]byte(head + "0000\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if l, err := Split(text); err == nil && !bytes.Equal(l.Append(nil), text) {
			t.Fatalf("wrote back\n%s", l.Append(nil))
		}
	})
}
