// Package ima reads and writes what Linux IMA and EVM keep in extended attributes:
// digests and signatures of file content (security.ima), portable signatures of file
// metadata (security.evm), and the fs-verity digest that a signature may stand for.
//
// It opens no file: callers bring bytes and take bytes. Where the kernel is lax about
// trailing bytes this package is not, so that a value has one encoding only.
package ima

import (
	"crypto"
	_ "crypto/md5"  // makes crypto.MD5 available, for labels of the first type
	_ "crypto/sha1" // likewise crypto.SHA1
	_ "crypto/sha256"
	_ "crypto/sha3"
	_ "crypto/sha512"
	"fmt"
	"hash"
	"strings"
)

// Extended attributes in which the kernel looks (include/uapi/linux/xattr.h).
const (
	XattrIMA        = "security.ima"
	XattrEVM        = "security.evm"
	XattrCapability = "security.capability"
)

// HashAlgo is enum hash_algo of include/uapi/linux/hash_info.h.
type HashAlgo uint8

// The algorithms that this package can compute or sign with.
const (
	MD5    HashAlgo = 1
	SHA1   HashAlgo = 2
	SHA256 HashAlgo = 4
	SHA384 HashAlgo = 5
	SHA512 HashAlgo = 6
)

// hashAlgos is indexed by HashAlgo; names and sizes are hash_algo_name[] and
// hash_digest_size[] of crypto/hash_info.c. A zero crypto.Hash is known but cannot be computed.
var hashAlgos = [...]struct {
	name string
	size int
	hash crypto.Hash
}{
	{"md4", 16, 0},
	{"md5", 16, crypto.MD5},
	{"sha1", 20, crypto.SHA1},
	{"rmd160", 20, 0},
	{"sha256", 32, crypto.SHA256},
	{"sha384", 48, crypto.SHA384},
	{"sha512", 64, crypto.SHA512},
	{"sha224", 28, crypto.SHA224},
	{"rmd128", 16, 0},
	{"rmd256", 32, 0},
	{"rmd320", 40, 0},
	{"wp256", 32, 0},
	{"wp384", 48, 0},
	{"wp512", 64, 0},
	{"tgr128", 16, 0},
	{"tgr160", 20, 0},
	{"tgr192", 24, 0},
	{"sm3", 32, 0},
	{"streebog256", 32, 0},
	{"streebog512", 64, 0},
	{"sha3-256", 32, crypto.SHA3_256},
	{"sha3-384", 48, crypto.SHA3_384},
	{"sha3-512", 64, crypto.SHA3_512},
}

func (a HashAlgo) known() bool { return int(a) < len(hashAlgos) }

// String is the kernel's name of a.
func (a HashAlgo) String() string {
	if !a.known() {
		return fmt.Sprintf("hash algorithm %d", uint8(a))
	}
	return hashAlgos[a].name
}

// Size is the length of a digest in bytes; 0 for an unknown algorithm.
func (a HashAlgo) Size() int {
	if !a.known() {
		return 0
	}
	return hashAlgos[a].size
}

// Hash is a as the crypto package knows it, or 0 where Go has no implementation.
func (a HashAlgo) Hash() crypto.Hash {
	if !a.known() {
		return 0
	}
	return hashAlgos[a].hash
}

// New returns a new hash, or an error where Go has no implementation of a.
func (a HashAlgo) New() (hash.Hash, error) {
	h := a.Hash()
	if h == 0 {
		return nil, fmt.Errorf("cannot compute %v", a)
	}
	return h.New(), nil
}

// Weak says whether collisions can be made for a; kernels refuse it in FIPS mode.
func (a HashAlgo) Weak() bool { return a.Size() < 28 }

// ParseSigningHash reads the name of an algorithm that this project signs with:
// sha256, sha384 or sha512.
func ParseSigningHash(name string) (HashAlgo, error) {
	for _, a := range []HashAlgo{SHA256, SHA384, SHA512} {
		if name == a.String() {
			return a, nil
		}
	}
	for _, a := range hashAlgos {
		if strings.EqualFold(name, a.name) {
			return 0, fmt.Errorf("hash %s is not used for signing: use sha256, sha384 or sha512", name)
		}
	}
	return 0, fmt.Errorf("hash %q is unknown: use sha256, sha384 or sha512", name)
}
