// Package cpio writes the archives that Linux unpacks as its initramfs: "newc", without check
// sums (Documentation/driver-api/early-userspace/buffer-format.rst). The format has no
// extended attributes. Everything belongs to root and is from 1970, so the same entries make
// the same bytes.
package cpio

import (
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
)

// Types of an entry, as in st_mode.
const (
	Type    = 0o170000 // mask
	Dir     = 0o040000
	Regular = 0o100000
	Symlink = 0o120000
)

// Entry is one file. Folders have to come before what is in them.
type Entry struct {
	Name string // relative: "etc/keys"
	Mode uint32 // type and permissions
	Data []byte // the content, or where a symbolic link points to
}

// maxName is PATH_MAX: the kernel skips entries with longer names, without a word.
const maxName = 4096

// trailer is the name of the entry that ends an archive.
const trailer = "TRAILER!!!"

// Write writes a whole archive.
func Write(w io.Writer, entries []Entry) error {
	for i, e := range entries {
		if err := e.check(); err != nil {
			return fmt.Errorf("cpio entry %q: %w", e.Name, err)
		}
		if err := e.write(w, i+1); err != nil {
			return err
		}
	}
	return Entry{Name: trailer}.write(w, 0)
}

func (e Entry) check() error {
	switch {
	case e.Name == trailer, e.Name != path.Clean(e.Name), path.IsAbs(e.Name), strings.HasPrefix(e.Name, ".."), strings.Contains(e.Name, "\x00"):
		return errors.New("not a clean relative name")
	case len(e.Name)+1 > maxName:
		return errors.New("name is too long")
	case len(e.Data) > math.MaxUint32:
		return errors.New("larger than 4 GiB")
	}
	return nil
}

// write writes header, name and content, each padded to four bytes.
func (e Entry) write(w io.Writer, inode int) error {
	links := 1
	if e.Mode&Type == Dir {
		links = 2
	}
	// ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		inode, e.Mode, 0, 0, links, 0, len(e.Data), 0, 0, 0, 0, len(e.Name)+1, 0)
	_, err := io.WriteString(w, header+e.Name+padding(len(header)+len(e.Name), 1))
	if err == nil {
		_, err = w.Write(e.Data)
	}
	if err == nil {
		_, err = io.WriteString(w, padding(len(e.Data), 0))
	}
	return err
}

// padding is at least min zero bytes, so that n and they are a multiple of four.
func padding(n, min int) string {
	return strings.Repeat("\x00", min+(4-(n+min)%4)%4)
}
