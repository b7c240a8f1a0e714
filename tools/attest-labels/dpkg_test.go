package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/labellist"
)

func TestPass(t *testing.T) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, h := range []*tar.Header{
		{Name: "./", Typeflag: tar.TypeDir}, {Name: "./usr/bin/a", Typeflag: tar.TypeReg, Size: 3},
		{Name: "./usr/bin/b", Typeflag: tar.TypeLink, Linkname: "./usr/bin/a"}, {Name: "./" + strings.Repeat("long/", 50) + "c", Typeflag: tar.TypeReg, Format: tar.FormatGNU},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		w.Write(make([]byte, h.Size))
	}
	w.Close()
	archive.Write(make([]byte, 5120)) // as tar pads
	var out bytes.Buffer
	names, err := pass(bytes.NewReader(archive.Bytes()), &out)
	if want := []string{"usr/bin/a", strings.Repeat("long/", 50) + "c"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("%q, %v", names, err)
	}
	if !bytes.Equal(out.Bytes(), archive.Bytes()) {
		t.Errorf("passed %d of %d bytes", out.Len(), archive.Len())
	}
	if names, err := pass(strings.NewReader(strings.Repeat("x", 1024)), io.Discard); err == nil {
		t.Errorf("no tar: %q", names)
	}
}

// TestUnpackRefuses: who is refused in the middle of writing does not keep us waiting.
func TestUnpackRefuses(t *testing.T) {
	program := filepath.Join(t.TempDir(), "dpkg-deb")
	write(t, program, "#!/bin/sh\nexec head -c 1000000 /dev/urandom\n")
	done := make(chan error, 1)
	go func() {
		_, err := unpack(program, nil, io.Discard)
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "read tar") {
			t.Errorf("no tar: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("waits for a program that waits to be read")
	}
	write(t, program, "#!/bin/sh\nexit 2\n")
	if _, err := unpack(program, nil, io.Discard); err == nil || !strings.Contains(err.Error(), "exit status 2") {
		t.Errorf("failed: %v", err)
	}
}

func TestUnpacks(t *testing.T) {
	for _, c := range []struct {
		args []string
		want bool
	}{
		{[]string{"--control", "a.deb", "dir"}, true}, {[]string{"--fsys-tarfile", "a.deb"}, true},
		{[]string{"--threads=1", "--fsys-tarfile", "a.deb"}, true}, {[]string{"--field", "a.deb"}, false}, {nil, false},
	} {
		if got := unpacks(c.args); got != c.want {
			t.Errorf("%q: %t", c.args, got)
		}
	}
}

// TestDrain: it does not return while something is in the pipe.
func TestDrain(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const before = 5000
	if _, err := w.Write(make([]byte, before)); err != nil {
		t.Fatal(err)
	}
	drained := make(chan error)
	go func() { drained <- drain(w) }()
	read, buf := 0, make([]byte, 1000)
	for read < before {
		select {
		case err := <-drained:
			t.Fatalf("returned after %d of %d bytes were read: %v", read, before, err)
		default:
		}
		n, err := r.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		read += n
	}
	size, err := unix.FcntlInt(w.Fd(), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

func TestDiversions(t *testing.T) {
	text := []byte("/usr/bin/dpkg-deb\n/usr/bin/dpkg-deb.distrib\n:\n/bin/x\n/bin/x.old\nmine\n")
	for pkg, want := range map[string]string{"mine": "bin/x", "other": "bin/x.old"} {
		d, err := parseDiversions(text, pkg)
		if err != nil || d.name("bin/x") != want || d.name("usr/bin/dpkg-deb") != "usr/bin/dpkg-deb.distrib" || d.name("a") != "a" {
			t.Errorf("%s: %v, %v", pkg, d, err)
		}
	}
	if _, err := parseDiversions([]byte("/a\n/b\n"), ""); err == nil {
		t.Error("two lines are no diversion")
	}
	if name := packageName([]byte("Source: x\nPackage: libc6\nVersion: 1\n")); name != "libc6" {
		t.Errorf("package %q", name)
	}
}

func FuzzDiversions(f *testing.F) {
	f.Add([]byte("/a\n/b\n:\n"), "x")
	f.Fuzz(func(t *testing.T, text []byte, pkg string) {
		if d, err := parseDiversions(text, pkg); err == nil && len(d) > bytes.Count(text, []byte("\n"))/3+1 {
			t.Fatalf("%d of %q", len(d), text)
		}
	})
}

// TestUnsigned: a package without a list is refused, but where the environment says otherwise.
func TestUnsigned(t *testing.T) {
	t.Setenv("ATTEST_LABELS", "")
	if p, err := openUnpacked(t.TempDir()); !errors.Is(err, errUnsigned) || p != nil {
		t.Errorf("%v, %v", p, err)
	}
	t.Setenv("ATTEST_LABELS", "optional")
	if p, err := openUnpacked(t.TempDir()); err != nil || p != nil {
		t.Errorf("optional: %v, %v", p, err)
	}
}

func TestLabelNew(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("labels need root")
	}
	keys, root := t.TempDir(), t.TempDir()
	t.Setenv("DPKG_ROOT", root)
	s := newSigner(t, keys, "ours")
	write(t, filepath.Join(root, "usr/bin/a.old.dpkg-new"), "a")
	write(t, filepath.Join(root, "usr/bin/skipped.dpkg-new"), "skipped")
	p := &unpacked{control: newTree(t, root, keys), files: map[string]labellist.Entry{
		"usr/bin/a": s.entry("usr/bin/a", "a"), "usr/bin/excluded": s.entry("usr/bin/excluded", "x"), "usr/bin/skipped": {Path: "usr/bin/skipped"}}}
	if err := p.labelNew([]string{"usr/bin/a", "usr/bin/excluded", "usr/bin/skipped"}, diversions{"usr/bin/a": "usr/bin/a.old"}); err != nil {
		t.Error(err)
	}
	if state, err := p.control.verify(target{"usr/bin/a.old.dpkg-new", p.files["usr/bin/a"]}); state != right || err != nil {
		t.Errorf("%v, %v", state, err)
	}
	if err := p.labelNew([]string{"usr/bin/added"}, nil); !errors.Is(err, errNotAuthentic) {
		t.Errorf("a file that is not in the list: %v", err)
	}
}
