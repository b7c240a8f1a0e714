//go:build !cgo || !linux

package keys

import (
	"crypto"
	"crypto/rsa"
	"errors"
)

// libcryptoSigner needs cgo; without it crypto/rsa signs, slower.
func libcryptoSigner(*rsa.PrivateKey) (crypto.Signer, func() error, error) {
	return nil, nil, errors.New("built without cgo")
}
