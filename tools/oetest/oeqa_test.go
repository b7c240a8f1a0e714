package oetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestSelftest has oe-selftest find and run the layer's cases.
func TestSelftest(t *testing.T) {
	if os.Getenv("ATTEST_OE_SELFTEST") == "" {
		t.Skip("builds six images a release; ATTEST_OE_SELFTEST=1 runs it")
	}
	eachRelease(t, func(t *testing.T, release string) {
		b := newBuild(t, release)
		// It asks git who we are, and adds a layer whose bbappends are for recipes that the lab masks.
		home := filepath.Join(b.dir, "home")
		if err := os.MkdirAll(home, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(home, ".gitconfig"), []byte("[user]\n\tname = lab\n\temail = lab@example.com\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		b.configure(t, `BBMASK += "/meta-selftest/recipes-"
ATTEST_SELFTEST_IMAGE = "lab-image"
ATTEST_SELFTEST_KERNEL = "linux-lab"
`)
		r := b.shell(t, "oe-selftest", "-r", "attest")
		for _, name := range []string{"image_is_signed", "another_key", "mistakes", "kernel"} {
			if !r.has("RESULTS - attest.AttestTests.test_" + name + ": PASSED") {
				t.Errorf("test_%s did not pass", name)
			}
		}
		if r.code != 0 || t.Failed() {
			t.Errorf("oe-selftest: exit code %d\n%s", r.code, r.out)
		}
	})
}

// TestTestimage has testimage boot an image of bitbake's and run the layer's runtime cases on
// its serial console. It needs the kernel that bitbake built, and a Python package of QEMU.
func TestTestimage(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		need(t, "qemu-system-x86_64", "pip3")
		b := newBuild(t, release)
		if _, own := b.kernel(t); !own {
			t.Skip("no kernel of bitbake's in the shared state: ATTEST_OE_KERNEL=1 has TestBoot build one")
		}
		qmp := filepath.Join(b.dir, "qmp")
		if out, err := exec.CommandContext(t.Context(), "pip3", "install", "-q", "--no-deps", "--target", qmp, "qemu.qmp==0.0.6").CombinedOutput(); err != nil {
			t.Skipf("no Python package qemu.qmp: %v\n%s", err, out)
		}
		b.configure(t, threeLines(filepath.Join(b.repo, "keys-debug"))+kernelLines+`ATTEST_POLICY = "appraise-executables"
IMAGE_FSTYPES = "ext4"
LAB_QMP = "`+qmp+`"
`)
		b.bitbake(t, "lab-testimage")
		r := b.bitbake(t, "-c", "testimage", "lab-testimage")
		for _, name := range []string{"kernel_has_ima", "certificate_is_loaded", "policy_is_in_force", "changed_program_is_refused"} {
			if !r.has("RESULTS - attest.AttestTest.test_" + name + ": PASSED") {
				t.Errorf("test_%s did not pass", name)
			}
		}
		if t.Failed() {
			t.Log(r.out)
		}
	})
}
