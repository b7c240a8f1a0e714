package appraise

import (
	"os"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/bootlog"
	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

const logs = "../bootlog/testdata/"

func readLog(t *testing.T, name string) (*bootlog.Log, []byte) {
	t.Helper()
	b, err := os.ReadFile(logs + name)
	if err != nil {
		t.Fatal(err)
	}
	l, err := bootlog.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return l, b
}

// TestSecureBoot: the logs of real boots, with and without.
func TestSecureBoot(t *testing.T) {
	ref := compile(t, "firmware.secure_boot = true", one)
	if !ref.Firmware() || compile(t, "", one).Firmware() {
		t.Error("the firmware's log is not asked for, or asked for in vain")
	}
	for name, want := range map[string]string{
		"debian-bpf-ovmf-secureboot-uki.bin": "trusted 1.0",
		"debian-bpf-ovmf.bin":                "untrusted 1.0; secure_boot",
		"debian-bpf-seabios.bin":             "untrusted 1.0; secure_boot",
	} {
		l, b := readLog(t, name)
		d := newDevice(t)
		d.reset()
		for hash, values := range d.pcrs {
			pcrs, err := l.Replay(map[string]bootlog.Alg{"sha1": bootlog.SHA1, "sha256": bootlog.SHA256}[hash.String()])
			if err != nil {
				t.Fatal(err)
			}
			for pcr, value := range pcrs {
				values[pcr] = value
			}
			values[imaPCR] = make([]byte, hash.Size())
		}
		d.aggregate()
		d.file("/usr/bin/ls", content("ls"))
		d.firmware = b
		v, s := judged(t, d.attest(0), ref, State{})
		if got := told(v); got != want {
			t.Errorf("%s: %s", name, got)
		}
		d.firmware = nil
		if v, _ := judged(t, d.attest(-1), ref, s); told(v) != want {
			t.Errorf("%s, without the log: %s", name, told(v))
		}
		if v, _ := judged(t, d.attest(0), ref, s); told(v) != want {
			t.Errorf("%s, the whole list again: %s", name, told(v))
		}
	}
}

// TestSecureBootForged: what was measured later, or is only said, proves nothing.
func TestSecureBootForged(t *testing.T) {
	on, _ := readLog(t, "debian-bpf-ovmf-secureboot-uki.bin")
	off, _ := readLog(t, "debian-bpf-ovmf.bin")
	at := func(l *bootlog.Log, typ bootlog.Type) int {
		for i, e := range l.Events {
			if e.PCR == secureBootPCR && e.Type == typ {
				return i
			}
		}
		t.Fatalf("no %v", typ)
		return 0
	}
	yes, no := on.Events[at(on, bootlog.VariableDriverConfig)], off.Events[at(off, bootlog.VariableDriverConfig)]
	separator := on.Events[at(on, bootlog.Separator)]
	said := yes
	said.Digests = no.Digests
	other := separator
	other.Digests = no.Digests
	value := yes // the digest is that of the value alone, as EDK2 has it for other variables
	value.Digests = []bootlog.Digest{{Alg: bootlog.SHA256, Sum: hashOf(4, []byte{1})}}
	// Nothing that is proven says of what type an event is.
	retyped := func(e bootlog.Event, typ bootlog.Type) bootlog.Event {
		e.Type = typ
		return e
	}
	bare := yes
	bare.Digests = nil
	unknown := yes
	unknown.Digests = append([]bootlog.Digest{{Alg: bootlog.SM3, Sum: make([]byte, 32)}}, yes.Digests...)
	action := func(text string) bootlog.Event {
		return bootlog.Event{PCR: secureBootPCR, Type: bootlog.EFIAction, Data: []byte(text), Digests: []bootlog.Digest{{Alg: bootlog.SHA256, Sum: hashOf(4, []byte(text))}}}
	}
	if !secureBoot([]bootlog.Event{retyped(no, bootlog.NoAction), action("DMA Protection Disabled"), yes, separator}) {
		t.Error("not seen")
	}
	for name, events := range map[string][]bootlog.Event{
		"nothing":            {},
		"no separator":       {yes},
		"only said":          {said, separator},
		"after the firmware": {separator, yes},
		"off, then on later": {no, separator, yes, separator},
		"off, then on":       {no, yes, separator},
		"on, then off":       {yes, no, separator},
		"no such separator":  {yes, other},
		"value alone":        {value, separator},
		"a debugger":         {action("UEFI Debug Mode"), yes, separator},
		"no digest":          {bare, separator},
		"a digest of a kind that cannot be computed":      {unknown, separator},
		"off and separator passed off as others, then on": {retyped(no, bootlog.PostCode), retyped(separator, bootlog.PostCode), yes, separator},
		"off passed off as another, then on":              {retyped(no, bootlog.PostCode), yes, separator},
		"separator passed off as another, then on":        {retyped(separator, bootlog.Action), yes, separator},
	} {
		if secureBoot(events) {
			t.Errorf("%s: taken for on", name)
		}
	}
}

// TestSecureBootOtherBank: a digest of a bank that is not quoted proves nothing, also where
// the log leads to the PCRs of the bank that is.
func TestSecureBootOtherBank(t *testing.T) {
	ref := compile(t, "weak_digests = true\nbank = \"sha1\"\nfirmware.secure_boot = true", one)
	on, _ := readLog(t, "debian-bpf-ovmf-secureboot-uki.bin")
	first := func(l *bootlog.Log) *bootlog.Event {
		for i := range l.Events {
			if l.Events[i].PCR == secureBootPCR {
				return &l.Events[i]
			}
		}
		t.Fatal("no event of PCR 7")
		return nil
	}
	for name, want := range map[string]string{
		"debian-bpf-ovmf-secureboot-uki.bin": "trusted 1.0",
		"debian-bpf-ovmf.bin":                "untrusted 1.0; secure_boot",
	} {
		l, _ := readLog(t, name)
		d := newDevice(t)
		d.pcrsAsked = evidence.Selection{"sha1": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}
		d.reset()
		pcrs, err := l.Replay(bootlog.SHA1)
		if err != nil {
			t.Fatal(err)
		}
		for pcr := range imaPCR {
			d.pcrs[ima.SHA1][pcr] = pcrs[pcr]
		}
		forged, real := first(l), first(on)
		forged.Data = real.Data
		forged.Digests = []bootlog.Digest{forged.Digests[0], real.Digests[1]}
		if forged.Digests[0].Alg != bootlog.SHA1 || forged.Digests[1].Alg != bootlog.SHA256 {
			t.Fatal("the digests are not SHA-1 and SHA-256")
		}
		d.firmware = l.Append(nil)
		d.entry("ima-ng", "sha1:", d.boots(ima.SHA1), "boot_aggregate")
		d.file("/usr/bin/ls", content("ls"))
		if v, _ := judged(t, d.attest(0), ref, State{}); told(v) != want {
			t.Errorf("%s: %s", name, told(v))
		}
	}
}
