package evidence

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// KeyPCR is the PCR that binds a pulled quote to the agent's transport key: before each
// quote the agent resets it (no privilege is needed for it) and extends it once, with the
// digest of the key's PEM.
const KeyPCR = 16

// KeyPCRValue is what [KeyPCR] holds in the bank of hash if the quote is from an agent with
// this key, in PEM as it was sent.
func KeyPCRValue(hash crypto.Hash, key string) []byte {
	h := hash.New()
	h.Write(make([]byte, hash.Size()))
	h.Write(KeyDigest(hash, key))
	return h.Sum(nil)
}

// KeyDigest is what the agent extends [KeyPCR] with.
func KeyDigest(hash crypto.Hash, key string) []byte {
	h := hash.New()
	h.Write([]byte(key))
	return h.Sum(nil)
}

// ShareSize is the size of a key for a payload, and of each of its two shares, in bytes:
// AES-256. Keylime's agent takes AES-128 as well, its tenant never sends it.
const ShareSize = 32

// MaxPayload is the size of the largest payload, as Keylime's max_payload_size has it.
const MaxPayload = 1 << 20

// gcmNonce and gcmTag are around a payload: Keylime's nonce has 16 bytes, not the usual 12
// (encrypt in its crypto.py).
const (
	gcmNonce    = 16
	gcmTag      = 16
	gcmOverhead = gcmNonce + gcmTag
)

// FormatShareKey is the agent's transport key as PEM.
func FormatShareKey(key *rsa.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("encode transport key: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}

// parseShareKey reads an agent's transport key: PEM, RSA of 2048 to 4096 bits.
func parseShareKey(key string) (*rsa.PublicKey, error) {
	block, rest := pem.Decode([]byte(key))
	if block == nil || len(rest) > 0 || len(key) > maxSmall {
		return nil, errors.New("pubkey is not one block of PEM")
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("pubkey: %w", err)
	}
	r, ok := k.(*rsa.PublicKey)
	if !ok || r.N.BitLen() < 2048 || r.N.BitLen() > 4096 {
		return nil, errors.New("pubkey is not an RSA key of 2048 to 4096 bits")
	}
	return r, nil
}

// SealShare encrypts a share to the agent's transport key in PEM, which a quote must have
// proven ([KeyPCR]): RSA-OAEP with SHA-1, which is what the protocol has; OAEP does not
// rest on collisions.
func SealShare(key string, share []byte) ([]byte, error) {
	k, err := parseShareKey(key)
	if err != nil {
		return nil, refuse(CodeKey, "encrypt share: %w", err)
	}
	sealed, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, k, share, nil)
	if err != nil {
		return nil, fmt.Errorf("encrypt share: %w", err)
	}
	return sealed, nil
}

// OpenShare decrypts what [SealShare] made. It takes shares of [ShareSize] bytes only.
func OpenShare(key *rsa.PrivateKey, sealed []byte) ([]byte, error) {
	share, err := rsa.DecryptOAEP(sha1.New(), nil, key, sealed, nil)
	if err != nil {
		return nil, refuse(CodeKey, "decrypt share: it is not encrypted to this agent's key")
	}
	if len(share) != ShareSize {
		return nil, refuse(CodeKey, "decrypt share: it has %d bytes, not %d", len(share), ShareSize)
	}
	return share, nil
}

// JoinShares makes the payload's key of both shares. [SplitKey] is the way back.
func JoinShares(u, v []byte) []byte {
	key := make([]byte, ShareSize)
	subtle.XORBytes(key, u, v)
	return key
}

// SplitKey makes two shares of a key of [ShareSize] bytes, each of which alone says nothing.
func SplitKey(key []byte) (u, v []byte) {
	u = make([]byte, ShareSize)
	_, _ = rand.Read(u) // never fails: crypto/rand
	return u, JoinShares(u, key)
}

// KeyTag is the HMAC-SHA384 of text under the payload's key, in hexadecimal: of the agent's
// id it tells the agent that both shares belong together, of a challenge it tells the
// tenant that the agent has the key.
func KeyTag(key []byte, text string) string {
	m := hmac.New(sha512.New384, key)
	m.Write([]byte(text))
	return hex.EncodeToString(m.Sum(nil))
}

// SealPayload encrypts with AES-256-GCM: nonce, ciphertext, tag.
func SealPayload(key, payload []byte) ([]byte, error) {
	if len(payload) > MaxPayload {
		return nil, fmt.Errorf("encrypt payload: it has %d bytes, %d at most", len(payload), MaxPayload)
	}
	aead, err := payloadCipher(key)
	if err != nil {
		return nil, fmt.Errorf("encrypt payload: %w", err)
	}
	nonce := make([]byte, gcmNonce, gcmOverhead+len(payload))
	_, _ = rand.Read(nonce) // never fails: crypto/rand
	return aead.Seal(nonce, nonce, payload, nil), nil
}

// OpenPayload decrypts what [SealPayload] made.
func OpenPayload(key, sealed []byte) ([]byte, error) {
	if len(sealed) < gcmOverhead || len(sealed) > MaxPayload+gcmOverhead {
		return nil, refuse(CodeMalformed, "decrypt payload: it has %d bytes, not %d to %d", len(sealed), gcmOverhead, MaxPayload+gcmOverhead)
	}
	aead, err := payloadCipher(key)
	if err != nil {
		return nil, refuse(CodeKey, "decrypt payload: %w", err)
	}
	payload, err := aead.Open(nil, sealed[:gcmNonce], sealed[gcmNonce:], nil)
	if err != nil {
		return nil, refuse(CodeKey, "decrypt payload: it was encrypted with another key, or changed")
	}
	return payload, nil
}

func payloadCipher(key []byte) (cipher.AEAD, error) {
	if len(key) != ShareSize {
		return nil, fmt.Errorf("its key has %d bytes, not %d", len(key), ShareSize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithNonceSize(block, gcmNonce)
}

// ParseRevocationKey reads the key that signs revocations: RSA in PEM, PKCS #8 or PKCS #1.
func ParseRevocationKey(text []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("key of revocations: not PEM")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("key of revocations: not a private key, or an encrypted one")
	}
	k, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key of revocations: it is a %T, Keylime's agents know RSA", key)
	}
	return k, nil
}

// SignRevocation signs with the key of the certificate that the agents were given: RSA-PSS
// with SHA-256 and the longest salt (rsa_sign in Keylime's crypto.py).
func SignRevocation(key *rsa.PrivateKey, message []byte) (*SignedRevocation, error) {
	sum := sha256.Sum256(message)
	signature, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto})
	if err != nil {
		return nil, fmt.Errorf("sign revocation: %w", err)
	}
	return &SignedRevocation{Message: string(message), Signature: signature}, nil
}

// Verify checks the signature with the certificate that the agent was given, whose own
// dates and issuer count for nothing: whoever laid it there trusts its key. The error's
// code is [CodeSignature].
func (s SignedRevocation) Verify(cert *x509.Certificate) error {
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return refuse(CodeKey, "check revocation: the certificate's key is a %T, not RSA", cert.PublicKey)
	}
	sum := sha256.Sum256([]byte(s.Message))
	if err := rsa.VerifyPSS(key, crypto.SHA256, sum[:], s.Signature, nil); err != nil {
		return refuse(CodeSignature, "check revocation: it is not signed with the key of %s", cert.Subject)
	}
	return nil
}
