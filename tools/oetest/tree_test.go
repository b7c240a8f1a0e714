package oetest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pkg/xattr"
)

// open gives a folder that shows what is in an image, with the labels: mounted, or unpacked.
// Linux and GNU tar read it, none of our code does.
func open(t *testing.T, image string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root mounts an image and unpacks labels")
	}
	dir := t.TempDir()
	if strings.HasSuffix(image, ".tar.gz") {
		command(t, "tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpzf", image, "-C", dir)
		return dir
	}
	command(t, "mount", "-o", "loop,ro", image, dir)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v\n%s", dir, err, out)
		}
	})
	return dir
}

// label is what lies in security.ima of a file; a nil one is none.
type label []byte

// kind is "signed", "hashed" or "none" of a label of Linux's integrity.h: EVM_IMA_XATTR_DIGSIG
// with signature version 2, IMA_XATTR_DIGEST_NG.
func (l label) kind() string {
	switch {
	case l == nil:
		return "none"
	case bytes.HasPrefix(l, []byte{3, 2}):
		return "signed"
	case bytes.HasPrefix(l, []byte{4, 4}):
		return "hashed"
	}
	return "malformed"
}

// labels lists the regular files of a tree by path, such as "/bin/sh". That anything else
// has a label is an error.
func labels(t *testing.T, tree string) map[string]label {
	t.Helper()
	list := map[string]label{}
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		value, err := xattr.LGet(path, "security.ima")
		if err != nil && !errors.Is(err, xattr.ENOATTR) && !errors.Is(err, syscall.EPERM) { // EPERM: of a fifo
			return err
		}
		if err != nil {
			value = nil
		}
		if d.Type().IsRegular() {
			list[strings.TrimPrefix(path, tree)] = value
		} else if value != nil {
			t.Errorf("%s: %s has a label", path, d.Type())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// checkLabels wants every regular file of a tree to be labelled as want says, which defaults
// to "signed", and has evmctl verify each signature.
func checkLabels(t *testing.T, tree, certificate string, want func(path string) string) map[string]label {
	t.Helper()
	list := labels(t, tree)
	verify := []string{"ima_verify", "--key", certificate}
	count := map[string]int{}
	for path, l := range list {
		if got := l.kind(); got != want(path) {
			t.Errorf("%q: %s, want %s: %x", path, got, want(path), []byte(l))
			continue
		}
		count[l.kind()]++
		switch l.kind() {
		case "signed":
			verify = append(verify, tree+path)
		case "hashed":
			data, err := os.ReadFile(tree + path)
			if err != nil {
				t.Fatal(err)
			}
			if sum := sha256.Sum256(data); !bytes.Equal(l[2:], sum[:]) {
				t.Errorf("%q: label has the hash %x, content has %x", path, []byte(l[2:]), sum)
			}
		}
	}
	out, err := exec.CommandContext(t.Context(), "evmctl", verify...).CombinedOutput()
	if good := bytes.Count(out, []byte(": verification is OK")); err != nil || good != count["signed"] {
		t.Errorf("evmctl accepts %d of %d files: %v\n%s", good, count["signed"], err, out)
	} else {
		t.Logf("%v, each signature verified by evmctl", count)
	}
	return list
}

// everySigned is what an image without rules looks like.
func everySigned(string) string { return "signed" }
