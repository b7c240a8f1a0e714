package rootfs

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// XattrSELinux is the attribute in which SELinux keeps the label of a file.
const XattrSELinux = "security.selinux"

// Look is what can be seen of a regular file without reading all of it.
type Look struct {
	File
	IMA, EVM, SELinux []byte // values of the attributes, nil for none
	Head, Tail        []byte // of the content, at most 32 bytes
}

// lookSize is the size of [Look.Head] and of [Look.Tail] in bytes: enough for the magic
// numbers of programs and of appended signatures.
const lookSize = 32

// Look calls visit for every regular file of t, by each of its names, in the order of
// the walk. A name that cannot be looked at is given with the error; only an error of
// visit, or the end of ctx, ends the walk.
func (t *Tree) Look(ctx context.Context, visit func(Look, error) error) error {
	return t.each(ctx, func(f File, err error) error {
		if err == nil && !f.Regular() {
			return nil
		}
		look := Look{File: f}
		if err == nil {
			err = t.look(&look)
		}
		return visit(look, err)
	})
}

func (t *Tree) look(l *Look) error {
	file, err := t.open(l.Path)
	if err != nil {
		return err
	}
	defer file.Close()
	for _, x := range []struct {
		name  string
		value *[]byte
	}{{ima.XattrIMA, &l.IMA}, {ima.XattrEVM, &l.EVM}, {XattrSELinux, &l.SELinux}} {
		if *x.value, err = t.labels.Get(file, x.name); err != nil {
			return err
		}
	}
	if l.Head, err = readAt(file, 0, l.Size); err != nil {
		return err
	}
	l.Tail, err = readAt(file, max(0, l.Size-lookSize), l.Size)
	return err
}

// readAt reads at most lookSize bytes at an offset of a file of the given size.
func readAt(file *os.File, off, size int64) ([]byte, error) {
	b := make([]byte, min(lookSize, size-off))
	n, err := file.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:n], err
}
