package boottest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/cpio"
)

// frameworkCases run after OE-core's initramfs-framework has mounted the root and our module has
// handed it over.
var frameworkCases = []testCase{
	{"certificate of the initramfs is in .ima", "has-key .ima boottest P-256", "yes"},
	{"the policy of the initramfs is in force", "rules", "3"},
	{"attest-init says that it loaded the policy", "logged attest: policy /attest-policy/ima-policy is in force", "yes"},
	{"signed program with shared libraries", "run /bin/bash -c pwd", "/"},
	{"program without a label", "run /t/unsigned/busybox echo ran", noSignature},
}

// runCase is for the releases whose framework mounts /run, and for a root that has one.
var runCase = testCase{"/run of the initramfs is that of the root", "read /run/boottest", "left by a module"}

// TestFramework boots initramfs-framework of OE-core, the scripts of both releases, with the module of
// attest-initramfs and a static busybox.
func TestFramework(t *testing.T) {
	l := openLab(t)
	l.prepare(t)
	for _, release := range []string{"scarthgap", "wrynose"} {
		t.Run(release, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), filepath.Join(l.repo, "scripts/oe-test"), "checkouts", "--cached", release).Output()
			if err != nil {
				t.Skipf("no checkouts of OE-core %s: scripts/oe-test fetches them", release)
			}
			scripts := filepath.Join(strings.TrimSpace(string(out)), "openembedded-core/meta/recipes-core/initrdscripts/initramfs-framework")
			cases := frameworkCases
			if release != "scarthgap" {
				cases = append(cases[:len(cases):len(cases)], runCase)
			}
			images := l.makeFramework(t, release, cases)
			policy := []cpio.Entry{
				{Name: "etc/ima", Mode: cpio.Dir | 0o755},
				l.file(t, "etc/ima/ima-policy", release+"/etc/ima/ima-policy"),
				l.file(t, "etc/ima/ima-policy.sig", release+".policy.sig"),
			}
			ours := l.file(t, "etc/keys/x509_ima.der", "keys/p256.der")
			foreign := l.file(t, "etc/keys/x509_ima.der", "foreign/p256.der")
			framework := l.framework(t, scripts)
			initramfs := func(more ...cpio.Entry) []cpio.Entry {
				return append(append(framework[:len(framework):len(framework)], policy...), more...)
			}

			l.boot(t, machine{append: "attest=enforce", images: images, cases: cases, initramfs: initramfs(ours)})
			has(t, l.boot(t, machine{append: "attest=enforce", images: images, initramfs: initramfs(foreign)}),
				"attest: refused: add /etc/keys/x509_ima.der to keyring .ima: required key not available: no CA in this kernel signed it")
			has(t, l.boot(t, machine{append: "attest=enforce init=/t/unsigned/busybox", images: images, initramfs: initramfs(ours)}),
				"attest: refused: execute /t/unsigned/busybox: permission denied: the policy appraises it, and its label does not hold")
		})
	}
}

// makeFramework makes the root, and signs the policy for the initramfs as the recipe does.
func (l *lab) makeFramework(t *testing.T, name string, cases []testCase) []string {
	t.Helper()
	l.userland(t, name, evmPolicy, cases)
	l.script(t, l.wrap, "name='"+name+"'"+`
mkdir -p $name/t/unsigned && cp $name/bin/busybox $name/t/unsigned/
cp $name/etc/ima/ima-policy $name.policy
attest policy sign $name.policy --beside --key keys/p256.key --cert keys/p256.crt
attest sign $name --key keys/p256.key --cert keys/p256.crt --progress none --rule 'skip:/t/unsigned/**'
mke2fs -q -t ext4 -I 512 -b 4096 -U `+rootUUID+` -E root_owner=0:0 -d $name $name.img 64M
`)
	return []string{name + ".img"}
}

// framework is what initramfs-framework-base, initramfs-module-rootfs, busybox, attest-init and
// attest-initramfs install.
func (l *lab) framework(t *testing.T, scripts string) []cpio.Entry {
	t.Helper()
	l.packages(t, filepath.Join(l.dir, "initramfs"), "busybox-static")
	files := map[string]string{
		"bin/busybox":          filepath.Join(l.dir, "initramfs/bin/busybox"),
		"usr/sbin/attest-init": filepath.Join(l.dir, "bin/attest-init"),
		"init":                 filepath.Join(scripts, "init"), // in the place of attest-init: the last one counts
		"init.d/90-rootfs":     filepath.Join(scripts, "rootfs"),
		"init.d/99-finish":     filepath.Join(scripts, "finish"),
		"init.d/95-attest":     filepath.Join(l.repo, "recipes/attest-initramfs/files/attest"),
	}
	texts := map[string]string{
		"init.d/50-boottest": "boottest_enabled() { return 0; }\nboottest_run() { echo 'left by a module' > /run/boottest; }\n",
		// OE-core's busybox has it, Debian's has not.
		"bin/mountpoint": "#!/bin/sh\ngrep -q \" $2 \" /proc/mounts\n",
	}
	for name, from := range files {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = string(data)
	}
	var entries []cpio.Entry
	for _, dir := range []string{"bin", "sbin", "usr", "usr/sbin", "init.d"} {
		entries = append(entries, cpio.Entry{Name: dir, Mode: cpio.Dir | 0o755})
	}
	for name, text := range texts {
		entries = append(entries, cpio.Entry{Name: name, Mode: cpio.Regular | 0o755, Data: []byte(text)})
	}
	entries = append(entries, cpio.Entry{Name: "usr/sbin/attest-switch-root", Mode: cpio.Symlink | 0o777, Data: []byte("attest-init")})
	applets, err := exec.CommandContext(t.Context(), filepath.Join(l.dir, "initramfs/bin/busybox"), "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			entries = append(entries, cpio.Entry{Name: "bin/" + applet, Mode: cpio.Symlink | 0o777, Data: []byte("busybox")})
		}
	}
	return entries
}
