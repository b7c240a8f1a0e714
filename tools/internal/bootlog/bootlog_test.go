package bootlog

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// logs returns the logs of testdata; see testdata/README.
func logs(t testing.TB) []string {
	files, err := filepath.Glob("testdata/*.bin")
	if err != nil || len(files) == 0 {
		t.Fatalf("no logs: %v", err)
	}
	return files
}

func readLog(t testing.TB, file string) *Log {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Parse(b)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return l
}

// readPCRs reads lines "sha1:10 <hex>" into PCR values by bank.
func readPCRs(t testing.TB, file string) map[Alg]map[int][]byte {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	banks := map[Alg]map[int][]byte{SHA1: {}, SHA256: {}}
	for line := range strings.Lines(string(text)) {
		var bank string
		var pcr int
		var digits string
		if _, err := fmt.Sscanf(strings.Replace(line, ":", " ", 1), "%s %d %s", &bank, &pcr, &digits); err != nil {
			t.Fatalf("%s: %q: %v", file, line, err)
		}
		value, err := hex.DecodeString(digits)
		if err != nil {
			t.Fatal(err)
		}
		for a := range banks {
			if a.String() == bank {
				banks[a][pcr] = value
			}
		}
	}
	return banks
}

func TestRoundTrip(t *testing.T) {
	for _, file := range logs(t) {
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := readLog(t, file).Append(nil); !bytes.Equal(got, want) {
			t.Errorf("%s is written back otherwise", file)
		}
	}
}

// TestReplayPCRs: logs lead to the values that were read from the TPM after that boot, in
// both banks; PCR 10 belongs to IMA.
func TestReplayPCRs(t *testing.T) {
	files, err := filepath.Glob("testdata/*.pcrs")
	if err != nil || len(files) == 0 {
		t.Fatalf("no values: %v", err)
	}
	for _, file := range files {
		l := readLog(t, strings.TrimSuffix(file, "pcrs")+"bin")
		for a, want := range readPCRs(t, file) {
			got, err := l.Replay(a)
			if err != nil || len(want) == 0 {
				t.Fatalf("%s: %v, %d values", file, err, len(want))
			}
			for pcr, value := range want {
				if pcr != 10 && !bytes.Equal(got[pcr], value) {
					t.Errorf("%s: PCR %d of %v: got %x, want %x", file, pcr, a, got[pcr], value)
				}
			}
		}
	}
}

// TestTpm2Eventlog: tpm2-tools computes the same of every log.
func TestTpm2Eventlog(t *testing.T) {
	if _, err := exec.LookPath("tpm2_eventlog"); err != nil {
		t.Skip("tpm2_eventlog (package tpm2-tools) is not installed: nothing to compare with")
	}
	for _, file := range logs(t) {
		out, err := exec.Command("tpm2_eventlog", file).Output()
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		_, text, ok := strings.Cut(string(out), "\npcrs:\n")
		if !ok {
			t.Fatalf("%s: no PCRs in\n%s", file, out)
		}
		l, n := readLog(t, file), 0
		var got map[int][]byte
		for line := range strings.Lines(text) {
			for _, a := range []Alg{SHA1, SHA256, SHA384, SHA512} {
				if strings.TrimSpace(line) == a.String()+":" {
					if got, err = l.Replay(a); err != nil {
						t.Fatalf("%s: %v", file, err)
					}
				}
			}
			var pcr int
			var digits string
			if _, err := fmt.Sscanf(line, " %d : 0x%s", &pcr, &digits); err != nil {
				continue
			}
			n++
			if pcr == 0 && strings.HasSuffix(file, "glinux-alex.bin") {
				continue // tpm2-tools 5.4 starts PCR 0 at zero whatever the locality: see TestStartupLocality
			}
			if fmt.Sprintf("%x", got[pcr]) != digits {
				t.Errorf("%s: PCR %d: got %x, want %s", file, pcr, got[pcr], digits)
			}
		}
		if n < 2 {
			t.Errorf("%s: only %d values", file, n)
		}
	}
}

