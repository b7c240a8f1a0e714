package oetest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPackages builds packages that carry labels, and the image made of them.
func TestPackages(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		need(t, "evmctl", "dpkg-deb")
		if os.Getuid() != 0 {
			t.Skip("labels need root")
		}
		b := newBuild(t, release)
		keys := filepath.Join(t.TempDir(), "keys")
		makeKeys(t, keys)
		conf := threeLines(keys) + labImage + `INHERIT += "attest-package"` + "\n"
		b.configure(t, conf)
		build := []string{"lab-odd", "lab-busybox", "-c", "package_write_deb"}
		b.bitbake(t, build...)
		b.checkPackages(t, keys)

		t.Run("again", func(t *testing.T) {
			if ran := b.bitbake(t, build...).tasks(); len(ran) > 0 {
				t.Errorf("nothing has changed, but these ran: %v", ran)
			}
		})
		t.Run("another key", func(t *testing.T) {
			makeKeys(t, keys)
			ran := b.bitbake(t, build...).tasks()
			if want := []string{"lab-busybox:do_package_write_deb", "lab-odd:do_package_write_deb"}; !slices.Equal(ran, want) {
				t.Errorf("these ran: %v, want %v", ran, want)
			}
			b.checkPackages(t, keys)
		})
		t.Run("image of them", func(t *testing.T) {
			b.bitbake(t, "lab-image")
			checkLabels(t, open(t, b.image("lab-image", ".squashfs")), filepath.Join(keys, "ima.der"), everySigned)
		})
		t.Run("ipk", func(t *testing.T) {
			need(t, "opkg-build", "ar")
			b.configure(t, conf+`PACKAGE_CLASSES = "package_ipk"
ASSUME_PROVIDED += "opkg-utils-native zstd-native"
HOSTTOOLS += "opkg-build"
OPKGBUILDCMD = "opkg-build -Z gzip"
`)
			b.bitbake(t, "lab-odd", "-c", "package_write_ipk")
			b.checkIPK(t)
		})
		t.Run("rpm", func(t *testing.T) {
			need(t, "rpmbuild", "rpm")
			b.configure(t, conf+`PACKAGE_CLASSES = "package_rpm"`+"\n"+`HOSTTOOLS += "rpmbuild rpm rpm2cpio"`+"\n")
			b.bitbake(t, "lab-busybox", "-c", "package_write_rpm") // lab-odd has names that rpmbuild does not take
			b.checkRPM(t)
		})
		t.Run("package managers", func(t *testing.T) {
			b.configure(t, conf+`LAB_RECIPES:append = "|devtools/dpkg/dpkg_|devtools/opkg/opkg_"`+"\n")
			b.checkManagers(t)
		})
		t.Run("no key", func(t *testing.T) {
			b.configure(t, `INHERIT += "attest-package"`+"\n")
			r := b.shell(t, "bitbake", "lab-odd")
			if want := `attest-package: no key to sign with: there is no default, on purpose. In local.conf: ATTEST_KEY_DIR = "/path/of/the/keys"`; r.code == 0 || !strings.Contains(r.out, want) {
				t.Errorf("exit code %d, no %q:\n%s", r.code, want, r.out)
			}
		})
	})
}

