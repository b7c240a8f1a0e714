package server

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/notice"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// member enrols a device that only polls, and returns its token.
func (w *world) member(id, group string) string {
	w.t.Helper()
	w.stored(id, group)
	ctx, now := w.t.Context(), w.clock.Now()
	token := "session-" + id + "." + strings.Repeat("x", 16)
	for _, err := range []error{
		w.store.NewSession(ctx, store.Session{ID: "s-" + id, Device: id, Challenge: []byte("c"), Expires: now.Add(time.Hour)}, now),
		func() error { _, err := w.store.TakeSession(ctx, "s-"+id, now); return err }(),
		w.store.ProveSession(ctx, "s-"+id, sha256.Sum256([]byte(token)), now.Add(24*time.Hour), now),
	} {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return token
}

// watch lets s look for alarms until the test ends.
func (w *world) watch(s *Server) {
	ctx, stop := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() { s.watchAlarms(ctx) })
	w.t.Cleanup(func() { stop(); wait.Wait() })
}

func (w *world) poll(url, id, token string, after int64) answer {
	w.t.Helper()
	return w.send("GET", fmt.Sprintf("%s/v3.0/agents/%s/notices?after=%d", url, id, after), token, nil)
}

// noticesOf are the events of an answer, verified as a device does.
func (w *world) noticesOf(a answer) []*notice.Event {
	w.t.Helper()
	var got struct{ Notices []json.RawMessage }
	if err := json.Unmarshal(a.body, &got); err != nil || a.status != 200 {
		w.t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	var events []*notice.Event
	for _, b := range got.Notices {
		e, _, err := notice.Open(b, []*x509.Certificate{w.s.Notices.Cert})
		if err != nil {
			w.t.Fatal(err)
		}
		events = append(events, e)
	}
	return events
}

// TestPoll: a device hears of its group, at whichever replica it waits, and of no other.
func TestPoll(t *testing.T) {
	t.Parallel()
	w := newWorld(t, notifying(t))
	w.watch(w.s)
	replica, err := New(w.s.Options)
	if err != nil {
		t.Fatal(err)
	}
	w.watch(replica)
	server := w.pki.issue(t, w.pki.ca.Subject, time.Hour)
	second := "https://" + w.listen(replica.Verifier(), TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &server, nil }))
	token, other := w.member("watch", "g"), w.member("elsewhere", "h")
	if a := w.poll(w.verifier, "elsewhere", token, 0); a.status != http.StatusForbidden {
		t.Errorf("a device asks for another's notices: %d %s", a.status, a.body)
	}
	if a := w.poll(w.verifier, "watch", w.admin, 0); a.status != http.StatusForbidden {
		t.Errorf("an admin asks for a device's notices: %d %s", a.status, a.body)
	}
	for _, after := range []string{"-1", "x", "99999999999999999999"} {
		if a := w.send("GET", w.verifier+"/v3.0/agents/watch/notices?after="+after, token, nil); a.status != http.StatusBadRequest {
			t.Errorf("after %s: %d %s", after, a.status, a.body)
		}
	}
	waited := make(chan answer)
	go func() { waited <- w.poll(second, "watch", token, 0) }()
	until(t, func() bool { return replica.alarms.waiting() == 1 })
	go func() { waited <- w.poll(second, "elsewhere", other, 0) }()
	until(t, func() bool { return replica.alarms.waiting() == 2 })
	began := time.Now()
	seq := w.bad("bad", "g")
	events := w.noticesOf(<-waited)
	t.Logf("the other replica tells after %v", time.Since(began).Round(time.Millisecond))
	if len(events) != 1 || events[0].Seq() != seq || events[0].Subject != "bad" || events[0].Data.Group != "g" || events[0].Data.Reason.Path != "/opt/evil" {
		t.Errorf("notices: %+v", events)
	}
	until(t, func() bool { return replica.alarms.waiting() == 1 }) // elsewhere
	// It answers at once if there is something, with the last notice of each device.
	w.bad("worse", "g")
	last := w.bad("bad", "g")
	if events = w.noticesOf(w.poll(w.verifier, "watch", token, 0)); len(events) != 2 || events[1].Seq() != last || events[0].Subject != "worse" {
		t.Errorf("notices: %+v", events)
	}
	// Who asks again, at the same replica, waits no longer.
	go func() { waited <- w.poll(second, "elsewhere", other, 7) }()
	if events := w.noticesOf(<-waited); len(events) != 0 {
		t.Errorf("the older request: %+v", events)
	}
	w.bad("neighbour", "h")
	if events := w.noticesOf(<-waited); len(events) != 1 || events[0].Subject != "neighbour" {
		t.Errorf("notices: %+v", events)
	}
}

