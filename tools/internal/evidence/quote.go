package evidence

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/wire"
)

// Sizes of structures of TPM 2.0 part 2: those of the reference implementation, rounded up.
const (
	maxAttest    = 2048
	maxSignature = 1024
)

const (
	generatedValue = 0xff544347 // TPM_GENERATED_VALUE: a TPM made this, no caller
	typeQuote      = 0x8018     // TPM_ST_ATTEST_QUOTE
	typeCertify    = 0x8017     // TPM_ST_ATTEST_CERTIFY
)

// attest is a TPMS_ATTEST (TPM 2.0 part 2, 10.12.8).
type attest struct {
	kind      uint16
	extraData []byte
	clock     Clock
	firmware  uint64

	banks     []bank // of a quote
	pcrDigest []byte
	name      []byte // of a certification
	qualified []byte // of the same key, with all that is above it
}

// Clock is what a quote says of the TPM's time. For a key outside the endorsement and the
// platform hierarchy the TPM adds a number of its own to the counters, the same each time:
// only differences mean something.
type Clock struct {
	Milliseconds uint64 `json:"clock"`
	ResetCount   uint32 `json:"resetCount"`   // grows with each boot
	RestartCount uint32 `json:"restartCount"` // grows with each resume from suspend, and with a boot after one that was not resumed
	Safe         bool   `json:"safe"`         // false after a power cut, until the clock has caught up
}

// bank is a bank of PCRs in a selection: the PCRs in ascending order.
type bank struct {
	alg  tpm2.TPMAlgID
	pcrs []int
}

// verifySignature checks that sig, a TPMT_SIGNATURE, is ak's over message.
func (k *AK) verifySignature(message, sig []byte) error {
	if len(message) == 0 || len(message) > maxAttest || len(sig) > maxSignature {
		return refuse(CodeMalformed, "check quote: a statement of %d bytes with a signature of %d", len(message), len(sig))
	}
	r := wire.NewReader(sig, binary.BigEndian)
	alg, hash := tpm2.TPMAlgID(r.Uint16()), tpm2.TPMAlgID(r.Uint16())
	first := r.Bytes(int(r.Uint16()))
	var second []byte
	if alg == tpm2.TPMAlgECDSA {
		second = r.Bytes(int(r.Uint16()))
	}
	if err := r.Close(); err != nil {
		return refuse(CodeMalformed, "read TPMT_SIGNATURE: %w", err)
	}
	if h, err := strongHash(hash); err != nil || alg != k.scheme || h != k.hash {
		return refuse(CodeSignature, "check quote: signed with algorithms %#x and %#x, but the enrolled key has %s with %s", uint16(alg), uint16(hash), k.Scheme(), k.Hash())
	}
	h := k.hash.New()
	h.Write(message)
	if err := k.verifyDigest(h.Sum(nil), first, second); err != nil {
		return refuse(CodeSignature, "check quote: it is not signed by the enrolled attestation key: %w", err)
	}
	return nil
}

func (k *AK) verifyDigest(digest, first, second []byte) error {
	switch key := k.key.(type) {
	case *rsa.PublicKey:
		if k.scheme == tpm2.TPMAlgRSAPSS {
			return rsa.VerifyPSS(key, k.hash, digest, first, nil)
		}
		return rsa.VerifyPKCS1v15(key, k.hash, digest, first)
	case *ecdsa.PublicKey:
		if !ecdsa.Verify(key, digest, new(big.Int).SetBytes(first), new(big.Int).SetBytes(second)) {
			return errors.New("ECDSA verification error")
		}
		return nil
	}
	return errors.New("unknown key type")
}

