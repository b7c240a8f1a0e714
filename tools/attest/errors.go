package main

import (
	"errors"

	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

// Errors that end a run which went through.
var (
	errInterrupted = errors.New("each file has its old or its new label")
	errIncomplete  = errors.New("the tree is not signed")
	errFindings    = errors.New("the tree is not what was signed")
	errIsImage     = errors.New("is a file, not a directory")
	errNoTrust     = errors.New("no certificate to check signatures with")
)

// hints maps the errors that a person can mend to what mends them. They stand here and
// not beside the errors because they speak of the command line.
var hints = []struct {
	err  error
	hint string
}{
	{errInterrupted, "run the same command again: it completes what is missing"},
	{errIsImage, "verify the tree before the image is made, or mount the image read-only and verify that"},
	{errNoTrust, "give --cert FILE, or put the certificate into etc/keys of the tree and give --ca FILE"},
	{errNoTarget, "say for which kernel the signatures are: --target x86_64"},
	{rootfs.ErrNotPermitted, "run as root, under pseudo or fakeroot, or write a file for setfattr: --labels dump --output FILE"},
	{rootfs.ErrUnsupported, "move the tree to ext4, xfs or btrfs, or write a file for setfattr: --labels dump --output FILE"},
	{rootfs.ErrTooLarge, "use an ECDSA P-256 key, whose labels have 81 bytes, or a filesystem with larger inodes (mke2fs -I 512)"},
	{rootfs.ErrNoLibc, "build with CGO_ENABLED=1"},
}

// hintFor returns the hint for the first known error in err's tree, or "".
func hintFor(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.hint
		}
	}
	return ""
}
