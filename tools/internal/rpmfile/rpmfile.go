// Package rpmfile reads what an rpm package says of its files, and puts signatures of them
// where rpm looks: the tags FILESIGNATURES and FILESIGNATURELENGTH of the signature header
// (rpm's lib/header.c, lib/signature.c and sign/rpmsignfiles.c). rpm's plugin ima sets them as
// security.ima before it gives a file its name.
//
// The package's own digests and OpenPGP signatures do not cover the signature header, and
// stay good. It opens no file: callers bring bytes, of which the payload is not needed.
package rpmfile

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/wire"
)

// MaxHeaders bounds lead and headers in bytes, as rpm bounds a header.
const MaxHeaders = 256 << 20

// ErrMalformed means that bytes are no rpm package, or one that rpm would not read.
var ErrMalformed = errors.New("malformed rpm package")

const (
	leadSize   = 96
	maxEntries = 64 << 10
	maxPath    = 4096 // Linux PATH_MAX
	entrySize  = 16
)

var (
	leadMagic   = []byte{0xed, 0xab, 0xee, 0xdb}
	headerMagic = []byte{0x8e, 0xad, 0xe8, 0x01, 0, 0, 0, 0}
)

// Tags of lib/rpmtag.h.
const (
	tagSignatures    = 62 // the region of a signature header
	tagFileSigs      = 274
	tagFileSigLength = 275
	tagFileModes     = 1030
	tagFileDigests   = 1035
	tagDirIndexes    = 1116
	tagBaseNames     = 1117
	tagDirNames      = 1118
	tagDigestAlgo    = 5011
)

// Types of lib/rpmtag.h.
const (
	typeInt16       = 3
	typeInt32       = 4
	typeInt64       = 5
	typeBin         = 7
	typeStringArray = 8
)

// digestSHA256 is PGPHASHALGO_SHA256, what rpm takes by default.
const digestSHA256 = 8

// Package is an rpm package without its payload.
type Package struct {
	Files  []File
	Size   int64 // of lead and headers: the payload follows
	lead   []byte
	sigs   []entry
	header []byte
}

// File is one file of a package. Only regular ones have a digest.
type File struct {
	Path   string // absolute
	Digest []byte // SHA-256 of the content
}

type entry struct {
	tag, kind, count uint32
	data             []byte
}

// Parse reads the front of a package, which may have anything after it. Every error is an
// [ErrMalformed]. The result points into b.
func Parse(b []byte) (*Package, error) {
	p, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return p, nil
}

func parse(b []byte) (*Package, error) {
	r := wire.NewReader(b, binary.BigEndian)
	p := &Package{lead: r.Bytes(leadSize)}
	if r.Err() == nil && !bytes.HasPrefix(p.lead, leadMagic) {
		return nil, errors.New("byte 0: no lead of an rpm package")
	}
	var err error
	if p.sigs, err = readHeader(r); err != nil {
		return nil, fmt.Errorf("signature header: %w", err)
	}
	p.sigs = slices.DeleteFunc(p.sigs, func(e entry) bool { return e.tag == tagSignatures })
	r.Bytes(-r.Offset() & 7)
	start := r.Offset()
	header, err := readHeader(r)
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	p.header, p.Size = b[start:r.Offset()], int64(r.Offset())
	p.Files, err = readFiles(header)
	return p, err
}

// readHeader reads one header: struct hdrblob of lib/header.c.
func readHeader(r *wire.Reader) ([]entry, error) {
	magic := r.Bytes(len(headerMagic))
	count, size := r.Uint32(), r.Uint32()
	switch {
	case r.Err() != nil:
		return nil, r.Err()
	case !bytes.Equal(magic, headerMagic):
		return nil, fmt.Errorf("byte %d: no header", r.Offset()-16)
	case count > maxEntries || size > MaxHeaders:
		return nil, fmt.Errorf("byte %d: %d entries and %d bytes are too many", r.Offset()-8, count, size)
	}
	index, store := r.Bytes(int(count)*entrySize), r.Bytes(int(size))
	if r.Err() != nil {
		return nil, r.Err()
	}
	entries := make([]entry, count)
	left := len(store) // as rpm has it, no byte belongs to two entries
	for i := range entries {
		f := index[i*entrySize:]
		e := entry{tag: binary.BigEndian.Uint32(f), kind: binary.BigEndian.Uint32(f[4:]), count: binary.BigEndian.Uint32(f[12:])}
		data, err := e.find(store, binary.BigEndian.Uint32(f[8:]), left)
		if err != nil {
			return nil, fmt.Errorf("entry %d, tag %d: %w", i, e.tag, err)
		}
		e.data = data
		left -= len(data)
		entries[i] = e
	}
	return entries, nil
}

// sizes are of the types of fixed size.
var sizes = map[uint32]int{1: 1, 2: 1, typeInt16: 2, typeInt32: 4, typeInt64: 8, typeBin: 1}

