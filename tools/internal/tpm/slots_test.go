package tpm_test

import (
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/tpm"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// TestNothingStays: what fails leaves neither an object nor a session in the TPM, which has
// room for three of each.
func TestNothingStays(t *testing.T) {
	dev := tpmtest.Start(t).Open()
	ak, err := dev.CreateAK("ecdsa")
	if err != nil {
		t.Fatal(err)
	}
	blob := ak.Blob()
	ak.Close()
	damaged := append([]byte{}, blob...)
	damaged[len(damaged)-1] ^= 1
	for range 5 {
		if _, err := dev.LoadAK(damaged); err == nil {
			t.Error("a damaged key was loaded")
		}
		for _, template := range []string{"rsa2048", "ecc-p256", "ecc-p384-high"} {
			ek, err := dev.EK(template)
			if err != nil {
				t.Fatal(err)
			}
			ak, err := dev.LoadAK(blob)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ek.Activate(ak, make([]byte, 50), make([]byte, 70)); err == nil {
				t.Errorf("%s: a foreign credential was opened", template)
			}
			ek.Close()
			key, err := dev.CreateSecretKey()
			if err != nil {
				t.Fatal(err)
			}
			if _, _, _, err := ak.CertifySecretKey(key, make([]byte, 1000)); err == nil {
				t.Error("certified with too long a qualifier")
			}
			key.Close()
			ak.Close()
		}
	}
	for _, kind := range []tpm2.TPMHandle{objects, 0x03000000, 0x02000000} { // and sessions
		if left := handles(t, dev, kind); len(left) > 0 {
			t.Errorf("left: %x", left)
		}
	}
}

const objects tpm2.TPMHandle = 0x80000000

func handles(t *testing.T, dev *tpm.TPM, kind tpm2.TPMHandle) []tpm2.TPMHandle {
	t.Helper()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(kind), PropertyCount: 16}.Execute(dev)
	if err != nil {
		t.Fatal(err)
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		t.Fatal(err)
	}
	return list.Handle
}

// TestSecretKeyEndsWithBoot saves the key, as a resource manager does, and boots: with a TPM
// Reset, and with a TPM Restart, which leaves the null hierarchy as it was.
func TestSecretKeyEndsWithBoot(t *testing.T) {
	for name, boot := range map[string]func(*tpmtest.Emulator, *tpm.TPM){
		"reset": func(e *tpmtest.Emulator, _ *tpm.TPM) { e.Reboot() }, "restart": (*tpmtest.Emulator).Restart,
	} {
		emulator := tpmtest.Start(t)
		dev := emulator.Open()
		if _, err := dev.CreateSecretKey(); err != nil {
			t.Fatal(err)
		}
		saved, err := tpm2.ContextSave{SaveHandle: handles(t, dev, objects)[0]}.Execute(dev)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (tpm2.ContextLoad{Context: saved.Context}).Execute(dev); err != nil {
			t.Fatalf("in this boot: %v", err)
		}
		boot(emulator, dev)
		if _, err := (tpm2.ContextLoad{Context: saved.Context}).Execute(emulator.Open()); err == nil {
			t.Errorf("%s: the key is there again", name)
		}
	}
}
