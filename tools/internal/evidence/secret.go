package evidence

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// A key that secrets are encrypted to has exactly these attributes: born in this TPM and
// bound to it and to this boot, and good for nothing but TPM2_ECDH_ZGen.
const secretAttributes = attrFixedTPM | attrSTClear | attrFixedParent | attrSensitiveDataOrigin | attrUserWithAuth | attrNoDA | attrDecrypt

// maxSecret is the size in bytes of a secret that is not encrypted; MaxSealed of one that is:
// the sender's point and a tag come to it.
const (
	maxSecret = 1 << 20
	MaxSealed = maxSecret + 65 + 16
	maxPage   = 2 << 20 // of JSON with secrets: one of MaxSealed in base64 fits
)

// SecretKey is the public part of a decryption key that may be believed: see [AK.VerifySecretKey].
type SecretKey struct {
	name []byte
	key  *ecdh.PublicKey
}

// Name is the TPM's name of the key.
func (k *SecretKey) Name() []byte { return bytes.Clone(k.name) }

// SecretQualifier is what qualifies the certification of a key for secrets: the device and
// the challenge of the attestation that was just accepted. So a certification for another
// device, or from before that attestation, is of no use.
func SecretQualifier(device string, challenge []byte) []byte {
	sum := sha256.Sum256(appendFields(nil, []byte("meta-attest secret key 1"), []byte(device), challenge))
	return sum[:]
}

// appendFields appends each field with its length before it, so that no two lists of fields
// are the same bytes.
func appendFields(b []byte, fields ...[]byte) []byte {
	for _, f := range fields {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	return b
}

// VerifySecretKey checks that public, a TPM2B_PUBLIC, is a decryption key that the TPM of k
// made in its null hierarchy (so that it ends with the boot), in the boot of the quote whose
// clock is given and after it. message and signature are of TPM2_Certify by k with the
// qualifier of [SecretQualifier].
func (k *AK) VerifySecretKey(public, message, signature, qualifier []byte, quoted Clock) (*SecretKey, error) {
	if err := k.verifySignature(message, signature); err != nil {
		return nil, err
	}
	a, err := parseAttest(message, typeCertify)
	if err != nil {
		return nil, err
	}
	if err := checkNonce(a.extraData, qualifier); err != nil {
		return nil, err
	}
	if a.clock.ResetCount != quoted.ResetCount || a.clock.RestartCount != quoted.RestartCount {
		return nil, refuse(CodeReboot, "check secret key: it was certified in another boot than the quote")
	}
	if a.clock.Milliseconds < quoted.Milliseconds {
		return nil, refuse(CodeRewind, "check secret key: it was certified before the quote")
	}
	key, err := parseSecretKey(public)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(a.name, key.name) {
		return nil, refuse(CodeKey, "check secret key: another key was certified")
	}
	if want := nullQualified(key.name); !bytes.Equal(a.qualified, want) {
		return nil, refuse(CodeKey, "check secret key: it is not a primary key of the null hierarchy, and would outlive the boot")
	}
	return key, nil
}

// nullQualified is the qualified name (TPM 2.0 part 1, 16.4) of a primary key of the null
// hierarchy whose name is given: the name of a hierarchy is its handle.
func nullQualified(name []byte) []byte {
	h := sha256.New()
	_ = binary.Write(h, binary.BigEndian, uint32(tpm2.TPMRHNull)) // a hash takes all
	h.Write(name)
	return h.Sum(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)))
}

func parseSecretKey(public []byte) (*SecretKey, error) {
	area, err := parsePublic(public)
	if err != nil {
		return nil, err
	}
	if got := attributes(public); got != secretAttributes {
		return nil, refuse(CodeKey, "read secret key: attributes %#x, not %#x: it is not a decryption key that never leaves its TPM", got, secretAttributes)
	}
	if area.Type != tpm2.TPMAlgECC || area.NameAlg != tpm2.TPMAlgSHA256 || len(area.AuthPolicy.Buffer) != 0 {
		return nil, refuse(CodeKey, "read secret key: it is not of ECC with a name of SHA-256 and no policy")
	}
	p, err := area.Parameters.ECCDetail()
	if err != nil {
		return nil, refuse(CodeKey, "read secret key: %w", err)
	}
	if p.CurveID != tpm2.TPMECCNistP256 || p.Symmetric.Algorithm != tpm2.TPMAlgNull || p.Scheme.Scheme != tpm2.TPMAlgNull || p.KDF.Scheme != tpm2.TPMAlgNull {
		return nil, refuse(CodeKey, "read secret key: it is not on P-256, or has a scheme")
	}
	found, err := publicKey(area)
	if err != nil {
		return nil, err
	}
	ec, ok := found.(*ecdsa.PublicKey)
	if !ok {
		return nil, refuse(CodeKey, "read secret key: it is no ECC key")
	}
	key := &SecretKey{}
	if key.key, err = ec.ECDH(); err != nil {
		return nil, refuse(CodeKey, "read secret key: %w", err)
	}
	key.name, err = objectName(area)
	return key, err
}

