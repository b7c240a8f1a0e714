package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"math/big"
	"os"
	"path/filepath"
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
	body := labellist.Entry{Path: "a"}.Append(nil)
	sha1Sum, sha256Sum := sha1.Sum(body), sha256.Sum256(body)
	weak, err := ima.Sign(ima.Signature, s.key, binary.BigEndian.Uint32(s.id[len(s.id)-4:]), ima.SHA1, sha1Sum[:])
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string][]byte{
		"a digest": append([]byte{4, 4}, sha256Sum[:]...), "of metadata": s.label(ima.PortableSignature, sha256Sum[:]), "SHA-1": weak.Append(nil),
	} {
		if entries, err := tr.open(labellist.List{Signature: value, Body: body}.Append(nil)); !errors.Is(err, errNotAuthentic) || entries != nil {
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
		"usr/bin/../bin/sh": "", "../etc/passwd": "cross-device", "usr/bin": "not a regular file", "usr/bin/sh/x": "not a directory", "usr/bin/none": "no such file",
	} {
		f, err := tr.open(path)
		if err == nil {
			f.Close()
		}
		if odd := strings.Contains(want, "symbolic link") || strings.Contains(want, "not a"); errors.Is(err, errNotAuthentic) != odd {
			t.Errorf("%s: %v: not what was signed is %t", path, err, !odd)
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

// TestSetVerifies: between the look at a file and its label another can have got its name.
func TestSetVerifies(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("labels need root")
	}
	keys, root := t.TempDir(), t.TempDir()
	s := newSigner(t, keys, "ours")
	tr := newTree(t, root, keys)
	a := target{"a", s.entry("a", "content of a")}
	write(t, filepath.Join(root, "a"), "another content")
	if err := tr.set(a); !errors.Is(err, errNotAuthentic) {
		t.Errorf("set: %v", err)
	}
	if n, err := unix.Getxattr(filepath.Join(root, "a"), ima.XattrIMA, nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("a label of %d bytes, %v", n, err)
	}
}

// TestMetadata: security.evm is of the owner, the mode and the label that the file is to have.
func TestMetadata(t *testing.T) {
	keys, root := t.TempDir(), t.TempDir()
	s := newSigner(t, keys, "ours")
	tr := newTree(t, root, keys)
	write(t, filepath.Join(root, "a"), "a")
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	layout, err := ima.ParseTarget(unix.ByteSliceToString(uts.Machine[:]))
	if err != nil {
		t.Fatal(err)
	}
	e := s.entry("a", "a")
	digest, err := ima.EVMDigest(ima.SHA256, layout, ima.Inode{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Mode: 0o100755,
		Xattrs: map[string][]byte{ima.XattrIMA: e.IMA}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		evm  []byte
		mode os.FileMode
		want string
	}{
		{"right", s.label(ima.PortableSignature, digest), 0o755, ""},
		{"another mode", s.label(ima.PortableSignature, digest), 0o700, "mode 100700: signature does not match"},
		{"not portable", s.label(ima.Signature, digest), 0o755, "does not survive being copied"},
	} {
		if err := os.Chmod(filepath.Join(root, "a"), c.mode); err != nil {
			t.Fatal(err)
		}
		e.EVM = c.evm
		_, err := tr.verify(target{"a", e})
		if (err == nil) != (c.want == "") || err != nil && (!errors.Is(err, errNotAuthentic) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// TestConffiles: only those that the list has as such may have changed.
func TestConffiles(t *testing.T) {
	root := t.TempDir()
	s := newSigner(t, filepath.Join(root, keysDir), "ours")
	const signed = "/etc/x.conf\n"
	info := filepath.Join(root, opkgInfo)
	write(t, filepath.Join(info, "x.list"), "")
	write(t, filepath.Join(info, "x."+labellist.ControlFile), string(s.list(s.entry("CONTROL/conffiles", signed), s.entry("etc/x.conf", "x"), s.entry("usr/bin/x", "x"))))
	write(t, filepath.Join(root, "etc/x.conf"), "x, changed")
	write(t, filepath.Join(root, "usr/bin/x"), "x, changed")
	for text, want := range map[string]string{
		signed:                  `"usr/bin/x": not authentic`,
		signed + "/usr/bin/x\n": `conffiles": not authentic`,
	} {
		write(t, filepath.Join(info, "x.conffiles"), text)
		findings, err := installedPackage{database{opkgInfo, ""}, "x"}.inspect(root, false)
		if err != nil || len(findings) != 1 || !strings.Contains(findings[0], want) {
			t.Errorf("conffiles %q: %q, %v", text, findings, err)
		}
	}
}

func TestSplit(t *testing.T) {
	scripts, files := split([]labellist.Entry{{Path: "DEBIAN/preinst"}, {Path: "CONTROL/prerm"}, {Path: "usr/DEBIAN/x"}, {Path: "DEBIAN"}, {Path: "DEBIAN/x/y"}})
	if len(scripts) != 2 || len(files) != 3 {
		t.Errorf("scripts %v, files %v", scripts, files)
	}
}
