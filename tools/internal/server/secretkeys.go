package server

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// SecretKeys encrypt the secrets in the database: AES-256-GCM, with the name, the revision
// and the file to run as additional data, so that nobody who can write to the database can
// give one in the place of another.
type SecretKeys struct {
	keys []secretKey // the last one encrypts
}

type secretKey struct {
	id   [8]byte // of the SHA-256 of a label and the key
	aead cipher.AEAD
}

const (
	secretKeySize = 32 // bytes
	maxSecretKeys = 16
)

// ParseSecretKeys reads the content of a key file: one key of 32 random bytes after the
// other, the newest last. The newest encrypts, all decrypt.
func ParseSecretKeys(b []byte) (*SecretKeys, error) {
	if len(b) == 0 || len(b)%secretKeySize != 0 || len(b) > maxSecretKeys*secretKeySize {
		return nil, fmt.Errorf("read keys for secrets: %d bytes are not 1 to %d keys of %d bytes", len(b), maxSecretKeys, secretKeySize)
	}
	k := &SecretKeys{}
	for key := range slices.Chunk(b, secretKeySize) {
		if len(bytes.Trim(key, string(key[:1]))) == 0 {
			return nil, fmt.Errorf("read keys for secrets: key %d is not random", len(k.keys)+1)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, fmt.Errorf("read keys for secrets: %w", err)
		}
		one := secretKey{}
		if one.aead, err = cipher.NewGCM(block); err != nil {
			return nil, fmt.Errorf("read keys for secrets: %w", err)
		}
		sum := sha256.Sum256(append([]byte("meta-attest secret at rest 1"), key...))
		copy(one.id[:], sum[:])
		if slices.ContainsFunc(k.keys, func(o secretKey) bool { return o.id == one.id }) {
			return nil, fmt.Errorf("read keys for secrets: key %d is there twice", len(k.keys)+1)
		}
		k.keys = append(k.keys, one)
	}
	return k, nil
}

// bound is what a body in the database belongs to.
func bound(ref store.SecretRef, run string) []byte {
	b := []byte("meta-attest secret at rest 1")
	for _, field := range []string{ref.Name, run} {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(field))), field...)
	}
	return binary.BigEndian.AppendUint64(b, uint64(ref.Revision))
}

// seal makes a body: the id of the key, the nonce, the ciphertext.
func (k *SecretKeys) seal(ref store.SecretRef, run string, plaintext []byte) []byte {
	key := k.keys[len(k.keys)-1]
	nonce := make([]byte, key.aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails: crypto/rand
	return key.aead.Seal(append(key.id[:], nonce...), nonce, plaintext, bound(ref, run))
}

var errSecretKey = errors.New("the key that a secret was encrypted with is not in the key file")

func (k *SecretKeys) open(ref store.SecretRef, run string, body []byte) ([]byte, error) {
	for _, key := range k.keys {
		rest, ok := bytes.CutPrefix(body, key.id[:])
		if !ok {
			continue
		}
		if len(rest) < key.aead.NonceSize() {
			return nil, fmt.Errorf("decrypt secret %s: it is cut short", ref.Name)
		}
		nonce, ciphertext := rest[:key.aead.NonceSize()], rest[key.aead.NonceSize():]
		plaintext, err := key.aead.Open(nil, nonce, ciphertext, bound(ref, run))
		if err != nil {
			return nil, fmt.Errorf("decrypt secret %s: it was changed in the database: %w", ref.Name, err)
		}
		return plaintext, nil
	}
	return nil, fmt.Errorf("decrypt secret %s: %w", ref.Name, errSecretKey)
}

// newest says whether body needs no older key.
func (k *SecretKeys) newest(body []byte) bool {
	id := k.keys[len(k.keys)-1].id
	return bytes.HasPrefix(body, id[:])
}

// RekeySecrets encrypts with the newest key whatever in the database is encrypted with an
// older one, and returns how many secrets that were. Verifiers may go on meanwhile, if they
// have the newest key too. One that cannot be decrypted stops it; it can be begun anew.
func RekeySecrets(ctx context.Context, st *store.Store, k *SecretKeys, actor string, now time.Time) (int, error) {
	count := 0
	for after := ""; ; {
		page, err := st.SecretBodies(ctx, after, 1)
		if err != nil || len(page) == 0 {
			return count, err
		}
		one := page[0]
		after = one.Name
		if k.newest(one.Body) {
			continue
		}
		plaintext, err := k.open(one.SecretRef, one.Run, one.Body)
		if err != nil {
			return count, err
		}
		err = st.ReplaceSecretBody(ctx, one.SecretRef, k.seal(one.SecretRef, one.Run, plaintext), actor, now)
		if errors.Is(err, store.ErrConflict) {
			continue // another revision, of a verifier that has the newest key
		}
		if err != nil {
			return count, err
		}
		count++
	}
}
