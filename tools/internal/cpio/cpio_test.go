package cpio

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnpack has GNU cpio read what was written.
func TestUnpack(t *testing.T) {
	program, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is not installed: apt-get install cpio")
	}
	var archive bytes.Buffer
	entries := []Entry{
		{Name: "etc", Mode: Dir | 0o755},
		{Name: "etc/empty", Mode: Regular | 0o600},
		{Name: "etc/one", Mode: Regular | 0o644, Data: []byte("1")},
		{Name: "etc/four", Mode: Regular | 0o640, Data: []byte("1234")},
		{Name: "init", Mode: Symlink | 0o777, Data: []byte("etc/four")},
	}
	if err := Write(&archive, entries); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := exec.Command(program, "--extract", "--quiet", "--no-absolute-filenames")
	c.Dir, c.Stdin = dir, &archive
	if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	for _, e := range entries {
		info, err := os.Lstat(filepath.Join(dir, e.Name))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := uint32(info.Mode().Perm()), e.Mode&0o777; got != want {
			t.Errorf("%s: mode %o, want %o", e.Name, got, want)
		}
		if e.Mode&Type == Regular {
			if got, err := os.ReadFile(filepath.Join(dir, e.Name)); err != nil || !bytes.Equal(got, e.Data) {
				t.Errorf("%s: %q, %v, want %q", e.Name, got, err, e.Data)
			}
		}
	}
	if to, err := os.Readlink(filepath.Join(dir, "init")); to != "etc/four" {
		t.Errorf("init points to %q, %v", to, err)
	}
}

func TestWriteRefuses(t *testing.T) {
	for _, name := range []string{"", "/init", "../init", "a//b", "a/", "a\x00b", trailer, strings.Repeat("a", maxName)} {
		if err := Write(new(bytes.Buffer), []Entry{{Name: name, Mode: Regular}}); err == nil {
			t.Errorf("%.20q: not refused", name)
		}
	}
}
