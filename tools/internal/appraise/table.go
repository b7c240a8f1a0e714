package appraise

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"math"
	"slices"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// maxReleases is the number of bits of a mask.
const maxReleases = 64

// mask is a set of releases, by their place in the order of names.
type mask uint64

func (m mask) has(release int) bool { return m>>release&1 != 0 }

// kind says of what a digest is: its algorithm, and one of the flags for what is not the
// content of a file.
type kind uint8

const (
	verityKind kind = 0x80
	bufferKind kind = 0x40
)

func kindOf(f ima.FileDigest) kind {
	k := kind(f.Hash)
	if f.Verity {
		k |= verityKind
	}
	return k
}

func (k kind) hash() ima.HashAlgo { return ima.HashAlgo(k &^ (verityKind | bufferKind)) }

// String is the prefix of a digest as the measurement list writes it.
func (k kind) String() string {
	if k&verityKind != 0 {
		return "verity:" + k.hash().String()
	}
	return k.hash().String()
}

// table holds the files of all releases: one record for each path, digest and package, in
// the order of paths, and three ways to find it.
//
//	record: mask number (2) | package number (4) | kind (1) | path size (2) | digest | path
//
// Offsets instead of pointers and numbers instead of masks keep 100 000 files below 20 MB.
type table struct {
	seed     maphash.Seed
	records  []byte
	masks    []mask   // by mask number
	packages []string // by package number
	slots    []slot   // open addressing, by digest and path; a power of two
	byPath   []uint32 // offsets
	bySum    []uint32 // offsets, by digest
}

type slot struct {
	check  uint32 // upper half of the hash
	offset uint32 // + 1; 0: empty
}

const recordHead = 2 + 4 + 1 + 2

type record struct {
	mask mask
	pkg  string
	kind kind
	sum  []byte
	path []byte
}

func (t *table) at(offset uint32) record {
	b := t.records[offset:]
	k := kind(b[6])
	sum := recordHead + k.hash().Size()
	end := sum + int(binary.LittleEndian.Uint16(b[7:]))
	return record{
		mask: t.masks[binary.LittleEndian.Uint16(b)],
		pkg:  t.packages[binary.LittleEndian.Uint32(b[2:])],
		kind: k, sum: b[recordHead:sum:sum], path: b[sum:end:end],
	}
}

func (t *table) hash(sum, path []byte) uint64 {
	h := maphash.Bytes(t.seed, path)
	if len(sum) >= 8 {
		h ^= binary.LittleEndian.Uint64(sum)
	}
	return h
}

// find returns the releases that have this digest at this path.
func (t *table) find(k kind, sum, path []byte) (m mask) {
	if len(t.slots) == 0 {
		return 0
	}
	h := t.hash(sum, path)
	last := uint64(len(t.slots) - 1)
	for i := h & last; t.slots[i].offset != 0; i = (i + 1) & last {
		s := t.slots[i]
		if s.check != uint32(h>>32) {
			continue
		}
		if r := t.at(s.offset - 1); r.kind == k && bytes.Equal(r.sum, sum) && bytes.Equal(r.path, path) {
			m |= r.mask // another record is of another package
		}
	}
	return m
}

// withSum yields the records that have this digest, wherever.
func (t *table) withSum(k kind, sum []byte) iter.Seq[record] {
	return t.equal(t.bySum, func(r record) int {
		return cmp.Or(bytes.Compare(r.sum, sum), cmp.Compare(r.kind, k))
	})
}

// withPath yields the records of a path, whatever their digest.
func (t *table) withPath(path []byte) iter.Seq[record] {
	return t.equal(t.byPath, func(r record) int { return bytes.Compare(r.path, path) })
}

// maxEqual bounds what is looked at of what many files share: the digest of nothing.
const maxEqual = 4096

func (t *table) equal(index []uint32, compare func(record) int) iter.Seq[record] {
	return func(yield func(record) bool) {
		i, ok := slices.BinarySearchFunc(index, struct{}{}, func(offset uint32, _ struct{}) int { return compare(t.at(offset)) })
		for n := 0; ok && i < len(index) && n < maxEqual; i, n = i+1, n+1 {
			r := t.at(index[i])
			if compare(r) != 0 || !yield(r) {
				return
			}
		}
	}
}

