package evidence

import (
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/wire"
)

// The PCR values travel as tpm2-tools 4 and later dump them from memory, little-endian
// (tpm2_quote --pcrs_format=serialized; Keylime's subject_data and third part of a quote):
//
//	u32 count; 16 x {u16 hash; u8 sizeofSelect; u8 pcrSelect[4]; u8 padding}
//	u32 lists; lists x {u32 count; 8 x {u16 size; u8 buffer[64]}}
const (
	dumpSelections = 16
	dumpDigests    = 8
	dumpBuffer     = 64
	maxPCRBlob     = 4 + dumpSelections*8 + 4 + maxBanks*32/dumpDigests*(4+dumpDigests*(2+dumpBuffer))
)

// AppendPCRBlob appends to b the dump of values, which are in the order of selection: bank
// after bank, PCRs ascending in each (that of tpm.Quote).
func AppendPCRBlob(b []byte, selection tpm2.TPMLPCRSelection, values [][]byte) ([]byte, error) {
	if len(selection.PCRSelections) > dumpSelections {
		return nil, fmt.Errorf("dump PCRs: %d banks, %d at most", len(selection.PCRSelections), dumpSelections)
	}
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(selection.PCRSelections)))
	for i := range dumpSelections {
		var mask [maxSelect + 1]byte
		var s tpm2.TPMSPCRSelection
		if i < len(selection.PCRSelections) {
			s = selection.PCRSelections[i]
		}
		if copy(mask[:maxSelect], s.PCRSelect) != len(s.PCRSelect) {
			return nil, fmt.Errorf("dump PCRs: a selection of %d bytes, %d at most", len(s.PCRSelect), maxSelect)
		}
		b = append(append(le.AppendUint16(b, uint16(s.Hash)), byte(len(s.PCRSelect))), mask[:]...)
	}
	lists := (len(values) + dumpDigests - 1) / dumpDigests
	b = le.AppendUint32(b, uint32(lists))
	for i := range lists {
		chunk := values[i*dumpDigests : min(len(values), (i+1)*dumpDigests)]
		b = le.AppendUint32(b, uint32(len(chunk)))
		for j := range dumpDigests {
			var v []byte
			if j < len(chunk) {
				v = chunk[j]
			}
			if len(v) > dumpBuffer {
				return nil, fmt.Errorf("dump PCRs: a value of %d bytes", len(v))
			}
			b = append(append(le.AppendUint16(b, uint16(len(v))), v...), make([]byte, dumpBuffer-len(v))...)
		}
	}
	return b, nil
}

// parsePCRBlob reads a dump. What lies beyond the sizes that it states is whatever the
// other side had in memory; the values are believed for the signed digest over them.
func parsePCRBlob(b []byte) (banks []bank, values [][]byte, err error) {
	if len(b) > maxPCRBlob {
		return nil, nil, fmt.Errorf("%d bytes, %d at most", len(b), maxPCRBlob)
	}
	r := wire.NewReader(b, binary.LittleEndian)
	if banks, err = dumpedSelection(r); err != nil {
		return nil, nil, err
	}
	lists := int(r.Uint32())
	if lists > r.Len()/(4+dumpDigests*(2+dumpBuffer)) {
		return nil, nil, fmt.Errorf("it promises %d lists of values", lists)
	}
	for i := range lists {
		count := int(r.Uint32())
		if count > dumpDigests {
			return nil, nil, fmt.Errorf("list %d has %d values", i, count)
		}
		for j := range dumpDigests {
			size, buffer := int(r.Uint16()), r.Bytes(dumpBuffer)
			if r.Err() != nil {
				return nil, nil, r.Err()
			}
			if j >= count {
				continue
			}
			if size > dumpBuffer {
				return nil, nil, fmt.Errorf("value %d of list %d has %d bytes", j, i, size)
			}
			values = append(values, buffer[:size:size])
		}
	}
	return banks, values, r.Close()
}

func dumpedSelection(r *wire.Reader) ([]bank, error) {
	count := r.Uint32()
	if count > dumpSelections {
		return nil, fmt.Errorf("it has %d banks", count)
	}
	var banks []bank
	for i := range dumpSelections {
		alg, size, mask := r.Uint16(), int(r.Uint8()), r.Bytes(maxSelect+1)
		if r.Err() != nil {
			return nil, r.Err()
		}
		if i >= int(count) {
			continue
		}
		if size > maxSelect {
			return nil, fmt.Errorf("selection of %d bytes", size)
		}
		banks = append(banks, bank{tpm2.TPMAlgID(alg), bits(mask[:size])})
	}
	return banks, nil
}
