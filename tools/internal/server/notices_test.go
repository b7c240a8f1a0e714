package server

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/notice"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// hook is a receiver of webhooks.
type hook struct {
	*httptest.Server
	mu     sync.Mutex
	got    []*http.Request
	bodies [][]byte
	answer http.HandlerFunc // nil: 204
}

var hookSecret = notice.Secret("a secret of 32 bytes for a test.")

func newHook(t testing.TB, p *pki) *hook {
	t.Helper()
	h := &hook{}
	h.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		h.mu.Lock()
		h.got, h.bodies = append(h.got, r), append(h.bodies, body)
		answer := h.answer
		h.mu.Unlock()
		if answer != nil {
			answer(w, r)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	h.TLS = &tls.Config{Certificates: []tls.Certificate{p.issue(t, pkix.Name{CommonName: "hook"}, time.Hour)}}
	h.StartTLS()
	t.Cleanup(h.Close)
	return h
}

func (h *hook) answers(f http.HandlerFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer = f
}

func (h *hook) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.got)
}

// last checks the signature of the last request, by what Standard Webhooks says, and
// returns the event and the id.
func (h *hook) last(t *testing.T) (*notice.Event, string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.got) == 0 {
		t.Fatal("nothing was posted")
	}
	r, body := h.got[len(h.got)-1], h.bodies[len(h.bodies)-1]
	mac := hmac.New(sha256.New, hookSecret)
	fmt.Fprintf(mac, "%s.%s.%s", r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), body)
	if got, want := r.Header.Get("webhook-signature"), "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)); got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
	if r.Method != "POST" || r.Header.Get("Content-Type") != "application/cloudevents+json; charset=utf-8" {
		t.Errorf("%s of %s", r.Method, r.Header.Get("Content-Type"))
	}
	e, err := notice.Parse(body)
	if err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return e, r.Header.Get("webhook-id")
}

// notifying is a world with a webhook to h, and a key for notices to devices.
func notifying(t testing.TB, hooks ...*hook) func(*Options) {
	return func(o *Options) {
		p := newPKI(t)
		o.Notices.Key, o.Notices.Cert = p.key, p.ca
		for i, h := range hooks {
			pool := x509.NewCertPool()
			for _, c := range o.ClientCA {
				pool.AddCert(c)
			}
			o.Notices.Webhooks = append(o.Notices.Webhooks, Webhook{Name: fmt.Sprint("hook", i), URL: strings.Replace(h.URL, "127.0.0.1", "localhost", 1) + "/in/secret-part",
				Secret: hookSecret, TLS: &tls.Config{RootCAs: pool}})
		}
	}
}

// withHook makes both: the hook needs the world's authority.
func withHook(t testing.TB, n int, change ...func(*Options)) (*world, []*hook) {
	var hooks []*hook
	w := newWorld(t, func(o *Options) {
		p := hookPKI(t, o)
		for range n {
			hooks = append(hooks, newHook(t, p))
		}
		notifying(t, hooks...)(o)
		for _, f := range change {
			f(o)
		}
	})
	return w, hooks
}

// hookPKI is an authority that the options' webhooks believe.
func hookPKI(t testing.TB, o *Options) *pki {
	p := newPKI(t)
	o.ClientCA = append(o.ClientCA, p.ca)
	return p
}

// deliver lets the first n senders have one turn each.
func (w *world) deliver(want ...int) {
	w.t.Helper()
	for i, n := range want {
		got, err := w.s.deliverSome(w.t.Context(), w.s.senders[i])
		if err != nil || got != n {
			w.t.Fatalf("%s: %d jobs, want %d: %v", w.s.senders[i].target, got, n, err)
		}
	}
}

