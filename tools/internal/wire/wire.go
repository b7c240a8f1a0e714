// Package wire reads integers and byte strings from untrusted bytes. The reader keeps
// its first error, so that a parser reads field after field and asks once; a size
// found in the input is compared with a ceiling before anything is allocated for it.
package wire

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Reader consumes a byte slice front to back. After its first error every further
// read returns zero values and leaves the error as it is.
type Reader struct {
	buf   []byte
	off   int
	order binary.ByteOrder
	err   error
}

// NewReader returns a Reader over b whose integers have the given byte order. Slices
// that it returns point into b.
func NewReader(b []byte, order binary.ByteOrder) *Reader {
	return &Reader{buf: b, order: order}
}

// Offset is the number of bytes consumed so far.
func (r *Reader) Offset() int { return r.off }

// Len is the number of bytes left.
func (r *Reader) Len() int { return len(r.buf) - r.off }

// Err is the first error of any read, or nil.
func (r *Reader) Err() error { return r.err }

// fail keeps the first error, with the offset at which it was found.
func (r *Reader) fail(err error) {
	if r.err == nil {
		r.err = fmt.Errorf("byte %d: %w", r.off, err)
	}
}

// Bytes returns the next n bytes; fewer left is [io.ErrUnexpectedEOF].
func (r *Reader) Bytes(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n < 0 || n > r.Len() {
		r.fail(fmt.Errorf("%d bytes wanted, %d left: %w", n, r.Len(), io.ErrUnexpectedEOF))
		return nil
	}
	b := r.buf[r.off : r.off+n : r.off+n]
	r.off += n
	return b
}

// Rest returns all bytes that are left.
func (r *Reader) Rest() []byte { return r.Bytes(r.Len()) }

// Uint8 reads one byte.
func (r *Reader) Uint8() uint8 {
	if b := r.Bytes(1); b != nil {
		return b[0]
	}
	return 0
}

// Uint16 reads two bytes.
func (r *Reader) Uint16() uint16 {
	if b := r.Bytes(2); b != nil {
		return r.order.Uint16(b)
	}
	return 0
}

// Uint32 reads four bytes.
func (r *Reader) Uint32() uint32 {
	if b := r.Bytes(4); b != nil {
		return r.order.Uint32(b)
	}
	return 0
}

// Close reports trailing bytes as an error and returns [Reader.Err].
func (r *Reader) Close() error {
	if n := r.Len(); n > 0 {
		r.fail(fmt.Errorf("%d trailing bytes", n))
	}
	return r.err
}
