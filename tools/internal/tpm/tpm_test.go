package tpm_test

import (
	"bytes"
	"crypto"
	_ "crypto/sha1"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/tpm"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

func TestOpenSaysWhatIsMissing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		address string
		want    error
		says    string
	}{
		{"/dev/no-such-tpm", tpm.ErrAbsent, "modprobe"},
		{"unix:/nowhere/tpm.sock", tpm.ErrAbsent, "unix:/nowhere/tpm.sock"},
		{file, tpm.ErrAbsent, "no character device"},
		{"tcp:127.0.0.1:1", nil, "refused"},
	} {
		_, err := tpm.Open(c.address)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("Open(%q) = %v; want %v and %q", c.address, err, c.want, c.says)
		}
	}
}

// TestEndorsementKeys makes the key of every template that swtpm can make, and compares
// those for which swtpm_setup wrote a certificate with that certificate.
func TestEndorsementKeys(t *testing.T) {
	dev := tpmtest.Start(t).Open()
	withCertificate := 0
	for _, name := range append(tpm.EKTemplates(), "") {
		ek, err := dev.EK(name)
		if errors.Is(err, tpm2.TPMRCValue) && strings.HasPrefix(name, "rsa4096") {
			t.Logf("%s: this TPM has no such keys: %v", name, err)
			continue
		}
		if err != nil {
			t.Errorf("EK(%q): %v", name, err)
			continue
		}
		if ek.Certificate != nil {
			withCertificate++
			cert, err := x509.ParseCertificate(ek.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			if got := publicKey(t, ek.Public); !got.Equal(cert.PublicKey) {
				t.Errorf("EK(%q): the key is not that of the certificate", name)
			}
		}
		ek.Close()
	}
	if withCertificate != 3 { // RSA 2048, P-384, and the automatic choice
		t.Errorf("%d keys have a certificate, want 3", withCertificate)
	}
	if _, err := dev.EK("rsa1024"); err == nil || !strings.Contains(err.Error(), "rsa2048") {
		t.Errorf("EK(rsa1024) = %v", err)
	}
}

func publicKey(t *testing.T, public []byte) interface{ Equal(crypto.PublicKey) bool } {
	t.Helper()
	b, err := tpm2.Unmarshal[tpm2.TPM2BPublic](public)
	if err != nil {
		t.Fatal(err)
	}
	area, err := b.Contents()
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.Pub(*area)
	if err != nil {
		t.Fatal(err)
	}
	return key.(interface{ Equal(crypto.PublicKey) bool })
}

// TestTemplateAndNonceInNV: what the manufacturer wrote into NV memory decides the key.
func TestTemplateAndNonceInNV(t *testing.T) {
	dev := tpmtest.Start(t).Open()
	key := func() []byte {
		ek, err := dev.EK("ecc-p256")
		if err != nil {
			t.Fatal(err)
		}
		defer ek.Close()
		return ek.Public
	}
	plain := key()
	writeNV(t, dev, 0x01c0000b, []byte("nonce of the manufacturer"))
	withNonce := key()
	if bytes.Equal(plain, withNonce) {
		t.Error("the nonce changed nothing")
	}
	own := tpm2.ECCEKTemplate
	own.ObjectAttributes.NoDA = true
	writeNV(t, dev, 0x01c0000c, tpm2.Marshal(own))
	withTemplate := key()
	b, err := tpm2.Unmarshal[tpm2.TPM2BPublic](withTemplate)
	if err != nil {
		t.Fatal(err)
	}
	if area, err := b.Contents(); err != nil || !area.ObjectAttributes.NoDA {
		t.Errorf("the template in NV memory was not used: %v", err)
	}
	// A chain is cut anywhere, also inside a certificate.
	writeNV(t, dev, 0x01c00100, bytes.Repeat([]byte{1}, 700))
	writeNV(t, dev, 0x01c00101, bytes.Repeat([]byte{2}, 600))
	ek, err := dev.EK("ecc-p256")
	if err != nil {
		t.Fatal(err)
	}
	defer ek.Close()
	if want := append(bytes.Repeat([]byte{1}, 700), bytes.Repeat([]byte{2}, 600)...); !bytes.Equal(ek.Chain, want) {
		t.Errorf("chain has %d bytes, want %d", len(ek.Chain), len(want))
	}
}

// writeNV defines an index with the attributes of the EK Credential Profile and fills it.
func writeNV(t *testing.T, dev *tpm.TPM, index tpm2.TPMHandle, data []byte) {
	t.Helper()
	public := tpm2.New2B(tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{PPWrite: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true, PlatformCreate: true},
	})
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: public}).Execute(dev); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(data); at += 512 {
		pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(dev)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tpm2.NVWrite{
			AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[at:min(at+512, len(data))]}, Offset: uint16(at),
		}.Execute(dev)
		if err != nil {
			t.Fatal(err)
		}
	}
}

