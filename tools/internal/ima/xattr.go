package ima

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/meta-attest/meta-attest/tools/internal/wire"
)

// XattrType is the first byte of a value: enum evm_ima_xattr_type of
// security/integrity/integrity.h.
type XattrType uint8

// Types of value. The names are the kernel's without their IMA_ and EVM_ prefixes.
const (
	Digest            XattrType = 1 // MD5 or SHA-1 of the content, no algorithm byte
	HMAC              XattrType = 2 // made by a kernel for one inode
	Signature         XattrType = 3 // of the content, or of the metadata of one inode
	DigestNG          XattrType = 4 // algorithm byte and digest of the content
	PortableSignature XattrType = 5 // of the metadata, wherever the file is copied
	VeritySignature   XattrType = 6 // of the fs-verity digest
)

// hmacSize is the length of the HMAC-SHA1 of a value of type [HMAC].
const hmacSize = 20

// Errors of the parsers and of [Xattr.Verify].
var (
	ErrMalformed = errors.New("malformed label")
	ErrMismatch  = errors.New("signature does not match")
)

// Xattr is the value of security.ima or security.evm.
type Xattr struct {
	Type   XattrType
	Hash   HashAlgo // of Digest, or of the signed bytes
	Digest []byte   // types Digest, DigestNG and HMAC

	Version   uint8  // of a signature: 2, or 3
	KeyID     uint32 // of a signature: see [KeyID]
	Signature []byte // PKCS#1 v1.5, or the DER of an ECDSA signature
}

// IsSignature says whether x holds a signature and not a digest.
func (x *Xattr) IsSignature() bool {
	return x.Type == Signature || x.Type == PortableSignature || x.Type == VeritySignature
}

// ParseIMA reads the value of security.ima: a digest or a signature of content. Every
// error is an [ErrMalformed]. The result points into b.
func ParseIMA(b []byte) (*Xattr, error) {
	return parse(b, Digest, DigestNG, Signature, VeritySignature)
}

// ParseEVM reads the value of security.evm. Of its types only [PortableSignature] can be
// checked outside of the kernel that holds the inode. Every error is an [ErrMalformed].
// The result points into b.
func ParseEVM(b []byte) (*Xattr, error) {
	return parse(b, HMAC, Signature, PortableSignature)
}

