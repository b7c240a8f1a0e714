package evidence

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// maxPublic bounds a TPM2B_PUBLIC: an RSA key of 4096 bits has some 600 bytes.
const maxPublic = 1024

// Attributes of TPMA_OBJECT (TPM 2.0 part 2, 8.3).
const (
	attrFixedTPM            = 1 << 1
	attrSTClear             = 1 << 2
	attrFixedParent         = 1 << 4
	attrSensitiveDataOrigin = 1 << 5
	attrUserWithAuth        = 1 << 6
	attrAdminWithPolicy     = 1 << 7
	attrNoDA                = 1 << 10
	attrRestricted          = 1 << 16
	attrDecrypt             = 1 << 17
	attrSign                = 1 << 18
)

// An attestation key has exactly these attributes, NoDA aside: born in this TPM and bound to
// it, and restricted, so that it signs nothing but what the TPM made.
const akAttributes = attrFixedTPM | attrFixedParent | attrSensitiveDataOrigin | attrUserWithAuth | attrRestricted | attrSign

// An endorsement key has these; how its use is authorized differs from template to template.
const (
	ekAttributes = attrFixedTPM | attrFixedParent | attrSensitiveDataOrigin | attrRestricted | attrDecrypt
	ekMayHave    = attrUserWithAuth | attrAdminWithPolicy | attrNoDA
)

// AK is the public part of an attestation key that may be believed: see [ParseAK].
type AK struct {
	raw    []byte
	name   []byte
	key    crypto.PublicKey
	scheme tpm2.TPMAlgID
	hash   crypto.Hash
}

// ParseAK reads a TPM2B_PUBLIC and refuses, with [CodeKey], a key that could sign anything
// but a TPM's own statements, that could leave its TPM, or that is weak: RSASSA and RSAPSS
// with 2048 to 4096 bits and ECDSA on P-256, P-384 and P-521 are taken, each with SHA-2.
func ParseAK(public []byte) (*AK, error) {
	area, err := parsePublic(public)
	if err != nil {
		return nil, err
	}
	if got := attributes(public); got&^attrNoDA != akAttributes {
		return nil, refuse(CodeKey, "read attestation key: attributes %#x, not %#x: it is not a restricted signing key that never leaves its TPM", got, akAttributes)
	}
	ak := &AK{raw: bytes.Clone(public)}
	var symmetric tpm2.TPMTSymDefObject
	var hash tpm2.TPMAlgID
	switch area.Type {
	case tpm2.TPMAlgRSA:
		symmetric, ak.scheme, hash, err = rsaScheme(area)
	case tpm2.TPMAlgECC:
		symmetric, ak.scheme, hash, err = eccScheme(area)
	}
	if err != nil {
		return nil, refuse(CodeKey, "read attestation key: %w", err)
	}
	if symmetric.Algorithm != tpm2.TPMAlgNull {
		return nil, refuse(CodeKey, "read attestation key: it has a symmetric algorithm, as only a storage key has")
	}
	if ak.hash, err = strongHash(hash); err != nil {
		return nil, refuse(CodeKey, "read attestation key: signature %w", err)
	}
	if ak.key, err = publicKey(area); err != nil {
		return nil, err
	}
	if ak.name, err = objectName(area); err != nil {
		return nil, err
	}
	return ak, nil
}

func rsaScheme(area *tpm2.TPMTPublic) (symmetric tpm2.TPMTSymDefObject, scheme, hash tpm2.TPMAlgID, err error) {
	p, err := area.Parameters.RSADetail()
	if err != nil {
		return symmetric, 0, 0, err
	}
	switch p.Scheme.Scheme {
	case tpm2.TPMAlgRSASSA:
		s, err := p.Scheme.Details.RSASSA()
		if err != nil {
			return symmetric, 0, 0, err
		}
		return p.Symmetric, p.Scheme.Scheme, s.HashAlg, nil
	case tpm2.TPMAlgRSAPSS:
		s, err := p.Scheme.Details.RSAPSS()
		if err != nil {
			return symmetric, 0, 0, err
		}
		return p.Symmetric, p.Scheme.Scheme, s.HashAlg, nil
	}
	return symmetric, 0, 0, fmt.Errorf("signing scheme %#x is neither RSASSA nor RSAPSS", uint16(p.Scheme.Scheme))
}

