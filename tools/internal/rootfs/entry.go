package rootfs

import (
	"encoding/hex"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
)

// contents are what only a look into a regular file tells.
type contents struct {
	digests              map[ima.HashAlgo][]byte
	verity               string // fs-verity digest, if its signature stands in ima
	ima, evm, capability []byte // values of the attributes
}

// linked are the contents of files with several names, while further ones are to come.
type linked map[inode]*struct {
	contents
	left uint32
}

// contents returns what was found at the first name of f's file; c is that when this is it.
func (l linked) contents(f File, c contents) contents {
	known := l[f.inode()]
	if known == nil {
		known = &struct {
			contents
			left uint32
		}{c, f.Nlink}
		l[f.inode()] = known
	}
	if known.left--; known.left == 0 {
		delete(l, f.inode())
	}
	return known.contents
}

// entry is the line that a manifest has for f.
func (t *Tree) entry(f File, c contents) (manifest.Entry, error) {
	e := manifest.Entry{Path: f.Path, Mode: uint32(f.Mode & 0o7777), UID: f.UID, GID: f.GID}
	switch f.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type = manifest.File
		e.Size = f.Size
		e.Capability = hex.EncodeToString(c.capability)
		e.Verity = c.verity
		e.Label, e.KeyID = labelOf(c.ima)
		if x, err := ima.ParseEVM(c.evm); err == nil && x.Type == ima.PortableSignature {
			e.EVM = "portable"
		}
		for a, digest := range c.digests {
			setDigest(&e.Digests, a, digest)
		}
	case unix.S_IFDIR:
		e.Type = manifest.Dir
	case unix.S_IFLNK:
		e.Type = manifest.Symlink
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(t.dir.Fd()), f.Path, target)
		if err != nil {
			return e, fmt.Errorf("%q: read link: %w", f.Path, err)
		}
		e.Target = string(target[:n])
	case unix.S_IFCHR:
		e.Type, e.Major, e.Minor = manifest.Char, f.Rdev[0], f.Rdev[1]
	case unix.S_IFBLK:
		e.Type, e.Major, e.Minor = manifest.Block, f.Rdev[0], f.Rdev[1]
	case unix.S_IFIFO:
		e.Type = manifest.FIFO
	case unix.S_IFSOCK:
		e.Type = manifest.Socket
	}
	return e, nil
}

// setDigest fills the field of an algorithm that a manifest can hold.
func setDigest(d *manifest.Digests, algo ima.HashAlgo, digest []byte) {
	switch text := hex.EncodeToString(digest); algo {
	case ima.SHA256:
		d.SHA256 = text
	case ima.SHA384:
		d.SHA384 = text
	case ima.SHA512:
		d.SHA512 = text
	}
}

// labelOf names the kind of a label as a manifest does, and the key id of a signature.
func labelOf(value []byte) (label, id string) {
	x, err := ima.ParseIMA(value)
	switch {
	case err != nil:
		return "", ""
	case x.IsSignature():
		return fmt.Sprintf("sigv%d", x.Version), keyID(x.KeyID)
	default:
		return "hash", ""
	}
}
