package main

import (
	"errors"
	"os"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

// labels looks whether files of this system carry labels, at the example of this program.
func (e *examination) labels() {
	const check = "labels"
	path, err := os.Executable()
	var value []byte
	if err == nil {
		value, err = labelOf(path)
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		e.note(check, "run as root", "%v", err)
	case err != nil:
		e.fail(check, "use a filesystem with extended attributes, such as ext4, squashfs or erofs", "%v", err)
	case value == nil:
		e.note(check, "sign the image: IMAGE_CLASSES += \"attest-image\", or attest sign", "%s has no security.ima", path)
	default:
		x, err := ima.ParseIMA(value)
		if err != nil {
			e.fail(check, "sign the image again: attest sign", "%s: %v", path, err)
			return
		}
		kind := "a digest"
		if x.IsSignature() {
			kind = "a signature"
		}
		e.ok(check, "%s has %s of %v", path, kind, x.Hash)
	}
}

func labelOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return rootfs.Direct{}.Get(f, ima.XattrIMA)
}
