package appraise

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/bootlog"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// booted starts a device with the log of a boot, and PCRs to which it leads.
func (d *device) booted(log []byte) {
	d.t.Helper()
	d.reset()
	d.resets++
	l, err := bootlog.Parse(log)
	d.check(err)
	for _, bank := range []struct {
		hash ima.HashAlgo
		alg  bootlog.Alg
	}{{ima.SHA1, bootlog.SHA1}, {ima.SHA256, bootlog.SHA256}} {
		values, err := l.Replay(bank.alg)
		d.check(err)
		for i, v := range values {
			d.pcrs[bank.hash][i] = v
		}
	}
	d.firmware = log
	d.aggregate()
}

func TestMeasuredBoot(t *testing.T) {
	log := grubBoot(t).Append(nil)
	text, err := json.Marshal(refstateOf())
	if err != nil {
		t.Fatal(err)
	}
	one := release("image 1", "sbin/init", "init", "")
	one.MBPolicy = text
	ref := compile(t, "", one)
	selection := ref.Selection()
	if !ref.Firmware() || !slices.Contains(selection["sha256"], mokPCR) {
		t.Fatalf("firmware's log: %t, PCRs %v", ref.Firmware(), selection)
	}
	plain := compile(t, "", release("image 1", "sbin/init", "init", ""))
	if plain.Digest() == ref.Digest() {
		t.Error("a measured boot policy is no part of what a reference is")
	}
	start := func(log []byte) *device {
		d := newDevice(t)
		d.pcrsAsked = selection
		d.booted(log)
		d.file("/sbin/init", content("init"))
		return d
	}
	expect := func(what string, v Verdict, status Status, code Code) {
		t.Helper()
		if v.Status != status || code != "" && (len(v.Reasons) == 0 || v.Reasons[0].Code != code) {
			t.Errorf("%s: %s %+v, want %s %s", what, v.Status, v.Reasons, status, code)
		}
	}

	d := start(log)
	d.firmware = nil
	v, _ := judged(t, d.attest(0), ref, State{})
	expect("without the firmware's log", v, Unverified, CodeNoFirmwareLog)

	d = start(log)
	v, s := judged(t, d.attest(0), ref, State{})
	expect("the boot of the policy", v, Trusted, "")
	d.firmware = nil // it comes once
	s = again(t, s)
	v, s = judged(t, d.attest(-1), ref, s)
	expect("a later quote", v, Trusted, "")
	v, _ = judged(t, d.attest(0), ref, s)
	expect("the whole list again", v, Trusted, "")

	changed := grubBoot(t)
	*find(changed, 9, bootlog.IPL, 2) = *find(changed, 9, bootlog.IPL, 1)
	d = start(changed.Append(nil))
	v, s = judged(t, d.attest(0), ref, State{})
	expect("another initrd", v, Untrusted, CodeMeasuredBoot)
	d.firmware = nil
	v, _ = judged(t, d.attest(-1), ref, again(t, s))
	expect("another initrd, later", v, Untrusted, CodeMeasuredBoot)

	// Of two releases the one that the boot fits is taken.
	other := release("image 2", "sbin/init", "init", "")
	both := compile(t, "", one, other)
	v, _ = judged(t, start(changed.Append(nil)).attest(0), both, State{})
	if expect("another release", v, Trusted, ""); v.Release != "image 2" {
		t.Errorf("it fits %q", v.Release)
	}

	// What shim measured into PCR 14 has to be what the log says.
	d = start(log)
	d.extend(ima.SHA256, mokPCR, content("late"))
	v, _ = judged(t, d.attest(0), ref, State{})
	expect("PCR 14 is extended later", v, Untrusted, CodeMeasuredBoot)
	d = start(log)
	d.pcrsAsked = plain.Selection()
	v, _ = judged(t, d.attest(0), ref, State{})
	expect("PCR 14 is not quoted", v, Untrusted, CodeMeasuredBoot)
}

// again is what is read of a state that was written.
func again(t *testing.T, s State) (got State) {
	t.Helper()
	b, err := s.MarshalBinary()
	if err == nil {
		err = got.UnmarshalBinary(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return got
}
