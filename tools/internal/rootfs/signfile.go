package rootfs

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// SignFile labels one regular file as [Sign] does those of a tree, and says whether it
// had another label before. Of o it takes the signers, Layout, Verity, DryRun and Force.
func SignFile(ctx context.Context, path string, labels Labels, o SignOptions) (written bool, err error) {
	t, err := Open(filepath.Dir(path), labels)
	if err != nil {
		return false, err
	}
	defer t.Close()
	name := filepath.Base(path)
	f, err := statx(int(t.dir.Fd()), name, unix.AT_SYMLINK_NOFOLLOW)
	f.Path = name
	if err == nil {
		err = labels.Stat(filepath.Join(t.root, name), &f)
	}
	if err == nil && !f.Regular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return false, &fs.PathError{Op: "sign", Path: path, Err: err}
	}
	o.Rules, o.Manifest, o.Dump, o.Progress = nil, nil, nil, new(Progress)
	run := &signing{tree: t, SignOptions: o}
	if err := run.probe(); err != nil {
		return false, err
	}
	h, err := newHasher(t, o.Progress, o.Signer.hash, o.Verity)
	if err != nil {
		return false, err
	}
	l := run.label(ctx, h, f)
	if l.err != nil {
		return false, &fs.PathError{Op: "sign", Path: path, Err: l.err}
	}
	return l.changed, nil
}
