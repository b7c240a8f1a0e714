package bootlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/meta-attest/meta-attest/tools/internal/wire"
)

// Text is what events hold that say something to people: firmware versions (UTF-16),
// actions, what GRUB ran, the names of sections that systemd-stub measured.
type Text struct {
	Value string
}

// ImageLoad is UEFI_IMAGE_LOAD_EVENT (PFP 10.2.3) of a driver or boot loader. The event's
// digest is the Authenticode digest of the image; nothing here is measured.
type ImageLoad struct {
	Location, Length, LinkAddress uint64
	Path                          DevicePath
}

// SeparatorValue is the content of an EV_SEPARATOR (PFP 10.4.1): 0 or 0xffffffff where the
// firmware went on to boot, 1 after an error.
type SeparatorValue struct {
	Value uint32
}

// Tagged is one structure of an EV_EVENT_TAG (PFP 10.4.2.1, TCG_PCClientTaggedEvent).
// The EFI stub of Linux measures so what it loads: see [TagInitrd] and [TagLoadOptions].
type Tagged struct {
	ID   uint32
	Data []byte
}

// Tags of the EFI stub of Linux (drivers/firmware/efi/libstub/efistub.h). The digests are
// those of the initrd and of the kernel's command line in UTF-16.
const (
	TagInitrd      = 0x8f3b22ec
	TagLoadOptions = 0x8f3b22ed
)

// FirmwareBlob is UEFI_PLATFORM_FIRMWARE_BLOB (PFP 10.2.4) or BLOB2, which has a
// description; the digest is that of the memory.
type FirmwareBlob struct {
	Description  string
	Base, Length uint64
}

// StartupLocality is TCG_EfiStartupLocalityEvent (PFP 10.4.5.3).
type StartupLocality struct {
	Locality uint8
}

// Details reads Data as the type of e has it: *[Spec], *[StartupLocality], *[Variable],
// *[ImageLoad], *[SeparatorValue], *[Text], *[Tagged] or *[FirmwareBlob]; nil where there
// is nothing to read. An error is an [ErrMalformed]: firmware does write such data, and it
// harms no replay. Ask [Event.Proven] before believing any of it.
func (e *Event) Details() (any, error) {
	d, err := e.details()
	if err != nil {
		return nil, fmt.Errorf("%w: event %d (%v of PCR %d): %w", ErrMalformed, e.Index, e.Type, e.PCR, err)
	}
	return d, nil
}

func (e *Event) details() (any, error) {
	r := wire.NewReader(e.Data, binary.LittleEndian)
	switch e.Type {
	case NoAction:
		return e.noAction()
	case Separator:
		s := &SeparatorValue{r.Uint32()}
		return s, r.Close()
	case Action, EFIAction, PostCode, IPL, CRTMVersion, OmitBootDeviceEvents, CompactHash:
		return &Text{decodeText(e.Data)}, nil
	case VariableDriverConfig, VariableBoot, VariableBoot2, SPDMDevicePolicy, SPDMDeviceAuthority:
		v := readVariable(r)
		return v, r.Close()
	case VariableAuthority:
		// Shim before 15.5 has bytes of its memory behind the structure, here and in the
		// path of an image.
		return readVariable(r), r.Err()
	case BootServicesApplication, BootServicesDriver, RuntimeServicesDriver:
		l := &ImageLoad{Location: uint64At(r), Length: uint64At(r), LinkAddress: uint64At(r)}
		l.Path = r.Bytes(int(min(uint64At(r), maxSize)))
		return l, r.Err()
	case EventTag:
		t := &Tagged{ID: r.Uint32()}
		t.Data = r.Bytes(int(min(r.Uint32(), maxSize)))
		return t, r.Close()
	case PlatformFirmwareBlob:
		f := &FirmwareBlob{Base: uint64At(r), Length: uint64At(r)}
		return f, r.Close()
	case PlatformFirmwareBlob2:
		f := &FirmwareBlob{Description: decodeText(r.Bytes(int(r.Uint8())))}
		f.Base, f.Length = uint64At(r), uint64At(r)
		return f, r.Close()
	}
	return nil, nil
}