// TestPollBounds: too many that wait are sent away, and a server that stops lets all go.
func TestPollBounds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, notifying(t), func(o *Options) { o.Limits.Waiters = 1 })
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go w.s.watchAlarms(ctx)
	one, two := w.member("one", ""), w.member("two", "")
	waited := make(chan answer)
	go func() { waited <- w.poll(w.verifier, "one", one, 0) }()
	until(t, func() bool { return w.s.alarms.waiting() == 1 })
	if a := w.poll(w.verifier, "two", two, 0); a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" {
		t.Errorf("one too many: %d %s", a.status, a.body)
	}
	stop()
	if events := w.noticesOf(<-waited); len(events) != 0 {
		t.Errorf("at the end: %+v", events)
	}
	plain := newWorld(t)
	if a := plain.poll(plain.verifier, "one", plain.member("one", ""), 0); a.status != http.StatusNotFound || !strings.Contains(string(a.body), "no_notices") {
		t.Errorf("a verifier without a key: %d %s", a.status, a.body)
	}
}

// TestManyWaiters measures what devices cost that wait, and how long a notice takes to all of
// them: 1 000, or $ATTEST_WAITERS. Both ends are in this process.
func TestManyWaiters(t *testing.T) {
	many := 1000
	if text := os.Getenv("ATTEST_WAITERS"); text != "" {
		if _, err := fmt.Sscan(text, &many); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t, notifying(t), func(o *Options) { o.Limits.Connections, o.Limits.ConnectionsIP = 2*many+100, 2*many+100 })
	w.watch(w.s)
	tokens := make([]string, many)
	var wait sync.WaitGroup
	slots := make(chan struct{}, 64)
	for i := range many {
		wait.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			tokens[i] = w.member(fmt.Sprint("d", i), "g")
		})
	}
	wait.Wait()
	before := memoryInUse()
	got := make(chan error, many)
	client := w.pki.client()
	for i := range many {
		wait.Go(func() {
			slots <- struct{}{} // not all handshakes at once
			time.AfterFunc(50*time.Millisecond, func() { <-slots })
			a, err := w.try(client, "GET", fmt.Sprintf("%s/v3.0/agents/d%d/notices", w.verifier, i), tokens[i], nil)
			if err == nil && (a.status != 200 || !strings.Contains(string(a.body), "payloadType")) {
				err = fmt.Errorf("%d %s", a.status, a.body)
			}
			got <- err
		})
	}
	until(t, func() bool { return w.s.alarms.waiting() == many })
	t.Logf("%d devices wait: %d KiB each, both ends", many, (memoryInUse()-before)/1024/uint64(many))
	cpu := processor()
	time.Sleep(time.Second)
	t.Logf("idle: %.1f ms of processor time a second", (processor()-cpu).Seconds()*1000)
	cpu = processor()
	began := time.Now()
	w.bad("bad", "g")
	for range many {
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("all are told after %v, %.1f ms of processor time", time.Since(began).Round(time.Millisecond), (processor()-cpu).Seconds()*1000)
	wait.Wait()
	client.CloseIdleConnections()
}

func memoryInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func processor() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
