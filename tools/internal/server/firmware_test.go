package server

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence/evidencetest"
	"github.com/meta-attest/meta-attest/tools/internal/release"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

const firmwareLogs = "../bootlog/testdata/"

// booted gives d the firmware's log and the PCRs of a real boot, PCR 10 excepted, as the
// files that it ran are ours.
func booted(t *testing.T, d *evidencetest.Device, name string) {
	t.Helper()
	var err error
	if d.Firmware, err = os.ReadFile(firmwareLogs + name + ".bin"); err != nil {
		t.Fatal(err)
	}
	values, err := os.ReadFile(firmwareLogs + name + ".pcrs")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(values)) {
		where, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		bank, index, _ := strings.Cut(where, ":")
		pcr, err := strconv.Atoi(index)
		if err != nil {
			t.Fatalf("%s: %q: %v", name, line, err)
		}
		b, err := hex.DecodeString(value)
		if err != nil {
			t.Fatalf("%s: %q: %v", name, line, err)
		}
		if d.PCRs[bank] != nil && len(b) > 0 {
			d.PCRs[bank][pcr] = b
			n++
		}
	}
	if n < 20 { // two banks of PCR 0 to 9
		t.Fatalf("%s: %d values", name, n)
	}
	d.Forget()
	d.Aggregate()
	d.Run("/sbin/init", content("/sbin/init"))
}

// TestFirmware sends the event logs of real boots: asked for where the policy is about
// them, held against the quoted PCRs, and Secure Boot read from them.
func TestFirmware(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.api("POST", "/policies/secure?activate=true", map[string]any{"schema": release.Schema, "rules": "required = [\"/sbin/init\"]\n[firmware]\nsecure_boot = true",
		"runtime_policy": runtimePolicy("/sbin/init", "/bin/sh")}, http.StatusCreated)
	for _, c := range []struct {
		name   string
		status store.Status
		codes  string
	}{
		{"debian-bpf-ovmf-secureboot-uki", store.Trusted, ""},
		{"debian-bpf-ovmf", store.Untrusted, "secure_boot"},
		{"debian-bpf-seabios", store.Untrusted, "secure_boot"},
	} {
		d := evidencetest.New(t, c.name)
		booted(t, d, c.name)
		w.enrolSoft(d)
		w.assign(d.ID, "secure")
		w.judge(d, c.status, c.codes)
		d.Run("/bin/sh", content("/bin/sh"))
		if _, asked, err := d.Negotiate(w.verifierOf()); err != nil || len(asked.Requested) != 2 {
			t.Errorf("%s: what cannot have changed is asked for again: %+v, %v", c.name, asked.Requested, err)
		}
		w.judge(d, c.status, c.codes)
	}
}

// TestFirmwareLate: a log that could not come with the first quote of a boot comes with another.
func TestFirmwareLate(t *testing.T) {
	w := newWorld(t)
	put := func(rules string) {
		w.api("POST", "/policies/p?activate=true", map[string]any{"schema": release.Schema, "rules": "required = [\"/sbin/init\"]\n" + rules,
			"runtime_policy": runtimePolicy("/sbin/init")}, http.StatusCreated)
	}
	put("")
	d := evidencetest.New(t, "d")
	booted(t, d, "debian-bpf-ovmf-secureboot-uki")
	w.enrolSoft(d)
	w.assign(d.ID, "p")
	location, asked, err := d.Negotiate(w.verifierOf())
	if err != nil {
		t.Fatal(err)
	}
	put("[firmware]\nsecure_boot = true") // while the device answers
	if _, err := d.Submit(w.verifierOf(), location, d.Collect(asked)); err != nil {
		t.Fatal(err)
	}
	w.expect(d.ID, store.Unverified, "firmware_log_missing")
	w.judge(d, store.Trusted, "")
	if _, asked, err := d.Negotiate(w.verifierOf()); err != nil || len(asked.Requested) != 2 {
		t.Errorf("it is asked for again: %+v, %v", asked.Requested, err)
	}
	without := evidencetest.New(t, "without")
	booted(t, without, "debian-bpf-ovmf")
	log := without.Firmware
	without.Firmware = nil
	w.enrolSoft(without)
	w.assign(without.ID, "p")
	w.judge(without, store.Unverified, "firmware_log_missing")
	without.Firmware = log
	w.judge(without, store.Untrusted, "secure_boot")
}