// checkPackages unpacks the packages as dpkg does, has attest-labels label them, and evmctl
// verify each label.
func (b *build) checkPackages(t *testing.T, keys string) {
	t.Helper()
	root := t.TempDir()
	certificate := filepath.Join(keys, "ima.der")
	command(t, "install", "-D", certificate, root+"/etc/keys/x509_ima.der")
	info := filepath.Join(root, "var/lib/dpkg/info")
	if err := os.MkdirAll(info, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, pkg := range []string{"lab-odd", "lab-busybox"} {
		deb, err := filepath.Glob(filepath.Join(b.dir, "tmp/deploy/deb/*", pkg+"_*.deb"))
		if err != nil || len(deb) != 1 {
			t.Fatalf("packages of %s: %v", pkg, deb)
		}
		control := t.TempDir()
		command(t, "dpkg-deb", "-x", deb[0], root)
		command(t, "dpkg-deb", "-e", deb[0], control)
		files, err := os.ReadDir(control)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			command(t, "cp", "-p", filepath.Join(control, f.Name()), filepath.Join(info, pkg+"."+f.Name()))
		}
		command(t, "touch", filepath.Join(info, pkg+".list"))
	}
	program := filepath.Join(t.TempDir(), "attest-labels")
	command(t, "go", "build", "-o", program, "../attest-labels")
	t.Log(command(t, program, "apply", "--root", root))
	checkLabels(t, root, certificate, func(path string) string {
		switch {
		case strings.HasPrefix(path, "/etc/keys/"), strings.HasPrefix(path, "/var/lib/dpkg/info/") && !strings.HasSuffix(path, ".postinst"):
			return "none"
		}
		return "signed"
	})
}

// checkRPM wants rpm to find the digests right, and a signature for the one regular file.
func (b *build) checkRPM(t *testing.T) {
	t.Helper()
	rpm, err := filepath.Glob(filepath.Join(b.dir, "tmp/deploy/rpm/*/lab-busybox-1.0-*.rpm"))
	if err != nil || len(rpm) != 1 {
		t.Fatalf("packages: %v", rpm)
	}
	command(t, "rpm", "--nosignature", "-K", rpm[0])
	list := command(t, "rpm", "-qp", "--qf", `[%{FILENAMES} %{FILESIGNATURES}\n]`, rpm[0])
	if signed := regexp.MustCompile(`(?m)^\S+ 030204[0-9a-f]+$`).FindAllString(list, -1); len(signed) != 1 || !strings.Contains(signed[0], "/bin/busybox ") {
		t.Errorf("signed: %q\n%s", signed, list)
	}
}

// checkManagers parses the recipes of dpkg and opkg, which cannot be built here: ours stands
// before the program of the device, and not before that of the build.
func (b *build) checkManagers(t *testing.T) {
	t.Helper()
	for name, program := range map[string]string{"dpkg": "dpkg-deb", "opkg": "opkg"} {
		recipe, err := filepath.Glob(filepath.Join(checkouts(t, b.release), "openembedded-core/meta/recipes-devtools", name, name+"_*.bb"))
		if err != nil || len(recipe) != 1 {
			t.Fatalf("recipes of %s: %v", name, recipe)
		}
		depends := regexp.MustCompile(`(?m)^RDEPENDS:` + name + `=".* attest-labels"$`)
		call := "\n    attest_package_divert " + program + "\n"
		if out := b.bitbake(t, "-e", "-b", recipe[0]).out; !depends.MatchString(out) || !strings.Contains(out, call) {
			t.Errorf("%s does not install attest-labels in the place of %s", name, program)
		}
		if out := b.bitbake(t, "-e", "-b", "virtual:native:"+recipe[0]).out; strings.Contains(out, call) || strings.Contains(out, `DPKG_BUILDCMD="attest`) {
			t.Errorf("%s-native is not as it was", name)
		}
	}
}

// checkIPK wants a label list among the control files.
func (b *build) checkIPK(t *testing.T) {
	t.Helper()
	ipk, err := filepath.Glob(filepath.Join(b.dir, "tmp/deploy/ipk/*/lab-odd_*.ipk"))
	if err != nil || len(ipk) != 1 {
		t.Fatalf("packages: %v", ipk)
	}
	list := command(t, "sh", "-c", "ar p '"+ipk[0]+"' control.tar.gz | tar -xzO ./attest-labels")
	for _, want := range []string{"# attest-labels/v1 0s", "\n# file: CONTROL/postinst\nsecurity.ima=0s", "\n# file: usr/share/lab-odd/empty\nsecurity.ima=0s"} {
		if !strings.Contains(list, want) {
			t.Errorf("the label list has no %q:\n%.500s", want, list)
		}
	}
}
