package boottest

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/cpio"
)

// debianCases run on the kernel of the distribution: no CA is compiled in, so the initramfs
// is what is trusted; no ECDSA; no check of a policy's signature.
var debianCases = []testCase{
	{"certificate, added by attest-init to a keyring that it made", "has-key _ima boottest RSA-2048", "yes"},
	{"the certificate that is in the root is not taken", "has-key _ima boottest P-384", "no"},
	{"the policy is in force, and the file is gone", "policy measure func=BPRM_CHECK", "ENOENT"},
	{"program signed with RSA-2048", "run /bin/busybox echo ran", "ran"},
	{"program with shared libraries", "run /bin/bash -c pwd", "/"},
	{"program with one byte changed", "run /t/changed/busybox echo ran", badSig},
	{"program without a label", "run /t/unsigned/busybox echo ran", noSignature},
	{"program with a hash where a signature is demanded", "run /t/hash/busybox echo ran", noSignature},
	{"limit: no ECDSA", "run /t/p256/busybox echo ran", badSig},
	{"limit: root may add a certificate of any CA", "add-key _ima /etc/keys/other.der", "ok"},
	{"limit: then what its key signed runs", "run /t/foreign/busybox echo ran", "ran"},
}

// debianKernel unpacks the kernel of the distribution, and returns its image and the modules
// that find a disk, in the order in which they have to be loaded.
func (l *lab) debianKernel(t *testing.T) (image string, modules []cpio.Entry) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "apt-cache", "depends", "linux-image-cloud-amd64").Output()
	name := regexp.MustCompile(`linux-image-[0-9]\S+-cloud-amd64`).FindString(string(out))
	if err != nil || name == "" {
		t.Skipf("this distribution has no linux-image-cloud-amd64: %v", err)
	}
	l.packages(t, filepath.Join(l.dir, "debian"), name)
	images, _ := filepath.Glob(filepath.Join(l.dir, "debian/boot/vmlinuz-*"))
	if len(images) != 1 {
		t.Fatalf("kernel images: %v", images)
	}
	var list strings.Builder
	for _, m := range []string{"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk"} {
		found, _ := filepath.Glob(filepath.Join(l.dir, "debian/lib/modules/*/kernel/drivers/*/"+m+".ko"))
		if len(found) != 1 {
			t.Fatalf("module %s: %v", m, found)
		}
		rel, err := filepath.Rel(l.dir, found[0])
		if err != nil {
			t.Fatal(err)
		}
		modules = append(modules, l.file(t, "modules/"+m+".ko", rel))
		list.WriteString("/modules/" + m + ".ko\n")
	}
	modules = slices.Insert(modules, 0, cpio.Entry{Name: "modules", Mode: cpio.Dir | 0o755})
	return images[0], append(modules, cpio.Entry{Name: "etc/modules", Mode: cpio.Regular | 0o644, Data: []byte(list.String())})
}

// makeDebian makes a root for that kernel; everything is signed with RSA.
func (l *lab) makeDebian(t *testing.T, cases []testCase) []string {
	t.Helper()
	l.userland(t, "debianroot", evmPolicy, cases)
	l.script(t, l.wrap, `
for name in changed unsigned hash p256 foreign; do
	mkdir -p debianroot/t/$name && cp debianroot/bin/busybox debianroot/t/$name/
done
cp keys/p384.der debianroot/etc/keys/x509_ima-p384.der
cp foreign/rsa.der debianroot/etc/keys/other.der
attest sign debianroot --key keys/rsa.key --cert keys/rsa.crt --progress none --rule 'skip:/t/unsigned/**' --rule 'hash:/t/hash/**'
attest sign debianroot/t/p256 --key keys/p256.key --cert keys/p256.crt --progress none
attest sign debianroot/t/foreign --key foreign/rsa.key --cert foreign/rsa.crt --progress none
printf '\001' | dd of=debianroot/t/changed/busybox bs=1 seek=4097 conv=notrunc status=none
mke2fs -q -t ext4 -I 512 -b 4096 -U `+rootUUID+` -E root_owner=0:0 -d debianroot debian.img 64M
`)
	return []string{"debian.img"}
}

// TestDebian shows what the unchanged kernel of the distribution can do, and what it cannot.
func TestDebian(t *testing.T) {
	l := openLab(t)
	l.prepare(t)
	kernel, modules := l.debianKernel(t)
	images := l.makeDebian(t, debianCases)
	policy := filepath.Join(l.dir, "debianroot/etc/ima/ima-policy")
	initramfs := append(modules, l.file(t, "etc/keys/x509_ima.der", "keys/rsa.der"))

	has(t, l.boot(t, machine{kernel: kernel, append: "attest=enforce", images: images, initramfs: initramfs}),
		"attest: refused: load policy /etc/ima/ima-policy of the root: this kernel does not check signatures of policies")

	initramfs = append(initramfs, cpio.Entry{Name: "etc/ima", Mode: cpio.Dir | 0o755}, l.file(t, "etc/ima/ima-policy", strings.TrimPrefix(policy, l.dir+"/")))
	l.boot(t, machine{kernel: kernel, append: "attest=enforce", images: images, initramfs: initramfs, cases: debianCases})
}
