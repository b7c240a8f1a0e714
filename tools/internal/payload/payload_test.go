package payload

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sample() *Payload {
	return &Payload{Name: "web", Revision: 3, Run: "bin/start.sh", Files: []File{
		{"key.pem", 0o600, []byte("key")},
		{"bin/start.sh", 0o755, []byte("#!/bin/sh\n")},
		{"empty", 0o444, []byte{}},
	}}
}

func TestZip(t *testing.T) {
	p := sample()
	first, err := p.Zip()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseZip(first)
	if err != nil {
		t.Fatal(err)
	}
	got.Name, got.Revision, got.Run = p.Name, p.Revision, p.Run
	if d := cmp.Diff(p, got); d != "" {
		t.Errorf("read back (-want +got):\n%s", d)
	}
	if second, err := got.Zip(); err != nil || !bytes.Equal(first, second) {
		t.Errorf("the same files make other bytes (%v)", err)
	}
}

// TestZipOfPython reads what Keylime's tenant makes payloads with, Python's zipfile.
func TestZipOfPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is missing: the archives of Keylime's tenant are not compared")
	}
	out := filepath.Join(t.TempDir(), "p.zip")
	script := `import sys, os, zipfile
os.chdir(os.path.dirname(sys.argv[1])); open("autorun.sh", "w").write("true\n" * 100); os.chmod("autorun.sh", 0o755); os.mkdir("d")
with zipfile.ZipFile(sys.argv[1], "w", compression=zipfile.ZIP_DEFLATED) as z:
    z.writestr("ca.crt", "certificate")
    z.write("autorun.sh")
    z.write("d")
    z.writestr("d/deep", "x")`
	if b, err := exec.Command(python, "-c", script, out).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseZip(b)
	if err != nil {
		t.Fatal(err)
	}
	want := []File{{"ca.crt", 0o600, []byte("certificate")}, {"autorun.sh", 0o755, bytes.Repeat([]byte("true\n"), 100)}, {"d/deep", 0o600, []byte("x")}}
	if d := cmp.Diff(want, got.Files); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// archive writes files as they are, good or not.
func archive(t testing.TB, method uint16, files ...File) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, f := range files {
		h := &zip.FileHeader{Name: f.Name, Method: method}
		h.SetMode(f.Mode)
		to, err := w.CreateHeader(h)
		if err == nil {
			_, err = to.Write(f.Data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestZipRefused(t *testing.T) {
	plain := func(names ...string) (all []File) {
		for _, n := range names {
			all = append(all, File{n, 0o600, []byte("x")})
		}
		return all
	}
	var many []string
	for i := range maxFiles + 1 {
		many = append(many, fmt.Sprint("f", i))
	}
	good := archive(t, zip.Store, plain("a")...)
	for name, b := range map[string][]byte{
		"no archive":      []byte("x"),
		"empty":           archive(t, zip.Store),
		"step up":         archive(t, zip.Store, plain("../a")...),
		"step inside":     archive(t, zip.Store, plain("a/../b")...),
		"dot":             archive(t, zip.Store, plain("./a")...),
		"absolute":        archive(t, zip.Store, plain("/etc/passwd")...),
		"backslash":       archive(t, zip.Store, plain(`..\a`)...),
		"control":         archive(t, zip.Store, plain("a\nb")...),
		"NUL":             archive(t, zip.Store, plain("a\x00b")...),
		"not UTF-8":       archive(t, zip.Store, plain("a\xff")...),
		"long":            archive(t, zip.Store, plain(strings.Repeat("a", maxPath+1))...),
		"deep":            archive(t, zip.Store, plain(strings.Repeat("a/", maxDepth)+"a")...),
		"twice":           archive(t, zip.Store, plain("a", "a")...),
		"file and folder": archive(t, zip.Store, plain("a", "a/b")...),
		"folder and file": archive(t, zip.Store, plain("a/b", "a")...),
		"many":            archive(t, zip.Store, plain(many...)...),
		"link":            archive(t, zip.Store, File{"a", fs.ModeSymlink | 0o777, []byte("/etc/shadow")}),
		"device":          archive(t, zip.Store, File{"a", fs.ModeDevice | 0o600, nil}),
		"setuid":          archive(t, zip.Store, File{"a", fs.ModeSetuid | 0o755, nil}),
		"folder as file":  archive(t, zip.Store, File{"a", fs.ModeDir | 0o755, nil}),
		"bomb":            archive(t, zip.Deflate, File{"a", 0o600, make([]byte, MaxSize+1)}),
		"two halves":      archive(t, zip.Deflate, File{"a", 0o600, make([]byte, MaxSize/2+1)}, File{"b", 0o600, make([]byte, MaxSize/2)}),
		"large":           make([]byte, MaxSize+1),
		"cut":             good[:len(good)-1],
		"checksum":        bytes.Replace(good, []byte("ax"), []byte("ay"), 1),
		"encrypted":       bytes.Replace(good, []byte("PK\x01\x02\x14\x03\x14\x00\x08\x00"), []byte("PK\x01\x02\x14\x03\x14\x00\x09\x00"), 1),
	} {
		if bytes.Equal(b, good) {
			t.Errorf("%s: the archive was not changed", name)
		}
		if p, err := ParseZip(b); err == nil || p != nil {
			t.Errorf("%s: taken: %v", name, p)
		}
	}
}

// TestZipLies changes what the archive says of a size, so that the reader has to notice.
func TestZipLies(t *testing.T) {
	b := archive(t, zip.Deflate, File{"a", 0o600, make([]byte, MaxSize)}, File{"b", 0o600, make([]byte, 100)})
	// Central directory, uncompressed size of "a": at 24 of its header.
	i := bytes.Index(b, []byte("PK\x01\x02"))
	copy(b[i+24:], []byte{1, 0, 0, 0})
	if _, err := ParseZip(b); err == nil {
		t.Error("a file that is larger than the archive says was taken")
	}
}

func TestCheck(t *testing.T) {
	for name, change := range map[string]func(*Payload){
		"no name":  func(p *Payload) { p.Name = "" },
		"hidden":   func(p *Payload) { p.Name = ".x" },
		"path":     func(p *Payload) { p.Name = "a/b" },
		"long":     func(p *Payload) { p.Name = strings.Repeat("a", maxName+1) },
		"letters":  func(p *Payload) { p.Name = "ä" },
		"revision": func(p *Payload) { p.Revision = -1 },
		"run":      func(p *Payload) { p.Run = "other" },
		"no files": func(p *Payload) { p.Files, p.Run = nil, "" },
	} {
		p := sample()
		if change(p); p.Check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzParseZip(f *testing.F) {
	f.Add(archive(f, zip.Store, sample().Files...))
	f.Add(archive(f, zip.Deflate, sample().Files...))
	f.Add([]byte("PK\x05\x06" + strings.Repeat("\x00", 18)))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseZip(b)
		if err != nil {
			if p != nil {
				t.Fatalf("kept a payload with %v", err)
			}
			return
		}
		p.Name = "x"
		if err := p.Check(); err != nil {
			t.Fatalf("took what it refuses: %v", err)
		}
		again, err := p.Zip()
		if err != nil {
			if len(b) > MaxSize/2 || strings.Contains(err.Error(), "archive has more") {
				return // stored, it may not fit
			}
			t.Fatal(err)
		}
		q, err := ParseZip(again)
		if err != nil {
			t.Fatal(err)
		}
		q.Name = p.Name
		if d := cmp.Diff(p, q); d != "" {
			t.Fatalf("read back (-want +got):\n%s", d)
		}
	})
}
