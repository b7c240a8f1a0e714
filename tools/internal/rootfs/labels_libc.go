//go:build cgo

package rootfs

/*
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/xattr.h>
*/
import "C"

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Libc calls the C library by path, so that a library preloaded before it, such as
// pseudo, sees the calls. It calls l*xattr: the walk has looked at the file already,
// and a link put in its place must not be followed.
type Libc struct{}

func openLibc() (Labels, error) { return Libc{}, nil }

// Stat takes type, mode, owner and device number from lstat. The rest stays the
// kernel's, which knows the file that the content is in.
func (Libc) Stat(path string, f *File) error {
	cpath := C.CString(path)
	defer C.free(unsafe.Pointer(cpath))
	var st C.struct_stat
	if r, err := C.lstat(cpath, &st); r != 0 {
		return fmt.Errorf("lstat: %w", err)
	}
	f.Mode, f.UID, f.GID = uint16(st.st_mode), uint32(st.st_uid), uint32(st.st_gid)
	f.Rdev = [2]uint32{unix.Major(uint64(st.st_rdev)), unix.Minor(uint64(st.st_rdev))}
	return nil
}

// xattrSizeMax is XATTR_SIZE_MAX of include/uapi/linux/limits.h.
const xattrSizeMax = 65536

// value calls one of the l*xattr functions that fill a buffer, with buffers of growing size.
func (Libc) value(read func(buf unsafe.Pointer, size C.size_t) (C.ssize_t, error)) ([]byte, error) {
	for size := 256; size <= xattrSizeMax; size *= 4 {
		buf := make([]byte, size)
		n, err := read(unsafe.Pointer(&buf[0]), C.size_t(size))
		switch {
		case n >= 0 && int(n) <= size:
			return buf[:n], nil
		case errors.Is(err, unix.ERANGE):
		case errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP):
			return nil, nil
		default:
			return nil, err
		}
	}
	return nil, unix.E2BIG
}

// List implements [Labels].
func (l Libc) List(f *os.File) ([]string, error) {
	path := C.CString(f.Name())
	defer C.free(unsafe.Pointer(path))
	b, err := l.value(func(buf unsafe.Pointer, size C.size_t) (C.ssize_t, error) {
		n, err := C.llistxattr(path, (*C.char)(buf), size)
		return n, err
	})
	if err != nil {
		return nil, fmt.Errorf("llistxattr: %w", err)
	}
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == 0 }), nil
}

// Get implements [Labels].
func (l Libc) Get(f *os.File, name string) ([]byte, error) {
	path, cname := C.CString(f.Name()), C.CString(name)
	defer C.free(unsafe.Pointer(path))
	defer C.free(unsafe.Pointer(cname))
	b, err := l.value(func(buf unsafe.Pointer, size C.size_t) (C.ssize_t, error) {
		n, err := C.lgetxattr(path, cname, buf, size)
		return n, err
	})
	if err != nil {
		return nil, fmt.Errorf("lgetxattr %s: %w", name, err)
	}
	return b, nil
}

// Set implements [Labels].
func (Libc) Set(f *os.File, name string, value []byte) error {
	path, cname := C.CString(f.Name()), C.CString(name)
	defer C.free(unsafe.Pointer(path))
	defer C.free(unsafe.Pointer(cname))
	if r, err := C.lsetxattr(path, cname, unsafe.Pointer(unsafe.SliceData(value)), C.size_t(len(value)), 0); r != 0 {
		return fmt.Errorf("lsetxattr %s: %w", name, err)
	}
	return nil
}

// Remove implements [Labels].
func (Libc) Remove(f *os.File, name string) error {
	path, cname := C.CString(f.Name()), C.CString(name)
	defer C.free(unsafe.Pointer(path))
	defer C.free(unsafe.Pointer(cname))
	if r, err := C.lremovexattr(path, cname); r != 0 {
		return fmt.Errorf("lremovexattr %s: %w", name, err)
	}
	return nil
}

// Probe asks whether an attribute could be removed that is not there. Under pseudo the
// attributes are rows of its database, so that there is no size to try.
func (l Libc) Probe(dir *os.File, _ map[string][]byte) error {
	return probeError(l.Remove(dir, probeName))
}