func parse(b []byte, types ...XattrType) (*Xattr, error) {
	r := wire.NewReader(b, binary.BigEndian)
	x := &Xattr{Type: XattrType(r.Uint8())}
	var err error
	if r.Err() == nil && !slices.Contains(types, x.Type) {
		return nil, fmt.Errorf("%w: byte 0: type %d does not belong here", ErrMalformed, x.Type)
	}
	switch x.Type {
	case Digest:
		err = x.readDigest(r)
	case HMAC:
		x.Hash, x.Digest = SHA1, r.Bytes(hmacSize)
	case DigestNG:
		x.Hash = HashAlgo(r.Uint8())
		if r.Err() == nil && !x.Hash.known() {
			err = fmt.Errorf("byte 1: %v is unknown", x.Hash)
		}
		x.Digest = r.Bytes(x.Hash.Size())
	case Signature, PortableSignature, VeritySignature:
		err = x.readSignature(r)
	}
	if r.Err() != nil || err == nil {
		err = r.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return x, nil
}

// readDigest reads the oldest form, in which the length says the algorithm.
func (x *Xattr) readDigest(r *wire.Reader) error {
	for _, a := range []HashAlgo{MD5, SHA1} {
		if r.Len() == a.Size() {
			x.Hash, x.Digest = a, r.Rest()
			return nil
		}
	}
	return fmt.Errorf("byte 1: %d bytes are neither an MD5 nor a SHA-1 digest", r.Len())
}

// readSignature reads struct signature_v2_hdr of security/integrity/integrity.h.
func (x *Xattr) readSignature(r *wire.Reader) error {
	x.Version = r.Uint8()
	x.Hash = HashAlgo(r.Uint8())
	x.KeyID = r.Uint32()
	size := int(r.Uint16())
	if r.Err() != nil {
		return nil
	}
	switch {
	case x.Version != 2 && x.Version != 3:
		return fmt.Errorf("byte 1: signature version %d is not supported", x.Version)
	case x.Type == VeritySignature && x.Version != 3:
		return fmt.Errorf("byte 1: an fs-verity signature has version 3, not %d", x.Version)
	case !x.Hash.known():
		return fmt.Errorf("byte 2: %v is unknown", x.Hash)
	case size == 0 || size != r.Len():
		return fmt.Errorf("byte 7: signature size is %d, %d bytes follow", size, r.Len())
	}
	x.Signature = r.Bytes(size)
	return nil
}

// Append appends the encoding of x to b. It is the inverse of
// [ParseIMA] and [ParseEVM].
func (x *Xattr) Append(b []byte) []byte {
	b = append(b, byte(x.Type))
	switch x.Type {
	case Digest, HMAC:
		return append(b, x.Digest...)
	case DigestNG:
		return append(append(b, byte(x.Hash)), x.Digest...)
	default:
		b = append(b, x.Version, byte(x.Hash))
		b = binary.BigEndian.AppendUint32(b, x.KeyID)
		b = binary.BigEndian.AppendUint16(b, uint16(len(x.Signature)))
		return append(b, x.Signature...)
	}
}

// keyIDSize is the length of a key id: struct signature_v2_hdr has a be32.
const keyIDSize = 4

// KeyID is the key id that a signature carries and that the kernel looks for in its
// keyrings: the last four bytes of the certificate's SubjectKeyIdentifier. It is read
// from the certificate and never computed, because the kernel reads it there too
// (crypto/asymmetric_keys/x509_public_key.c).
func KeyID(cert *x509.Certificate) (uint32, error) {
	id := cert.SubjectKeyId
	if len(id) < keyIDSize {
		return 0, fmt.Errorf("certificate %q has no SubjectKeyIdentifier", cert.Subject)
	}
	return binary.BigEndian.Uint32(id[len(id)-keyIDSize:]), nil
}

// Version is the version in which signatures of a type are made: the one that all
// kernels read. Linux 7.2 takes version 3 for all types; Linux 6.12 refuses a [Signature]
// and misreads a [PortableSignature] of it.
func Version(t XattrType) uint8 {
	if t == VeritySignature {
		return 3
	}
	return 2
}

// Sign makes a signature of digest, which is the digest of a file's content for
// [Signature], of its metadata for [PortableSignature] (see [EVMDigest]), and its
// fs-verity digest for [VeritySignature].
func Sign(t XattrType, key crypto.Signer, keyID uint32, algo HashAlgo, digest []byte) (*Xattr, error) {
	x := &Xattr{Type: t, Version: Version(t), Hash: algo, KeyID: keyID}
	tbs, err := x.signed(digest)
	if err != nil {
		return nil, err
	}
	// Without a source of randomness ECDSA is deterministic (RFC 6979), so that a
	// build can be repeated; PKCS#1 v1.5 needs none.
	x.Signature, err = key.Sign(nil, tbs, algo.Hash())
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if n := len(x.Signature); n == 0 || n > math.MaxUint16 {
		return nil, fmt.Errorf("sign: the key made a signature of %d bytes", n)
	}
	return x, nil
}

// signed returns the digest that the key signs. In version 3 that is the digest of
// struct ima_file_id (security/integrity/ima/ima_appraise.c), which binds the kind of
// digest, so that a signature of the one kind cannot be passed off as the other.
func (x *Xattr) signed(digest []byte) ([]byte, error) {
	if len(digest) != x.Hash.Size() {
		return nil, fmt.Errorf("a %v digest has %d bytes, not %d", x.Hash, x.Hash.Size(), len(digest))
	}
	// crypto/rsa takes a zero Hash as "no DigestInfo", which is another signature.
	if x.Hash.Hash() == 0 {
		return nil, fmt.Errorf("cannot sign or verify with %v", x.Hash)
	}
	if x.Version == 2 {
		return digest, nil
	}
	h, err := x.Hash.New()
	if err != nil {
		return nil, err
	}
	h.Write([]byte{byte(x.Type), byte(x.Hash)})
	h.Write(digest)
	return h.Sum(nil), nil
}

// Verify checks the signature of x over digest (see [Sign]) with pub. A signature by
// another key or over other bytes is an [ErrMismatch].
func (x *Xattr) Verify(pub crypto.PublicKey, digest []byte) error {
	if !x.IsSignature() {
		return fmt.Errorf("%w: type %d is not a signature", ErrMalformed, x.Type)
	}
	tbs, err := x.signed(digest)
	if err != nil {
		return err
	}
	ok := false
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(pub, x.Hash.Hash(), tbs, x.Signature) == nil
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(pub, tbs, x.Signature)
	default:
		return fmt.Errorf("public keys of type %T do not sign for IMA", pub)
	}
	if !ok {
		return ErrMismatch
	}
	return nil
}

// Weakness says why x, though right, proves little: a hash with known collisions, or a
// key that is too short. It is empty when there is nothing to say; pub may be nil.
func (x *Xattr) Weakness(pub crypto.PublicKey) string {
	if x.Hash.Weak() {
		return fmt.Sprintf("hash %v is broken", x.Hash)
	}
	if pub, ok := pub.(*rsa.PublicKey); ok && pub.N.BitLen() < 2048 {
		return fmt.Sprintf("RSA key of %d bits is too short", pub.N.BitLen())
	}
	return ""
}
