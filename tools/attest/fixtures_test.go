package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// authority makes certificates for the scripts, also such as no ceremony would make.
type authority struct {
	dir  string
	key  crypto.Signer
	cert *x509.Certificate
}

// writeKeys writes key pairs into dir: ca, ima and other are good, the rest are not.
func writeKeys(dir string) error {
	a := &authority{dir: dir}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	if err := a.pair("ca", p256, ca); err != nil {
		return err
	}
	a.cert = ca
	for _, p := range []struct {
		name string
		make func() (crypto.Signer, error)
		edit func(*x509.Certificate)
	}{
		{"ima", p256, func(*x509.Certificate) {}},
		{"expired", p256, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) }},
		{"nousage", p256, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }},
		{"noskid", p256, func(c *x509.Certificate) { c.SubjectKeyId = nil }},
		{"rsa1024", func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 1024) }, func(*x509.Certificate) {}},
		{"ed25519", func() (crypto.Signer, error) { _, key, err := ed25519.GenerateKey(nil); return key, err }, func(*x509.Certificate) {}},
	} {
		c := &x509.Certificate{Subject: pkix.Name{CommonName: p.name}, KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: []byte("skid of " + p.name)}
		p.edit(c)
		if err := a.pair(p.name, p.make, c); err != nil {
			return err
		}
	}
	other := &authority{dir: dir}
	return other.pair("other", p256, &x509.Certificate{Subject: pkix.Name{CommonName: "other"}, KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: []byte("another skid")})
}

func p256() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// pair writes NAME.key, NAME.crt and NAME.der. The first pair of an authority signs
// itself and those that follow.
func (a *authority) pair(name string, make func() (crypto.Signer, error), c *x509.Certificate) error {
	key, err := make()
	if err != nil {
		return err
	}
	parent := a.cert
	if parent == nil {
		a.key, parent = key, c
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.NotBefore = time.Now().Add(-24 * time.Hour)
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(24 * time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	if err != nil {
		return err
	}
	if made, err := x509.ParseCertificate(der); err == nil && c.IsCA {
		*c = *made
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for suffix, content := range map[string][]byte{
		".key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
		".crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		".der": der,
	} {
		if err := os.WriteFile(filepath.Join(a.dir, name+suffix), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// writeTree makes a small root filesystem without an ELF file.
func writeTree(root string) error {
	for _, dir := range []string{"bin", "dir", "etc", "var"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for name, mode := range map[string]os.FileMode{"bin/tool": 0o755, "bin/other": 0o755, "etc/conf": 0o644, "var/log": 0o644} {
		if err := os.WriteFile(filepath.Join(root, name), []byte("content of "+name+"\n"), mode); err != nil {
			return err
		}
	}
	return os.Symlink("tool", filepath.Join(root, "bin/link"))
}
