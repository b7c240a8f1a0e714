package main

import (
	"bytes"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/labellist"
)

// maxXattr is Linux XATTR_SIZE_MAX.
const maxXattr = 64 << 10

// tree is a root below which files are labelled.
type tree struct {
	dir   *os.File
	trust *trust
	buf   []byte
}

func openTree(root string, t *trust) (*tree, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	return &tree{dir: dir, trust: t, buf: make([]byte, 128<<10)}, nil
}

func (t *tree) close() { t.dir.Close() }

// open opens a regular file for reading. No part of its path may be a symbolic link, but for
// the folders of the root that were merged into /usr.
func (t *tree) open(path string) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	path = t.merged(strings.TrimPrefix(path, "/"))
	fd, err := unix.Openat2(int(t.dir.Fd()), path, &how)
	for errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
		fd, err = unix.Openat2(int(t.dir.Fd()), path, &how)
	}
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("%q: %w: a part of the path is a symbolic link", path, errNotAuthentic)
	case errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("%q: %w: a part of the path is not a directory", path, errNotAuthentic)
	case err != nil:
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%q: %w: not a regular file", path, errNotAuthentic)
	}
	return f, nil
}

// merged gives a path below /bin, /sbin or /lib* its name in /usr, where that is what the
// folder is a link to.
func (t *tree) merged(path string) string {
	top, rest, ok := strings.Cut(path, "/")
	if !ok {
		return path
	}
	buf := make([]byte, 64)
	n, err := unix.Readlinkat(int(t.dir.Fd()), top, buf)
	if err != nil {
		return path
	}
	target := strings.TrimPrefix(string(buf[:n]), "/")
	if name, inUsr := strings.CutPrefix(target, "usr/"); !inUsr || strings.Contains(name, "/") {
		return path
	}
	return target + "/" + rest
}

// target is a file that is to get labels.
type target struct {
	path  string // on disk, from the root
	entry labellist.Entry
}

// outcome is what was seen of a target.
type outcome int

const (
	right  outcome = iota // has the labels of its entry
	absent                // lacks one, or has another
)

// verify checks the labels of a target against the file, and says whether it has them.
func (t *tree) verify(g target) (outcome, error) {
	f, err := t.open(g.path)
	if err != nil {
		return absent, err
	}
	defer f.Close()
	return t.verifyFile(f, g)
}

func (t *tree) verifyFile(f *os.File, g target) (outcome, error) {
	if err := t.verifyContent(f, g.entry.IMA); err != nil {
		return absent, fmt.Errorf("%q: %w: security.ima: %w", g.path, errNotAuthentic, err)
	}
	if err := t.verifyMetadata(f, g.entry); err != nil {
		return absent, fmt.Errorf("%q: %w: security.evm: %w", g.path, errNotAuthentic, err)
	}
	for name, want := range map[string][]byte{ima.XattrIMA: g.entry.IMA, ima.XattrEVM: g.entry.EVM} {
		have, err := getXattr(f, name)
		if err != nil {
			return absent, err
		}
		if want != nil && !bytes.Equal(have, want) {
			return absent, nil
		}
	}
	return right, nil
}

func (t *tree) verifyContent(f io.Reader, value []byte) error {
	x, err := ima.ParseIMA(value)
	if err != nil {
		return err
	}
	var h hash.Hash
	var v *ima.Verity
	var w io.Writer
	if x.Type == ima.VeritySignature {
		v, err = ima.NewVerity(ima.VerityParams{Hash: x.Hash, BlockSize: 4096})
		w = v
	} else {
		h, err = x.Hash.New()
		w = h
	}
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{f}, t.buf); err != nil {
		return err
	}
	var digest []byte
	if v != nil {
		digest = v.Digest()
	} else {
		digest = h.Sum(nil)
	}
	if x.IsSignature() {
		return verify(t.trust.ima, x, digest)
	}
	if !bytes.Equal(x.Digest, digest) {
		return errors.New("content has another digest")
	}
	return nil
}

