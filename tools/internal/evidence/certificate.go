package evidence

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	maxCertificates = 64 << 10 // bytes of an EK certificate and its issuers as a device sends them
	maxChain        = 16       // of them
)

// oidEKCertificate is tcg-kp-EKCertificate, the extended key usage of an EK certificate;
// the others are of its form (TCG EK Credential Profile 2.5, 3.2).
var (
	oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidSubjectAlt    = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidRSAOAEP       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
)

// CutCertificates splits raw into DER certificates: what the NV index of a TPM holds, or
// several indices one after the other. Manufacturers put a header of the PC Client profile
// of TPM 1.2 before a certificate (tag 0x1001, type, length, tag 0x1002) and fill up the
// index behind it; both are cut off. Nothing is re-encoded: the signature is over these bytes.
func CutCertificates(raw []byte) ([][]byte, error) {
	if len(raw) > maxCertificates {
		return nil, refuse(CodeCertificate, "read certificates: %d bytes, %d at most", len(raw), maxCertificates)
	}
	var found [][]byte
	for len(found) < maxChain {
		if len(raw) > 7 && bytes.HasPrefix(raw, []byte{0x10, 0x01, 0x00}) {
			raw = bytes.TrimPrefix(raw[5:], []byte{0x10, 0x02})
		}
		if len(bytes.Trim(raw, "\x00")) == 0 || len(bytes.Trim(raw, "\xff")) == 0 {
			return found, nil
		}
		var der asn1.RawValue
		rest, err := asn1.Unmarshal(raw, &der)
		if err != nil || der.Tag != asn1.TagSequence || !der.IsCompound {
			if len(found) > 0 { // what fills the index need not be of one kind
				return found, nil
			}
			return nil, refuse(CodeCertificate, "read certificate: it does not begin with a DER sequence")
		}
		found = append(found, der.FullBytes)
		raw = rest
	}
	return nil, refuse(CodeCertificate, "read certificates: more than %d", maxChain)
}

// FormatCertificates is the ekcert member of a registration: base64 DER for the certificate
// alone, as every registrar takes it, and PEM where issuers follow.
func FormatCertificates(ders [][]byte) string {
	switch len(ders) {
	case 0:
		return ""
	case 1:
		return base64.StdEncoding.EncodeToString(ders[0])
	}
	var b strings.Builder
	for _, der := range ders {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // a Builder takes everything
	}
	return b.String()
}

// parseCertificates reads an ekcert member: base64 of what the TPM holds, or PEM.
func parseCertificates(s string) ([]*x509.Certificate, error) {
	if len(s) > 2*maxCertificates {
		return nil, refuse(CodeCertificate, "read EK certificate: %d bytes", len(s))
	}
	var raw []byte
	var err error
	if strings.Contains(s, "-----BEGIN") {
		for rest := []byte(s); ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type == "CERTIFICATE" {
				raw = append(raw, block.Bytes...)
			}
		}
	} else if raw, err = base64.StdEncoding.DecodeString(s); err != nil {
		return nil, refuse(CodeCertificate, "read EK certificate: %w", err)
	}
	ders, err := CutCertificates(raw)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, refuse(CodeCertificate, "read EK certificate: %w", err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, refuse(CodeCertificate, "read EK certificate: there is none: the TPM has no certificate in NV memory")
	}
	return certs, nil
}

// CAStore holds the certificates of TPM manufacturers that a registrar trusts.
type CAStore struct {
	trusted *x509.CertPool
	count   int
}

// NewCAStore returns a store of all certificates in pems. Each is trusted on its own: who
// puts in an intermediate trusts that one and not its root.
func NewCAStore(pems ...[]byte) (*CAStore, error) {
	s := &CAStore{trusted: x509.NewCertPool()}
	for i, p := range pems {
		for rest := p; ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type != "CERTIFICATE" {
				continue
			}
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("read CA certificate %d of bundle %d: %w", s.count+1, i+1, err)
			}
			if !c.IsCA {
				return nil, fmt.Errorf("read CA certificate %q: it may not issue certificates", c.Subject)
			}
			s.trusted.AddCert(c)
			s.count++
		}
	}
	if s.count == 0 {
		return nil, errors.New("read CA certificates: no PEM certificate found")
	}
	return s, nil
}

// Verify checks that ekcert, the member of a registration, is the certificate of ek and
// that a manufacturer in the store issued it, through intermediates that the device may
// send along. It returns the certificate; an error has [CodeCertificate].
//
// Certificates of TPMs are odd, and taken as they are: the subject may be empty and the
// subject alternative name critical with nothing but a directory name in it (EK Credential
// Profile 3.2), and the key of old RSA ones is marked as one for OAEP.
func (s *CAStore) Verify(ekcert string, ek *EK, now time.Time) (*x509.Certificate, error) {
	if s.count == 0 { // without roots of its own, x509 takes the system's
		return nil, refuse(CodeCertificate, "check EK certificate: no manufacturer is trusted")
	}
	certs, err := parseCertificates(ekcert)
	if err != nil {
		return nil, err
	}
	leaf := certs[0]
	key, err := certificateKey(leaf)
	if err != nil {
		return nil, refuse(CodeCertificate, "read EK certificate: %w", err)
	}
	if same, ok := key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !same.Equal(ek.key) {
		return nil, refuse(CodeCertificate, "check EK certificate: it is of another key than the TPM's endorsement key")
	}
	if err := checkEKUsage(leaf); err != nil {
		return nil, refuse(CodeCertificate, "check EK certificate: %w", err)
	}
	intermediates := x509.NewCertPool()
	for _, c := range certs {
		c.UnhandledCriticalExtensions = slices.DeleteFunc(c.UnhandledCriticalExtensions, oidSubjectAlt.Equal)
		intermediates.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: s.trusted, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // checkEKUsage did: Go has no name for it
	})
	if err != nil {
		return nil, refuse(CodeCertificate, "check EK certificate issued by %q: %w: if the TPM is genuine, add its manufacturer's CA, intermediate ones too, to ek_ca of the verifier", leaf.Issuer, err)
	}
	return leaf, nil
}

// checkEKUsage refuses a certificate that was issued for something else.
func checkEKUsage(c *x509.Certificate) error {
	if c.IsCA {
		return errors.New("it is of a certificate authority")
	}
	if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 && !slices.ContainsFunc(c.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return errors.New("its extended key usage is not that of an endorsement key")
	}
	const encrypts = x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement
	if c.KeyUsage != 0 && c.KeyUsage&encrypts == 0 {
		return errors.New("its key usage is not that of an endorsement key")
	}
	return nil
}

// certificateKey is the key of c, also of one that is marked as a key for OAEP.
func certificateKey(c *x509.Certificate) (crypto.PublicKey, error) {
	if c.PublicKey != nil {
		return c.PublicKey, nil
	}
	var info struct {
		Algorithm struct {
			OID        asn1.ObjectIdentifier
			Parameters asn1.RawValue `asn1:"optional"`
		}
		Key asn1.BitString
	}
	if rest, err := asn1.Unmarshal(c.RawSubjectPublicKeyInfo, &info); err != nil || len(rest) != 0 {
		return nil, errors.New("its public key is not readable")
	}
	if !info.Algorithm.OID.Equal(oidRSAOAEP) {
		return nil, fmt.Errorf("its public key has the unknown algorithm %v", info.Algorithm.OID)
	}
	key, err := x509.ParsePKCS1PublicKey(info.Key.RightAlign())
	if err != nil {
		return nil, err
	}
	return (*rsa.PublicKey)(key), nil
}
