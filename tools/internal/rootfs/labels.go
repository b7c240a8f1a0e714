// Package rootfs walks the root filesystem of an image and labels its files: it hashes
// them, signs the digests, writes security.ima and security.evm, and checks them again.
//
// It reads and writes regular files only, follows no symbolic link, and stays on the
// filesystem of the root.
package rootfs

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// Labels reads and writes extended attributes and the ownership of files. There are
// two implementations: one by system calls, and one through libc, where pseudo stands
// in between and keeps its own record of all three.
type Labels interface {
	// Stat corrects what the kernel said of the name path. Under pseudo the owner is not
	// the builder, and what looks like an empty file may be a device.
	Stat(path string, f *File) error
	// List returns the names of the attributes of f.
	List(f *os.File) ([]string, error)
	// Get returns the value of an attribute, nil when f has none of that name.
	Get(f *os.File, name string) ([]byte, error)
	Set(f *os.File, name string, value []byte) error
	Remove(f *os.File, name string) error
	// Probe tells, without a lasting trace in the tree, whether attributes of these
	// names and sizes can be written.
	Probe(dir *os.File, values map[string][]byte) error
}

// Errors of Probe.
var (
	// ErrNotPermitted: security.* needs CAP_SYS_ADMIN, or pseudo.
	ErrNotPermitted = errors.New("not permitted to write security.* attributes")
	// ErrUnsupported: the filesystem has no such attributes.
	ErrUnsupported = errors.New("filesystem cannot hold security.* attributes")
	// ErrReadOnly: the filesystem is mounted read-only.
	ErrReadOnly = errors.New("filesystem is read-only")
	// ErrTooLarge: the filesystem is full, or has no room for a label of this size in an inode.
	ErrTooLarge = errors.New("filesystem is full, or cannot hold a label of this size")
	// ErrNoLibc: the program was built without cgo.
	ErrNoLibc = errors.New("this attest was built without cgo and cannot write labels through libc, which pseudo needs")
)

// Kinds of labels that [OpenLabels] knows.
const (
	LabelsAuto   = "auto"
	LabelsLibc   = "libc"
	LabelsDirect = "direct"
)

// OpenLabels returns the labels of a kind. LabelsAuto is libc when pseudo is
// preloaded, whose record system calls would bypass, and direct otherwise.
func OpenLabels(kind string) (Labels, error) {
	switch kind {
	case LabelsDirect:
		return Direct{}, nil
	case LabelsLibc:
		return openLibc()
	case LabelsAuto:
		if strings.Contains(os.Getenv("LD_PRELOAD"), "pseudo") {
			return openLibc()
		}
		return Direct{}, nil
	}
	return nil, fmt.Errorf("labels %q are unknown: use auto, libc or direct", kind)
}
