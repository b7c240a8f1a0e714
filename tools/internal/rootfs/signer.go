package rootfs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"fmt"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
)

// Signer makes the labels of one key.
type Signer struct {
	key   crypto.Signer
	cert  *x509.Certificate
	keyID uint32
	hash  ima.HashAlgo
	// resign says that making the signature again is cheaper than verifying the one that
	// is there, and gives the same bytes: so does ECDSA with a key at hand.
	resign bool
}

// NewSigner tries the key: it makes one signature and verifies it with the
// certificate, so that a key that cannot sign is found before a file is touched. repeats
// says that it is at hand and signs the same bytes alike each time.
func NewSigner(key crypto.Signer, repeats bool, cert *x509.Certificate, hash ima.HashAlgo) (*Signer, error) {
	id, err := ima.KeyID(cert)
	if err != nil {
		return nil, err
	}
	s := &Signer{key: key, cert: cert, keyID: id, hash: hash}
	if _, ok := cert.PublicKey.(*ecdsa.PublicKey); ok {
		s.resign = repeats
	}
	if _, err := s.probe(ima.Signature); err != nil {
		return nil, err
	}
	return s, nil
}

// keyID is a key id as evmctl prints it.
func keyID(id uint32) string {
	return hex.EncodeToString([]byte{byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)})
}

// probe makes and verifies a label, of the length that labels of this key have at most.
func (s *Signer) probe(t ima.XattrType) ([]byte, error) {
	h, err := s.hash.New()
	if err != nil {
		return nil, err
	}
	h.Write([]byte("attest: first signature of a run\n"))
	digest := h.Sum(nil)
	x, err := ima.Sign(t, s.key, s.keyID, s.hash, digest)
	if err != nil {
		return nil, err
	}
	if err := x.Verify(s.cert.PublicKey, digest); err != nil {
		return nil, fmt.Errorf("its certificate does not verify what it signed: %w", err)
	}
	value := x.Append(nil)
	return append(value, make([]byte, max(0, s.maxSize()-len(value)))...), nil
}

// maxSize is the length of the largest label: the DER of an ECDSA signature varies.
func (s *Signer) maxSize() int {
	const header = 9
	switch pub := s.cert.PublicKey.(type) {
	case *rsa.PublicKey:
		return header + pub.Size()
	case *ecdsa.PublicKey:
		integer := 3 + (pub.Curve.Params().BitSize+7)/8
		return header + 3 + 2*integer
	}
	return 0
}

// label returns the label for digest: current, when that is a valid label of this key.
func (s *Signer) label(t ima.XattrType, digest, current []byte) ([]byte, error) {
	if current != nil && !s.resign && s.valid(t, digest, current) {
		return current, nil
	}
	x, err := ima.Sign(t, s.key, s.keyID, s.hash, digest)
	if err != nil {
		return nil, &signError{err}
	}
	return x.Append(nil), nil
}

func (s *Signer) valid(t ima.XattrType, digest, current []byte) bool {
	x, err := ima.ParseIMA(current)
	if t == ima.PortableSignature {
		x, err = ima.ParseEVM(current)
	}
	return err == nil && x.Type == t && x.Version == ima.Version(t) && x.Hash == s.hash && x.KeyID == s.keyID &&
		x.Verify(s.cert.PublicKey, digest) == nil
}

// signError is a failure of the key, which no other file will escape.
type signError struct{ err error }

func (e *signError) Error() string { return e.err.Error() }
func (e *signError) Unwrap() error { return e.err }

// SignContent returns the value of security.ima for a file with that content.
func (s *Signer) SignContent(content []byte) ([]byte, error) {
	h, err := s.hash.New()
	if err != nil {
		return nil, err
	}
	h.Write(content)
	return s.SignDigest(h.Sum(nil))
}

// SignDigest returns the value of security.ima for a file with that digest, which is of the
// hash of s.
func (s *Signer) SignDigest(digest []byte) ([]byte, error) {
	return s.label(ima.Signature, digest, nil)
}

// Commit signs a manifest with the key of s.
func (s *Signer) Commit(w *manifest.Writer) error { return w.Commit(s.key, s.cert) }
