package modsig

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// issue makes a CA, and a certificate of it for key.
func issue(t *testing.T, key crypto.Signer) (ca, leaf *x509.Certificate) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte("ca key id")}
	make := func(template, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, caKey)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	ca = make(root, root, caKey.Public())
	// A serial number whose first bit is set: DER wants a zero before it.
	serial := new(big.Int).SetBytes([]byte{0xff, 2, 3, 4, 5, 6, 7, 8})
	return ca, make(&x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "modules"}, NotBefore: time.Unix(0, 0),
		NotAfter: time.Unix(1<<32, 0), KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: []byte("leaf key id")}, ca, key.Public())
}

func generate(t *testing.T, make func() (crypto.Signer, error)) crypto.Signer {
	t.Helper()
	key, err := make()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func ec(curve elliptic.Curve) func() (crypto.Signer, error) {
	return func() (crypto.Signer, error) { return ecdsa.GenerateKey(curve, rand.Reader) }
}

// TestSign has openssl verify the message against the CA alone, as Linux does. The boot test has Linux do it.
func TestSign(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	module := bytes.Repeat([]byte("\x7fELF a module\n"), 100)
	for _, c := range []struct {
		name string
		make func() (crypto.Signer, error)
		hash crypto.Hash
	}{
		{"RSA", func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) }, crypto.SHA256},
		{"RSA SHA-512", func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) }, crypto.SHA512},
		{"P-256", ec(elliptic.P256()), crypto.SHA256},
		{"P-384", ec(elliptic.P384()), crypto.SHA384},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := generate(t, c.make)
			ca, leaf := issue(t, key)
			tail, err := Sign(module, key, leaf, c.hash)
			if err != nil {
				t.Fatal(err)
			}
			content, message, err := Split(append(bytes.Clone(module), tail...))
			if err != nil || !bytes.Equal(content, module) {
				t.Fatalf("split: %d bytes, %v", len(content), err)
			}
			verify(t, content, message, ca, true)
			verify(t, append([]byte{1}, content...), message, ca, false)
		})
	}
}

// TestSignFile: but for the certificate, the bytes are those of sign-file.
func TestSignFile(t *testing.T) {
	signed, err := os.ReadFile("testdata/module.signed")
	if err != nil {
		t.Fatal(err)
	}
	content, want, err := Split(signed)
	if err != nil || string(content) != "a module\n" {
		t.Fatalf("split: %q, %v", content, err)
	}
	read := func(name string) []byte {
		t.Helper()
		text, err := os.ReadFile("../../../keys-debug/" + name)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		return block.Bytes
	}
	key, err := x509.ParsePKCS8PrivateKey(read("ima-rsa.key"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(read("ima-rsa.crt"))
	if err != nil {
		t.Fatal(err)
	}
	tail, err := Sign(content, key.(crypto.Signer), cert, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	_, message, err := Split(append(bytes.Clone(content), tail...))
	if err != nil {
		t.Fatal(err)
	}
	var m contentInfo
	if rest, err := asn1.Unmarshal(message, &m); err != nil || len(rest) > 0 {
		t.Fatalf("%d bytes are left: %v", len(rest), err)
	}
	if !bytes.Equal(m.Content.Certificate.Bytes, cert.Raw) {
		t.Error("the message does not have the certificate")
	}
	without := struct {
		Type    asn1.ObjectIdentifier
		Content struct {
			Version int
			Digests []pkix.AlgorithmIdentifier `asn1:"set"`
			Content struct{ Type asn1.ObjectIdentifier }
			Signers []signerInfo `asn1:"set"`
		} `asn1:"explicit,tag:0"`
	}{Type: m.Type}
	c := &without.Content
	c.Version, c.Digests, c.Content.Type, c.Signers = m.Content.Version, m.Content.Digests, m.Content.Content.Type, m.Content.Signers
	got, err := asn1.Marshal(without)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
	if got, want := tail[len(message):], signed[len(content)+len(want):]; !bytes.Equal(got[:8], want[:8]) || !bytes.Equal(got[trailerSize:], want[trailerSize:]) {
		t.Errorf("trailer %x, want %x", got, want)
	}
}

func verify(t *testing.T, content, message []byte, ca *x509.Certificate, want bool) {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string][]byte{"content": content, "message": message,
		"ca": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := exec.CommandContext(t.Context(), "openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", "message", "-content", "content",
		"-CAfile", "ca", "-purpose", "any", "-out", "out")
	c.Dir = dir
	out, err := c.CombinedOutput()
	if (err == nil) != want {
		t.Errorf("openssl cms -verify: %v, want good: %t\n%s", err, want, out)
	}
}

func TestSignRefuses(t *testing.T) {
	key := generate(t, ec(elliptic.P256()))
	_, leaf := issue(t, key)
	if tail, err := Sign([]byte("module"), key, leaf, crypto.SHA1); err == nil {
		t.Errorf("SHA-1: %d bytes", len(tail))
	}
}

func TestSplit(t *testing.T) {
	good := "module" + "message" + "\x00\x00\x02\x00\x00\x00\x00\x00" + "\x00\x00\x00\x07" + marker
	for _, c := range []struct {
		name, in         string
		content, message string
		err              error
	}{
		{"unsigned", "module", "module", "", nil},
		{"empty", "", "", "", nil},
		{"signed", good, "module", "message", nil},
		{"the marker alone", marker, "", "", ErrFormat},
		{"nothing but a signature", good[len("module"):], "", "", ErrFormat},
		{"longer than the file", "m" + "\x00\x00\x02\x00\x00\x00\x00\x00" + "\xff\xff\xff\xff" + marker, "", "", ErrFormat},
		{"not PKCS#7", "mm" + "\x00\x00\x01\x00\x00\x00\x00\x00" + "\x00\x00\x00\x01" + marker, "", "", ErrFormat},
	} {
		content, message, err := Split([]byte(c.in))
		if string(content) != c.content || string(message) != c.message || !errors.Is(err, c.err) || (err != nil) != (c.err != nil) {
			t.Errorf("%s: got %q, %q, %v", c.name, content, message, err)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte("module" + "message" + "\x00\x00\x02\x00\x00\x00\x00\x00" + "\x00\x00\x00\x07" + marker))
	f.Fuzz(func(t *testing.T, in []byte) {
		content, message, err := Split(in)
		if err != nil && (content != nil || message != nil) {
			t.Fatalf("kept bytes with %v", err)
		}
		if err == nil && message == nil && !bytes.Equal(content, in) {
			t.Fatal("an unsigned module is not what it was")
		}
		if message != nil {
			back := append(bytes.Clone(content), message...)
			if !bytes.HasPrefix(in, back) || len(in)-len(back) != trailerSize+len(marker) {
				t.Fatal("bytes are lost")
			}
		}
	})
}
