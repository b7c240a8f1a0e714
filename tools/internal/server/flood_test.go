package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/evidence/evidencetest"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// crowd sends requests from so many addresses at once, as a botnet would, to the handlers:
// a machine has not got the addresses.
func crowd(t *testing.T, h http.Handler, n int, request func(i int) (method, path string, body any)) map[int]int {
	t.Helper()
	var mu sync.Mutex
	var wait sync.WaitGroup
	var next atomic.Int64
	got := map[int]int{}
	for range 8 {
		wait.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				method, path, body := request(i)
				text, err := json.Marshal(body)
				if err != nil {
					t.Error(err)
				}
				r := httptest.NewRequestWithContext(t.Context(), method, path, bytes.NewReader(text))
				r.RemoteAddr = fmt.Sprintf("10.%d.%d.%d:4711", i>>16, i>>8&255, i&255)
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				mu.Lock()
				got[rec.Code]++
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	return got
}

// strangeEK is the public area of an endorsement key that nobody made.
func strangeEK(t *testing.T) (area []byte, id string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	public := tpm2.ECCEKTemplate
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}})
	area = tpm2.Marshal(tpm2.New2B(public))
	ek, err := evidence.ParseEK(area)
	if err != nil {
		t.Fatal(err)
	}
	if id, err = ek.ID(); err != nil {
		t.Fatal(err)
	}
	return area, id
}

// heap is what lives after a collection.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestCrowd: a flood from more addresses than a server can count costs a bounded part of
// memory and of the database, and neither stops a device that is enrolled, nor one that an
// operator has named.
func TestCrowd(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Limits.RequestsIP = 600 })
	d, m, named := w.trustedSoft("honest"), w.enrolled(tpmtest.Start(t)), w.machine(tpmtest.Start(t))
	w.api("POST", "/devices", map[string]any{"ek_hash": named.id}, http.StatusCreated)
	before := heap()
	stop, done := make(chan struct{}), make(chan int, 1)
	go func() { // the honest device goes on meanwhile
		rounds := 0
		defer func() { done <- rounds }()
		for {
			select {
			case <-stop:
				return
			default:
				if v, err := d.Attest(w.verifierOf()); err != nil || v.State != string(store.Trusted) {
					t.Errorf("the device is told %+v, %v", v, err)
					return
				}
				rounds++
			}
		}
	}()
	session := evidence.NewDocument("", evidence.SessionRequest{Agent: d.ID, Supported: []evidence.Method{evidence.Possession()}})
	t.Log("requests for a session in the name of the device, by status:", crowd(t, w.s.Verifier(), 5_000, func(int) (string, string, any) { return "POST", "/v3.0/sessions", session }))
	t.Log("addresses that no bucket is left for:", crowd(t, w.s.Registrar(), 3*maxBuckets/2, func(int) (string, string, any) { return "GET", "/version", nil }))
	ak, _ := evidencetest.New(t, "stranger").AK()
	registered := crowd(t, w.s.Registrar(), store.MaxAttempts+500, func(int) (string, string, any) {
		ek, id := strangeEK(t)
		return "POST", "/v2.6/agents/" + id, evidence.Registration{AK: ak, EK: ek}
	})
	t.Log("registrations of TPMs that nobody made:", registered)
	if registered[http.StatusOK] != store.MaxAttempts || registered[http.StatusTooManyRequests] != 500 {
		t.Error("not as many as there is room for")
	}
	close(stop)
	if rounds := <-done; rounds == 0 {
		t.Error("the device did not attest")
	} else {
		t.Logf("the device attested %d times meanwhile", rounds)
	}
	w.s.byIP.mu.Lock()
	if n := len(w.s.byIP.free); n > maxBuckets {
		t.Errorf("%d addresses are remembered", n)
	}
	w.s.byIP.mu.Unlock()
	grown := heap() - before
	t.Logf("memory grew by %.1f MiB", float64(grown)/(1<<20))
	if grown > 64<<20 {
		t.Error("which is too much")
	}
	if err := d.Session(w.verifierOf()); err != nil {
		t.Error(err)
	}
	m.enrol() // again: whoever is known has room
	named.enrol()
	late := w.machine(tpmtest.Start(t))
	if a, _ := late.register(late.id, late.registration()); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" {
		t.Errorf("one more stranger: %d %s", a.status, a.body)
	}
	w.clock.pass(w.s.ChallengeLifetime + time.Second)
	late.enrol()
}
