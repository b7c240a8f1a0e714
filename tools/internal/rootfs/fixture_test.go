package rootfs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

// pair is a key with its certificate and the certificate's file, for evmctl.
type pair struct {
	key  *keys.Key
	cert *x509.Certificate
	der  string
	pem  string // of the private key
}

var keyKinds = map[string]func() (crypto.Signer, error){
	"RSA-2048": func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) },
	"RSA-3072": func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) },
	"RSA-4096": func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 4096) },
	"P-256":    func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
	"P-384":    func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) },
	"P-521":    func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P521(), rand.Reader) },
}

// newPair makes a self-signed pair. Its SubjectKeyIdentifier is the SHA-1 of the key,
// because evmctl 1.4 looks for that whatever the certificate says.
func newPair(t testing.TB, kind string) pair {
	t.Helper()
	signer, err := keyKinds[kind]()
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(spki, &info); err != nil {
		t.Fatal(err)
	}
	id := sha1.Sum(info.Key.Bytes)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "test " + kind},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: id[:],
	}, &x509.Certificate{Subject: pkix.Name{CommonName: "test " + kind}}, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := pair{cert: cert, der: filepath.Join(dir, "cert.der"), pem: filepath.Join(dir, "key.pem")}
	write(t, p.der, der, 0o600)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.pem, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600)
	if p.key, err = keys.Open(t.Context(), p.pem, keys.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.key.Close() })
	return p
}

func (p pair) signer(t testing.TB, hash ima.HashAlgo) *Signer {
	t.Helper()
	s, err := NewSigner(p.key, p.key.Deterministic && !p.key.Remote, p.cert, hash)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (p pair) trust(t testing.TB) *Trust {
	t.Helper()
	trust, err := NewTrust(nil, []*x509.Certificate{p.cert})
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

func write(t testing.TB, path string, content []byte, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// needLabels skips the test where security.* attributes cannot be written.
func needLabels(t testing.TB) {
	t.Helper()
	err := Direct{}.Probe(openTree(t, t.TempDir()).dir, map[string][]byte{ima.XattrIMA: {4, 4}})
	if errors.Is(err, ErrNotPermitted) || errors.Is(err, ErrUnsupported) {
		t.Skipf("needs root, and ext4, xfs or btrfs in %s", os.TempDir())
	}
}

func openTree(t testing.TB, root string) *Tree {
	t.Helper()
	tree, err := Open(root, Direct{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree
}

// sign signs root and returns the notes.
func sign(t testing.TB, root string, o SignOptions) (*SignReport, []Note) {
	t.Helper()
	var notes []Note
	o.Note = func(n Note) { notes = append(notes, n) }
	o.Progress = new(Progress)
	if o.Jobs == 0 {
		o.Jobs = 2
	}
	report, err := Sign(t.Context(), openTree(t, root), o)
	if err != nil {
		t.Fatal(err)
	}
	return report, notes
}

// check checks root and returns the findings.
func check(t testing.TB, root string, o CheckOptions) (*CheckReport, []Finding) {
	t.Helper()
	var findings []Finding
	o.Find = func(f Finding) { findings = append(findings, f) }
	o.Progress = new(Progress)
	o.Jobs = 2
	if o.Verity.BlockSize == 0 {
		o.Verity.BlockSize = 4096
	}
	report, err := Check(t.Context(), openTree(t, root), o)
	if err != nil {
		t.Fatal(err)
	}
	return report, findings
}

// fixed is the layout as [CheckOptions] wants it.
func fixed(l ima.Layout) func() (ima.Layout, error) {
	return func() (ima.Layout, error) { return l, nil }
}
