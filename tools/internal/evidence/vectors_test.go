package evidence

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// recorded is the quote of a virtual machine that booted Debian with SeaBIOS and swtpm, made
// by tpm2_quote: PCRs of the firmware and IMA's, and both logs.
func recorded(t testing.TB) (*Evidence, Expected) {
	t.Helper()
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", "quote-debian-seabios", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	block, _ := pem.Decode(read("ak.pem"))
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	nonce, err := hex.DecodeString(strings.TrimSpace(string(read("nonce"))))
	if err != nil {
		t.Fatal(err)
	}
	ev := &Evidence{Message: read("q.msg"), Signature: read("q.sig"), PCRs: read("q.pcr"), List: read("ima.bin"), Firmware: read("bios.bin")}
	banks, _, err := parsePCRBlob(ev.PCRs)
	if err != nil {
		t.Fatal(err)
	}
	want := Expected{
		// Of the key only the PEM was kept; its name is made up.
		AK:    &AK{name: []byte("vector"), key: key, scheme: tpm2.TPMAlgECDSA, hash: crypto.SHA256},
		Nonce: nonce, PCRs: Selection{}, IMA: true, Firmware: true,
	}
	for _, b := range banks {
		name, _, err := bankOf(b.alg)
		if err != nil {
			t.Fatal(err)
		}
		want.PCRs[name] = b.pcrs
	}
	return ev, want
}

func TestRecordedQuote(t *testing.T) {
	ev, want := recorded(t)
	c, state := accepted(t, ev, want, State{})
	if c.Pending() != 0 || c.Covered() != 47 || state.Seen != 47 {
		t.Errorf("%d entries covered, %d pending", c.Covered(), c.Pending())
	}
	if len(c.Firmware()) == 0 {
		t.Error("no event of the firmware is proven")
	}
	for e, err := range c.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		if e.Index > 0 {
			break
		}
		ok := false
		for _, d := range c.BootAggregates(e.File.Hash) {
			ok = ok || bytes.Equal(d, e.File.Sum)
		}
		if string(e.Path) != "boot_aggregate" || !ok {
			t.Errorf("entry 0 is %s with %x, computed %x", e.Path, e.File.Sum, c.BootAggregates(e.File.Hash))
		}
	}
	if c.BootAggregates(ima.SHA512) != nil {
		t.Error("a boot_aggregate of a bank that was not quoted")
	}
}

// TestFirmwareAttacks: what does not lead to the quoted values is not claimed.
func TestFirmwareAttacks(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*Evidence, *Expected)
		code Code
	}{
		{"no log", func(e *Evidence, _ *Expected) { e.Firmware = nil }, CodeMissingLog},
		{"an empty log", func(e *Evidence, _ *Expected) { e.Firmware = []byte{} }, CodeFirmwareLog},
		{"a log cut short", func(e *Evidence, _ *Expected) { e.Firmware = e.Firmware[:len(e.Firmware)-3] }, CodeFirmwareLog},
		{"a huge log", func(e *Evidence, _ *Expected) { e.Firmware = make([]byte, maxFirmware+1) }, CodeFirmwareLog},
		{"the firmware's PCRs are not quoted", func(_ *Evidence, x *Expected) { x.PCRs = Selection{"sha256": {10}} }, CodeSelection},
	} {
		ev, want := recorded(t)
		ev.Firmware = bytes.Clone(ev.Firmware)
		c.do(ev, &want)
		t.Run(c.name, func(t *testing.T) { refused(t, ev, want, State{}, c.code) })
	}
	d := newDevice(t, "ecdsa") // its firmware measured nothing
	want := d.expected()
	want.Firmware = true
	ev := d.evidence(want, 0)
	recordedEvidence, _ := recorded(t)
	ev.Firmware = recordedEvidence.Firmware
	refused(t, ev, want, State{}, CodeFirmwarePCRs)
	want.PCRs = Selection{"sha256": {10}}
	ev = d.evidence(want, 0)
	ev.Firmware = recordedEvidence.Firmware
	refused(t, ev, want, State{}, CodeExpectation)
}
