package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

func TestReadsInOrder(t *testing.T) {
	r := NewReader([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9}, binary.BigEndian)
	if a, b, c, d := r.Uint8(), r.Uint16(), r.Uint32(), r.Rest(); a != 1 || b != 0x0203 || c != 0x04050607 || !bytes.Equal(d, []byte{8, 9}) {
		t.Errorf("%x %x %x %x", a, b, c, d)
	}
	if err := r.Close(); err != nil || r.Offset() != 9 || r.Len() != 0 {
		t.Errorf("%v at %d, %d left", err, r.Offset(), r.Len())
	}
}

// TestFirstErrorStays: what follows an error returns nothing and says nothing else.
func TestFirstErrorStays(t *testing.T) {
	r := NewReader([]byte{1, 2, 3}, binary.LittleEndian)
	if got := r.Uint16(); got != 0x0201 {
		t.Errorf("%x", got)
	}
	if got := r.Uint32(); got != 0 || !errors.Is(r.Err(), io.ErrUnexpectedEOF) {
		t.Errorf("%x, %v", got, r.Err())
	}
	first := r.Err()
	if r.Uint8() != 0 || r.Uint16() != 0 || r.Rest() != nil || r.Bytes(0) != nil || r.Close() != first {
		t.Errorf("after %v: %v", first, r.Err())
	}
}

func TestRefuses(t *testing.T) {
	if r := NewReader([]byte{1}, binary.BigEndian); r.Bytes(-1) != nil || r.Err() == nil {
		t.Error("a negative length is accepted")
	}
	r := NewReader([]byte{1, 2}, binary.BigEndian)
	r.Uint8()
	if err := r.Close(); err == nil || err.Error() != "byte 1: 1 trailing bytes" {
		t.Errorf("trailing bytes: %v", err)
	}
}

// TestBytesCannotGrow: what is returned cannot be appended to over what follows.
func TestBytesCannotGrow(t *testing.T) {
	in := []byte{1, 2, 3}
	r := NewReader(in, binary.BigEndian)
	_ = append(r.Bytes(1), 9)
	if in[1] != 2 {
		t.Error("the input was written to")
	}
}
