package keys

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/hex"
	"strings"
)

var (
	// One line a key: SHA-256 of its SubjectPublicKeyInfo in hexadecimal, a space, its name.
	//go:embed debug/own.txt
	ownDebugKeys string // written by scripts/keys-debug
	//go:embed debug/others.txt
	otherDebugKeys string
)

// DebugName returns the name of a key whose private half everybody can download: those of
// keys-debug in this repository, and the examples of other layers that made it into products.
func DebugName(pub crypto.PublicKey) (name string, ok bool) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", false // not a kind of key that is in the lists, or that CheckStrength lets pass
	}
	sum := sha256.Sum256(der)
	fingerprint := hex.EncodeToString(sum[:])
	for _, list := range []string{ownDebugKeys, otherDebugKeys} {
		for line := range strings.Lines(list) {
			if print, name, _ := strings.Cut(strings.TrimSpace(line), " "); print == fingerprint {
				return name, true
			}
		}
	}
	return "", false
}
