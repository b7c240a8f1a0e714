package server

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence/evidencetest"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// told is what a device hears in one round: state and codes, or the code of a refusal.
func (w *world) told(d *evidencetest.Device) string {
	w.t.Helper()
	v, err := d.Attest(w.verifierOf())
	var r *evidencetest.Refused
	if errors.As(err, &r) {
		return fmt.Sprint(r.Status)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	for _, reason := range v.Reasons {
		v.State += " " + reason.Code
	}
	return v.State
}

// TestClocks plays sequences of what a TPM's counters may do. Each step is what happens
// before an attestation, and what the device is told then.
func TestClocks(t *testing.T) {
	t.Parallel()
	type step struct {
		do   func(d *evidencetest.Device)
		told string
	}
	nothing := func(*evidencetest.Device) {}
	suspend := func(d *evidencetest.Device) { d.Clock.RestartCount++ }
	init := func(d *evidencetest.Device) { d.Run("/sbin/init", content("/sbin/init")) }
	reboot := func(d *evidencetest.Device) { d.Reboot(); init(d) }
	powerCut := func(d *evidencetest.Device) { reboot(d); d.Clock.Safe, d.Clock.Milliseconds = false, 500 } // what was not saved yet is lost
	evil := func(d *evidencetest.Device) { d.Run("/bin/evil", content("/bin/evil")) }
	hide := func(do func(*evidencetest.Device)) func(*evidencetest.Device) { // the agent sends no entry before the second
		return func(d *evidencetest.Device) { do(d); d.Offset = func(int) int { return 2 } }
	}
	honest := func(d *evidencetest.Device) { d.Offset = nil }
	for name, steps := range map[string][]step{
		"suspended, again and again": {{suspend, "trusted"}, {suspend, "trusted"}, {evil, "untrusted unknown_file"}, {suspend, "untrusted unknown_file"}},
		"suspended and booted":       {{suspend, "trusted"}, {reboot, "trusted reboot"}, {nothing, "trusted"}, {suspend, "trusted"}},
		"booted, and nobody says so": {{reboot, "trusted reboot"}, {nothing, "trusted"}},
		"two boots in between":       {{func(d *evidencetest.Device) { reboot(d); reboot(d) }, "trusted reboot"}, {nothing, "trusted"}},
		"a bad boot":                 {{func(d *evidencetest.Device) { reboot(d); evil(d) }, "trusted reboot"}, {nothing, "untrusted unknown_file"}, {reboot, "untrusted reboot"}, {nothing, "trusted"}},
		"a bad boot whose first entries are kept back": {{hide(func(d *evidencetest.Device) { d.Reboot(); evil(d); init(d) }), "trusted reboot"},
			{nothing, "broken ima_pcr_mismatch"}, {nothing, "broken ima_pcr_mismatch"}, {honest, "untrusted unknown_file"}},
		"power cut":                          {{powerCut, "trusted reboot"}, {nothing, "trusted"}, {powerCut, "trusted reboot"}, {nothing, "trusted"}},
		"the clock goes back":                {{func(d *evidencetest.Device) { d.Clock.Milliseconds -= 1500 }, "broken rewind"}, {func(d *evidencetest.Device) { d.Clock.Milliseconds += 5000 }, "trusted"}},
		"the clock stands":                   {{func(d *evidencetest.Device) { d.Clock.Milliseconds -= 1000 }, "broken rewind"}, {nothing, "trusted"}},
		"restarts go back":                   {{suspend, "trusted"}, {func(d *evidencetest.Device) { d.Clock.RestartCount-- }, "broken rewind"}, {suspend, "trusted"}},
		"resets go back":                     {{func(d *evidencetest.Device) { d.Clock.ResetCount-- }, "broken rewind"}, {func(d *evidencetest.Device) { d.Clock.ResetCount++ }, "trusted"}},
		"not safe, in the midst of a boot":   {{func(d *evidencetest.Device) { d.Clock.Safe = false }, "trusted"}, {nothing, "trusted"}},
		"a clock of hundred million years":   {{func(d *evidencetest.Device) { d.Clock.Milliseconds = math.MaxInt64 }, "trusted"}},
		"a clock that the store cannot hold": {{func(d *evidencetest.Device) { d.Clock.Milliseconds = math.MaxUint64 - 5000 }, "500"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			d := w.trustedSoft("d")
			for i, s := range steps {
				s.do(d)
				if got := w.told(d); got != s.told {
					t.Fatalf("step %d: told %q, want %q", i, got, s.told)
				}
			}
		})
	}
}

// TestWrap: for a key outside of the endorsement hierarchy a TPM adds a number of its own to
// the counters (TPM 2.0 part 1, 36.7), so that they may pass 2^32 at any boot.
func TestWrap(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := evidencetest.New(t, "d")
	d.Clock.ResetCount, d.Clock.RestartCount, d.BootTime = math.MaxUint32, math.MaxUint32, w.clock.Now()
	d.Run("/sbin/init", content("/sbin/init"))
	w.enrolSoft(d)
	w.policy("image", "/sbin/init")
	w.assign(d.ID, "image")
	w.judge(d, store.Trusted, "")
	d.Clock.RestartCount++
	w.judge(d, store.Trusted, "")
	d.Reboot()
	d.Run("/sbin/init", content("/sbin/init"))
	for _, want := range []string{"trusted reboot", "trusted", "trusted"} {
		if got := w.told(d); got != want {
			t.Fatalf("after the counter wrapped around: told %q, want %q", got, want)
		}
	}
	d.Clock.ResetCount--
	if got := w.told(d); got != "broken rewind" {
		t.Errorf("back over the wrap: %s", got)
	}
}

// TestSuspend does with a TPM what a laptop does: PCRs and list stay, restartCount grows.
func TestSuspend(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	emulator := tpmtest.Start(t)
	m := w.enrolled(emulator)
	for range 2 {
		blob := m.ak.Blob()
		emulator.Suspend(m.dev)
		m.dev = emulator.Open()
		var err error
		if m.ak, err = m.dev.LoadAK(blob); err != nil {
			t.Fatal(err)
		}
		m.runFile("/bin/sh")
		_, asked := m.negotiate()
		if *asked.Requested[1].Parameters.Offset == 0 {
			t.Error("the whole list is asked for after a suspend")
		}
		m.expect(store.Trusted, "")
	}
	m.runFile("/bin/evil")
	m.expect(store.Untrusted, "unknown_file")
}

// TestRestart does with a TPM what a laptop does whose battery dies in suspend: it boots, and
// it is restartCount that has grown.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	emulator := tpmtest.Start(t)
	m := w.enrolled(emulator)
	m.runFile("/bin/sh")
	m.expect(store.Trusted, "")
	before, _ := w.store.State(t.Context(), m.id, w.clock.Now())
	blob := m.ak.Blob()
	emulator.Restart(m.dev)
	m.dev = emulator.Open()
	var err error
	if m.ak, err = m.dev.LoadAK(blob); err != nil {
		t.Fatal(err)
	}
	m.list, m.ends, m.boot = nil, nil, m.boot.Add(time.Hour)
	m.measureAggregate()
	m.runFile("/sbin/init") // fewer than before
	m.expect(store.Trusted, "")
	after, _ := w.store.State(t.Context(), m.id, w.clock.Now())
	if after.Counters.Reset != before.Counters.Reset || after.Counters.Restart == before.Counters.Restart {
		t.Fatalf("counters went from %+v to %+v", before.Counters, after.Counters)
	}
	m.runFile("/bin/evil")
	m.expect(store.Untrusted, "unknown_file")
}