// Challenge is the challenge of the quote that is asked for, or nil.
func (r *Requests) Challenge() []byte {
	for _, q := range r.Requested {
		if q.Type == TypeQuote {
			return q.Parameters.Challenge
		}
	}
	return nil
}

// SecretContext is what a secret is bound to: for anything else it cannot be decrypted.
type SecretContext struct {
	Device                   string
	ResetCount, RestartCount uint32 // of the TPM, in the boot that it is meant for
	Name                     string
	Revision                 int64
	Run                      string
}

// info is the info of HPKE (RFC 9180, 5.1).
func (c *SecretContext) info(key []byte) []byte {
	boot := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, c.ResetCount), c.RestartCount)
	return appendFields(nil, []byte("meta-attest secret 1"), []byte(c.Device), key, boot,
		[]byte(c.Name), binary.BigEndian.AppendUint64(nil, uint64(c.Revision)), []byte(c.Run))
}

// Seal encrypts plaintext to the key: HPKE in base mode (RFC 9180) with DHKEM(P-256,
// HKDF-SHA256), HKDF-SHA256 and AES-256-GCM. The result is the encapsulated key with the
// ciphertext after it.
func (k *SecretKey) Seal(c SecretContext, plaintext []byte) ([]byte, error) {
	if len(plaintext) > maxSecret {
		return nil, fmt.Errorf("encrypt secret: more than %d bytes", maxSecret)
	}
	key, err := hpke.NewDHKEMPublicKey(k.key)
	if err != nil {
		return nil, fmt.Errorf("encrypt secret: %w", err)
	}
	sealed, err := hpke.Seal(key, hpke.HKDFSHA256(), hpke.AES256GCM(), c.info(k.name), plaintext)
	if err != nil {
		return nil, fmt.Errorf("encrypt secret: %w", err)
	}
	return sealed, nil
}

// OpenSecret decrypts what [SecretKey.Seal] encrypted. key is the private key, in a TPM, and
// name its TPM name.
func OpenSecret(key ecdh.KeyExchanger, name []byte, c SecretContext, sealed []byte) ([]byte, error) {
	private, err := hpke.NewDHKEMPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("decrypt secret: %w", err)
	}
	plaintext, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.AES256GCM(), c.info(name), sealed)
	if err != nil {
		return nil, fmt.Errorf("decrypt secret: %w", err)
	}
	return plaintext, nil
}

// SecretRef names a revision of a secret.
type SecretRef struct {
	Name     string
	Revision int64
}

// SecretsTag tells one set of secrets from another, "" the empty one. They are sorted by name.
func SecretsTag(refs []SecretRef) string {
	if len(refs) == 0 {
		return ""
	}
	var b []byte
	for _, r := range refs {
		b = appendFields(b, []byte(r.Name), binary.BigEndian.AppendUint64(nil, uint64(r.Revision)))
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// SecretRequest is the body of POST /v3.0/agents/ID/secrets: a device asks for its secrets.
type SecretRequest struct {
	Public    []byte `json:"public"`          // TPM2B_PUBLIC of the key to encrypt to
	Message   []byte `json:"message"`         // TPMS_ATTEST of TPM2_Certify
	Signature []byte `json:"signature"`       // TPMT_SIGNATURE
	After     string `json:"after,omitempty"` // the last name of the page before
}

func (SecretRequest) limits() (string, int64) { return "secrets", maxSmall }

func (s SecretRequest) check() error {
	if s.After != "" {
		if err := CheckID(s.After); err != nil {
			return err
		}
	}
	return errors.Join(lengthOf("public", s.Public, 1, maxPublic), lengthOf("message", s.Message, 1, maxAttest), lengthOf("signature", s.Signature, 1, maxSignature))
}

// Secrets answers a [SecretRequest]: a page of secrets, sorted by name.
type Secrets struct {
	Secrets []Secret `json:"secrets"`
	More    bool     `json:"more,omitempty"` // secrets come after the last of these
}

// Secret is one that was encrypted, see [SecretKey.Seal].
type Secret struct {
	Name     string `json:"name"`
	Revision int64  `json:"revision"`
	Run      string `json:"run,omitempty"` // the file to execute
	Sealed   []byte `json:"sealed"`
}

func (Secrets) limits() (string, int64) { return "secrets", maxPage }

func (s Secrets) check() error {
	last := ""
	for _, one := range s.Secrets {
		if err := CheckID(one.Name); err != nil {
			return err
		}
		if one.Name <= last || one.Revision < 1 {
			return fmt.Errorf("secret %.40q, revision %d, after %.40q", one.Name, one.Revision, last)
		}
		last = one.Name
		if err := lengthOf("secret", one.Sealed, 1, MaxSealed); err != nil {
			return err
		}
	}
	if s.More && last == "" {
		return errors.New("more secrets after none")
	}
	return nil
}
