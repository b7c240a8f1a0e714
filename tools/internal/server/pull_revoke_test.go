package server

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
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

// A verdict that turns to and fro is told once, and fills no queue.
func TestRevocationFlaps(t *testing.T) {
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
	paths := []string{"/sbin/init", "/bin/sh"}
	for _, evil := range []string{"/tmp/a", "/tmp/b", "/tmp/c"} {
		m.runFile(evil)
		m.expect(store.Untrusted, "unknown_file")
		paths = append(paths, evil)
		if evil != "/tmp/c" {
			w.policy("image", paths...)
			m.expect(store.Trusted, "")
		}
	}
	w.deliverAll()
	if n := p.count("POST /v2.2/notifications/revocation"); n != 1 {
		t.Errorf("told %d times", n)
	}
	if waiting, dead, err := w.store.CountJobs(t.Context()); err != nil || waiting+dead != 0 {
		t.Errorf("%d jobs wait, %d are dead: %v", waiting, dead, err)
	}
}

// The jobs for many agents are made in steps, and for those of the group only.
func TestRevocationSplit(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, withPull(t), func(o *Options) { o.Pull.RevocationKey = key })
	m := w.enrolled(tpmtest.Start(t))
	m.expect(store.Trusted, "")
	var group sync.WaitGroup
	for i := range batch + 5 {
		d := store.Device{ID: fmt.Sprintf("z%04d", i)}
		if i < 3 {
			d.Group = "other"
		}
		group.Go(func() {
			if err := errors.Join(w.store.AddDevice(t.Context(), d, "eve", w.clock.Now()),
				w.store.SetPull(t.Context(), d.ID, store.PullSettings{Contact: "127.0.0.1:1"}, "eve", w.clock.Now())); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	m.runFile("/tmp/evil")
	m.expect(store.Untrusted, "unknown_file")
	for _, want := range []int64{1, batch + 1} {
		waiting, _, err := w.store.CountJobs(t.Context())
		if err != nil || waiting != want {
			t.Fatalf("%d jobs wait, want %d: %v", waiting, want, err)
		}
		if want == 1 {
			if n, err := w.s.deliverSome(t.Context(), w.s.senders[0]); n != 1 || err != nil {
				t.Fatalf("%d sent, %v", n, err)
			}
		}
	}
	jobs, err := w.store.Queue(t.Context(), 2*batch)
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, j := range jobs {
		if j.Target != targetRevocation {
			told[j.Target] = true
		}
	}
	if len(told) != batch || told["revocation:z0000"] || !told["revocation:z0003"] {
		t.Errorf("%d agents are told", len(told))
	}
	w.deliverAll()
	if waiting, dead, err := w.store.CountJobs(t.Context()); err != nil || waiting+dead != 0 {
		t.Errorf("%d jobs wait, %d are dead: %v", waiting, dead, err)
	}
}
