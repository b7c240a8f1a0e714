package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// backdate is how far notBefore lies in the past: the machine of the ceremony and the one
// that builds an image an hour later may not agree on the time, and openssl and sbverify
// refuse a certificate from the future. Linux and firmware do not look at it.
const backdate = time.Hour

// Authority signs certificates.
type Authority struct {
	Signer      crypto.Signer
	Certificate *x509.Certificate
}

// Check says why the certificates that a signs would not be accepted: its key and certificate
// do not belong together, it is no CA, has expired, has no SubjectKeyIdentifier, by which
// Linux finds the issuer (find_asymmetric_key), or its key is refused by CheckStrength.
func (a *Authority) Check(now time.Time) error {
	cert := a.Certificate
	name := cert.Subject.String()
	switch {
	case !samePublic(a.Signer.Public(), cert.PublicKey):
		return fmt.Errorf("%w %q", ErrMismatch, name)
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return fmt.Errorf("certificate %q: not a CA: %w", name, ErrUnsupported)
	case cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("certificate %q: keyUsage without keyCertSign: %w", name, ErrUnsupported)
	case len(cert.SubjectKeyId) < minKeyID:
		return fmt.Errorf("certificate %q: no SubjectKeyIdentifier: %w", name, ErrUnsupported)
	case cert.NotAfter.Before(now):
		return fmt.Errorf("%w: %q on %s", ErrExpired, name, cert.NotAfter.Format(time.DateOnly))
	}
	if err := CheckStrength(cert.PublicKey); err != nil {
		return fmt.Errorf("certificate %q: %w", name, err)
	}
	return nil
}

// checkKey says whether public is what s describes.
func (s *Spec) checkKey(public crypto.PublicKey) error {
	if kind := typeName(public); kind != s.Key {
		return fmt.Errorf("key %q: is %s, the ceremony says %s", s.Name, kind, s.Key)
	}
	return nil
}

// SelfSign makes the certificate of a CA as .builtin_trusted_keys and .machine want it
// (restrict_link_by_ca): CA, keyCertSign and not digitalSignature. skid is the
// SubjectKeyIdentifier to keep, nil for that of RFC 5280 section 4.2.1.2 method 1.
func (s *Spec) SelfSign(key crypto.Signer, skid []byte, now time.Time) (*x509.Certificate, error) {
	t, err := s.template(key.Public(), skid, now)
	if err != nil {
		return nil, err
	}
	t.IsCA = true
	t.MaxPathLenZero = true // pathlen:0, it signs leaves only
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return s.sign(t, t, key.Public(), key)
}