// verifyMetadata checks a portable signature against owner, mode and the attributes that the
// file has, with security.ima as it will be.
func (t *tree) verifyMetadata(f *os.File, e labellist.Entry) error {
	if e.EVM == nil {
		return nil
	}
	x, err := ima.ParseEVM(e.EVM)
	if err != nil {
		return err
	}
	if x.Type != ima.PortableSignature {
		return fmt.Errorf("type %d does not survive being copied", x.Type)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	layout, err := ima.ParseTarget(unix.ByteSliceToString(uts.Machine[:]))
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	in := ima.Inode{UID: st.Uid, GID: st.Gid, Mode: uint16(st.Mode), Xattrs: map[string][]byte{}}
	for _, name := range ima.EVMXattrs {
		if in.Xattrs[name], err = getXattr(f, name); err != nil {
			return err
		}
	}
	in.Xattrs[ima.XattrIMA] = e.IMA
	digest, err := ima.EVMDigest(x.Hash, layout, in)
	if err != nil {
		return err
	}
	if err := verify(t.trust.evm, x, digest); err != nil {
		return fmt.Errorf("owner %d:%d, mode %o: %w", st.Uid, st.Gid, st.Mode, err)
	}
	return nil
}

// getXattr returns nil where the file has no such attribute.
func getXattr(f *os.File, name string) ([]byte, error) {
	value := make([]byte, maxXattr)
	n, err := unix.Fgetxattr(int(f.Fd()), name, value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of %q: %w", name, f.Name(), err)
	}
	return value[:n], nil
}

// set writes the labels of a target, to the file that it has verified: another one may have got
// the name since the last look. EVM covers security.ima, so that comes first.
func (t *tree) set(g target) error {
	f, err := t.open(g.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if state, err := t.verifyFile(f, g); err != nil || state == right {
		return err
	}
	for _, l := range []struct {
		name  string
		value []byte
	}{{ima.XattrIMA, g.entry.IMA}, {ima.XattrEVM, g.entry.EVM}} {
		if l.value == nil {
			continue
		}
		if err := unix.Fsetxattr(int(f.Fd()), l.name, l.value, 0); err != nil {
			return fmt.Errorf("write %s of %q: %w", l.name, g.path, err)
		}
	}
	return nil
}

// label verifies all targets, and only then sets what is absent: a package gets all labels or none.
func (t *tree) label(targets []target) error {
	var absents []target
	var errs []error
	for _, g := range targets {
		switch state, err := t.verify(g); {
		case err != nil:
			errs = append(errs, err)
		case state == absent:
			absents = append(absents, g)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	for _, g := range absents {
		if err := t.set(g); err != nil {
			return err
		}
	}
	return nil
}

// split parts the control files of a list from the files of the package, by their names.
func split(entries []labellist.Entry) (control, files map[string]labellist.Entry) {
	control, files = map[string]labellist.Entry{}, map[string]labellist.Entry{}
	for _, e := range entries {
		if dir, name := filepath.Split(e.Path); slices.Contains(labellist.ControlDirs, strings.TrimSuffix(dir, "/")) {
			control[name] = e
		} else {
			files[e.Path] = e
		}
	}
	return control, files
}

// scriptTargets are the maintainer scripts that are there, in a folder that holds the control
// files with a prefix before their names. One that the list does not have is an error.
func (t *tree) scriptTargets(prefix string, scripts map[string]labellist.Entry) ([]target, error) {
	var targets []target
	for _, name := range labellist.Scripts {
		path := prefix + name
		f, err := t.open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f.Close()
		e, ok := scripts[name]
		if !ok || e.IMA == nil {
			return nil, fmt.Errorf("%q: %w: the label list does not have it", path, errNotAuthentic)
		}
		targets = append(targets, target{path, e})
	}
	return targets, nil
}
