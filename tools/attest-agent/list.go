package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// mark is how many entries lie between two places in a list that are remembered.
const mark = 512

// list is the kernel's measurement list. It only grows, so what was counted stays
// counted; of its bytes nothing is kept.
type list struct {
	file    *os.File
	form    ima.Form
	entries int
	end     int64
	marks   []int64 // where entry 0, mark, 2*mark ... begin
}

// openList opens a list; that it has no entry yet is found out by the first count.
func openList(path string, ascii bool) (*list, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoList, err)
	}
	return &list{file: f, form: ima.Form{ASCII: ascii, Order: byteOrder(), Hash: ima.SHA1}}, nil
}

// byteOrder is that of the kernel's integers. A kernel that was booted with
// ima_canonical_fmt on a big-endian machine is not known.
func byteOrder() binary.ByteOrder {
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// counted counts what is read.
type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// count passes over the entries that are new since the last call.
func (l *list) count() error {
	src := &counted{r: io.NewSectionReader(l.file, l.end, maxList)}
	r := ima.StreamList(src, l.form, l.entries)
	base := l.end
	for {
		if l.entries%mark == 0 && l.entries/mark == len(l.marks) {
			l.marks = append(l.marks, l.end)
		}
		if err := r.Skip(1); err != nil {
			if base+src.n == l.end && errors.Is(err, io.ErrUnexpectedEOF) {
				return nil // all that was read were whole entries
			}
			return fmt.Errorf("read %s: %w", l.file.Name(), err)
		}
		l.entries, l.end = r.Index(), base+r.Offset()
	}
}

// maxList bounds a list, in bytes.
const maxList = 1 << 40

// from is the list from an entry on, to its end as last counted.
func (l *list) from(entry int) (*io.SectionReader, error) {
	if entry >= l.entries {
		return io.NewSectionReader(l.file, l.end, 0), nil
	}
	at := l.marks[entry/mark]
	r := ima.StreamList(io.NewSectionReader(l.file, at, l.end-at), l.form, entry/mark*mark)
	if err := r.Skip(entry % mark); err != nil {
		return nil, fmt.Errorf("read %s: %w", l.file.Name(), err)
	}
	at += r.Offset()
	return io.NewSectionReader(l.file, at, l.end-at), nil
}