// TestStartupLocality: the values are those that go-eventlog's tests have of that machine.
func TestStartupLocality(t *testing.T) {
	l := readLog(t, "testdata/glinux-alex.bin")
	for a, want := range map[Alg]string{
		SHA1:   "29d236609a5f9cc6912af44ba5f57b13a17c8a84",
		SHA256: "0e5ea849d7647a1ac1becc096fee4df98f00f8015f934afadaab0b8aa20b38a5",
	} {
		if got, err := l.Replay(a); err != nil || hex.EncodeToString(got[0]) != want {
			t.Errorf("%v: %x, %v", a, got[0], err)
		}
	}
	locality := func(index int, bytes string) Event {
		return Event{Index: index, Type: NoAction, Data: []byte(startupLocality + bytes)}
	}
	measured := Event{Type: Separator, Digests: []Digest{{SHA1, make([]byte, 20)}}}
	for name, events := range map[string][]Event{
		"too late": {measured, locality(1, "\x03")}, "twice": {locality(0, "\x03"), locality(1, "\x03")},
		"locality 1": {locality(0, "\x01")}, "no byte": {locality(0, "")}, "two bytes": {locality(0, "\x03\x03")},
	} {
		if _, err := (&Log{Events: events}).Replay(SHA1); !errors.Is(err, ErrReplay) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReplayRefuses(t *testing.T) {
	l := readLog(t, "testdata/event-uefi-sha1-log.bin")
	for _, a := range []Alg{SHA256, SM3, 0x1234} { // no digests of it; Go has it not; nobody has
		if pcrs, err := l.Replay(a); !errors.Is(err, ErrReplay) || pcrs != nil {
			t.Errorf("%v: %v", a, err)
		}
	}
}

// TestBootAggregates: the values are those that Linux wrote into its measurement list.
func TestBootAggregates(t *testing.T) {
	for name, want := range map[string]string{
		"debian-bpf-seabios":             "ee153ada115b53740dc6ae55a82ceef3b21c669a61b1dd8f3fea08fb68ade88b",
		"debian-bpf-ovmf":                "8393ace29e6dab23b016a53d8ef1df21b961a5da7c7e6f9d9e3c9a921e596d0e",
		"debian-bpf-ovmf-secureboot-uki": "82a3c7ebef53a4ae0aa072dba14cde5e862a0e1b0b63c12fef4369336174f954",
	} {
		pcrs, err := readLog(t, "testdata/"+name+".bin").Replay(SHA256)
		if err != nil {
			t.Fatal(err)
		}
		got, err := BootAggregates(SHA256, pcrs)
		if err != nil || len(got) != 2 || hex.EncodeToString(got[0]) != want {
			t.Errorf("%s: %x, %v", name, got, err)
		}
		delete(pcrs, 9)
		if _, err := BootAggregates(SHA256, pcrs); err == nil {
			t.Error("computed without PCR 9")
		}
	}
	// The same with ima_hash=sha1; evmctl ima_boot_aggregate says so too.
	pcrs := readPCRs(t, "../ima/testdata/lists/debian-sha1.pcrs")
	got, err := BootAggregates(SHA1, pcrs[SHA1])
	if err != nil || len(got) != 1 || hex.EncodeToString(got[0]) != "bd69e2d1aaeec5d5d2666a3e4f7c7ed02908e316" {
		t.Errorf("%x, %v", got, err)
	}
}

// TestDetails tells a boot of a signed UKI: what the events say, and what of it is proven.
func TestDetails(t *testing.T) {
	type told struct {
		PCR    uint32
		What   string
		Proven bool
	}
	var got []told
	for _, e := range readLog(t, "testdata/debian-bpf-ovmf-secureboot-uki.bin").Events {
		d, err := e.Details()
		if err != nil {
			t.Fatal(err)
		}
		what := e.Type.String()
		switch d := d.(type) {
		case *Variable:
			what = d.Name
			if d.Name == "SecureBoot" {
				what = fmt.Sprintf("%s=%x %v", d.Name, d.Data, d.Vendor)
			}
			if e.Type == VariableAuthority {
				s, ok := d.Authority()
				what = fmt.Sprintf("%s %v %.2x", d.Name, ok, s.Data)
			}
			if d.Name == "dbx" || d.Name == "PK" {
				all, err := d.SignatureLists()
				if err != nil {
					t.Error(err)
				}
				what = fmt.Sprintf("%s %d", d.Name, len(all))
				if len(all) > 0 {
					what += fmt.Sprintf(" x509=%v %.2x", all[0].Type == CertX509, all[0].Data)
				}
			}
		case *Text:
			what = d.Value
		case *ImageLoad:
			what = d.Path.String() + " is " + d.Path.File()
		case *Tagged:
			what = fmt.Sprintf("%x %s", d.ID, d.Data)
		case *SeparatorValue:
			what = fmt.Sprintf("separator %d", d.Value)
		case *FirmwareBlob:
			what = fmt.Sprintf("%#x+%#x", d.Base, d.Length)
		case *Spec:
			what = fmt.Sprintf("%d.%d %v", d.Major, d.Minor, d.Algs)
		}
		got = append(got, told{e.PCR, what, e.Proven()})
	}
	want := []told{
		{0, "2.0 [sha1 sha256]", false}, {0, "", true}, {0, "0x820000+0xe0000", false}, {0, "0x900000+0xc00000", false},
		{7, "SecureBoot=01 8be4df61-93ca-11d2-aa0d-00e098032b8c", true}, {7, "PK 1 x509=true 3082", true}, {7, "KEK", true}, {7, "db", true}, {7, "dbx 0", true},
		{7, "separator 0", true}, {1, "BootOrder", true}, {1, "Boot0000", true}, {1, "Boot0001", true}, {1, "Boot0002", true}, {1, "Boot0003", true},
		{4, "Calling EFI Application from Boot Option", true}, {0, "separator 0", true}, {1, "separator 0", true}, {2, "separator 0", true},
		{3, "separator 0", true}, {4, "separator 0", true}, {5, "separator 0", true}, {6, "separator 0", true},
		{4, "Returning from EFI Application from Boot Option", true}, {4, "Calling EFI Application from Boot Option", true}, {7, "db true 3082", true},
		{4, `PciRoot(0x0)/Pci(0x2,0x0)/\EFI\BOOT\BOOTX64.EFI is \EFI\BOOT\BOOTX64.EFI`, false},
		{11, ".linux", true}, {11, ".linux", false}, {11, ".osrel", true}, {11, ".osrel", false}, {11, ".cmdline", true}, {11, ".cmdline", false}, {11, ".initrd", true}, {11, ".initrd", false},
		{9, "8f3b22ed LOADED_IMAGE::LoadOptions\x00", false}, {9, "8f3b22ec Linux initrd\x00", false},
		{5, "Exit Boot Services Invocation", true}, {5, "Exit Boot Services Returned with Success", true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// TestProvenNeedsDigest: a changed byte of data is noticed although the PCRs stay.
func TestProvenNeedsDigest(t *testing.T) {
	l := readLog(t, "testdata/debian-bpf-ovmf-secureboot-uki.bin")
	for i := range l.Events {
		e := &l.Events[i]
		if !e.Proven() || e.Type == IPL || e.Type == VariableBoot {
			continue
		}
		data := bytes.Clone(e.Data)
		for at := range data {
			e.Data = bytes.Clone(data)
			e.Data[at] ^= 1
			if e.Proven() {
				t.Errorf("event %d (%v) with byte %d changed", i, e.Type, at)
			}
		}
		e.Data = data
		e.Digests = append(e.Digests[:1:1], Digest{SHA256, make([]byte, 32)})
		if e.Proven() {
			t.Errorf("event %d (%v) with one digest of two", i, e.Type)
		}
	}
}

// TestAuthority: what let the images start on a machine with shim; the value is without
// the owner that db has.
func TestAuthority(t *testing.T) {
	var got []string
	for _, e := range readLog(t, "testdata/debian-10.bin").Events {
		if e.Type != VariableAuthority {
			continue
		}
		d, err := e.Details()
		if err != nil {
			t.Fatal(err)
		}
		s, ok := d.(*Variable).Authority()
		got = append(got, fmt.Sprintf("%s %v %v %.2x %v", d.(*Variable).Name, ok, s.Owner, s.Data, e.Proven()))
	}
	want := []string{
		"db true d281fad2-8d88-47a4-9792-5baa47bb1b89 3082 true",
		"Shim true 00000000-0000-0000-0000-000000000000 3082 true",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// FuzzLog: what is read is written back byte for byte, and nothing that a log says breaks
// the rest.
func FuzzLog(f *testing.F) {
	for _, file := range logs(f) {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		l, err := Parse(in)
		if err != nil {
			if l != nil || !errors.Is(err, ErrMalformed) {
				t.Fatalf("%v with %v", l, err)
			}
			return
		}
		if got := l.Append(nil); !bytes.Equal(got, in) {
			t.Fatalf("%x is written back as %x", in, got)
		}
		for i := range l.Events {
			e := &l.Events[i]
			d, err := e.Details()
			if err != nil && (d != nil || !errors.Is(err, ErrMalformed)) {
				t.Fatalf("%v with %v", d, err)
			}
			switch d := d.(type) {
			case *Variable:
				_, _ = d.SignatureLists()
				_, _ = d.Authority()
			case *ImageLoad:
				_, _ = d.Path.String(), d.Path.File()
			}
			_ = e.Proven()
		}
		if pcrs, err := l.Replay(SHA256); err == nil {
			if _, err := BootAggregates(SHA256, pcrs); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzDetails reaches the structures inside of events faster than FuzzLog does.
func FuzzDetails(f *testing.F) {
	for _, file := range logs(f) {
		for _, e := range readLog(f, file).Events {
			f.Add(uint32(e.Type), e.Data)
		}
	}
	f.Fuzz(func(t *testing.T, kind uint32, data []byte) {
		e := Event{Type: Type(kind), Data: data, Digests: []Digest{{SHA256, SHA256.sum(data)}}}
		d, err := e.Details()
		if (err != nil) != errors.Is(err, ErrMalformed) || err != nil && d != nil {
			t.Fatalf("%v with %v", d, err)
		}
		switch d := d.(type) {
		case *Variable:
			_, _ = d.SignatureLists()
			_, _ = d.Authority()
		case *ImageLoad:
			_, _ = d.Path.String(), d.Path.File()
		}
		if e.Proven() != (e.Type != NoAction) {
			t.Fatal("the digest of the data does not prove it")
		}
	})
}

// TestHostile: one fault each, in the log of a real boot.
func TestHostile(t *testing.T) {
	good, err := os.ReadFile("testdata/debian-bpf-seabios.bin")
	if err != nil {
		t.Fatal(err)
	}
	second := readLog(t, "testdata/debian-bpf-seabios.bin").Events[1].Offset
	for name, change := range map[string]func(b []byte) []byte{
		"empty":                     func(b []byte) []byte { return nil },
		"trailing byte":             func(b []byte) []byte { return append(b, 0) },
		"cut":                       func(b []byte) []byte { return b[:len(b)-1] },
		"no algorithms":             func(b []byte) []byte { b[32+24] = 0; return b },
		"4 G algorithms":            func(b []byte) []byte { copy(b[32+24:], "\xff\xff\xff\xff"); return b },
		"algorithm twice":           func(b []byte) []byte { copy(b[32+32:], b[32+28:32+32]); return b },
		"digest size of another":    func(b []byte) []byte { b[32+30] = 32; return b },
		"vendor beyond the event":   func(b []byte) []byte { b[32+36] = 4; return b },
		"PCR 24":                    func(b []byte) []byte { b[second] = 24; return b },
		"PCR -1":                    func(b []byte) []byte { copy(b[second:], "\xff\xff\xff\xff"); return b },
		"more digests than banks":   func(b []byte) []byte { b[second+8] = 3; return b },
		"4 G digests":               func(b []byte) []byte { copy(b[second+8:], "\xff\xff\xff\xff"); return b },
		"digest of an unnamed bank": func(b []byte) []byte { b[second+12] = 0x0c; return b },
		"4 GB of data":              func(b []byte) []byte { copy(b[28:], "\xff\xff\xff\xff"); return b },
		"65537 events":              func(b []byte) []byte { return bytes.Repeat(make([]byte, 32), maxEvents+1) },
	} {
		if l, err := Parse(change(bytes.Clone(good))); !errors.Is(err, ErrMalformed) || l != nil {
			t.Errorf("%s: %+v, %v", name, l, err)
		}
	}
}
