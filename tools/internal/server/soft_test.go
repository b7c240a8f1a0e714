package server

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence/evidencetest"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// verifierOf is the server as devices see it.
func (w *world) verifierOf() *evidencetest.Verifier {
	return &evidencetest.Verifier{URL: w.verifier, Client: w.client}
}

// soft is a device with a TPM in software that ran init and is enrolled: in the store, as
// the registrar would.
func (w *world) soft(name string) *evidencetest.Device {
	w.t.Helper()
	d := evidencetest.New(w.t, name)
	d.BootTime = w.clock.Now()
	d.Run("/sbin/init", content("/sbin/init"))
	w.enrolSoft(d)
	return d
}

func (w *world) enrolSoft(d *evidencetest.Device) {
	w.t.Helper()
	area, spki := d.AK()
	answer := sha256.Sum256([]byte(d.ID))
	identity := store.Identity{EK: store.Key{SPKI: []byte("EK of " + d.ID)}, AK: store.Key{SPKI: spki, Public: area}}
	now := w.clock.Now()
	if err := w.store.Register(w.t.Context(), store.Attempt{Device: d.ID, Identity: identity, Answer: answer, Expires: now.Add(time.Minute)}, now); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.store.Activate(w.t.Context(), store.Activation{Device: d.ID, Answer: answer, Attest: true, Due: now.Add(w.s.due())}, now); err != nil {
		w.t.Fatal(err)
	}
	if err := d.Session(w.verifierOf()); err != nil {
		w.t.Fatal(err)
	}
}

// trustedSoft is soft, trusted under policy "image".
func (w *world) trustedSoft(name string) *evidencetest.Device {
	w.t.Helper()
	d := w.soft(name)
	w.policy("image", "/sbin/init", "/bin/sh", "/bin/ls")
	w.assign(d.ID, "image")
	w.judge(d, store.Trusted, "")
	return d
}

// judge has d attest and compares what it is told and what is stored.
func (w *world) judge(d *evidencetest.Device, status store.Status, codes string) {
	w.t.Helper()
	v, err := d.Attest(w.verifierOf())
	if err != nil {
		w.t.Fatalf("attest: %v", err)
	}
	if v.State != string(status) {
		w.t.Fatalf("the device is told %+v, want %s", v, status)
	}
	w.expect(d.ID, status, codes)
}

// refusedWith says whether err is an answer with this status and code.
func refusedWith(err error, status int, code string) bool {
	var r *evidencetest.Refused
	return errors.As(err, &r) && r.Status == status && json.Valid(r.Body) && strings.Contains(string(r.Body), fmt.Sprintf(`"code":%q`, code))
}

// TestSoft: the software device is taken like a TPM, else what it tries would prove nothing.
func TestSoft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.trustedSoft("soft")
	d.Run("/bin/sh", content("/bin/sh"))
	_, asked, err := d.Negotiate(w.verifierOf())
	if err != nil || *asked.Requested[1].Parameters.Offset != 2 {
		t.Errorf("asked for %+v, %v", asked.Requested, err)
	}
	w.judge(d, store.Trusted, "")
	d.Run("/bin/evil", content("/bin/evil"))
	w.judge(d, store.Untrusted, "unknown_file")
	if err := d.Session(&evidencetest.Verifier{URL: w.verifier, Client: w.client}); err != nil {
		t.Error(err)
	}
	other := evidencetest.New(t, "other")
	other.ID = d.ID
	if err := other.Session(w.verifierOf()); !refusedWith(err, http.StatusUnauthorized, "proof") {
		t.Errorf("another key: %v", err)
	}
}
