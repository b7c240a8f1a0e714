package manifest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/sigstore/sigstore/pkg/signature"
)

// TestKeysAsSigstore: the hash that a key signs with and its name are those of sigstore
// and of DSSE's Go implementation.
func TestKeysAsSigstore(t *testing.T) {
	var keys []crypto.PublicKey
	for _, bits := range []int{2048, 3072} {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k.Public())
	}
	for _, c := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k.Public())
	}
	for _, k := range keys {
		v, err := newVerifier(&x509.Certificate{PublicKey: k})
		want, theirs := signature.GetDefaultAlgorithmDetails(k)
		if (err == nil) != (theirs == nil) {
			t.Errorf("%T: %v, sigstore says %v", k, err, theirs)
		}
		if err != nil {
			continue
		}
		if v.hash != want.GetHashType() {
			t.Errorf("%T: %v, sigstore takes %v", k, v.hash, want.GetHashType())
		}
		got, err := keyID(k)
		if err != nil {
			t.Fatal(err)
		}
		if want, err := dsse.SHA256KeyID(k); err != nil || got != want {
			t.Errorf("%T: key id %s, want %s, %v", k, got, want, err)
		}
	}
}
