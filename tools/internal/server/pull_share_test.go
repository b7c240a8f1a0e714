package server

import (
	"bytes"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// withShare has a share wait for a device that will be trusted.
func withShare(t *testing.T) (*world, *polledMachine) {
	t.Helper()
	w := newWorld(t, withPull(t))
	p := w.polled(tpmtest.Start(t))
	p.runFile("/sbin/init")
	if err := w.store.SetPull(t.Context(), p.id, store.PullSettings{Share: bytes.Repeat([]byte{7}, evidence.ShareSize)}, "tenant", w.clock.Now()); err != nil {
		t.Fatal(err)
	}
	return w, p
}

// What is said of a device while it quotes counts: no share leaves after it.
func TestShareTaken(t *testing.T) {
	for name, do := range map[string]func(t *testing.T, w *world, id string) error{
		"not polled any more": func(t *testing.T, w *world, id string) error {
			return w.store.EndPull(t.Context(), id, "eve", w.clock.Now())
		},
		"another share": func(t *testing.T, w *world, id string) error {
			return w.store.SetPull(t.Context(), id, store.PullSettings{Share: bytes.Repeat([]byte{8}, evidence.ShareSize)}, "eve", w.clock.Now())
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, p := withShare(t)
			p.lie = func(*evidence.QuoteAnswer) {
				if err := do(t, w, p.id); err != nil {
					t.Error(err)
				}
			}
			claims, err := w.store.ClaimPulls(t.Context(), 1, pollLease, w.clock.Now())
			if err != nil || len(claims) != 1 {
				t.Fatalf("%+v, %v", claims, err)
			}
			w.s.poll(t.Context(), claims[0])
			w.expect(p.id, store.Trusted, "")
			if p.share != nil || p.count("POST /v2.2/keys/vkey") > 0 {
				t.Error("the share left the verifier")
			}
		})
	}
}

// An agent that does not take its share is polled as often as any: it is no less trusted.
func TestShareRefused(t *testing.T) {
	w, p := withShare(t)
	p.full = true
	after := p.poll()
	w.expect(p.id, store.Trusted, "")
	if after.Error == "" || !after.Waiting || after.Next.Sub(w.clock.Now()) > w.s.Interval*11/10 {
		t.Errorf("%+v", after)
	}
}

// How long an agent did not answer, the pause before the next try is one.
func TestPollAgain(t *testing.T) {
	for _, interval := range []time.Duration{time.Second, time.Minute, 10 * 24 * time.Hour} {
		w := newWorld(t, func(o *Options) { o.Interval = interval })
		for failures := range int64(70) {
			if d := w.s.pollAgain(failures); d < interval/4 || d > max(interval, maxPause)*11/10 {
				t.Fatalf("interval %v, %d failures: %v", interval, failures, d)
			}
		}
	}
}
