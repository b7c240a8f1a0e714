package evidence

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// authority issues certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newAuthority(t *testing.T, parent *authority, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent = &authority{template, key}
	}
	a.cert = parent.issue(t, template, key.Public())
	return a
}

func (a *authority) issue(t *testing.T, template *x509.Certificate, key crypto.PublicKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// directoryName is a subject alternative name as the EK Credential Profile has it: who made
// the TPM, in a directory name, and critical where the subject is empty.
func directoryName(t *testing.T) pkix.Extension {
	t.Helper()
	name, err := asn1.Marshal(pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 1}, Value: "id:57454300"}}})
	if err != nil {
		t.Fatal(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oidSubjectAlt, Critical: true, Value: san}
}

func TestOddCertificates(t *testing.T) {
	root := newAuthority(t, nil, "root")
	issuer := newAuthority(t, root, "issuer")
	ek, err := ParseEK(softEK(t))
	if err != nil {
		t.Fatal(err)
	}
	store, err := NewCAStore(root.pem())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		do   func(*x509.Certificate)
		good bool
	}{
		{"as the profile has it", func(*x509.Certificate) {}, true},
		{"without usages", func(c *x509.Certificate) { c.UnknownExtKeyUsage, c.KeyUsage = nil, 0 }, true},
		{"key agreement", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }, true},
		{"for ever", func(c *x509.Certificate) { c.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }, true},
		{"for signing", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }, false},
		{"of a TLS server", func(c *x509.Certificate) {
			c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, false},
		{"expired", func(c *x509.Certificate) { c.NotAfter = now.AddDate(0, 0, -1) }, false},
		{"not yet", func(c *x509.Certificate) { c.NotBefore = now.AddDate(0, 0, 1) }, false},
		{"of an authority", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, false},
		{"something critical that nobody knows", func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
		}, false},
	} {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(2), NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(10, 0, 0), KeyUsage: x509.KeyUsageKeyEncipherment,
			UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEKCertificate}, ExtraExtensions: []pkix.Extension{directoryName(t)},
		}
		c.do(template)
		leaf := issuer.issue(t, template, ek.Key())
		cert, err := store.Verify(FormatCertificates([][]byte{leaf.Raw, issuer.cert.Raw}), ek, now)
		if (err == nil) != c.good || (cert == nil) == c.good {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestOAEPKey: some manufacturers mark the key as one for OAEP, which Go does not read.
func TestOAEPKey(t *testing.T) {
	root := newAuthority(t, nil, "root")
	ek, err := ParseEK(softEK(t))
	if err != nil {
		t.Fatal(err)
	}
	plain := root.issue(t, &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(9, 0, 0)}, ek.Key())
	rsaOID := []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01}
	at := bytes.Index(plain.RawTBSCertificate, rsaOID)
	tbs := bytes.Clone(plain.RawTBSCertificate)
	tbs[at+len(rsaOID)-1] = 7
	h := crypto.SHA256.New()
	h.Write(tbs)
	sig, err := root.key.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		TBS asn1.RawValue
		Alg pkix.AlgorithmIdentifier
		Sig asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}})
	if err != nil {
		t.Fatal(err)
	}
	store, err := NewCAStore(root.pem())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Verify(FormatCertificates([][]byte{der}), ek, now); err != nil {
		t.Error(err)
	}
	other, err := ParseEK(softEK(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Verify(FormatCertificates([][]byte{der}), other, now); CodeOf(err) != CodeCertificate {
		t.Errorf("of another key: %v", err)
	}
}

func TestCAStoreRefuses(t *testing.T) {
	root := newAuthority(t, nil, "root")
	leaf := root.issue(t, &x509.Certificate{SerialNumber: big.NewInt(3), NotBefore: now, NotAfter: now.AddDate(1, 0, 0)}, root.key.Public())
	for name, bundle := range map[string][]byte{
		"nothing": nil, "no PEM": []byte("hello"), "garbage": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}),
		"no authority": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}),
	} {
		if s, err := NewCAStore(bundle); err == nil || s != nil {
			t.Errorf("%s: taken", name)
		}
	}
	ek, err := ParseEK(softEK(t))
	if err != nil {
		t.Fatal(err)
	}
	own := root.issue(t, &x509.Certificate{SerialNumber: big.NewInt(4), NotBefore: now, NotAfter: now.AddDate(1, 0, 0)}, ek.Key())
	if _, err := new(CAStore).Verify(FormatCertificates([][]byte{own.Raw}), ek, now); CodeOf(err) != CodeCertificate {
		t.Errorf("an empty store: %v", err)
	}
}
