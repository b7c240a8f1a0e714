package tpm

import (
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// SetPCR resets a PCR and extends it once with digest, in the bank of that hash. That is
// possible for PCR 16 and 23, which are for programs (TCG PC Client Platform TPM Profile,
// table of PCR attributes), and for no other.
func (t *TPM) SetPCR(pcr int, bank tpm2.TPMAlgID, digest []byte) error {
	handle := tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)}
	if _, err := (tpm2.PCRReset{PCRHandle: handle}).Execute(t); err != nil {
		return fmt.Errorf("reset PCR %d: %w", pcr, err)
	}
	_, err := tpm2.PCRExtend{PCRHandle: handle, Digests: tpm2.TPMLDigestValues{
		Digests: []tpm2.TPMTHA{{HashAlg: bank, Digest: digest}}}}.Execute(t)
	if err != nil {
		return fmt.Errorf("extend PCR %d: %w", pcr, err)
	}
	return nil
}