// TestFirmwareForged: a log that the PCRs do not bear out, or none, is no Secure Boot.
func TestFirmwareForged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.api("POST", "/policies/secure?activate=true", map[string]any{"schema": release.Schema, "rules": "required = [\"/sbin/init\"]\n[firmware]\nsecure_boot = true",
		"runtime_policy": runtimePolicy("/sbin/init")}, http.StatusCreated)
	on, err := os.ReadFile(firmwareLogs + "debian-bpf-ovmf-secureboot-uki.bin")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		log    []byte
		status store.Status
		codes  string
	}{
		"that of another boot": {on, store.Broken, "firmware_pcr_mismatch"},
		"cut short":            {on[:len(on)/2], store.Broken, "firmware_log"},
		"junk":                 {bytes.Repeat([]byte{0xff}, 4096), store.Broken, "firmware_log"},
		"empty":                {[]byte{}, store.Broken, "firmware_log"},
		"none":                 {nil, store.Unverified, "firmware_log_missing"},
	} {
		d := evidencetest.New(t, fmt.Sprintf("%x", name))
		booted(t, d, "debian-bpf-ovmf")
		d.Firmware = c.log
		w.enrolSoft(d)
		w.assign(d.ID, "secure")
		v, err := d.Attest(w.verifierOf())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		at, err := w.store.Device(t.Context(), d.ID, w.clock.Now())
		if err != nil || v.State != string(c.status) || at.Verdict.Codes != c.codes {
			t.Errorf("%s: %s (%s), want %s (%s), %v", name, v.State, at.Verdict.Codes, c.status, c.codes, err)
		}
		// The next good boot mends it.
		d.Reboot()
		booted(t, d, "debian-bpf-ovmf-secureboot-uki")
		d.BootTime = d.BootTime.Add(time.Hour)
		w.judge(d, store.Trusted, "")
	}
}

// TestFirmwareRestart: who shuts the TPM down with its state boots anew under the same
// resetCount. What the boot before has proven is not this one's, even if PCR 10 is brought
// to the value that it had.
func TestFirmwareRestart(t *testing.T) {
	w := newWorld(t)
	w.api("POST", "/policies/secure?activate=true", map[string]any{"schema": release.Schema, "rules": "required = [\"/sbin/init\"]\n[firmware]\nsecure_boot = true",
		"runtime_policy": runtimePolicy("/sbin/init")}, http.StatusCreated)
	for name, c := range map[string]struct {
		boot func(*evidencetest.Device)
		told []string
	}{
		"said": {func(d *evidencetest.Device) { d.BootTime = d.BootTime.Add(time.Hour) }, []string{"untrusted secure_boot"}},
		"said, without the log": {func(d *evidencetest.Device) { d.BootTime, d.Firmware = d.BootTime.Add(time.Hour), nil },
			[]string{"unverified firmware_log_missing"}},
		"kept back": {func(*evidencetest.Device) {}, []string{"broken ima_pcr_mismatch", "untrusted secure_boot"}},
		"kept back, with the old list": {func(d *evidencetest.Device) {
			d.Forget()
			on := evidencetest.New(t, "on")
			booted(t, on, "debian-bpf-ovmf-secureboot-uki")
			for bank := range d.PCRs {
				d.PCRs[bank][10] = on.PCRs[bank][10]
			}
			d.List = on.List
			d.Offset = func(int) int { return 2 }
		}, []string{"trusted need_whole"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := evidencetest.New(t, fmt.Sprintf("%x", name))
			booted(t, d, "debian-bpf-ovmf-secureboot-uki")
			w.enrolSoft(d)
			w.assign(d.ID, "secure")
			w.judge(d, store.Trusted, "")
			booted(t, d, "debian-bpf-ovmf")
			d.Clock.RestartCount++
			c.boot(d)
			for i, want := range c.told {
				if got := w.told(d); got != want {
					t.Fatalf("attestation %d: told %q, want %q", i, got, want)
				}
			}
		})
	}
}