// TestServerClock: the server's clock jumps. Who is overdue is computed from it, so that a
// jump ahead makes all devices overdue until they attest again, and one back none that has
// attested since.
func TestServerClock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d, silent := w.trustedSoft("d"), w.soft("silent")
	w.assign(silent.ID, "image")
	w.judge(silent, store.Trusted, "")
	again := func() {
		t.Helper()
		if got := w.told(d); got == "401" {
			if err := d.Session(w.verifierOf()); err != nil {
				t.Fatal(err)
			}
		}
		w.judge(d, store.Trusted, "")
	}
	location, asked, err := d.Negotiate(w.verifierOf())
	if err != nil {
		t.Fatal(err)
	}
	w.clock.pass(24 * time.Hour)
	w.expect(d.ID, store.Overdue, "")
	w.expect(silent.ID, store.Overdue, "")
	if _, err := d.Submit(w.verifierOf(), location, d.Collect(asked)); !refusedWith(err, http.StatusUnauthorized, "token") {
		t.Errorf("with the session of yesterday: %v", err)
	}
	if err := d.Session(w.verifierOf()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Submit(w.verifierOf(), location, d.Collect(asked)); !refusedWith(err, http.StatusForbidden, "challenges_expired") {
		t.Errorf("the challenge of yesterday: %v", err)
	}
	again()
	w.s.sweep(t.Context())
	w.expect(d.ID, store.Trusted, "")
	w.expect(silent.ID, store.Overdue, "")

	w.clock.pass(-24 * time.Hour) // it was wrong, and was mended
	again()
	w.expect(d.ID, store.Trusted, "")
	w.clock.pass(w.s.due() + time.Second)
	w.expect(d.ID, store.Overdue, "")
	w.expect(silent.ID, store.Overdue, "")
	again()
	w.api("GET", "/events/check", nil, http.StatusOK)
}
