package evidence

import (
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// Selection is which PCRs of which banks are to be quoted: the name of the bank's hash as
// in "sha256", and PCR numbers.
type Selection map[string][]int

const maxPCR = 8*maxSelect - 1

type namedBank struct {
	name string
	alg  tpm2.TPMAlgID
	hash ima.HashAlgo
}

// bankNames are the banks that are known, in the order in which they are quoted.
var bankNames = []namedBank{
	{"sha256", tpm2.TPMAlgSHA256, ima.SHA256},
	{"sha384", tpm2.TPMAlgSHA384, ima.SHA384},
	{"sha512", tpm2.TPMAlgSHA512, ima.SHA512},
	{"sha1", tpm2.TPMAlgSHA1, ima.SHA1},
}

// banks are the banks of s in the order of bankNames.
func (s Selection) banks() ([]bank, error) {
	var banks []bank
	for _, known := range bankNames {
		pcrs, ok := s[known.name]
		if !ok || len(pcrs) == 0 {
			continue // Keylime's agents have a member for a bank that is not wanted
		}
		pcrs = slices.Sorted(slices.Values(pcrs))
		if pcrs[0] < 0 || pcrs[len(pcrs)-1] > maxPCR || len(slices.Compact(slices.Clone(pcrs))) != len(pcrs) {
			return nil, refuse(CodeExpectation, "select PCRs: %v of bank %s", pcrs, known.name)
		}
		banks = append(banks, bank{known.alg, pcrs})
	}
	for name, pcrs := range s {
		if len(pcrs) > 0 && !slices.ContainsFunc(bankNames, func(b namedBank) bool { return b.name == name }) {
			return nil, refuse(CodeExpectation, "select PCRs: bank %.20q is unknown", name)
		}
	}
	if len(banks) == 0 {
		return nil, refuse(CodeExpectation, "select PCRs: there is none")
	}
	return banks, nil
}

// TPM is s as a TPM takes it.
func (s Selection) TPM() (tpm2.TPMLPCRSelection, error) {
	banks, err := s.banks()
	if err != nil {
		return tpm2.TPMLPCRSelection{}, err
	}
	var l tpm2.TPMLPCRSelection
	for _, b := range banks {
		pcrs := make([]uint, len(b.pcrs))
		for i, p := range b.pcrs {
			pcrs[i] = uint(p)
		}
		l.PCRSelections = append(l.PCRSelections, tpm2.TPMSPCRSelection{Hash: b.alg, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)})
	}
	return l, nil
}

// SelectionOf is what a TPM says of its banks: all PCRs of each that is known.
func SelectionOf(l tpm2.TPMLPCRSelection) Selection {
	s := Selection{}
	for _, b := range l.PCRSelections {
		if name, _, err := bankOf(b.Hash); err == nil {
			s[name] = bits(b.PCRSelect)
		}
	}
	return s
}

func bankOf(alg tpm2.TPMAlgID) (string, ima.HashAlgo, error) {
	for _, b := range bankNames {
		if b.alg == alg {
			return b.name, b.hash, nil
		}
	}
	return "", 0, fmt.Errorf("PCR bank %#x is unknown", uint16(alg))
}