// Issue makes the certificate of a leaf as .ima and .evm want it (restrict_link_by_digsig):
// digitalSignature, and neither CA nor keyCertSign. Modules and EFI programs get
// extendedKeyUsage codeSigning too. skid is as for SelfSign. A leaf that would outlive the
// CA is an error.
func (s *Spec) Issue(ca *Authority, public crypto.PublicKey, skid []byte, now time.Time) (*x509.Certificate, error) {
	t, err := s.template(public, skid, now)
	if err != nil {
		return nil, err
	}
	if end := ca.Certificate.NotAfter; t.NotAfter.After(end) {
		return nil, fmt.Errorf("key %q: %d days would outlive the CA, which ends on %s: at most %d are left",
			s.Name, s.Days, end.Format(time.DateOnly), int(end.Sub(now).Hours()/24))
	}
	if begin := ca.Certificate.NotBefore; t.NotBefore.Before(begin) {
		t.NotBefore = begin
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	if s.codeSigning() {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	}
	cert, err := s.sign(t, ca.Certificate, public, ca.Signer)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(cert.RawSubject, cert.RawIssuer) {
		return nil, fmt.Errorf("key %q: subject is that of the CA", s.Name)
	}
	return cert, nil
}

func (s *Spec) codeSigning() bool {
	return slices.Contains(s.Roles, RoleModsign) || slices.Contains(s.Roles, RoleSecureBoot)
}

// template has what CAs and leaves have in common.
func (s *Spec) template(public crypto.PublicKey, skid []byte, now time.Time) (*x509.Certificate, error) {
	if err := s.checkKey(public); err != nil {
		return nil, err
	}
	subject, err := s.rawSubject()
	if err != nil {
		return nil, err
	}
	if skid == nil {
		// Always set: crypto/x509 gives a leaf none, and a CA the first 160 bits of SHA-256
		// (golang/go #71746), which is not what evmctl computes.
		if skid, err = keyIdentifier(public); err != nil {
			return nil, fmt.Errorf("key %q: %w", s.Name, err)
		}
	}
	now = now.UTC().Truncate(time.Second)
	return &x509.Certificate{
		RawSubject:            subject,
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.AddDate(0, 0, s.Days),
		BasicConstraintsValid: true,
		SubjectKeyId:          skid,
	}, nil
}

func (s *Spec) rawSubject() ([]byte, error) {
	seq, err := parseSubject(s.Subject)
	if err != nil {
		return nil, fmt.Errorf("key %q: subject %q: %w", s.Name, s.Subject, err)
	}
	der, err := asn1.Marshal(seq)
	if err != nil {
		return nil, fmt.Errorf("key %q: marshal subject: %w", s.Name, err)
	}
	return der, nil
}

func (s *Spec) sign(t, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	t.SignatureAlgorithm = signatureAlgorithm(signer.Public())
	der, err := x509.CreateCertificate(rand.Reader, t, parent, public, signer)
	if err != nil {
		return nil, fmt.Errorf("key %q: sign certificate: %w", s.Name, err)
	}
	return x509.ParseCertificate(der)
}

// signatureAlgorithm is as strong as the key. RSA has SHA-256 at every length: a kernel
// without SHA-512 could not verify a leaf, and longer keys are not there for the hash.
func signatureAlgorithm(public crypto.PublicKey) x509.SignatureAlgorithm {
	if k, ok := public.(*ecdsa.PublicKey); ok {
		switch k.Params().BitSize {
		case 384:
			return x509.ECDSAWithSHA384
		case 521:
			return x509.ECDSAWithSHA512
		default:
			return x509.ECDSAWithSHA256
		}
	}
	return x509.SHA256WithRSA
}

// Request makes a PKCS#10 certificate request for a CA elsewhere. It asks for the
// extensions that Issue would give.
func (s *Spec) Request(key crypto.Signer) ([]byte, error) {
	if err := s.checkKey(key.Public()); err != nil {
		return nil, err
	}
	subject, err := s.rawSubject()
	if err != nil {
		return nil, err
	}
	extensions, err := s.extensions(key.Public())
	if err != nil {
		return nil, fmt.Errorf("key %q: marshal extensions: %w", s.Name, err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		RawSubject: subject, ExtraExtensions: extensions, SignatureAlgorithm: signatureAlgorithm(key.Public()),
	}, key)
	if err != nil {
		return nil, fmt.Errorf("key %q: sign request: %w", s.Name, err)
	}
	return der, nil
}

func (s *Spec) extensions(public crypto.PublicKey) ([]pkix.Extension, error) {
	skid, errSKID := keyIdentifier(public)
	var errs = []error{errSKID}
	var list []pkix.Extension
	add := func(oid asn1.ObjectIdentifier, critical bool, value any) {
		der, err := asn1.Marshal(value)
		errs = append(errs, err)
		list = append(list, pkix.Extension{Id: oid, Critical: critical, Value: der})
	}
	add(asn1.ObjectIdentifier{2, 5, 29, 19}, true, struct{}{})                                        // basicConstraints CA:FALSE
	add(asn1.ObjectIdentifier{2, 5, 29, 15}, true, asn1.BitString{Bytes: []byte{0x80}, BitLength: 1}) // keyUsage digitalSignature
	add(asn1.ObjectIdentifier{2, 5, 29, 14}, false, skid)                                             // subjectKeyIdentifier
	if s.codeSigning() {
		add(asn1.ObjectIdentifier{2, 5, 29, 37}, false, []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 3}})
	}
	return list, errors.Join(errs...)
}

// FromRequest returns the public key of a certificate request, if that asks for the subject
// and the kind of key that s says: the ceremony is what was reviewed, so a request brings
// the key and nothing else.
func (s *Spec) FromRequest(csr *x509.CertificateRequest, allowDebug bool) (crypto.PublicKey, error) {
	want, err := parseSubject(s.Subject)
	if err != nil {
		return nil, fmt.Errorf("key %q: subject %q: %w", s.Name, s.Subject, err)
	}
	var got pkix.RDNSequence
	if err := unmarshal(csr.RawSubject, &got); err != nil {
		return nil, fmt.Errorf("key %q: read subject of request: %w", s.Name, err)
	}
	if !sameSubject(got, want) {
		return nil, fmt.Errorf("key %q: request is for %q, the ceremony says %q", s.Name, got, want)
	}
	if err := admit(csr.PublicKey, "request for "+s.Name, allowDebug); err != nil {
		return nil, err
	}
	return csr.PublicKey, s.checkKey(csr.PublicKey)
}

// ReadRequest reads a certificate request, PEM or DER, and checks that the owner of its key
// signed it.
func ReadRequest(path string) (*x509.CertificateRequest, error) {
	content, _, err := readFile(path, maxCertFile)
	if err != nil {
		return nil, err
	}
	return parseRequest(path, content)
}

func parseRequest(name string, content []byte) (*x509.CertificateRequest, error) {
	if block, _ := pem.Decode(content); block != nil {
		if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
			return nil, fmt.Errorf("%s: holds no certificate request but a %s", name, strings.ToLower(block.Type))
		}
		content = block.Bytes
	}
	csr, err := x509.ParseCertificateRequest(content)
	if err != nil {
		return nil, fmt.Errorf("%s: read certificate request: %w", name, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%s: verify signature of certificate request: %w", name, err)
	}
	return csr, nil
}
