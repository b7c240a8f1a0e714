package rootfs

import (
	"errors"
	"fmt"
	"os"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
)

// Direct reads and writes by system calls on the open file.
type Direct struct{}

// Stat leaves f as it is.
func (Direct) Stat(string, *File) error { return nil }

// List implements [Labels].
func (Direct) List(f *os.File) ([]string, error) {
	names, err := xattr.FList(f)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	return names, err
}

// Get implements [Labels].
func (Direct) Get(f *os.File, name string) ([]byte, error) {
	value, err := xattr.FGet(f, name)
	if errors.Is(err, xattr.ENOATTR) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	return value, err
}

// Set implements [Labels].
func (Direct) Set(f *os.File, name string, value []byte) error { return xattr.FSet(f, name, value) }

// Remove implements [Labels].
func (Direct) Remove(f *os.File, name string) error { return xattr.FRemove(f, name) }

// Probe writes the values to a file without a name, which is gone when it is closed.
func (Direct) Probe(dir *os.File, values map[string][]byte) error {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		// No filesystem without O_TMPFILE is known to have a small limit.
		return probeError(xattr.FRemove(dir, probeName))
	}
	f := os.NewFile(uintptr(fd), dir.Name())
	defer f.Close()
	for name, value := range values {
		if err := probeError(xattr.FSet(f, name, value)); err != nil {
			return fmt.Errorf("%s of %d bytes: %w", name, len(value), err)
		}
	}
	return nil
}

// probeName is an attribute that no file has: removing it fails with ENODATA where
// attributes can be written, and changes nothing either way.
const probeName = "security.attest-probe"

// probeError sorts the error of writing a label into what a person can do about it.
func probeError(err error) error {
	switch {
	case err == nil || errors.Is(err, unix.ENODATA):
		return nil
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	case errors.Is(err, unix.EROFS):
		return ErrReadOnly
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ERANGE):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return err
}
