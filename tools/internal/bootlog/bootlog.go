// Package bootlog reads the event log of a PC's firmware, as Linux shows it in
// /sys/kernel/security/tpm0/binary_bios_measurements, replays it to PCR values, and says
// what its events mean.
//
// "PFP" in comments is the TCG PC Client Platform Firmware Profile Specification, level 00
// version 1.06; "EFI" is the TCG EFI Platform Specification, version 1.22, of the older form
// of log. A log proves nothing until its replay gives the PCR values of a quote, and then
// only its digests: see [Event.Proven] for what is known of the rest.
package bootlog

import (
	"crypto"
	_ "crypto/sha1" // makes crypto.SHA1 available
	_ "crypto/sha256"
	_ "crypto/sha3"
	_ "crypto/sha512"
	"errors"
	"fmt"
)

// ErrMalformed means that bytes are not an event log.
var ErrMalformed = errors.New("malformed event log")

// Alg is TPM_ALG_ID of the TPM 2.0 Library Specification, part 2, section 6.3.
type Alg uint16

// The algorithms that TPMs have banks for.
const (
	SHA1    Alg = 0x0004
	SHA256  Alg = 0x000b
	SHA384  Alg = 0x000c
	SHA512  Alg = 0x000d
	SM3     Alg = 0x0012
	SHA3256 Alg = 0x0027
	SHA3384 Alg = 0x0028
	SHA3512 Alg = 0x0029
)

var algs = map[Alg]struct {
	name string
	size int
	hash crypto.Hash // 0: Go has none
}{
	SHA1:    {"sha1", 20, crypto.SHA1},
	SHA256:  {"sha256", 32, crypto.SHA256},
	SHA384:  {"sha384", 48, crypto.SHA384},
	SHA512:  {"sha512", 64, crypto.SHA512},
	SM3:     {"sm3_256", 32, 0},
	SHA3256: {"sha3_256", 32, crypto.SHA3_256},
	SHA3384: {"sha3_384", 48, crypto.SHA3_384},
	SHA3512: {"sha3_512", 64, crypto.SHA3_512},
}

// String is the name that tpm2-tools gives to a.
func (a Alg) String() string {
	if x, ok := algs[a]; ok {
		return x.name
	}
	return fmt.Sprintf("algorithm 0x%04x", uint16(a))
}

// Size is the length of a digest in bytes; 0 for an unknown algorithm.
func (a Alg) Size() int { return algs[a].size }

// sum returns the digest of the parts put together, or nil where Go has no implementation.
func (a Alg) sum(parts ...[]byte) []byte {
	hash := algs[a].hash
	if hash == 0 {
		return nil
	}
	h := hash.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}
