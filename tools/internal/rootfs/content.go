package rootfs

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// bufSize is what one read takes: large enough that system calls do not count, small
// enough that it stays in the cache between reading and hashing.
const bufSize = 128 << 10

// errChanged means that a file, or its metadata, was changed during the walk.
var errChanged = errors.New("changed while the tree was being walked")

// reader reads files; each goroutine has its own.
type reader struct {
	from     *Tree
	buf      []byte
	progress *Progress
}

// open opens f and makes sure that it is the file that the walk saw.
func (r *reader) open(f File) (*os.File, error) {
	file, err := r.from.open(f.Path)
	if err != nil {
		return nil, err
	}
	if err := r.unchanged(file, f); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// unchanged compares an open file with what the walk saw. The time of the last change of
// the inode covers content, owner, mode and attributes, and cannot be set back.
func (r *reader) unchanged(file *os.File, f File) error {
	now, err := statx(int(file.Fd()), "", unix.AT_EMPTY_PATH)
	switch {
	case err != nil:
		return err
	case now.inode() != f.inode() || now.ctime != f.ctime || now.Size != f.Size:
		return errChanged
	}
	return nil
}

// read streams the content of file into w, once.
func (r *reader) read(ctx context.Context, file *os.File, f File, w ...io.Writer) error {
	var size int64
	for size < f.Size { // what is appended meanwhile is seen at the end
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := file.Read(r.buf)
		for _, w := range w {
			w.Write(r.buf[:n]) // hashes do not fail
		}
		size += int64(n)
		r.progress.Bytes.Add(int64(n))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if size != f.Size {
		return errChanged
	}
	return r.unchanged(file, f)
}

// digests are of one file's content.
type digests struct {
	content []byte
	verity  []byte
}

// hasher computes the digests that a run needs, in one reading.
type hasher struct {
	reader
	content hash.Hash
	verity  *ima.Verity
}

// newHasher makes a hasher of content and, if verity is not nil, of the fs-verity digest.
func newHasher(t *Tree, p *Progress, algo ima.HashAlgo, verity *ima.VerityParams) (*hasher, error) {
	h := &hasher{reader: reader{from: t, buf: make([]byte, bufSize), progress: p}}
	var err error
	if h.content, err = algo.New(); err != nil {
		return nil, err
	}
	if verity != nil {
		if h.verity, err = ima.NewVerity(*verity); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// digest reads file to its end.
func (h *hasher) digest(ctx context.Context, file *os.File, f File) (digests, error) {
	h.content.Reset()
	w := []io.Writer{h.content}
	if h.verity != nil {
		h.verity.Reset()
		w = append(w, h.verity)
	}
	if err := h.read(ctx, file, f, w...); err != nil {
		return digests{}, fmt.Errorf("read: %w", err)
	}
	d := digests{content: h.content.Sum(nil)}
	if h.verity != nil {
		d.verity = h.verity.Digest()
	}
	return d, nil
}
