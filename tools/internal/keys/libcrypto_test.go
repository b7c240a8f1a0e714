package keys

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"fmt"
	"testing"
)

// libcrypto is a key in libcrypto, or the test is skipped.
func libcrypto(t testing.TB, key *rsa.PrivateKey) crypto.Signer {
	t.Helper()
	signer, done, err := libcryptoSigner(key)
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	t.Cleanup(func() { done() })
	return signer
}

// TestLibcrypto compares with crypto/rsa byte for byte.
func TestLibcrypto(t *testing.T) {
	for _, bits := range []int{2048, 3072, 4096} {
		private, _ := newKey(t, fmt.Sprintf("RSA-%d", bits))
		signer := libcrypto(t, private.(*rsa.PrivateKey))
		for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			for i := range 4 {
				digest := digestOf(hash, fmt.Sprint(i))
				want, err := private.Sign(nil, digest, hash)
				if err != nil {
					t.Fatal(err)
				}
				got, err := signer.Sign(nil, digest, hash)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("RSA-%d %v: got %x, %v, want %x", bits, hash, got, err, want)
				}
			}
		}
	}
}

// TestLibcryptoErrors: what OpenSSL says must come out, never bytes.
func TestLibcryptoErrors(t *testing.T) {
	signer := libcrypto(t, rsa2048(t))
	for _, c := range []struct {
		digest []byte
		hash   crypto.Hash
	}{{make([]byte, 31), crypto.SHA256}, {nil, crypto.SHA256}, {make([]byte, 20), crypto.SHA1}} {
		if sig, err := signer.Sign(nil, c.digest, c.hash); err == nil || sig != nil {
			t.Errorf("%v of %d bytes: got %x, %v", c.hash, len(c.digest), sig, err)
		}
	}
	// A damaged key is refused because of its first signature.
	broken := *rsa2048(t)
	broken.E = 3
	if _, _, err := libcryptoSigner(&broken); err == nil {
		t.Error("a key with another exponent was accepted")
	} else {
		t.Log(err)
	}
}

// BenchmarkRSASign is why libcrypto_cgo.go exists.
func BenchmarkRSASign(b *testing.B) {
	for _, bits := range []int{2048, 3072, 4096} {
		private, _ := newKey(b, fmt.Sprintf("RSA-%d", bits))
		digest := make([]byte, 32)
		run := func(signer crypto.Signer) func(*testing.B) {
			return func(b *testing.B) {
				for b.Loop() {
					if _, err := signer.Sign(nil, digest, crypto.SHA256); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
		b.Run(fmt.Sprintf("%d/go", bits), run(private))
		b.Run(fmt.Sprintf("%d/libcrypto", bits), run(libcrypto(b, private.(*rsa.PrivateKey))))
	}
}

// BenchmarkECDSASign is why ECDSA is left to Go.
func BenchmarkECDSASign(b *testing.B) {
	for _, kind := range []string{"P-256", "P-384", "P-521"} {
		_, path := newKey(b, kind)
		key, err := Open(b.Context(), path, Options{})
		if err != nil {
			b.Fatal(err)
		}
		digest := make([]byte, 32)
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				if _, err := key.Sign(nil, digest, crypto.SHA256); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
