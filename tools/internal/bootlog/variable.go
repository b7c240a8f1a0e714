package bootlog

import (
	"encoding/binary"
	"fmt"

	"github.com/meta-attest/meta-attest/tools/internal/wire"
)

// GUID is an EFI_GUID in the order in which it is stored.
type GUID [16]byte

func (g GUID) String() string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g[:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:])
}

// Variable is UEFI_VARIABLE_DATA (PFP 10.2.6): what Secure Boot and the boot order were.
type Variable struct {
	Vendor GUID
	Name   string // SecureBoot, PK, KEK, db, dbx, BootOrder, Boot0001, MokListRT ...
	Data   []byte
}

func readVariable(r *wire.Reader) *Variable {
	v := &Variable{}
	copy(v.Vendor[:], r.Bytes(len(v.Vendor)))
	letters, size := uint64At(r), uint64At(r)
	v.Name, _ = decodeUTF16(r.Bytes(int(min(letters, 1<<30) * 2)))
	v.Data = r.Bytes(int(min(size, maxSize)))
	return v
}

// SignatureData is an EFI_SIGNATURE_DATA (UEFI 2.10, section 32.4.1).
type SignatureData struct {
	Type  GUID // of its list; [CertX509] or [CertSHA256] mostly; zero where there is no list
	Owner GUID
	Data  []byte // a certificate in DER, or a digest
}

// Types of EFI_SIGNATURE_LIST.
var (
	CertX509   = GUID{0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72}
	CertSHA256 = GUID{0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28}
)

// SignatureLists reads v.Data as PK, KEK, db and dbx have it: a row of EFI_SIGNATURE_LIST.
// Every error is an [ErrMalformed].
func (v *Variable) SignatureLists() ([]SignatureData, error) {
	var all []SignatureData
	r := wire.NewReader(v.Data, binary.LittleEndian)
	for r.Len() > 0 && r.Err() == nil {
		at := r.Offset()
		var kind GUID
		copy(kind[:], r.Bytes(len(kind)))
		list, header, size := int64(r.Uint32()), int64(r.Uint32()), int64(r.Uint32())
		body := list - 28 - header
		if r.Err() == nil && (size < 16 || body < 0 || body > int64(r.Len()) || header > int64(r.Len()) || body%size != 0) {
			return nil, fmt.Errorf("%w: variable %s: byte %d: list of %d bytes, a header of %d, entries of %d",
				ErrMalformed, v.Name, at, list, header, size)
		}
		r.Bytes(int(header))
		for ; body > 0 && r.Err() == nil; body -= size {
			all = append(all, signatureData(kind, r.Bytes(int(size))))
		}
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: variable %s: %w", ErrMalformed, v.Name, err)
	}
	return all, nil
}

// Authority reads v.Data as an EV_EFI_VARIABLE_AUTHORITY has it (PFP 3.3.4.8): the
// certificate or digest that let an image start, with its owner where it comes from db, and
// without where shim brought it. It is false for what else shim measures under that type
// (MokListTrusted and SbatLevel, say).
func (v *Variable) Authority() (SignatureData, bool) {
	const owner = len(GUID{})
	switch {
	case isCertificate(v.Data):
		return SignatureData{Type: CertX509, Data: v.Data}, true
	case len(v.Data) > owner && isCertificate(v.Data[owner:]):
		return signatureData(CertX509, v.Data), true
	case v.Name == "db" && len(v.Data) == owner+SHA256.Size():
		return signatureData(CertSHA256, v.Data), true
	}
	return SignatureData{}, false
}

// isCertificate says whether b is one DER sequence as long as certificates are.
func isCertificate(b []byte) bool {
	return len(b) > 4 && b[0] == 0x30 && b[1] == 0x82 && 4+int(binary.BigEndian.Uint16(b[2:])) == len(b)
}

// signatureData reads an owner and the rest.
func signatureData(kind GUID, b []byte) SignatureData {
	s := SignatureData{Type: kind}
	if len(b) >= 16 {
		s.Data = b[copy(s.Owner[:], b):]
	}
	return s
}
