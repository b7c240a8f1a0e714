package manifest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"strconv"
)

// verifier checks signatures of one certificate's key.
type verifier struct {
	cert *x509.Certificate
	hash crypto.Hash
}

// newVerifier takes the algorithm that sigstore takes by default for the certificate's
// key (signature.GetDefaultAlgorithmDetails): RSA and P-256 with SHA-256, P-384 with
// SHA-384, P-521 with SHA-512. It is not sigstore's own verifier because a device checks
// manifests too, and has no room for what that one drags in; the tests compare the two.
func newVerifier(cert *x509.Certificate) (*verifier, error) {
	switch k := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		switch k.N.BitLen() {
		case 2048, 3072, 4096:
			return &verifier{cert, crypto.SHA256}, nil
		}
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return &verifier{cert, crypto.SHA256}, nil
		case elliptic.P384():
			return &verifier{cert, crypto.SHA384}, nil
		case elliptic.P521():
			return &verifier{cert, crypto.SHA512}, nil
		}
	}
	return nil, fmt.Errorf("use certificate %q: %s key: unsupported public key type", cert.Subject, cert.PublicKeyAlgorithm)
}

var errSignature = errors.New("signature does not match")

func (v *verifier) verify(digest, sig []byte) error {
	switch k := v.cert.PublicKey.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, v.hash, digest, sig)
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(k, digest, sig) {
			return nil
		}
	}
	return errSignature
}

// keyID is what DSSE's Go implementation calls a key (dsse.SHA256KeyID): OpenSSH's
// fingerprint of it, of the encoding of RFC 4253, 6.6, and RFC 5656, 3.1.
func keyID(pub crypto.PublicKey) (string, error) {
	var wire []byte
	text := func(b []byte) { wire = append(binary.BigEndian.AppendUint32(wire, uint32(len(b))), b...) }
	integer := func(n *big.Int) { text(append(make([]byte, 1-min(1, n.BitLen()%8)), n.Bytes()...)) } // never negative
	switch k := pub.(type) {
	case *rsa.PublicKey:
		text([]byte("ssh-rsa"))
		integer(big.NewInt(int64(k.E)))
		integer(k.N)
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			return "", fmt.Errorf("encode public key: %w", err)
		}
		curve := "nistp" + strconv.Itoa(k.Curve.Params().BitSize)
		text([]byte("ecdsa-sha2-" + curve))
		text([]byte(curve))
		text(point)
	default:
		return "", fmt.Errorf("encode public key: %T is neither RSA nor ECDSA", pub)
	}
	sum := sha256.Sum256(wire)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:]), nil
}