func eccScheme(area *tpm2.TPMTPublic) (symmetric tpm2.TPMTSymDefObject, scheme, hash tpm2.TPMAlgID, err error) {
	p, err := area.Parameters.ECCDetail()
	if err != nil {
		return symmetric, 0, 0, err
	}
	if p.Scheme.Scheme != tpm2.TPMAlgECDSA {
		return symmetric, 0, 0, fmt.Errorf("signing scheme %#x is not ECDSA", uint16(p.Scheme.Scheme))
	}
	s, err := p.Scheme.Details.ECDSA()
	if err != nil {
		return symmetric, 0, 0, err
	}
	return p.Symmetric, p.Scheme.Scheme, s.HashAlg, nil
}

// Public is the TPM2B_PUBLIC.
func (k *AK) Public() []byte { return bytes.Clone(k.raw) }

// Name is the TPM's name of the key: two bytes of name algorithm and a digest. Two keys
// with the same name are the same key with the same attributes.
func (k *AK) Name() []byte { return bytes.Clone(k.name) }

// Key is the *rsa.PublicKey or *ecdsa.PublicKey.
func (k *AK) Key() crypto.PublicKey { return k.key }

// Scheme is Keylime's name of the signing scheme: rsassa, rsapss or ecdsa.
func (k *AK) Scheme() string {
	switch k.scheme {
	case tpm2.TPMAlgRSASSA:
		return "rsassa"
	case tpm2.TPMAlgRSAPSS:
		return "rsapss"
	}
	return "ecdsa"
}

// Hash is Keylime's name of the hash that the key signs with: sha256, sha384 or sha512.
func (k *AK) Hash() string { return hashName(k.hash) }

// EK is the public part of an endorsement key.
type EK struct {
	raw  []byte
	key  crypto.PublicKey
	area *tpm2.TPMTPublic
}

// ParseEK reads a TPM2B_PUBLIC and refuses, with [CodeKey], one that is not of a storage key
// that never leaves its TPM. That the TPM is genuine is for [CAStore.Verify].
func ParseEK(public []byte) (*EK, error) {
	area, err := parsePublic(public)
	if err != nil {
		return nil, err
	}
	if got := attributes(public); got&^ekMayHave != ekAttributes {
		return nil, refuse(CodeKey, "read endorsement key: attributes %#x are not those of a storage key that never leaves its TPM", got)
	}
	ek := &EK{raw: bytes.Clone(public), area: area}
	if ek.key, err = publicKey(area); err != nil {
		return nil, err
	}
	return ek, nil
}

// Public is the TPM2B_PUBLIC.
func (k *EK) Public() []byte { return bytes.Clone(k.raw) }

// Key is the *rsa.PublicKey or *ecdsa.PublicKey.
func (k *EK) Key() crypto.PublicKey { return k.key }

// ID is the device's name unless it was given one: the SHA-256 of the key in PEM, as
// Keylime's agents with uuid = "hash_ek" have it. Another TPM cannot claim it.
func (k *EK) ID() (string, error) {
	der, err := x509.MarshalPKIXPublicKey(k.key)
	if err != nil {
		return "", fmt.Errorf("encode endorsement key: %w", err)
	}
	sum := sha256.Sum256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	return hex.EncodeToString(sum[:]), nil
}

// parsePublic reads a TPM2B_PUBLIC that has one encoding only.
func parsePublic(public []byte) (*tpm2.TPMTPublic, error) {
	if len(public) < 10 || len(public) > maxPublic || int(binary.BigEndian.Uint16(public)) != len(public)-2 {
		return nil, refuse(CodeMalformed, "read TPM2B_PUBLIC: its length does not fit its %d bytes", len(public))
	}
	switch alg := tpm2.TPMAlgID(binary.BigEndian.Uint16(public[2:])); alg {
	case tpm2.TPMAlgRSA, tpm2.TPMAlgECC: // of the others go-tpm may not know how to write them
	default:
		return nil, refuse(CodeKey, "read TPM2B_PUBLIC: type %#x is neither RSA nor ECC", uint16(alg))
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](public[2:])
	if err != nil {
		return nil, refuse(CodeMalformed, "read TPM2B_PUBLIC: %w", err)
	}
	if !bytes.Equal(tpm2.Marshal(area), public[2:]) {
		return nil, refuse(CodeMalformed, "read TPM2B_PUBLIC: it is not in its canonical form")
	}
	if _, err := strongHash(area.NameAlg); err != nil {
		return nil, refuse(CodeKey, "read TPM2B_PUBLIC: name %w", err)
	}
	return area, nil
}