// parseAttest reads a TPMS_ATTEST of the wanted kind.
func parseAttest(message []byte, kind uint16) (*attest, error) {
	r := wire.NewReader(message, binary.BigEndian)
	magic := r.Uint32()
	a := &attest{kind: r.Uint16()}
	if r.Err() == nil && (magic != generatedValue || a.kind != kind) {
		return nil, refuse(CodeNotQuote, "check quote: magic %#x and type %#x, not %#x and %#x: signed by the key, but not the statement that was asked for", magic, a.kind, uint32(generatedValue), kind)
	}
	r.Bytes(int(r.Uint16())) // qualifiedSigner: a digest over parents that are not known here
	a.extraData = r.Bytes(int(r.Uint16()))
	a.clock.Milliseconds = uint64(r.Uint32())<<32 | uint64(r.Uint32())
	a.clock.ResetCount, a.clock.RestartCount = r.Uint32(), r.Uint32()
	safe := r.Uint8()
	a.clock.Safe = safe == 1
	a.firmware = uint64(r.Uint32())<<32 | uint64(r.Uint32())
	var err error
	if kind == typeQuote {
		a.banks, err = parseSelection(r)
		a.pcrDigest = r.Bytes(int(r.Uint16()))
	} else {
		a.name = r.Bytes(int(r.Uint16()))
		a.qualified = r.Bytes(int(r.Uint16()))
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, refuse(CodeMalformed, "read TPMS_ATTEST: %w", err)
	}
	if safe > 1 {
		return nil, refuse(CodeMalformed, "read TPMS_ATTEST: safe is %d", safe)
	}
	return a, nil
}

const (
	maxBanks  = 16 // HASH_COUNT of the reference implementation
	maxSelect = 4  // bytes: 32 PCRs
)

// parseSelection reads a TPML_PCR_SELECTION. A bank that is there twice is an error: two
// readers might take different values for its PCRs.
func parseSelection(r *wire.Reader) ([]bank, error) {
	n := r.Uint32()
	if n > maxBanks {
		return nil, fmt.Errorf("PCR selection of %d banks", n)
	}
	var banks []bank
	for range n {
		alg := tpm2.TPMAlgID(r.Uint16())
		size := int(r.Uint8())
		if size > maxSelect {
			return nil, fmt.Errorf("PCR selection of %d bytes", size)
		}
		b := bank{alg, bits(r.Bytes(size))}
		if r.Err() != nil {
			return nil, r.Err()
		}
		if slices.ContainsFunc(banks, func(o bank) bool { return o.alg == alg }) {
			return nil, fmt.Errorf("PCR selection names bank %#x twice", uint16(alg))
		}
		banks = append(banks, b)
	}
	return banks, nil
}

// bits are the PCRs of a pcrSelect: bit i of byte j is PCR 8*j+i.
func bits(mask []byte) []int {
	var pcrs []int
	for i := range 8 * len(mask) {
		if mask[i/8]>>(i%8)&1 == 1 {
			pcrs = append(pcrs, i)
		}
	}
	return pcrs
}

// checkNonce compares in constant time, and never takes an empty or a short nonce.
func checkNonce(got, want []byte) error {
	if len(want) < MinNonce {
		return refuse(CodeExpectation, "check nonce: the verifier's own has %d bytes, fewer than %d", len(want), MinNonce)
	}
	if subtle.ConstantTimeCompare(got, want) != 1 {
		return refuse(CodeNonce, "check nonce: the statement answers another challenge")
	}
	return nil
}

// MinNonce is the fewest bytes of a challenge: with 16, no two are ever the same.
const MinNonce = 16

// VerifyPossession checks what a TPM answered to a session's challenge: the attestation
// key certified itself (TPM2_Certify), with the challenge as qualifying data. message is
// the TPMS_ATTEST, signature the TPMT_SIGNATURE.
func (k *AK) VerifyPossession(challenge, message, signature []byte) error {
	if err := k.verifySignature(message, signature); err != nil {
		return err
	}
	a, err := parseAttest(message, typeCertify)
	if err != nil {
		return err
	}
	if err := checkNonce(a.extraData, challenge); err != nil {
		return err
	}
	if !bytes.Equal(a.name, k.name) {
		return refuse(CodeKey, "check possession: another key was certified")
	}
	return nil
}