// TestWebhook: from a verdict to a receiver, through its bad days.
func TestWebhook(t *testing.T) {
	t.Parallel()
	w, hooks := withHook(t, 1)
	h := hooks[0]
	emulator := tpmtest.Start(t)
	m := w.enrolled(emulator)
	w.deliver(0) // enrolled and trusted: nobody was worried
	m.runFile("/opt/evil")
	m.expect(store.Untrusted, "unknown_file")
	h.answers(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Retry-After", "60")
		rw.WriteHeader(http.StatusServiceUnavailable)
	})
	w.deliver(1)
	e, id := h.last(t)
	if e.Type != "org.meta-attest.verdict.untrusted" || e.Subject != m.id || e.Data.Reason.Path != "/opt/evil" || e.Data.Codes[0] != "unknown_file" || e.ID != id {
		t.Errorf("notice: %+v", e)
	}
	stored, err := w.store.Event(t.Context(), e.Seq())
	if err != nil || e.ID != fmt.Sprintf("%d-%x", stored.Seq, stored.Hash) || !e.Time.Equal(stored.At) {
		t.Errorf("notice of %+v: %+v, %v", stored, e, err)
	}
	w.clock.pass(59 * time.Second) // later than the schedule, earlier than it was asked for
	w.deliver(0)
	w.clock.pass(time.Second)
	h.answers(nil)
	w.deliver(1)
	if again, sameID := h.last(t); sameID != id || again.ID != id {
		t.Errorf("sent again as %s, was %s", sameID, id)
	}
	w.deliver(0)
	m.runFile("/opt/evil2") // it was bad already
	m.expect(store.Untrusted, "unknown_file")
	w.deliver(0)
	m.reboot(emulator)
	m.attest()
	m.expect(store.Trusted, "")
	w.deliver(1)
	if e, _ := h.last(t); e.Type != "org.meta-attest.verdict.trusted" || e.Data.Reason != nil {
		t.Errorf("good again: %+v", e)
	}
	w.clock.pass(w.s.due() + time.Second)
	w.s.sweep(t.Context())
	w.deliver(1)
	if e, _ := h.last(t); e.Data.Status != "overdue" || e.Data.Reason.Code != "overdue" {
		t.Errorf("overdue: %+v", e)
	}
	metrics := string(w.send("GET", w.ops+"/metrics", "", nil).body)
	for _, want := range []string{`attest_notices{state="waiting"} 0`, `attest_notice_attempts_total{target="webhook:hook0",result="delivered"} 3`,
		`attest_notice_attempts_total{target="webhook:hook0",result="failed"} 1`, "attest_notice_waiters 0"} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}
}

// stored enrols a device that has no TPM.
func (w *world) stored(id, group string) {
	w.t.Helper()
	ctx, now := w.t.Context(), w.clock.Now()
	key := func(kind string) store.Key { return store.Key{SPKI: []byte(kind + id), Public: []byte(kind + id)} }
	answer := sha256.Sum256([]byte(id))
	identity := store.Identity{EK: key("ek"), AK: key("ak")}
	err := errors.Join(w.store.AddDevice(ctx, store.Device{ID: id, Group: group, Attest: true}, "test", now),
		w.store.Register(ctx, store.Attempt{Device: id, Peer: id, Identity: identity, Answer: answer, Expires: now.Add(time.Minute)}, now))
	if err == nil {
		_, err = w.store.Activate(ctx, store.Activation{Device: id, Peer: id, Answer: answer, Attest: true, Due: now.Add(time.Hour)}, now)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// bad makes an alarm without a device that attests, and returns its number.
func (w *world) bad(id, group string) int64 {
	w.t.Helper()
	ctx, now := w.t.Context(), w.clock.Now()
	if _, err := w.store.Device(ctx, id, now); err != nil {
		w.stored(id, group)
	}
	st, err := w.store.State(ctx, id, now)
	if err != nil {
		w.t.Fatal(err)
	}
	e, err := w.store.Attest(ctx, st, store.Result{Status: store.Untrusted, At: now, Due: now.Add(time.Hour), Index: -1, Record: true,
		Detail: json.RawMessage(`{"schema":"attest.verdict/v1","status":"untrusted","counts":{},"reasons":[{"code":"unknown_file","path":"/opt/evil","advice":"x"}]}`), Notices: w.s.told})
	if err != nil {
		w.t.Fatal(err)
	}
	return e.Seq
}

// TestWebhookAttacks: a receiver is a stranger, too.
func TestWebhookAttacks(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"http://localhost/", "https://user:pass@localhost/", "file:///etc/passwd", "https://", "gopher://x"} {
		if _, err := New(Options{Store: &store.Store{}, Notices: Notices{Webhooks: []Webhook{{Name: "x", URL: url}}}}); err == nil {
			t.Errorf("%s: taken", url)
		}
	}
	w, hooks := withHook(t, 1)
	h := hooks[0]
	inside := 0
	internal := newHook(t, newPKI(t))
	internal.answers(func(http.ResponseWriter, *http.Request) { inside++ })
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
		dead   bool
	}{
		"redirect": {func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, internal.URL+"/latest/meta-data", http.StatusTemporaryRedirect)
		}, "answer 307 Temporary Redirect: redirects are not followed", false},
		"gone": {func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusGone) }, "answer 410 Gone", true},
		"slow header": {func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-time.After(time.Minute):
			}
		}, "deadline", false},
		"endless body": {func(rw http.ResponseWriter, _ *http.Request) {
			rw.WriteHeader(http.StatusInternalServerError)
			for n := 0; n < 1<<14; n++ {
				if _, err := rw.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
			t.Error("1 GiB of an answer was read")
		}, "answer 500", false},
		"endless header": {func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("X", strings.Repeat("x", 1<<20))
		}, "header", false},
		"asks to wait for ever": {func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Retry-After", "2000000000")
			rw.WriteHeader(http.StatusTooManyRequests)
		}, "answer 429", false},
		"hangs up": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF", false},
	} {
		h.answers(c.answer)
		w.bad("d", "g")
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		jobs, err := w.store.Jobs(ctx, "webhook:hook0", 1, sendLease, w.clock.Now())
		if err != nil || len(jobs) != 1 {
			t.Fatalf("%s: %d jobs, %v", name, len(jobs), err)
		}
		failed := w.s.senders[0].send(ctx, jobs[0])
		cancel()
		if failed == nil || !strings.Contains(failed.Error(), c.want) || strings.Contains(failed.Error(), "secret-part") {
			t.Errorf("%s: %v, want %s", name, failed, c.want)
		}
		if err := w.s.postpone(t.Context(), w.s.senders[0], jobs[0], failed, false); err != nil {
			t.Fatal(err)
		}
		left, err := w.store.Queue(t.Context(), 10)
		if err != nil || (len(left) == 0) != c.dead {
			t.Errorf("%s: %+v is left, %v", name, left, err)
		}
		for _, j := range left {
			if j.NextAt.Sub(w.clock.Now()) > maxAfter {
				t.Errorf("%s: next attempt at %v", name, j.NextAt)
			}
			if err := w.store.Drop(t.Context(), j.ID, "test", w.clock.Now()); err != nil {
				t.Error(err)
			}
		}
	}
	if inside != 0 {
		t.Errorf("a redirect led to %d requests elsewhere", inside)
	}
	if strings.Contains(w.log.String(), "secret-part") || strings.Contains(w.log.String(), string(hookSecret)) {
		t.Error("the log has a secret")
	}
}