func sha256PCRs(pcrs ...uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
		{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)},
	}}
}

// TestAttestationKeySurvivesReboot saves a key of each scheme, reboots, loads and uses it;
// another TPM refuses it.
func TestAttestationKeySurvivesReboot(t *testing.T) {
	emulator := tpmtest.Start(t)
	other := tpmtest.Start(t).Open()
	dev := emulator.Open()
	blobs := map[string][]byte{}
	for _, scheme := range tpm.Schemes() {
		ak, err := dev.CreateAK(scheme)
		if err != nil {
			t.Fatal(err)
		}
		blobs[scheme] = ak.Blob()
		ak.Close()
	}
	emulator.Reboot()
	dev = emulator.Open()
	for scheme, blob := range blobs {
		ak, err := dev.LoadAK(blob)
		if err != nil {
			t.Fatalf("%s: %v", scheme, err)
		}
		q, err := ak.Quote([]byte("nonce"), sha256PCRs(0, 10))
		if err != nil {
			t.Fatalf("%s: %v", scheme, err)
		}
		if len(q.Values) != 2 || len(q.Message) == 0 || !bytes.Equal(ak.Blob(), blob) {
			t.Errorf("%s: quote has %d values", scheme, len(q.Values))
		}
		ak.Close()
		if _, err := other.LoadAK(blob); !errors.Is(err, tpm.ErrForeign) {
			t.Errorf("%s: another TPM says %v, want ErrForeign", scheme, err)
		}
	}
	if _, err := dev.CreateAK("hmac"); err == nil || !strings.Contains(err.Error(), "rsassa") {
		t.Errorf("CreateAK(hmac) = %v", err)
	}
}

func TestSavedKeyIsChecked(t *testing.T) {
	dev := tpmtest.Start(t).Open()
	ak, err := dev.CreateAK("ecdsa")
	if err != nil {
		t.Fatal(err)
	}
	defer ak.Close()
	blob := ak.Blob()
	for n := range blob {
		if _, err := dev.LoadAK(blob[:n]); err == nil {
			t.Fatalf("a blob of %d of %d bytes was loaded", n, len(blob))
		}
	}
	if _, err := dev.LoadAK(append(bytes.Clone(blob), 0)); err == nil {
		t.Error("a blob with a trailing byte was loaded")
	}
	// Byte 6 to 9 of the blob are the attributes: each changed bit is refused before the TPM
	// sees the key.
	for bit := range 32 {
		changed := bytes.Clone(blob)
		changed[6+bit/8] ^= 1 << (bit % 8)
		_, err := dev.LoadAK(changed)
		if err == nil || errors.Is(err, tpm.ErrForeign) {
			t.Errorf("attribute byte %d bit %d: %v", bit/8, bit%8, err)
		}
	}
}

// TestQuotesOfSeveralBanks: values come back in the order of the selection, also when they
// are more than one TPM2_PCR_Read returns, and a PCR or bank that is not there is an error.
func TestQuotesOfSeveralBanks(t *testing.T) {
	dev := tpmtest.Start(t).Open()
	tpmtest.Extend(t, dev, 10, func(h crypto.Hash) []byte { return bytes.Repeat([]byte{7}, h.Size()) })
	ak, err := dev.CreateAK("ecdsa-p384")
	if err != nil {
		t.Fatal(err)
	}
	defer ak.Close()
	all := make([]uint, 24)
	for i := range all {
		all[i] = uint(i)
	}
	mask := tpm2.PCClientCompatible.PCRs(all...)
	selection := tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
		{Hash: tpm2.TPMAlgSHA384, PCRSelect: mask}, {Hash: tpm2.TPMAlgSHA1, PCRSelect: mask}, {Hash: tpm2.TPMAlgSHA256, PCRSelect: mask},
	}}
	q, err := ak.Quote([]byte("n"), selection)
	if err != nil {
		t.Fatal(err)
	}
	if len(q.Values) != 72 {
		t.Fatalf("%d values, want 72", len(q.Values))
	}
	for i, v := range q.Values {
		if want := []int{48, 20, 32}[i/24]; len(v) != want {
			t.Errorf("value %d has %d bytes, want %d", i, len(v), want)
		}
		reset := byte(0) // those of a dynamic root of trust start with ones
		if pcr := i % 24; pcr >= 17 && pcr <= 22 {
			reset = 0xff
		}
		if i%24 == 10 == bytes.Equal(v, bytes.Repeat([]byte{reset}, len(v))) {
			t.Errorf("PCR %d is %x", i%24, v)
		}
	}
	for name, s := range map[string]tpm2.TPMLPCRSelection{
		"no bank": {PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA512, PCRSelect: mask}}},
		"no PCR":  {PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{0, 0, 0, 1}}}},
	} {
		if q, err := ak.Quote([]byte("n"), s); err == nil {
			t.Errorf("%s: quoted %d values", name, len(q.Values))
		}
	}
}

