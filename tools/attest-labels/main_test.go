package main

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/labellist"
)

// signer makes labels, and the certificate in a folder.
type signer struct {
	t   *testing.T
	key *ecdsa.PrivateKey
	id  []byte
}

func newSigner(t *testing.T, dir, name string) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := signer{t, key, []byte(name)}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, SubjectKeyId: s.id,
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "x509_ima.der"), string(der))
	write(t, filepath.Join(dir, "x509_evm.der"), string(der))
	return s
}

func (s signer) label(kind ima.XattrType, digest []byte) []byte {
	s.t.Helper()
	x, err := ima.Sign(kind, s.key, binary.BigEndian.Uint32(s.id[len(s.id)-4:]), ima.SHA256, digest)
	if err != nil {
		s.t.Fatal(err)
	}
	return x.Append(nil)
}

func (s signer) entry(path, content string) labellist.Entry {
	sum := sha256.Sum256([]byte(content))
	return labellist.Entry{Path: path, IMA: s.label(ima.Signature, sum[:])}
}

// list is the text of a label list.
func (s signer) list(entries ...labellist.Entry) []byte {
	var body []byte
	for _, e := range entries {
		body = e.Append(body)
	}
	sum := sha256.Sum256(body)
	return labellist.List{Signature: s.label(ima.Signature, sum[:]), Body: body}.Append(nil)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func loadTestTrust(t *testing.T, dir string) *trust {
	t.Helper()
	tr, err := loadTrust(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestTrust(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	s, stranger := newSigner(t, dir, "ours"), newSigner(t, other, "theirs")
	tr := loadTestTrust(t, dir)
	good := s.list(s.entry("a", "x"), labellist.Entry{Path: "b"})
	if entries, err := tr.open(good); err != nil || len(entries) != 2 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	changed := bytes.Replace(good, []byte("file: b"), []byte("file: c"), 1)
	for name, text := range map[string][]byte{
		"changed":    changed,
		"by another": stranger.list(s.entry("a", "x")),
		"no list":    []byte("# file: a\n\n"),
		"cut":        good[:len(good)-1],
	} {
		if entries, err := tr.open(text); !errors.Is(err, errNotAuthentic) || entries != nil {
			t.Errorf("%s: %d entries, %v", name, len(entries), err)
		}
	}
	if _, err := loadTrust(t.TempDir()); err == nil {
		t.Error("no certificate is no error")
	}
}

func newTree(t *testing.T, root, keys string) *tree {
	t.Helper()
	tr, err := openTree(root, loadTestTrust(t, keys))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.close)
	return tr
}

func TestOpen(t *testing.T) {
	keys, root := t.TempDir(), t.TempDir()
	newSigner(t, keys, "ours")
	write(t, filepath.Join(root, "usr/bin/sh"), "x")
	write(t, filepath.Join(root, "usr/lib/x/libx"), "x")
	for from, to := range map[string]string{"bin": "usr/bin", "lib": "/usr/lib", "sbin": "../usr/bin", "usr/link": "bin", "usr/bin/link": "sh", "opt": "usr/lib/x"} {
		if err := os.Symlink(to, filepath.Join(root, from)); err != nil {
			t.Fatal(err)
		}
	}
	tr := newTree(t, root, keys)
	for path, want := range map[string]string{
		"usr/bin/sh": "", "/usr/bin/sh": "", "bin/sh": "", "lib/x/libx": "",
		"sbin/sh": "symbolic link", "opt/libx": "symbolic link", "usr/link/sh": "symbolic link", "usr/bin/link": "symbolic link",
		"usr/bin/../bin/sh": "", "../etc/passwd": "cross-device", "usr/bin": "not a regular file", "usr/bin/none": "no such file",
	} {
		f, err := tr.open(path)
		if err == nil {
			f.Close()
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestLabel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("labels need root")
	}
	keys, root := t.TempDir(), t.TempDir()
	s := newSigner(t, keys, "ours")
	write(t, filepath.Join(root, "a"), "content of a")
	write(t, filepath.Join(root, "b"), "content of b")
	tr := newTree(t, root, keys)
	a, b := target{"a", s.entry("a", "content of a")}, target{"b", s.entry("b", "something else")}

	if err := tr.label([]target{a, b}); !errors.Is(err, errNotAuthentic) {
		t.Errorf("one file is not what was signed: %v", err)
	}
	if state, err := tr.verify(a); state != absent || err != nil {
		t.Errorf("its neighbour was labelled: %v, %v", state, err)
	}
	b.entry = s.entry("b", "content of b")
	if err := tr.label([]target{a, b}); err != nil {
		t.Fatal(err)
	}
	for _, g := range []target{a, b} {
		if state, err := tr.verify(g); state != right || err != nil {
			t.Errorf("%s: %v, %v", g.path, state, err)
		}
	}
	for name, value := range map[string][]byte{
		"portable": s.label(ima.PortableSignature, make([]byte, 32)), "digest": append([]byte{4, 4}, make([]byte, 32)...)} {
		g := target{"a", labellist.Entry{Path: "a", IMA: value}}
		if _, err := tr.verify(g); !errors.Is(err, errNotAuthentic) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

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

func TestSplit(t *testing.T) {
	scripts, files := split([]labellist.Entry{{Path: "DEBIAN/preinst"}, {Path: "CONTROL/prerm"}, {Path: "usr/DEBIAN/x"}, {Path: "DEBIAN"}, {Path: "DEBIAN/x/y"}})
	if len(scripts) != 2 || len(files) != 3 {
		t.Errorf("scripts %v, files %v", scripts, files)
	}
}
