package bootlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/wire"
)

// DevicePath is an EFI_DEVICE_PATH_PROTOCOL (UEFI 2.10, chapter 10): where a
// boot loader was read from.
type DevicePath []byte

// node is one step of a path.
type node struct {
	kind, sub uint8
	data      []byte
}

// nodes reads p up to its end.
func (p DevicePath) nodes() ([]node, error) {
	var all []node
	r := wire.NewReader(p, binary.LittleEndian)
	for r.Len() > 0 {
		n := node{kind: r.Uint8(), sub: r.Uint8()}
		size := int(r.Uint16())
		n.data = r.Bytes(size - 4)
		if err := r.Err(); err != nil {
			return all, err
		}
		if n.kind == 0x7f && n.sub == 0xff {
			return all, r.Close()
		}
		all = append(all, n)
	}
	return all, errors.New("path has no end")
}

// String is p in the text form of UEFI 2.10, section 10.6, for the nodes that a boot
// usually has; of others the numbers are shown.
func (p DevicePath) String() string {
	nodes, err := p.nodes()
	var words []string
	for _, n := range nodes {
		words = append(words, n.String())
	}
	if err != nil && len(p) > 0 {
		words = append(words, "...")
	}
	return strings.Join(words, "/")
}

// File is the path of the file that p ends in, with backslashes; empty if there is none.
func (p DevicePath) File() string {
	nodes, err := p.nodes()
	if err != nil {
		return ""
	}
	var words []string
	for _, n := range nodes {
		if n.kind == 4 && n.sub == 4 {
			words = append(words, strings.Trim(n.String(), `\`))
		}
	}
	if len(words) == 0 {
		return ""
	}
	return `\` + strings.Join(words, `\`)
}

func (n node) String() string {
	le, d := binary.LittleEndian, n.data
	switch {
	case n.kind == 1 && n.sub == 1 && len(d) == 2:
		return fmt.Sprintf("Pci(0x%x,0x%x)", d[1], d[0])
	case n.kind == 2 && n.sub == 1 && len(d) == 8 && le.Uint32(d) == 0x0a0341d0:
		return fmt.Sprintf("PciRoot(0x%x)", le.Uint32(d[4:]))
	case n.kind == 2 && n.sub == 1 && len(d) == 8:
		return fmt.Sprintf("Acpi(0x%x,0x%x)", le.Uint32(d), le.Uint32(d[4:]))
	case n.kind == 3 && n.sub == 2 && len(d) == 4:
		return fmt.Sprintf("Scsi(0x%x,0x%x)", le.Uint16(d), le.Uint16(d[2:]))
	case n.kind == 3 && n.sub == 5 && len(d) == 2:
		return fmt.Sprintf("USB(0x%x,0x%x)", d[0], d[1])
	case n.kind == 3 && n.sub == 11 && len(d) >= 33:
		return fmt.Sprintf("MAC(%x,0x%x)", d[:6], d[32])
	case n.kind == 3 && n.sub == 18 && len(d) == 6:
		return fmt.Sprintf("Sata(0x%x,0x%x,0x%x)", le.Uint16(d), le.Uint16(d[2:]), le.Uint16(d[4:]))
	case n.kind == 3 && n.sub == 23 && len(d) == 12:
		return fmt.Sprintf("NVMe(0x%x,%02X)", le.Uint32(d), d[4:])
	case n.kind == 4 && n.sub == 1 && len(d) == 38:
		return hardDrive(d)
	case n.kind == 4 && n.sub == 4:
		s, _ := decodeUTF16(d)
		return strings.TrimRight(s, "\x00")
	case n.kind == 4 && (n.sub == 6 || n.sub == 7) && len(d) == 16:
		return fmt.Sprintf("%s(%v)", map[uint8]string{6: "FvFile", 7: "Fv"}[n.sub], GUID(d))
	}
	return fmt.Sprintf("Path(%d,%d,%x)", n.kind, n.sub, d)
}

// hardDrive is HARDDRIVE_DEVICE_PATH (UEFI 2.10, section 10.3.5.1).
func hardDrive(d []byte) string {
	le := binary.LittleEndian
	part, start, size := le.Uint32(d), le.Uint64(d[4:]), le.Uint64(d[12:])
	switch d[37] {
	case 1:
		return fmt.Sprintf("HD(%d,MBR,0x%08x,0x%x,0x%x)", part, le.Uint32(d[20:]), start, size)
	case 2:
		return fmt.Sprintf("HD(%d,GPT,%v,0x%x,0x%x)", part, GUID(d[20:36]), start, size)
	}
	return fmt.Sprintf("HD(%d,%d,%x,0x%x,0x%x)", part, d[37], d[20:36], start, size)
}
