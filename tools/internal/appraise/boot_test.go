package appraise

import (
	"os"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/bootlog"
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
	sha1 := yes
	sha1.Digests = yes.Digests[:1]
	if sha1.Digests[0].Alg != bootlog.SHA1 {
		t.Fatal("the first digest is not SHA-1")
	}
	if !secureBoot([]bootlog.Event{yes, separator}) {
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
		"SHA-1 alone":        {sha1, separator},
	} {
		if secureBoot(events) {
			t.Errorf("%s: taken for on", name)
		}
	}
}
