package payload

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/wire"
)

// What of PKWARE's APPNOTE.TXT is needed: one disk, no ZIP64, no encryption. Go's
// archive/zip would make the agent 80 kilobytes larger, a hundredth of all it may have.
const (
	signLocal   = 0x04034b50
	signCentral = 0x02014b50
	signEnd     = 0x06054b50
	signSizes   = 0x08074b50 // of a data descriptor, where it has one

	sizeLocal = 30 // bytes, without what follows in variable length
	sizeEnd   = 22

	methodStore   = 0
	methodDeflate = 8

	flagEncrypted  = 1 << 0
	flagDescriptor = 1 << 3 // sizes are behind the data, and in the directory
	flagUTF8       = 1 << 11

	versionUnix = 3<<8 | 20 // made by Unix, by version 2.0
	minVersion  = 20
)

// Types of a file in the upper half of the external attributes, as stat has them.
const (
	unixType    = 0o170000
	unixRegular = 0o100000
	unixFolder  = 0o040000
)

// zipEntry is a line of the central directory.
type zipEntry struct {
	name             string
	madeBy           uint8 // 3 and 19 are Unix
	flags, method    uint16
	sum              uint32
	packed, unpacked uint32
	attributes       uint32
	offset           uint32
}

// ParseZip reads an archive. Name, Revision and Run of the result are for the caller to set.
func ParseZip(b []byte) (*Payload, error) {
	p, err := parseZip(b)
	if err != nil {
		return nil, fmt.Errorf("read payload: %w", err)
	}
	return p, nil
}

func parseZip(b []byte) (*Payload, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("more than %d bytes", MaxSize)
	}
	directory, count, err := findDirectory(b)
	if err != nil {
		return nil, err
	}
	r := wire.NewReader(b[directory.from:directory.to], binary.LittleEndian)
	p := &Payload{}
	left := MaxSize
	for range count {
		e, err := readEntry(r)
		if err != nil {
			return nil, err
		}
		if e.folder() {
			continue // folders come by the names of the files in them
		}
		if len(p.Files) == MaxFiles {
			return nil, fmt.Errorf("more than %d files", MaxFiles)
		}
		f := File{Name: e.name}
		if f.Mode, err = e.mode(); err == nil {
			err = checkFile(f)
		}
		if err == nil {
			f.Data, err = e.data(b[:directory.from], left)
		}
		if err != nil {
			return nil, fmt.Errorf("file %.40q: %w", e.name, err)
		}
		left -= len(f.Data)
		p.Files = append(p.Files, f)
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("directory of the archive: %w", err)
	}
	return p, checkFiles(p.Files)
}

// span is where something lies.
type span struct{ from, to int }

// findDirectory finds the central directory by the record at the end, which is the last
// with this signature that ends where the archive does.
func findDirectory(b []byte) (directory span, count int, err error) {
	for at := len(b) - sizeEnd; at >= 0 && at >= len(b)-sizeEnd-0xffff; at-- {
		r := wire.NewReader(b[at:], binary.LittleEndian)
		if r.Uint32() != signEnd {
			continue
		}
		disk, start, here, all := r.Uint16(), r.Uint16(), r.Uint16(), r.Uint16()
		size, offset := int64(r.Uint32()), int64(r.Uint32())
		r.Bytes(int(r.Uint16())) // a comment
		if r.Close() != nil {
			continue
		}
		if disk != 0 || start != 0 || here != all || offset+size != int64(at) {
			return span{}, 0, errors.New("no archive of one piece")
		}
		return span{int(offset), at}, int(all), nil
	}
	return span{}, 0, errors.New("no ZIP archive")
}

func readEntry(r *wire.Reader) (zipEntry, error) {
	if r.Uint32() != signCentral && r.Err() == nil {
		return zipEntry{}, errors.New("directory of the archive: an entry without its signature")
	}
	e := zipEntry{madeBy: uint8(r.Uint16() >> 8)}
	r.Uint16() // version needed
	e.flags, e.method = r.Uint16(), r.Uint16()
	r.Bytes(4) // time and date
	e.sum, e.packed, e.unpacked = r.Uint32(), r.Uint32(), r.Uint32()
	name, extra, comment := int(r.Uint16()), int(r.Uint16()), int(r.Uint16())
	r.Bytes(4) // disk, internal attributes
	e.attributes, e.offset = r.Uint32(), r.Uint32()
	e.name = string(r.Bytes(name))
	r.Bytes(extra + comment)
	if err := r.Err(); err != nil {
		return zipEntry{}, fmt.Errorf("directory of the archive: %w", err)
	}
	return e, nil
}

// unix are type and permissions, 0 where the archive has none.
func (e *zipEntry) unix() uint32 {
	if e.madeBy == 3 || e.madeBy == 19 {
		return e.attributes >> 16
	}
	return 0
}

func (e *zipEntry) folder() bool {
	t := e.unix() & unixType
	return strings.HasSuffix(e.name, "/") && e.unpacked == 0 && e.packed <= 2 && (t == 0 || t == unixFolder)
}

