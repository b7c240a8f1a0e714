package appraise

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// signer is a key whose signatures of content count.
type signer struct {
	id  uint32
	pub crypto.PublicKey
}

func newSigner(pub crypto.PublicKey, id uint32) (signer, error) {
	switch pub.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey:
	default:
		return signer{}, fmt.Errorf("public keys of type %T do not sign for IMA", pub)
	}
	x := &ima.Xattr{Hash: ima.SHA256}
	if why := x.Weakness(pub); why != "" {
		return signer{}, errors.New(why)
	}
	return signer{id, pub}, nil
}

// String names the key, for the identity of a reference.
func (s signer) String() string {
	der, err := x509.MarshalPKIXPublicKey(s.pub)
	if err != nil {
		return fmt.Sprintf("%08x %v", s.id, err)
	}
	return fmt.Sprintf("%08x %x", s.id, sha256.Sum256(der))
}

// signed says whose signatures count for which files. An empty path is of every file.
type signed struct {
	path     Glob
	releases mask
	signers  []signer
}

func readSigners(certificates []string) (all []signer, err error) {
	for _, text := range certificates {
		cert, err := parseCertificate(text)
		if err != nil {
			return nil, err
		}
		id, err := ima.KeyID(cert)
		if err != nil {
			return nil, err
		}
		s, err := newSigner(cert.PublicKey, id)
		if err != nil {
			return nil, fmt.Errorf("certificate %q: %w", cert.Subject, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// signatures returns the releases for which the signature in e counts. What is signed is
// the content, not the path: whoever may write there may put any file of the signer's there.
// bad says that a signature of a known key does not match.
//
// A portable security.evm signs metadata that the list does not have, so that it never counts.
func (r *Reference) signatures(e *ima.Entry) (m mask, bad bool) {
	if len(r.signed) == 0 {
		return 0, false
	}
	x, err := e.Label()
	if err != nil || x == nil || !x.IsSignature() {
		return 0, false
	}
	of := ima.Signature
	if e.File.Verity {
		of = ima.VeritySignature
	}
	if x.Type != of || x.Hash != e.File.Hash || x.Hash.Weak() {
		return 0, false
	}
	for _, rule := range r.signed {
		if rule.path != "" && !rule.path.matches(string(e.Path)) {
			continue
		}
		for _, s := range rule.signers {
			if s.id != x.KeyID {
				continue
			}
			if x.Verify(s.pub, e.File.Sum) != nil {
				bad = true
				continue
			}
			m |= rule.releases
			break
		}
	}
	return m, bad && m == 0
}