// find cuts the data of e, of at most most bytes, out of the store.
func (e *entry) find(store []byte, offset uint32, most int) ([]byte, error) {
	if int64(offset) > int64(len(store)) {
		return nil, fmt.Errorf("offset %d of %d", offset, len(store))
	}
	store = store[offset:]
	store = store[:min(len(store), most)]
	if size, ok := sizes[e.kind]; ok {
		if int64(e.count)*int64(size) > int64(len(store)) {
			return nil, fmt.Errorf("%d values, %d bytes are left", e.count, len(store))
		}
		return store[:int(e.count)*size], nil
	}
	if e.kind != 6 && e.kind != typeStringArray && e.kind != 9 {
		return nil, fmt.Errorf("type %d is unknown", e.kind)
	}
	n := 0
	for range e.count {
		end := bytes.IndexByte(store[n:], 0)
		if end < 0 {
			return nil, errors.New("a string does not end")
		}
		n += end + 1
	}
	return store[:n], nil
}

func (e *entry) strings() []string {
	return strings.Split(strings.TrimSuffix(string(e.data), "\x00"), "\x00")
}

func readFiles(header []entry) ([]File, error) {
	tags := map[uint32]entry{}
	for _, e := range header {
		if _, ok := tags[e.tag]; ok {
			return nil, fmt.Errorf("tag %d is there twice", e.tag)
		}
		tags[e.tag] = e
	}
	names, ok := tags[tagBaseNames]
	if !ok || names.count == 0 {
		return nil, nil
	}
	for tag, kind := range map[uint32]uint32{tagBaseNames: typeStringArray, tagDirNames: typeStringArray, tagFileDigests: typeStringArray, tagFileModes: typeInt16, tagDirIndexes: typeInt32} {
		e := tags[tag]
		if e.kind != kind || tag != tagDirNames && e.count != names.count {
			return nil, fmt.Errorf("tag %d has type %d and %d values, for %d files", tag, e.kind, e.count, names.count)
		}
	}
	algo := tags[tagDigestAlgo]
	if algo.kind != typeInt32 || algo.count != 1 || binary.BigEndian.Uint32(algo.data) != digestSHA256 {
		return nil, errors.New("digests of files are not SHA-256: build with _binary_filedigest_algorithm 8")
	}
	base, dirs, digests := tags[tagBaseNames], tags[tagDirNames], tags[tagFileDigests]
	dirNames, hexes := dirs.strings(), digests.strings()
	var files []File
	for i, name := range base.strings() {
		dir := binary.BigEndian.Uint32(tags[tagDirIndexes].data[4*i:])
		if int64(dir) >= int64(len(dirNames)) {
			return nil, fmt.Errorf("file %d is in folder %d of %d", i, dir, len(dirNames))
		}
		if len(dirNames[dir])+len(name) > maxPath {
			return nil, fmt.Errorf("file %d has a path longer than %d bytes", i, maxPath)
		}
		f := File{Path: dirNames[dir] + name}
		const typeMask, regular = 0o170000, 0o100000
		if mode := binary.BigEndian.Uint16(tags[tagFileModes].data[2*i:]); mode&typeMask == regular && hexes[i] != "" {
			digest, err := hex.DecodeString(hexes[i])
			if err != nil || len(digest) != ima.SHA256.Size() {
				return nil, fmt.Errorf("%q: digest %.80q is not that of SHA-256", f.Path, hexes[i])
			}
			f.Digest = digest
		}
		files = append(files, f)
	}
	return files, nil
}

// Sign returns lead and headers with signatures: a value of security.ima for each of p.Files, nil
// for none. Those that are there are replaced.
func (p *Package) Sign(signatures [][]byte) ([]byte, error) {
	if len(signatures) != len(p.Files) {
		return nil, fmt.Errorf("%d signatures for %d files", len(signatures), len(p.Files))
	}
	sigs := slices.DeleteFunc(slices.Clone(p.sigs), func(e entry) bool { return e.tag == tagFileSigs || e.tag == tagFileSigLength })
	var text []byte
	longest := 0
	for _, s := range signatures {
		text = append(hex.AppendEncode(text, s), 0)
		longest = max(longest, len(s))
	}
	if longest > 0 {
		sigs = append(sigs, entry{tagFileSigs, typeStringArray, uint32(len(signatures)), text},
			entry{tagFileSigLength, typeInt32, 1, binary.BigEndian.AppendUint32(nil, uint32(longest))})
	}
	slices.SortStableFunc(sigs, func(x, y entry) int { return int(x.tag) - int(y.tag) })
	b := appendHeader(slices.Clone(p.lead), sigs)
	b = append(b, make([]byte, -len(b)&7)...)
	return append(b, p.header...), nil
}

// appendHeader writes a header that is one region: rpm wants its first entry to name the
// trailer, which is the last of the data, and data in the order of the entries.
func appendHeader(b []byte, entries []entry) []byte {
	var index, store []byte
	for _, e := range entries {
		if size := sizes[e.kind]; size > 1 {
			store = append(store, make([]byte, -len(store)&(size-1))...)
		}
		index = appendEntry(index, e.tag, e.kind, uint32(len(store)), e.count)
		store = append(store, e.data...)
	}
	n := uint32(len(entries) + 1)
	b = append(b, headerMagic...)
	b = binary.BigEndian.AppendUint32(b, n)
	b = binary.BigEndian.AppendUint32(b, uint32(len(store)+entrySize))
	b = appendEntry(b, tagSignatures, typeBin, uint32(len(store)), entrySize)
	b = append(append(b, index...), store...)
	return appendEntry(b, tagSignatures, typeBin, -n*entrySize, entrySize)
}

func appendEntry(b []byte, tag, kind, offset, count uint32) []byte {
	for _, v := range []uint32{tag, kind, offset, count} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}
