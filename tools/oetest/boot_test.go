package oetest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/meta-attest/meta-attest/tools/boottest/vm"
	"github.com/meta-attest/meta-attest/tools/internal/cpio"
)

// bootCases are what becomes of the files of lab-guest in an image of bitbake's.
var bootCases = []vm.Case{
	{"certificate of the image is in .ima", "has-key .ima DEBUG IMA P-256", "yes"},
	{"a module signing key is in .ima", "has-key .ima DEBUG module", "no"},
	{"the CA is compiled in", "has-key .builtin_trusted_keys DEBUG root CA", "yes"},
	{"a module signing key is compiled in", "has-key .builtin_trusted_keys DEBUG module", "no"},
	{"attest-init says that it loaded the policy", "logged attest: policy /etc/ima/ima-policy is in force", "yes"},
	{"signed program", "run /bin/busybox echo ran", "ran"},
	{"signed script", "run /t/signed/script", "ran"},
	{"script with one byte changed", "run /t/changed/script", "EACCES invalid-signature"},
	{"script without a label", "run /t/unsigned/script", "EACCES IMA-signature-required"},
}

// moduleCases need a kernel that bitbake built. All of these files have labels that hold: it is
// the kernel's own check of appended signatures that refuses.
var moduleCases = []vm.Case{
	{"module of the kernel, signed by attest-modsign", "module /t/modules/dummy.ko dummy", "ok"},
	{"module of another recipe, signed by attest-modsign", "module /t/modules/lab_module.ko lab_module", "ok"},
	{"the same, as data of a program", "module-data /t/modules/lab_module.ko lab_module", "ok"},
	{"module without an appended signature", "module /t/unsigned/lab_module.ko lab_module", "EKEYREJECTED"},
	{"that one as data of a program", "module-data /t/unsigned/lab_module.ko lab_module", "EKEYREJECTED"},
}

// bootLines are for local.conf: an image for the guest.
const bootLines = `IMAGE_FSTYPES = "ext4"
ATTEST_ALLOW_DEBUG_KEYS = "1"
ATTEST_CONFIG = "${TOPDIR}/attest.toml"
LAB_GUEST = "${TOPDIR}/guest"
LAB_PLAN = "${TOPDIR}/plan"
`

// kernelLines are for local.conf: the kernel that bitbake builds, and modules.
const kernelLines = `DISTRO_FEATURES:append = " modsign"
ATTEST_ALLOW_DEBUG_KEYS = "1"
PREFERRED_PROVIDER_virtual/kernel = "linux-lab"
LAB_BOOT_INSTALL = "kernel-module-dummy lab-module lab-module-unsigned"
`

// TestBoot has Linux judge the ext4 that bitbake made.
func TestBoot(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		need(t, "qemu-system-x86_64", "swtpm", "swtpm_setup")
		b := newBuild(t, release)
		lines := threeLines(filepath.Join(b.repo, "keys-debug")) + bootLines
		cases := bootCases
		kernel, own := b.kernel(t)
		if own {
			lines, cases = lines+strings.Replace(kernelLines, "ATTEST_ALLOW_DEBUG_KEYS = \"1\"\n", "", 1), append(append([]vm.Case{}, bootCases...), moduleCases...)
		}
		b.writeGuest(t, cases)
		b.configure(t, lines)
		b.bitbake(t, "lab-boot")
		if own {
			kernel = b.deployed("bzImage")
		}
		vm.Machine{Repo: b.repo, Kernel: kernel, Append: "ro attest=enforce init=/sbin/lab-guest",
			Initramfs: b.attestInit(t), Images: []string{changed(t, b.image("lab-boot", ".ext4"))}, Cases: cases}.Boot(t)
	})
}

// ownKernels says of each release that was asked for whether the shared state has its kernel.
var ownKernels sync.Map

// kernel says which kernel is booted: that of bitbake where the shared state has it, or where
// $ATTEST_OE_KERNEL says to compile it, else that of scripts/kernel, whose path is returned.
func (b *build) kernel(t *testing.T) (path string, own bool) {
	t.Helper()
	if os.Getenv("ATTEST_OE_KERNEL") != "" {
		return "", true
	}
	was, known := ownKernels.Load(b.release)
	if !known {
		b.configure(t, threeLines(filepath.Join(b.repo, "keys-debug"))+kernelLines)
		// A shared state that has parts of it only would mean compiling the rest.
		was = !b.bitbake(t, "-n", "linux-lab", "lab-module").has("linux-lab.bb:do_compile)")
		ownKernels.Store(b.release, was)
	}
	if was.(bool) {
		return "", true
	}
	out, err := exec.Command(filepath.Join(b.repo, "scripts/kernel"), "--cached").Output()
	if err != nil {
		t.Skip("no kernel: scripts/kernel builds one in 6 to 25 minutes; ATTEST_OE_KERNEL=1 has bitbake build one")
	}
	t.Log("the kernel is that of scripts/kernel, no modules are tried: ATTEST_OE_KERNEL=1 has bitbake build one")
	return filepath.Join(strings.TrimSpace(string(out)), "bzImage"), false
}

// writeGuest puts what lab-guest takes into the folder of the build.
func (b *build) writeGuest(t *testing.T, cases []vm.Case) {
	t.Helper()
	b.compile(t, "./tools/boottest/guest", filepath.Join(b.dir, "guest"))
	for name, text := range map[string]string{
		"plan":        vm.Plan(cases),
		"attest.toml": "[[rule]]\npath = \"/t/unsigned/script\"\naction = \"skip\"\n",
	} {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// compile makes a static program.
func (b *build) compile(t *testing.T, pkg, out string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	c.Dir, c.Env = b.repo, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
}

// attestInit is an initramfs with attest-init and nothing else: certificate and policy are
// those of the image.
func (b *build) attestInit(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	b.compile(t, "./tools/attest-init", filepath.Join(dir, "init"))
	program, err := os.ReadFile(filepath.Join(dir, "init"))
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := cpio.Write(&archive, []cpio.Entry{{Name: "init", Mode: cpio.Regular | 0o755, Data: program},
		{Name: "etc", Mode: cpio.Dir | 0o755}, {Name: "etc/keys", Mode: cpio.Dir | 0o755}}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "initramfs"), archive.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "initramfs")
}

// changed copies an image and changes one byte of a script in it; the label stays.
func changed(t *testing.T, image string) string {
	t.Helper()
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	const was, is = "echo ran # script-changed", "echo RAN # script-changed"
	if n := bytes.Count(data, []byte(was)); n != 1 {
		t.Fatalf("%s: %q is in it %d times, want once", image, was, n)
	}
	copied := filepath.Join(t.TempDir(), "changed.ext4")
	if err := os.WriteFile(copied, bytes.Replace(data, []byte(was), []byte(is), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	return copied
}