// attributes reads TPMA_OBJECT as the bits that were hashed, of bytes that parsePublic took.
func attributes(public []byte) uint32 { return binary.BigEndian.Uint32(public[6:]) }

func objectName(area *tpm2.TPMTPublic) ([]byte, error) {
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return nil, refuse(CodeKey, "name key: %w", err)
	}
	return name.Buffer, nil
}

// publicKey is the key as crypto knows it, if it is strong enough and well formed.
func publicKey(area *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	key, err := tpm2.Pub(*area)
	if err != nil {
		return nil, refuse(CodeKey, "read public key: %w", err)
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		p, err := area.Parameters.RSADetail()
		if err != nil {
			return nil, refuse(CodeKey, "read public key: %w", err)
		}
		n, err := area.Unique.RSA()
		if err != nil {
			return nil, refuse(CodeKey, "read public key: %w", err)
		}
		bits := k.N.BitLen()
		if bits < 2048 || bits > 4096 || bits != int(p.KeyBits) || len(n.Buffer)*8 != bits || k.N.Bit(0) == 0 || k.E != 65537 {
			return nil, refuse(CodeKey, "read public key: an RSA key of %d bits with exponent %d", bits, k.E)
		}
	case *ecdsa.PublicKey:
		if k.Curve == nil || k.Curve.Params().BitSize < 256 {
			return nil, refuse(CodeKey, "read public key: its curve is not P-256, P-384 or P-521")
		}
		if _, err := k.ECDH(); err != nil { // which looks whether the point is on the curve
			return nil, refuse(CodeKey, "read public key: %w", err)
		}
	default:
		return nil, refuse(CodeKey, "read public key: it is neither RSA nor ECC")
	}
	return key, nil
}

// strongHash is alg as crypto knows it, if it is SHA-256 or longer.
func strongHash(alg tpm2.TPMAlgID) (crypto.Hash, error) {
	switch alg {
	case tpm2.TPMAlgSHA256:
		return crypto.SHA256, nil
	case tpm2.TPMAlgSHA384:
		return crypto.SHA384, nil
	case tpm2.TPMAlgSHA512:
		return crypto.SHA512, nil
	}
	return 0, fmt.Errorf("hash %#x is not SHA-256, SHA-384 or SHA-512", uint16(alg))
}

func hashName(h crypto.Hash) string {
	switch h {
	case crypto.SHA256:
		return "sha256"
	case crypto.SHA384:
		return "sha384"
	}
	return "sha512"
}

// credentialMagic and version begin the file format of tpm2-tools, which Keylime sends.
const (
	credentialMagic   = 0xbadcc0de
	credentialVersion = 1
	maxCredential     = 2048
)

// MakeCredential encrypts secret so that only the TPM with this endorsement key can read
// it, and only while it holds ak. The result is Keylime's blob (that of
// tpm2_makecredential). secret has at most 32 bytes.
func (k *EK) MakeCredential(ak *AK, secret []byte) ([]byte, error) {
	if len(secret) == 0 || len(secret) > 32 {
		return nil, fmt.Errorf("make credential: a secret of %d bytes, it is 1 to 32", len(secret))
	}
	key, err := tpm2.ImportEncapsulationKey(k.area)
	if err != nil {
		return nil, refuse(CodeKey, "make credential: %w", err)
	}
	id, encrypted, err := tpm2.CreateCredential(rand.Reader, key, ak.name, secret)
	if err != nil {
		return nil, refuse(CodeKey, "make credential: %w", err)
	}
	blob := binary.BigEndian.AppendUint32(nil, credentialMagic)
	blob = binary.BigEndian.AppendUint32(blob, credentialVersion)
	blob = append(binary.BigEndian.AppendUint16(blob, uint16(len(id))), id...)
	return append(binary.BigEndian.AppendUint16(blob, uint16(len(encrypted))), encrypted...), nil
}
