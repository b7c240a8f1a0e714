package oetest

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// oddFiles are some of those that the lab's recipes put into the image.
var oddFiles = []string{
	"/etc/ima/ima-policy", "/etc/lab-late", "/usr/bin/lab-setuid", "/usr/bin/lab-nobody", "/usr/bin/lab-capable",
	"/usr/share/lab-odd/with space", "/usr/share/lab-odd/ leading and trailing ", "/usr/share/lab-odd/-dash",
	"/usr/share/lab-odd/#hash", `/usr/share/lab-odd/quote"s`, "/usr/share/lab-odd/apostrophe's", "/usr/share/lab-odd/dollar$HOME",
	"/usr/share/lab-odd/star*[x]?", `/usr/share/lab-odd/back\slash`, "/usr/share/lab-odd/colon:semi;comma,", "/usr/share/lab-odd/%41",
	"/usr/share/lab-odd/ümläut", "/usr/share/lab-odd/日本語", "/usr/share/lab-odd/.hidden", "/usr/share/lab-odd/dir.d/security.ima",
	"/usr/share/lab-odd/empty", "/usr/share/lab-odd/sparse", "/usr/share/lab-odd/link-a", "/usr/share/lab-odd/link-b",
	"/usr/share/lab-odd/dir.d/link-c", "/usr/share/lab-odd/new\nline", "/usr/share/lab-odd/latin-\xe9", "/var/lib/lab-odd/state",
}

// threeLines are what README tells a user to add to local.conf.
func threeLines(keys string) string {
	return `DISTRO_FEATURES:append = " integrity"
IMAGE_CLASSES += "attest-image"
ATTEST_KEY_DIR = "` + keys + `"
`
}

// labImage is more for local.conf: the formats that keep labels.
const labImage = `IMAGE_FSTYPES = "ext4 tar.gz squashfs erofs"
`

// TestImage builds an image, looks at each file of each format, and builds again with one
// thing changed.
func TestImage(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		need(t, "evmctl", "tar", "mount")
		b := newBuild(t, release)
		keys := filepath.Join(t.TempDir(), "keys")
		if err := os.CopyFS(keys, os.DirFS(filepath.Join(b.repo, "keys-debug"))); err != nil {
			t.Fatal(err)
		}
		conf := threeLines(keys) + labImage + set("ATTEST_ALLOW_DEBUG_KEYS", "1")
		b.configure(t, conf)
		first := b.bitbake(t, "lab-image")
		if !strings.Contains(first.out, "keys-debug") {
			t.Errorf("no warning that debug keys sign:\n%s", first.out)
		}
		b.checkFormats(t, filepath.Join(keys, "ima.der"), everySigned)
		b.checkManifest(t, filepath.Join(keys, "root.crt"))
		t.Run("again", func(t *testing.T) {
			// The look at the keys is for its warnings, which are to be in every build.
			if ran := b.bitbake(t, "lab-image").tasks(); !slices.Equal(ran, []string{"lab-image:do_attest_check"}) {
				t.Errorf("nothing has changed, but these ran: %v", ran)
			}
		})
		t.Run("from scratch elsewhere", func(t *testing.T) { b.reproduce(t, conf) })
		t.Run("another key", func(t *testing.T) { b.testOtherKey(t, keys) })
		if release != "scarthgap" { // attest's own work, with the same arguments
			t.Run("rules", func(t *testing.T) { b.testRules(t, conf, keys) })
		}
	})
}

// checkFormats looks at each format of the image.
func (b *build) checkFormats(t *testing.T, certificate string, want func(path string) string) {
	t.Helper()
	var before map[string]label
	for _, format := range []string{".ext4", ".tar.gz", ".squashfs", ".erofs"} {
		t.Run(format[1:], func(t *testing.T) {
			list := checkLabels(t, open(t, b.image("lab-image", format)), certificate, want)
			for _, path := range oddFiles {
				if _, ok := list[path]; !ok {
					t.Errorf("%q is not in the image", path)
				}
			}
			if before != nil && !maps.EqualFunc(before, list, func(x, y label) bool { return bytes.Equal(x, y) }) {
				t.Errorf("the formats do not have the same files and labels")
			}
			before = list
		})
	}
}

// checkManifest has attest verify the tree of the image with the manifest beside it.
func (b *build) checkManifest(t *testing.T, ca string, more ...string) {
	t.Run("manifest", func(t *testing.T) {
		tree, manifest := open(t, b.image("lab-image", ".squashfs")), b.image("lab-image", ".attest.json")
		out := command(t, attest(t), append([]string{"verify", tree, "--ca", ca, "--manifest", manifest}, more...)...)
		t.Log(strings.TrimSpace(out))
	})
}

// reproduce builds the same from scratch in another folder.
func (b *build) reproduce(t *testing.T, conf string) {
	other := newBuild(t, b.release)
	other.configure(t, conf)
	other.bitbake(t, "lab-image")
	for _, suffix := range []string{".attest.json", ".squashfs"} {
		x, err := os.ReadFile(b.image("lab-image", suffix))
		if err != nil {
			t.Fatal(err)
		}
		y, err := os.ReadFile(other.image("lab-image", suffix))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(x, y) {
			t.Errorf("%s: %d and %d bytes, which differ", suffix, len(x), len(y))
		}
	}
}

// testOtherKey puts other keys where the first were.
func (b *build) testOtherKey(t *testing.T, keys string) {
	makeKeys(t, keys)
	ran := b.bitbake(t, "lab-image").tasks()
	if slices.Contains(ran, "lab-image:do_rootfs") || !slices.Contains(ran, "lab-image:do_image_ext4") {
		t.Errorf("want do_image and not do_rootfs, ran %v", ran)
	}
	b.checkFormats(t, filepath.Join(keys, "ima.der"), everySigned)
	b.checkManifest(t, filepath.Join(keys, "root.crt"))
}

// testRules tells ATTEST_CONFIG to leave alone files that have been signed, and asks for EVM.
func (b *build) testRules(t *testing.T, conf, keys string) {
	rules := filepath.Join(t.TempDir(), "attest.toml")
	text := "[[rule]]\npath = \"/var/**\"\naction = \"skip\"\n\n[[rule]]\npath = \"/usr/share/lab-odd/**\"\naction = \"hash\"\n"
	if err := os.WriteFile(rules, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	b.configure(t, conf+set("ATTEST_CONFIG", rules)+set("ATTEST_EVM", "1"))
	b.bitbake(t, "lab-image")
	b.checkFormats(t, filepath.Join(keys, "ima.der"), func(path string) string {
		switch {
		case strings.HasPrefix(path, "/var/"):
			return "none"
		case strings.HasPrefix(path, "/usr/share/lab-odd/"):
			return "hashed"
		}
		return "signed"
	})
	b.checkManifest(t, filepath.Join(keys, "root.crt"), "--evm")
}