// TestWebhookOther: a receiver whose certificate nobody vouches for gets nothing.
func TestWebhookOther(t *testing.T) {
	t.Parallel()
	stranger := newHook(t, newPKI(t))
	w := newWorld(t, notifying(t, stranger))
	w.bad("d", "g")
	w.deliver(1)
	if n := stranger.count(); n != 0 {
		t.Errorf("%d notices went to a stranger", n)
	}
	if jobs, err := w.store.Queue(t.Context(), 10); err != nil || len(jobs) != 1 || !strings.Contains(jobs[0].Error, "certificate") {
		t.Errorf("%+v, %v", jobs, err)
	}
}

// TestNoVerifier: when the verifier was away for an hour, all devices are late, and it is
// not their fault.
func TestNoVerifier(t *testing.T) {
	t.Parallel()
	w, _ := withHook(t, 1)
	m := w.enrolled(tpmtest.Start(t))
	w.clock.pass(time.Hour)
	w.expect(m.id, store.Overdue, "")
	began := w.clock.Now()
	for _, row := range []struct {
		after time.Duration
		told  int
	}{{0, 0}, {w.s.due(), 0}, {time.Second, 1}, {time.Hour, 0}} {
		w.clock.pass(row.after)
		w.s.sweepSince(t.Context(), began)
		w.deliver(row.told)
	}
}

