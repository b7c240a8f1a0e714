package rootfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// survey counts the regular files that are to be labelled, each inode once, and the bytes
// that are to be read. It fails on a directory that cannot be read, because what is in it
// could not be counted.
func (t *Tree) survey(ctx context.Context, wanted func(File) (label, read bool)) (files, bytes int64, err error) {
	seen := names{}
	err = t.each(ctx, func(f File, err error) error {
		switch {
		case errors.Is(err, errOtherMount):
			return nil // reported by the walk that follows
		case err != nil:
			return fmt.Errorf("%q: %w", f.Path, err)
		case !f.Regular():
			return nil
		}
		label, read := wanted(f)
		if !seen.first(f) {
			return nil
		}
		if label {
			files++
		}
		if read {
			bytes += f.Size
		}
		return nil
	})
	return files, bytes, err
}

// ErrNoTarget means that the tree does not tell for which kernel it is made.
var ErrNoTarget = errors.New("which kernel the tree is for cannot be told")

// Target finds out on what EVM signatures depend, from the ELF files of the tree. They
// must all agree: a boot loader's modules or a second set of libraries make it a guess.
func (t *Tree) Target(ctx context.Context) (ima.Layout, error) {
	var found ima.Layout
	var first string
	err := t.each(ctx, func(f File, err error) error {
		if err != nil || !f.Regular() || f.Size < elfIdentSize {
			return nil
		}
		ident, err := t.head(f.Path)
		if err != nil {
			return nil // signing will name it
		}
		layout, ok := elfLayout(ident)
		switch {
		case !ok || layout == found:
		case first == "":
			found, first = layout, f.Path
		default:
			return fmt.Errorf("%w: %q is %v, %q is %v", ErrNoTarget, first, found, f.Path, layout)
		}
		return nil
	})
	if err == nil && first == "" {
		err = fmt.Errorf("%w: it has no ELF file", ErrNoTarget)
	}
	return found, err
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
