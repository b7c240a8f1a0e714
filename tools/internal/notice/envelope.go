package notice

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	_ "crypto/sha512" // SHA-384 of P-384
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
)

// ErrNotAuthentic means that no key that is trusted signed an envelope.
var ErrNotAuthentic = errors.New("not signed by a key that is trusted")

const (
	maxSignatures = 8
	maxCerts      = 16
)

// envelope is that of DSSE 1.0.2 (github.com/secure-systems-lab/dsse, envelope.md), in the
// order in which its Go implementation writes the members. No other bytes are read.
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

func parseEnvelope(b []byte) (*envelope, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("parse envelope: %d bytes, at most %d", len(b), MaxSize)
	}
	v := &envelope{}
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fmt.Errorf("parse envelope: %w", err)
	}
	if again, err := json.Marshal(v); err != nil || !bytes.Equal(again, b) {
		return nil, errors.New("parse envelope: not in the form that is written")
	}
	if v.PayloadType != MediaType || len(v.Signatures) > maxSignatures {
		return nil, fmt.Errorf("parse envelope: type %.60q with %d signatures, want %s and at most %d", v.PayloadType, len(v.Signatures), MediaType, maxSignatures)
	}
	return v, nil
}

// digest is what is signed (protocol.md, PAE), with the hash that belongs to the curve.
func digest(key *ecdsa.PublicKey, payload []byte) ([]byte, crypto.Hash, error) {
	hash := crypto.SHA256
	switch key.Curve {
	case elliptic.P256():
	case elliptic.P384():
		hash = crypto.SHA384
	default:
		return nil, 0, errors.New("key of a notice: want ECDSA with P-256 or P-384")
	}
	h := hash.New()
	fmt.Fprintf(h, "DSSEv1 %d %s %d ", len(MediaType), MediaType, len(payload))
	h.Write(payload)
	return h.Sum(nil), hash, nil
}

// KeyID is a hint: the SHA-256 of the key's SubjectPublicKeyInfo, hexadecimal.
func KeyID(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// CheckKey says why a notice cannot be signed with the key of a certificate.
func CheckKey(cert *x509.Certificate) error {
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("certificate %q: key of a notice: want ECDSA with P-256 or P-384", cert.Subject)
	}
	_, _, err := digest(key, nil)
	return err
}

// Sign puts e into an envelope, signed with the key of cert.
func Sign(e *Event, key crypto.Signer, cert *x509.Certificate) ([]byte, error) {
	payload, err := e.Marshal()
	if err != nil {
		return nil, err
	}
	public, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || !public.Equal(cert.PublicKey) {
		return nil, errors.New("sign notice: the certificate is not that of the key, or the key is not ECDSA")
	}
	sum, hash, err := digest(public, payload)
	if err != nil {
		return nil, fmt.Errorf("sign notice: %w", err)
	}
	sig, err := key.Sign(rand.Reader, sum, hash)
	if err != nil {
		return nil, fmt.Errorf("sign notice: %w", err)
	}
	return json.Marshal(envelope{MediaType, payload, []signature{{KeyID(cert), sig}}})
}

// Open returns the event of an envelope that a key of one of certs signed, and the bytes
// that were signed. The dates of a certificate are not looked at: the clock of a device may
// be wrong, and a key that must not count any more is taken out of the device's file.
func Open(b []byte, certs []*x509.Certificate) (*Event, []byte, error) {
	v, err := parseEnvelope(b)
	if err != nil {
		return nil, nil, err
	}
	if !v.signedBy(certs) {
		return nil, nil, fmt.Errorf("open notice: %w", ErrNotAuthentic)
	}
	e, err := Parse(v.Payload)
	if err != nil {
		return nil, nil, err
	}
	return e, v.Payload, nil
}

func (v *envelope) signedBy(certs []*x509.Certificate) bool {
	for _, c := range certs {
		key, ok := c.PublicKey.(*ecdsa.PublicKey)
		if !ok {
			continue
		}
		sum, _, err := digest(key, v.Payload)
		if err != nil {
			continue
		}
		for _, s := range v.Signatures {
			if ecdsa.VerifyASN1(key, sum, s.Sig) {
				return true
			}
		}
	}
	return false
}

// ParseCertificates reads the certificates, PEM, whose keys may sign notices.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("certificates of notices: a PEM block %.40q", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificates of notices: %w", err)
		}
		if err := CheckKey(c); err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 || len(certs) > maxCerts {
		return nil, fmt.Errorf("certificates of notices: %d of them in PEM, want 1 to %d", len(certs), maxCerts)
	}
	return certs, nil
}