// anywhere returns the releases that have this digest at some path.
func (t *table) anywhere(k kind, sum []byte) (m mask) {
	for r := range t.withSum(k, sum) {
		m |= r.mask
	}
	return m
}

func (t *table) size() int {
	n := len(t.records) + 8*len(t.masks) + 8*len(t.slots) + 4*len(t.byPath) + 4*len(t.bySum)
	for _, p := range t.packages {
		n += len(p) + 16
	}
	return n
}

// tableBuilder collects records in any order. Its records have the number of a release
// where those of a table have that of a mask.
type tableBuilder struct {
	records  []byte
	offsets  []uint32
	packages map[string]uint32
	names    []string
}

// maxTable bounds the records of all releases; a million files have some 100 MB.
const maxTable = 1 << 30

func (b *tableBuilder) add(release int, k kind, sum []byte, path, pkg string) error {
	if len(sum) != k.hash().Size() || path == "" || len(path) > math.MaxUint16 {
		return fmt.Errorf("%s digest of %d bytes for a path of %d bytes", k, len(sum), len(path))
	}
	if len(b.records) > maxTable {
		return fmt.Errorf("files of all releases together need more than %d bytes", maxTable)
	}
	n, ok := b.packages[pkg]
	if !ok {
		n = uint32(len(b.names))
		b.packages[pkg] = n
		b.names = append(b.names, pkg)
	}
	b.offsets = append(b.offsets, uint32(len(b.records)))
	b.records = appendRecord(b.records, release, n, k, sum, path)
	return nil
}

func appendRecord[P string | []byte](b []byte, number int, pkg uint32, k kind, sum []byte, path P) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(number))
	b = binary.LittleEndian.AppendUint32(b, pkg)
	b = append(b, byte(k))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(path)))
	return append(append(b, sum...), path...)
}

// build joins equal records of several releases.
func (b *tableBuilder) build() (*table, error) {
	t := &table{seed: maphash.MakeSeed(), packages: b.names}
	raw := &table{records: b.records, packages: b.names}
	for i := range maxReleases {
		raw.masks = append(raw.masks, 1<<i)
	}
	same := func(x, y record) int {
		return cmp.Or(bytes.Compare(x.path, y.path), cmp.Compare(x.kind, y.kind), bytes.Compare(x.sum, y.sum), cmp.Compare(x.pkg, y.pkg))
	}
	slices.SortFunc(b.offsets, func(x, y uint32) int { return same(raw.at(x), raw.at(y)) })
	numbers := map[mask]int{}
	t.records = make([]byte, 0, len(b.records))
	for i := 0; i < len(b.offsets); {
		r := raw.at(b.offsets[i])
		pkg := binary.LittleEndian.Uint32(b.records[b.offsets[i]+2:])
		for i++; i < len(b.offsets); i++ {
			next := raw.at(b.offsets[i])
			if same(r, next) != 0 {
				break
			}
			r.mask |= next.mask
		}
		n, ok := numbers[r.mask]
		if !ok {
			if n = len(t.masks); n > math.MaxUint16 {
				return nil, errors.New("releases overlap in too many ways: allow fewer at once")
			}
			numbers[r.mask] = n
			t.masks = append(t.masks, r.mask)
		}
		t.byPath = append(t.byPath, uint32(len(t.records)))
		t.records = appendRecord(t.records, n, pkg, r.kind, r.sum, r.path)
	}
	t.records, t.byPath = slices.Clip(t.records), slices.Clip(t.byPath)
	t.index()
	return t, nil
}

func (t *table) index() {
	t.bySum = slices.Clone(t.byPath)
	slices.SortFunc(t.bySum, func(x, y uint32) int {
		a, b := t.at(x), t.at(y)
		return cmp.Or(bytes.Compare(a.sum, b.sum), cmp.Compare(a.kind, b.kind), cmp.Compare(x, y))
	})
	size := 8
	for size < 2*len(t.byPath) {
		size *= 2
	}
	t.slots = make([]slot, size)
	last := uint64(size - 1)
	for _, offset := range t.byPath {
		r := t.at(offset)
		h := t.hash(r.sum, r.path)
		i := h & last
		for t.slots[i].offset != 0 {
			i = (i + 1) & last
		}
		t.slots[i] = slot{uint32(h >> 32), offset + 1}
	}
}
