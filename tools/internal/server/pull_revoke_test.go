package server

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// Agents that are polled are told of the bad verdict of another device of their group.
func TestPulledRevocation(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, withPull(t), func(o *Options) { o.Pull.RevocationKey = key })
	p := w.polled(tpmtest.Start(t))
	p.runFile("/sbin/init")
	p.good(store.Trusted, "")
	m := w.machine(tpmtest.Start(t))
	m.enrol()
	w.assign(m.id, "image")
	m.session()
	m.runFile("/sbin/init")
	m.expect(store.Trusted, "")
	m.runFile("/tmp/evil")
	m.expect(store.Untrusted, "unknown_file")
	w.deliverAll()
	if p.told == nil {
		t.Fatalf("it was not told: %s", w.log)
	}
	if err := p.told.Verify(&x509.Certificate{PublicKey: &key.PublicKey}); err != nil {
		t.Error(err)
	}
	var r evidence.Revocation
	if err := json.Unmarshal([]byte(p.told.Message), &r); err != nil || r.Type != "revocation" || r.ID != m.id || r.EventID != "unknown_file" {
		t.Errorf("%s, %v", p.told.Message, err)
	}
	if waiting, dead, err := w.store.CountJobs(t.Context()); err != nil || waiting+dead != 0 {
		t.Errorf("%d jobs wait, %d are dead: %v", waiting, dead, err)
	}
	// Nobody is told that a device is good again, nor one of another group of anything.
	p.told = nil
	w.policy("image", "/sbin/init", "/bin/sh", "/tmp/evil")
	m.expect(store.Trusted, "")
	w.deliverAll()
	w.api("PATCH", "/devices/"+p.id, map[string]any{"group": "other"}, http.StatusOK)
	m.runFile("/tmp/worse")
	m.expect(store.Untrusted, "unknown_file")
	w.deliverAll()
	p.runFile("/tmp/worst") // nor is it told of itself
	p.good(store.Untrusted, "unknown_file")
	w.deliverAll()
	if p.told != nil {
		t.Errorf("told %s", p.told.Message)
	}
}

// deliverAll delivers revocations: a job for all becomes one for each.
func (w *world) deliverAll() {
	w.t.Helper()
	for {
		n, err := w.s.deliverSome(w.t.Context(), w.s.senders[0])
		if err != nil {
			w.t.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
}
