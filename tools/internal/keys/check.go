package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"time"
)

var (
	// ErrExpired means that a certificate's notAfter has passed. Linux does not look at
	// it; other verifiers do.
	ErrExpired = errors.New("certificate has expired")

	// ErrMismatch means that a private key and a certificate do not belong together.
	ErrMismatch = errors.New("private key does not belong to the certificate")
)

// minKeyID is the length of a SubjectKeyIdentifier, in bytes, whose end can be the key id of a
// signature: struct signature_v2_hdr of security/integrity/integrity.h has a be32.
const minKeyID = 4

// CheckPair says why signatures made with the private half of pub could not be verified
// with cert: another key, one that [CheckStrength] refuses, no SubjectKeyIdentifier to take
// the key id from, or no keyUsage digitalSignature, without which the keyrings .ima and
// .evm refuse the certificate (restrict_link_by_digsig). Only when all of that is good is
// [ErrExpired] returned for a certificate that expired before now. notBefore is not looked
// at: a build with a fixed clock may lie before it, and Linux does not care.
func CheckPair(pub crypto.PublicKey, cert *x509.Certificate, now time.Time) error {
	name := cert.Subject.String()
	if p, ok := pub.(interface{ Equal(crypto.PublicKey) bool }); !ok || !p.Equal(cert.PublicKey) {
		return fmt.Errorf("%w %q", ErrMismatch, name)
	}
	if err := CheckStrength(pub); err != nil {
		return fmt.Errorf("certificate %q: %w", name, err)
	}
	if n := len(cert.SubjectKeyId); n < minKeyID {
		return fmt.Errorf("certificate %q: SubjectKeyIdentifier has %d bytes, a key id needs %d: %w", name, n, minKeyID, ErrUnsupported)
	}
	if cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fmt.Errorf("certificate %q: keyUsage without digitalSignature: %w", name, ErrUnsupported)
	}
	if cert.NotAfter.Before(now) {
		return fmt.Errorf("%w: %q on %s", ErrExpired, name, cert.NotAfter.Format(time.DateOnly))
	}
	return nil
}

// CheckStrength accepts RSA of 2048, 3072 and 4096 bits (no other length: see
// rsa_check_key_length of crypto/rsa.c) and ECDSA on P-256, P-384 and P-521. Shorter RSA is
// [ErrWeak], all else, such as Ed25519, is [ErrUnsupported]: Linux could not verify it.
func CheckStrength(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		switch bits := k.N.BitLen(); {
		case bits < 2048:
			return fmt.Errorf("RSA key of %d bits is %w", bits, ErrWeak)
		case bits == 2048, bits == 3072, bits == 4096:
			return nil
		}
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
	}
	return fmt.Errorf("%s key: %w", typeName(pub), ErrUnsupported)
}

// typeName names the kind of a public or private key as a ceremony does: RSA-2048, P-256.
func typeName(key any) string {
	if k, ok := key.(interface{ Public() crypto.PublicKey }); ok {
		key = k.Public()
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return k.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	default:
		return strings.TrimPrefix(fmt.Sprintf("%T", key), "*")
	}
}

// keyIdentifier is method 1 of RFC 5280 section 4.2.1.2: SHA-1 of the BIT STRING
// subjectPublicKey. evmctl computes the same from a key when it is given no certificate.
func keyIdentifier(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("marshal public key: %w", err)
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, fmt.Errorf("read public key: %w", err)
	}
	sum := sha1.Sum(info.Key.Bytes)
	return sum[:], nil
}

// samePublic says whether two certificates or requests are for one key.
func samePublic(a, b crypto.PublicKey) bool {
	x, errX := x509.MarshalPKIXPublicKey(a)
	y, errY := x509.MarshalPKIXPublicKey(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
