package rootfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// Survey is what a walk finds before anything is done to the files.
type Survey struct {
	Files int64 // regular files to label, each inode once
	Bytes int64 // their size
}

// survey counts what the rules select. It fails on a directory that cannot be read,
// because what is in it could not be counted.
func (t *Tree) survey(ctx context.Context, wanted func(File) bool) (Survey, error) {
	var s Survey
	seen := names{}
	err := t.each(ctx, func(f File, err error) error {
		switch {
		case errors.Is(err, errOtherMount):
			return nil // reported by the walk that follows
		case err != nil:
			return fmt.Errorf("%q: %w", f.Path, err)
		case !f.Regular() || !wanted(f):
			return nil
		}
		if seen.first(f) {
			s.Files++
			s.Bytes += f.Size
		}
		return nil
	})
	return s, err
}

// errFound ends a walk early.
var errFound = errors.New("found")

// Target finds out for which kind of machine the tree is made, from its first ELF file
// in the order of the walk. ok is false when there is none.
func (t *Tree) Target(ctx context.Context) (layout ima.Layout, path string, ok bool, err error) {
	err = t.each(ctx, func(f File, err error) error {
		if err != nil || !f.Regular() || f.Size < elfIdentSize {
			return nil
		}
		ident, err := t.head(f.Path)
		if err != nil {
			return nil // signing will name it
		}
		if layout, ok = elfLayout(ident); ok {
			path = f.Path
			return errFound
		}
		return nil
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	return layout, path, ok, err
}

// elfIdentSize is EI_NIDENT.
const elfIdentSize = 16

func (t *Tree) head(path string) ([elfIdentSize]byte, error) {
	var ident [elfIdentSize]byte
	f, err := t.open(path)
	if err != nil {
		return ident, err
	}
	defer f.Close()
	_, err = io.ReadFull(f, ident[:])
	return ident, err
}

// elfLayout reads EI_CLASS and EI_DATA of an ELF header.
func elfLayout(ident [elfIdentSize]byte) (ima.Layout, bool) {
	if string(ident[:4]) != "\x7fELF" {
		return ima.Layout{}, false
	}
	var l ima.Layout
	switch ident[4] {
	case 1:
		l.Bits = 32
	case 2:
		l.Bits = 64
	default:
		return l, false
	}
	switch ident[5] {
	case 1:
		l.Order = binary.LittleEndian
	case 2:
		l.Order = binary.BigEndian
	default:
		return l, false
	}
	return l, true
}