func (e *Event) noAction() (any, error) {
	if bytes.HasPrefix(e.Data, []byte(specAgile)) {
		return parseSpec(e.Data)
	}
	n, ok, err := e.startupLocality()
	if !ok {
		return nil, nil
	}
	return &StartupLocality{n}, err
}

// Proven says whether every digest of e is one of what e.Data holds, so that the replay of
// the digest proves the data: of all of it, or of the part that the type of event says.
// Of most boot loaders' events only the text behind its prefix is proven. It is false where
// Data but describes what was measured, such as the image that a path names.
func (e *Event) Proven() bool {
	if len(e.Digests) == 0 || e.Type == NoAction {
		return false
	}
	for _, part := range e.parts() {
		if e.digestsAreOf(part) {
			return true
		}
	}
	return false
}

func (e *Event) digestsAreOf(b []byte) bool {
	known := false
	for _, d := range e.Digests {
		if d.Alg.Size() == 0 {
			return false
		}
		sum := d.Alg.sum(b)
		if sum == nil { // another bank must say it
			continue
		}
		if !bytes.Equal(sum, d.Sum) {
			return false
		}
		known = true
	}
	return known
}

// parts are what may have been hashed for e.
func (e *Event) parts() [][]byte {
	parts := [][]byte{e.Data}
	switch e.Type {
	case VariableBoot, VariableDriverConfig:
		// EDK2 hashes but the value of a boot variable, as EFI 7.8 has it.
		if v, err := e.details(); err == nil {
			parts = append(parts, v.(*Variable).Data)
		}
	case VariableAuthority:
		// Shim before 15.5 hashes one byte less than it writes.
		parts = append(parts, e.Data[:max(len(e.Data)-1, 0)])
	case EventTag:
		if d, err := e.details(); err == nil {
			parts = append(parts, d.(*Tagged).Data)
		}
	case IPL:
		text := decodeText(e.Data)
		// systemd-stub names a section in UTF-16 and hashes its name in ASCII, then its
		// content (src/boot/stub.c). GRUB and shim put a prefix before what they hash, and
		// a NUL behind it (grub-core/kern/tpm.c).
		parts = append(parts, []byte(text), append([]byte(text), 0))
		for _, prefix := range []string{"grub_cmd: ", "kernel_cmdline: ", "module_cmdline: ", "grub_cmd ", "grub_kernel_cmdline "} {
			if rest, ok := strings.CutPrefix(text, prefix); ok {
				parts = append(parts, []byte(rest), append([]byte(rest), 0))
			}
		}
	}
	return parts
}

// decodeText reads UTF-16LE or what is not that as it stands, without NULs at the end.
func decodeText(b []byte) string {
	if s, ok := utf16Text(b); ok {
		return s
	}
	return strings.TrimRight(string(b), "\x00")
}

// utf16Text takes for UTF-16 what has a zero byte behind its first letter and is valid.
func utf16Text(b []byte) (string, bool) {
	if len(b) < 4 || len(b)%2 != 0 || b[1] != 0 || b[0] == 0 || bytes.IndexByte(b, 0) == len(b)-1 {
		return "", false
	}
	s, ok := decodeUTF16(b)
	return strings.TrimRight(s, "\x00"), ok
}

// decodeUTF16 reports what is no UTF-16; such text is shown with U+FFFD.
func decodeUTF16(b []byte) (string, bool) {
	units := make([]uint16, 0, len(b)/2)
	for pair := range slices.Chunk(b, 2) {
		if len(pair) == 2 {
			units = append(units, binary.LittleEndian.Uint16(pair))
		}
	}
	s := string(utf16.Decode(units))
	return s, len(b)%2 == 0 && !strings.ContainsRune(s, utf8.RuneError)
}

func uint64At(r *wire.Reader) uint64 {
	low := r.Uint32()
	return uint64(r.Uint32())<<32 | uint64(low)
}