func (e *zipEntry) mode() (fs.FileMode, error) {
	m := e.unix()
	if t := m & unixType; t != 0 && t != unixRegular || m&^unixType > 0o777 {
		return 0, fmt.Errorf("mode %o is not that of a plain file", m)
	}
	if m == 0 {
		return 0o600, nil
	}
	return fs.FileMode(m & 0o777), nil
}

// data unpacks a file of at most so many bytes. What the archive says of its size is only
// believed to refuse it.
func (e *zipEntry) data(b []byte, most int) ([]byte, error) {
	if int64(e.unpacked) > int64(most) {
		return nil, fmt.Errorf("more than %d bytes of files", MaxSize)
	}
	packed, err := e.packedData(b)
	if err != nil {
		return nil, err
	}
	data := packed
	switch e.method {
	case methodStore:
		data = bytes.Clone(packed)
	case methodDeflate:
		r := flate.NewReader(bytes.NewReader(packed))
		if data, err = io.ReadAll(io.LimitReader(r, int64(e.unpacked)+1)); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("it is packed by method %d, neither 0 nor 8", e.method)
	}
	if len(data) != int(e.unpacked) || crc32.ChecksumIEEE(data) != e.sum {
		return nil, errors.New("size or checksum are not those of the directory")
	}
	if data == nil {
		data = []byte{}
	}
	return data, nil
}

// packedData are the bytes behind the local header, which has to say the same as the
// directory: of two readers none is to see another archive.
func (e *zipEntry) packedData(b []byte) ([]byte, error) {
	if int64(e.offset) > int64(len(b)) {
		return nil, errors.New("it lies outside of the archive")
	}
	r := wire.NewReader(b[e.offset:], binary.LittleEndian)
	sign := r.Uint32()
	r.Uint16() // version needed
	flags, method := r.Uint16(), r.Uint16()
	r.Bytes(4) // time and date
	sum, packed, unpacked := r.Uint32(), r.Uint32(), r.Uint32()
	name, extra := int(r.Uint16()), int(r.Uint16())
	same := string(r.Bytes(name)) == e.name && flags == e.flags && method == e.method &&
		(flags&flagDescriptor != 0 || sum == e.sum && packed == e.packed && unpacked == e.unpacked)
	r.Bytes(extra)
	data := r.Bytes(int(e.packed))
	if flags&flagDescriptor != 0 {
		if sum = r.Uint32(); sum == signSizes {
			sum = r.Uint32()
		}
		same = same && sum == e.sum && r.Uint32() == e.packed && r.Uint32() == e.unpacked
	}
	switch {
	case r.Err() != nil:
		return nil, r.Err()
	case sign != signLocal || !same:
		return nil, errors.New("its header says something else than the directory")
	case flags&flagEncrypted != 0:
		return nil, errors.New("it is encrypted")
	}
	return data, nil
}

// Zip writes the files as an archive that [ParseZip] reads; the same files make the same
// bytes. Nothing is compressed: a length would say something of what is encrypted.
func (p *Payload) Zip() ([]byte, error) {
	if err := checkFiles(p.Files); err != nil {
		return nil, fmt.Errorf("write payload: %w", err)
	}
	var local, central []byte
	le := binary.LittleEndian
	for _, f := range p.Files {
		// What local header and directory have in common (APPNOTE 4.3.7 and 4.3.12).
		var h []byte
		h = le.AppendUint16(le.AppendUint16(le.AppendUint16(h, minVersion), flagUTF8), methodStore)
		h = le.AppendUint16(le.AppendUint16(h, 0), 1<<5|1) // the first of January 1980
		h = le.AppendUint32(h, crc32.ChecksumIEEE(f.Data))
		h = le.AppendUint32(le.AppendUint32(h, uint32(len(f.Data))), uint32(len(f.Data)))
		h = le.AppendUint16(le.AppendUint16(h, uint16(len(f.Name))), 0)

		central = append(le.AppendUint16(le.AppendUint32(central, signCentral), versionUnix), h...)
		central = append(central, 0, 0, 0, 0, 0, 0) // comment, disk, internal attributes
		central = le.AppendUint32(central, (unixRegular|uint32(f.Mode.Perm()))<<16)
		central = append(le.AppendUint32(central, uint32(len(local))), f.Name...)

		local = append(append(le.AppendUint32(local, signLocal), h...), f.Name...)
		local = append(local, f.Data...)
	}
	n := uint16(len(p.Files))
	end := le.AppendUint16(le.AppendUint16(append(le.AppendUint32(nil, signEnd), 0, 0, 0, 0), n), n)
	end = le.AppendUint32(le.AppendUint32(end, uint32(len(central))), uint32(len(local)))
	b := append(append(append(local, central...), end...), 0, 0)
	if len(b) > MaxSize {
		return nil, fmt.Errorf("write payload: its archive has more than %d bytes", MaxSize)
	}
	return b, nil
}
