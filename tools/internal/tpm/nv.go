package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

const (
	maxNV      = 16 << 10 // an EK certificate has 1 to 2 KiB
	nvChunk    = 512      // every TPM can return so much at once (TPM_PT_NV_BUFFER_MAX)
	maxChainNV = 32       // indices of a certificate chain that are looked at
)

// Where the certificates of the EK's issuers are (TCG EK Credential Profile 2.5, 2.2.1.5.2):
// one sequence of certificates, cut into indices that follow each other.
const firstChainNV tpm2.TPMHandle = 0x01c00100

// readNV returns the content of an NV index, or nil when the TPM has no such index or
// nothing was written to it.
func (t *TPM) readNV(index tpm2.TPMHandle) ([]byte, error) {
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read NV index %#x: %w", index, err)
	}
	nv, err := pub.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("read NV index %#x: %w", index, err)
	}
	if !nv.Attributes.Written {
		return nil, nil
	}
	if nv.DataSize > maxNV {
		return nil, fmt.Errorf("read NV index %#x: %d bytes, at most %d are read", index, nv.DataSize, maxNV)
	}
	auth := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	switch {
	case nv.Attributes.AuthRead && nv.Attributes.NoDA:
		auth.Handle, auth.Name = index, pub.NVName
	case !nv.Attributes.OwnerRead:
		return nil, fmt.Errorf("read NV index %#x: it can be read only with a password or a policy", index)
	}
	data := make([]byte, 0, nv.DataSize)
	for len(data) < int(nv.DataSize) {
		rsp, err := tpm2.NVRead{
			AuthHandle: auth,
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Size:       min(nvChunk, nv.DataSize-uint16(len(data))),
			Offset:     uint16(len(data)),
		}.Execute(t)
		if err != nil {
			return nil, fmt.Errorf("read NV index %#x: %w", index, err)
		}
		if len(rsp.Data.Buffer) == 0 {
			return nil, fmt.Errorf("read NV index %#x: the TPM returned nothing at byte %d", index, len(data))
		}
		data = append(data, rsp.Data.Buffer...)
	}
	return data, nil
}

// readChain returns what the indices of the issuers' certificates hold, one after the other.
func (t *TPM) readChain() ([]byte, error) {
	var chain []byte
	for i := range tpm2.TPMHandle(maxChainNV) {
		part, err := t.readNV(firstChainNV + i)
		if err != nil {
			return nil, err
		}
		if part == nil {
			break
		}
		chain = append(chain, part...)
	}
	return chain, nil
}