// TestDeadLetters: what is given up is seen, and can be sent again or dropped.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	w, hooks := withHook(t, 1)
	h := hooks[0]
	h.answers(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusInternalServerError) })
	w.bad("d", "g")
	for range len(schedule) {
		w.deliver(1)
		w.clock.pass(27 * time.Hour)
	}
	if got := w.api("GET", "/notices", nil, 200)["notices"].([]any); len(got) != 1 {
		t.Errorf("notices under way: %v", got)
	}
	w.deliver(1)
	w.clock.pass(1000 * time.Hour)
	w.deliver(0)
	dead := w.api("GET", "/notices?dead=true", nil, 200)["notices"].([]any)
	if len(dead) != 1 || len(w.api("GET", "/notices", nil, 200)["notices"].([]any)) != 0 {
		t.Fatalf("dead letters: %v", dead)
	}
	letter := dead[0].(map[string]any)
	if letter["error"] != "answer 500 Internal Server Error" || letter["attempts"] != 10.0 || letter["dead"] != true {
		t.Errorf("dead letter: %v", letter)
	}
	path := "/notices/" + letter["id"].(string)
	h.answers(nil)
	w.api("POST", path+"/retry", nil, http.StatusNoContent)
	w.api("POST", path+"/retry", nil, http.StatusNotFound)
	w.deliver(1)
	h.last(t)
	w.bad("d", "g")
	h.answers(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusGone) })
	w.deliver(1)
	dead = w.api("GET", "/notices?dead=true", nil, 200)["notices"].([]any)
	w.api("DELETE", "/notices/"+dead[0].(map[string]any)["id"].(string), nil, http.StatusNoContent)
	w.api("DELETE", "/notices/nothing", nil, http.StatusNotFound)
	if dead = w.api("GET", "/notices?dead=true", nil, 200)["notices"].([]any); len(dead) != 0 {
		t.Errorf("dead letters: %v", dead)
	}
	if a := w.send("DELETE", w.verifier+"/api/v1/notices/x", w.token("op", Operator), nil); a.status != http.StatusForbidden {
		t.Errorf("an operator drops a notice: %d", a.status)
	}
}

// TestManyNotices: 2 000 of them for one receiver, by two replicas, of which one dies with
// some in its hands: each is delivered, and another receiver is not kept waiting.
func TestManyNotices(t *testing.T) {
	t.Parallel()
	const many = 2000
	w, hooks := withHook(t, 2)
	w.bad("d", "g")
	jobs, err := w.store.Jobs(t.Context(), "webhook:hook0", 1, sendLease, w.clock.Now())
	if err != nil || len(jobs) != 1 {
		t.Fatal(err)
	}
	flood := make([]store.Notice, many)
	for i := range flood {
		flood[i].Target = "webhook:hook0"
	}
	if err := w.store.Split(t.Context(), jobs[0], flood, w.clock.Now()); err != nil {
		t.Fatal(err)
	}
	// The dead replica: it took 50 and was killed.
	lost, err := w.store.Jobs(t.Context(), "webhook:hook0", 50, sendLease, w.clock.Now())
	if err != nil || len(lost) != 50 {
		t.Fatalf("%d jobs, %v", len(lost), err)
	}
	other, err := New(w.s.Options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	began := time.Now()
	for _, s := range []*Server{w.s, other} {
		for _, x := range s.senders {
			wait.Go(func() { s.deliver(ctx, x) })
		}
	}
	until(t, func() bool { return hooks[1].count() == 1 })
	t.Logf("the other receiver has its notice after %v", time.Since(began).Round(time.Millisecond))
	until(t, func() bool { return hooks[0].count() >= many-50 })
	t.Logf("%d notices delivered in %v", many-50, time.Since(began).Round(time.Millisecond))
	w.clock.pass(sendLease + time.Second)
	// The receiver has the last one before it is settled.
	until(t, func() bool { n, _, err := w.store.CountJobs(t.Context()); return err != nil || n == 0 })
	stop()
	wait.Wait()
	if n, dead, err := w.store.CountJobs(t.Context()); err != nil || n != 0 || dead != 0 || hooks[0].count() != many {
		t.Errorf("%d waiting, %d dead, %d delivered: %v", n, dead, hooks[0].count(), err)
	}
}

// until waits for what comes in its own time.
func until(t testing.TB, done func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come")
		}
	}
}

// A notice that cannot be sent is tried again, as others are, and the server goes on.
func TestSenderPanics(t *testing.T) {
	w := newWorld(t)
	if err := w.store.Enqueue(t.Context(), store.Notice{Target: "x"}, w.clock.Now()); err != nil {
		t.Fatal(err)
	}
	x := sender{"x", 1, func(context.Context, store.Job) error { panic("no") }}
	if n, err := w.s.deliverSome(t.Context(), x); n != 1 || err != nil {
		t.Errorf("%d jobs, %v", n, err)
	}
	if all, err := w.store.Queue(t.Context(), 10); err != nil || len(all) != 1 || !strings.Contains(all[0].Error, "its log says more") || !all[0].NextAt.After(w.clock.Now()) {
		t.Errorf("queue: %+v, %v", all, err)
	}
}