// TestQuoteWhileLockedOut: wrong passwords of others lock a TPM; attestation goes on.
func TestQuoteWhileLockedOut(t *testing.T) {
	dev := tpmtest.Start(t).Open()
	ak, err := dev.CreateAK("ecdsa")
	if err != nil {
		t.Fatal(err)
	}
	blob := ak.Blob()
	ak.Close()
	lockOut(t, dev)
	if ak, err = dev.LoadAK(blob); err != nil {
		t.Fatal(err)
	}
	defer ak.Close()
	if _, err := ak.Quote([]byte("n"), sha256PCRs(10)); err != nil {
		t.Error(err)
	}
	if _, _, err := ak.Certify([]byte("n")); err != nil {
		t.Error(err)
	}
	if _, err := dev.EK(""); err != nil {
		t.Error(err)
	}
}

// lockOut guesses the password of a key without NoDA until the TPM refuses to listen.
func lockOut(t *testing.T, dev *tpm.TPM) {
	t.Helper()
	public := tpm2.ECCSRKTemplate
	public.ObjectAttributes.NoDA = false
	key, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InSensitive:   tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte("secret")}}},
		InPublic:      tpm2.New2B(public),
	}.Execute(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = tpm2.FlushContext{FlushHandle: key.ObjectHandle}.Execute(dev) }()
	for range 100 {
		_, err := tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: key.ObjectHandle, Name: key.Name, Auth: tpm2.PasswordAuth([]byte("guess"))},
			InPublic:     tpm2.New2B(tpm2.ECCSRKTemplate),
		}.Execute(dev)
		if errors.Is(err, tpm2.TPMRCLockout) {
			return
		}
	}
	t.Fatal("the TPM never locked")
}

func TestOwnedTPM(t *testing.T) {
	dev := tpmtest.Start(t).Open()
	_, err := tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		NewAuth:    tpm2.TPM2BAuth{Buffer: []byte("owned")},
	}.Execute(dev)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dev.EK(""); !errors.Is(err, tpm.ErrOwned) {
		t.Errorf("EK: %v, want ErrOwned", err)
	}
	if _, err := dev.CreateAK("ecdsa"); !errors.Is(err, tpm.ErrOwned) {
		t.Errorf("CreateAK: %v, want ErrOwned", err)
	}
}

// TestNothingIsLeftInTheTPM: a TPM without a resource manager has three slots.
func TestNothingIsLeftInTheTPM(t *testing.T) {
	dev := tpmtest.Start(t).Open()
	for range 8 {
		ak, err := dev.CreateAK("ecdsa")
		if err != nil {
			t.Fatal(err)
		}
		ek, err := dev.EK("ecc-p256")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ek.Activate(ak, make([]byte, 40), make([]byte, 10)); !errors.Is(err, tpm.ErrCredential) {
			t.Fatalf("Activate: %v, want ErrCredential", err)
		}
		ek.Close()
		ak.Close()
	}
}

func TestClockAndInfo(t *testing.T) {
	emulator := tpmtest.Start(t)
	dev := emulator.Open()
	first, err := dev.Clock()
	if err != nil {
		t.Fatal(err)
	}
	emulator.Suspend(dev)
	dev = emulator.Open()
	suspended, err := dev.Clock()
	if err != nil {
		t.Fatal(err)
	}
	if suspended.ResetCount != first.ResetCount || suspended.RestartCount != first.RestartCount+1 {
		t.Errorf("after a suspend: %+v, before %+v", suspended, first)
	}
	emulator.Reboot()
	dev = emulator.Open()
	rebooted, err := dev.Clock()
	if err != nil {
		t.Fatal(err)
	}
	if rebooted.ResetCount != first.ResetCount+1 || rebooted.RestartCount != 0 {
		t.Errorf("after a reboot: %+v, before %+v", rebooted, first)
	}
	info, err := dev.Info()
	if err != nil {
		t.Fatal(err)
	}
	if info.Manufacturer != "IBM" || len(info.Banks.PCRSelections) != 3 {
		t.Errorf("info: %+v", info)
	}
}
