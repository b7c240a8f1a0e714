package ima

import (
	"encoding/binary"
	"fmt"
	"hash"
)

// VerityParams are the parameters of an fs-verity digest (FS_IOC_ENABLE_VERITY).
type VerityParams struct {
	Hash      HashAlgo // SHA256 or SHA512
	BlockSize int      // bytes: a power of two, 1024 to 65536
	Salt      []byte   // at most 32 bytes
}

// Limits of struct fsverity_descriptor (include/uapi/linux/fsverity.h) and of the
// block sizes that the kernel takes (fs/verity/open.c).
const (
	verityMaxSalt  = 32
	verityMinBlock = 1 << 10
	verityMaxBlock = 1 << 16
)

// Verity computes an fs-verity digest of the bytes written to it, in memory of one
// block for each level of the Merkle tree.
type Verity struct {
	params VerityParams
	h      hash.Hash
	prefix []byte   // the salt, padded to the hash's block size
	levels [][]byte // levels[0] is the open data block, levels[i] the open block of hashes of level i-1
	size   uint64
	sum    []byte
}

// NewVerity checks p and returns an empty Verity.
func NewVerity(p VerityParams) (*Verity, error) {
	if p.Hash != SHA256 && p.Hash != SHA512 {
		return nil, fmt.Errorf("fs-verity hashes with sha256 or sha512, not %v", p.Hash)
	}
	if p.BlockSize < verityMinBlock || p.BlockSize > verityMaxBlock || p.BlockSize&(p.BlockSize-1) != 0 {
		return nil, fmt.Errorf("fs-verity block size %d is not a power of two from %d to %d", p.BlockSize, verityMinBlock, verityMaxBlock)
	}
	if len(p.Salt) > verityMaxSalt {
		return nil, fmt.Errorf("fs-verity salt has %d bytes, at most %d are allowed", len(p.Salt), verityMaxSalt)
	}
	v := &Verity{params: p}
	v.h, _ = p.Hash.New() // cannot fail for the two that passed
	if len(p.Salt) > 0 {
		v.prefix = make([]byte, v.h.BlockSize())
		copy(v.prefix, p.Salt)
	}
	v.Reset()
	return v, nil
}

// Reset makes v empty again.
func (v *Verity) Reset() {
	v.size = 0
	v.levels = append(v.levels[:0], v.block(v.levels, 0))
}

// block returns an empty block for level i, reusing the memory of an earlier file.
func (v *Verity) block(levels [][]byte, i int) []byte {
	if i < cap(levels) {
		if b := levels[:i+1][i]; b != nil {
			return b[:0]
		}
	}
	return make([]byte, 0, v.params.BlockSize)
}

// Write adds content. It never fails.
func (v *Verity) Write(p []byte) (int, error) {
	n := len(p)
	v.size += uint64(n)
	if len(v.levels[0]) > 0 {
		p = p[v.fill(p):]
	}
	// Whole blocks are hashed where they lie.
	for v.params.BlockSize <= len(p) {
		v.push(1, v.hash(p[:v.params.BlockSize]))
		p = p[v.params.BlockSize:]
	}
	v.fill(p)
	return n, nil
}

// fill moves bytes into the open data block and says how many.
func (v *Verity) fill(p []byte) int {
	k := min(len(p), v.params.BlockSize-len(v.levels[0]))
	v.levels[0] = append(v.levels[0], p[:k]...)
	if len(v.levels[0]) == v.params.BlockSize {
		v.push(1, v.hash(v.levels[0]))
		v.levels[0] = v.levels[0][:0]
	}
	return k
}

// push adds the hash of a block of level i-1 to the open block of level i.
func (v *Verity) push(i int, sum []byte) {
	if i == len(v.levels) {
		v.levels = append(v.levels, v.block(v.levels, i))
	}
	v.levels[i] = append(v.levels[i], sum...)
	if len(v.levels[i]) == v.params.BlockSize {
		v.push(i+1, v.hash(v.levels[i]))
		v.levels[i] = v.levels[i][:0]
	}
}

// hash hashes one block; the result is valid until the next call.
func (v *Verity) hash(block []byte) []byte {
	v.h.Reset()
	v.h.Write(v.prefix)
	v.h.Write(block)
	v.sum = v.h.Sum(v.sum[:0])
	return v.sum
}

// Digest is the fs-verity file digest: the hash of struct fsverity_descriptor
// (Documentation/filesystems/fsverity.rst). v is used up until [Verity.Reset].
func (v *Verity) Digest() []byte {
	root := v.root()
	d := make([]byte, 256)
	d[0] = 1 // version
	d[1] = 1 // FS_VERITY_HASH_ALG_SHA256
	if v.params.Hash == SHA512 {
		d[1] = 2
	}
	for n := v.params.BlockSize; n > 1; n >>= 1 {
		d[2]++ // log2 of the block size
	}
	d[3] = byte(len(v.params.Salt))
	binary.LittleEndian.PutUint64(d[8:], v.size)
	copy(d[16:80], root)
	copy(d[80:112], v.params.Salt)
	v.h.Reset()
	v.h.Write(d)
	return v.h.Sum(nil)
}

// root pads and closes the open blocks and returns the Merkle tree's root hash, which
// is all zeros for an empty file.
func (v *Verity) root() []byte {
	if v.size == 0 {
		return nil
	}
	for i := 0; ; i++ {
		top := i == len(v.levels)-1
		if top && i > 0 && len(v.levels[i]) == v.params.Hash.Size() {
			return v.levels[i]
		}
		if len(v.levels[i]) == 0 {
			continue
		}
		block := v.levels[i][:v.params.BlockSize]
		clear(block[len(v.levels[i]):])
		v.levels[i] = v.levels[i][:0]
		v.push(i+1, v.hash(block))
	}
}
