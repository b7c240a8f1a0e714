package storetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// Each change that somebody makes in the database behind the store's back is found.
func testChain(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	empty, err := s.VerifyChain(ctx, store.Head{})
	if must(t, err); empty.Seq != 0 {
		t.Errorf("new database: %+v", empty)
	}
	Enrol(t, s, "a")
	for clock := range uint64(3) {
		r := good(Start, 1, 0, clock)
		if clock == 1 {
			r.Status, r.Codes, r.Raw = store.Untrusted, "ima.unknown-file", []byte("log")
		}
		_, err := s.Attest(ctx, state(t, s, "a", Start), r)
		must(t, err)
	}
	must(t, s.Note(ctx, store.Event{At: Start, Kind: "login", Actor: "eve", Detail: "{}"}))
	if err := s.Note(ctx, store.Event{At: Start, Kind: "verdict", Device: "a", Status: store.Trusted, Detail: "{}"}); err == nil {
		t.Error("a note changed a verdict")
	}
	head, err := s.VerifyChain(ctx, store.Head{})
	must(t, err)
	if head.Seq != 5 {
		t.Fatalf("%d events, want 5", head.Seq)
	}
	events, err := s.Events(ctx, "a", 0, 2)
	must(t, err)
	if len(events) != 2 || events[0].Seq != 4 || events[1].Seq != 3 {
		t.Errorf("newest events of a: %+v", events)
	}
	if events, err = s.Events(ctx, "", 3, 10); err != nil || len(events) != 2 || events[0].Seq != 2 {
		t.Errorf("events before 3: %+v, %v", events, err)
	}
	for _, c := range []struct{ change, undo, names string }{
		{`UPDATE event SET detail = '{"x":1}' WHERE seq = 2`, `UPDATE event SET detail = '{}' WHERE seq = 2`, "event 2"},
		{`UPDATE event SET at = at + 1 WHERE seq = 3`, `UPDATE event SET at = at - 1 WHERE seq = 3`, "event 3"},
		{`UPDATE event SET status = 'trusted' WHERE seq = 3`, `UPDATE event SET status = 'untrusted' WHERE seq = 3`, "event 3"},
		{`UPDATE event SET kind = 'x', device = kind WHERE seq = 5`, `UPDATE event SET kind = device, device = '' WHERE seq = 5`, "event 5"},
		{`UPDATE event SET actor = 'mallory' WHERE seq = 5`, `UPDATE event SET actor = 'eve' WHERE seq = 5`, "event 5"},
		{`UPDATE event SET seq = 99 WHERE seq = 3`, `UPDATE event SET seq = 3 WHERE seq = 99`, "event 3 is missing"},
		{`UPDATE chain SET seq = seq - 1`, `UPDATE chain SET seq = seq + 1`, "head"},
		{`UPDATE attestation SET status = 'untrusted'`, `UPDATE attestation SET status = 'trusted'`, "device a"},
		{`UPDATE attestation SET status = 'untrusted', event = 3`, `UPDATE attestation SET status = 'trusted', event = 4`, "device a"},
		{`UPDATE attestation SET event = 5`, `UPDATE attestation SET event = 4`, "device a"},
	} {
		tamper(t, url, c.change)
		_, err := s.VerifyChain(ctx, store.Head{})
		if !errors.Is(err, store.ErrChain) || !strings.Contains(err.Error(), c.names) {
			t.Errorf("%s: %v", c.change, err)
		}
		tamper(t, url, c.undo)
	}
	_, err = s.VerifyChain(ctx, head)
	must(t, err)
	// Who knows how the hash is made still has to make all later ones anew, and the head.
	two, err := s.Event(ctx, 2)
	must(t, err)
	three, err := s.Event(ctx, 3)
	must(t, err)
	if got := sum(two.Hash, three); !bytes.Equal(got, three.Hash) {
		t.Errorf("hash of event 3: %x, want %x", three.Hash, got)
	}
	forged := three
	forged.Detail = `{"forged":true}`
	tamper(t, url, `UPDATE event SET detail = $1, hash = $2 WHERE seq = 3`, forged.Detail, sum(two.Hash, forged))
	if _, err = s.VerifyChain(ctx, store.Head{}); !errors.Is(err, store.ErrChain) || !strings.Contains(err.Error(), "event 4") {
		t.Errorf("forged event 3: %v", err)
	}
	tamper(t, url, `UPDATE event SET detail = $1, hash = $2 WHERE seq = 3`, three.Detail, three.Hash)
	// Cutting the tail off is only found by who remembers the head.
	var hash []byte
	must(t, Raw(t, url).QueryRow(`SELECT hash FROM event WHERE seq = 4`).Scan(&hash))
	tamper(t, url, `DELETE FROM event WHERE seq = 5`)
	tamper(t, url, `UPDATE chain SET seq = 4, hash = $1`, hash)
	_, err = s.VerifyChain(ctx, store.Head{})
	must(t, err)
	_, err = s.VerifyChain(ctx, head)
	want(t, err, store.ErrChain)
}

// sum is the hash of an event as it is documented, made a second time.
func sum(prev []byte, e store.Event) []byte {
	var b bytes.Buffer
	for _, s := range []string{"meta-attest event 1", string(prev), be(e.Seq), be(e.At.UnixMicro()), e.Kind, e.Device, e.Actor,
		string(e.Status), e.Detail, string(e.Evidence)} {
		b.WriteString(be(int64(len(s))) + s)
	}
	h := sha256.Sum256(b.Bytes())
	return h[:]
}

func be(n int64) string {
	s, err := hex.DecodeString(fmt.Sprintf("%016x", n))
	if err != nil {
		panic(err)
	}
	return string(s)
}

func testChainManyWriters(t *testing.T, url string) {
	one := open(t, url)
	stores := []*store.Store{one, reopen(t, url), reopen(t, url)}
	var group sync.WaitGroup
	for n := range 150 {
		s := stores[n%3]
		group.Go(func() {
			id := fmt.Sprint("d", n%30)
			var err error
			switch n % 5 {
			case 0:
				err = s.AddDevice(t.Context(), store.Device{ID: fmt.Sprint("x", n)}, "eve", Start)
			case 1:
				err = s.Note(t.Context(), store.Event{At: Start, Kind: "note", Detail: "{}"})
			case 2:
				_, err = s.PutPolicy(t.Context(), "p", 0, "", []byte{byte(n)}, "eve", Start)
			default:
				err = s.Register(t.Context(), store.Attempt{Device: id, Peer: fmt.Sprint(n), Identity: identity(id), Answer: answer(id), Expires: Start.Add(time.Minute)}, Start)
				if err == nil {
					_, err = s.Activate(t.Context(), store.Activation{Device: id, Peer: fmt.Sprint(n), Answer: answer(id)}, Start)
				}
			}
			soft(t, err)
		})
	}
	group.Wait()
	head, err := one.VerifyChain(t.Context(), store.Head{})
	must(t, err)
	if head.Seq != 150 {
		t.Errorf("%d events, want 150", head.Seq)
	}
}

func testPrune(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	Enrol(t, s, "a")
	day := 24 * time.Hour
	keep := func(n int, status store.Status, raw string) []byte {
		at := Start.Add(time.Duration(n) * day)
		r := good(at, 1, 0, uint64(n))
		r.Status, r.Raw, r.Record, r.Due = status, []byte(raw), true, at.Add(100*day)
		e, err := s.Attest(ctx, state(t, s, "a", at), r)
		must(t, err)
		return e.Evidence
	}
	oldGood, oldBad := keep(0, store.Trusted, "old good"), keep(1, store.Untrusted, "old bad")
	both := keep(2, store.Untrusted, "both")
	keep(3, store.Trusted, "both") // once bad, kept as bad
	newGood := keep(10, store.Trusted, "new good")
	must(t, s.Register(ctx, store.Attempt{Device: "b", Identity: identity("b"), Expires: Start.Add(time.Minute)}, Start))
	must(t, s.NewSession(ctx, store.Session{ID: "s", Device: "a", Challenge: []byte("c"), Expires: Start.Add(time.Minute)}, Start))
	prune := func(trusted, others int, now time.Time) int64 {
		n, err := s.Prune(ctx, Start.Add(time.Duration(trusted)*day), Start.Add(time.Duration(others)*day), now, 100)
		must(t, err)
		return n
	}
	have := func() (all string) {
		for _, sum := range [][]byte{oldGood, oldBad, both, newGood} {
			b, err := s.Evidence(ctx, sum)
			if err != nil {
				want(t, err, store.ErrNotFound)
				b = []byte("-")
			}
			all += string(b) + ","
		}
		return all
	}
	for _, c := range []struct {
		trusted, others int
		now             time.Time
		n               int64
		have            string
	}{
		{0, 0, Start, 0, "old good,old bad,both,new good,"},
		{5, 0, Start, 1, "-,old bad,both,new good,"},
		{5, 0, Start.Add(time.Hour), 2, "-,old bad,both,new good,"}, // session and attempt
		{5, 2, Start, 1, "-,-,both,new good,"},
		{11, 11, Start, 2, "-,-,-,-,"},
	} {
		if n := prune(c.trusted, c.others, c.now); n != c.n || have() != c.have {
			t.Errorf("prune %d, %d: deleted %d, left %s", c.trusted, c.others, n, have())
		}
	}
	_, err := s.VerifyChain(ctx, store.Head{})
	must(t, err)
}

// Somebody puts a bomb into the database: 1 GiB of zeros behind a small size.
func testBomb(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	Enrol(t, s, "a")
	r := good(Start, 1, 0, 1)
	r.Raw = []byte("evidence")
	e, err := s.Attest(ctx, state(t, s, "a", Start), r)
	must(t, err)
	w, err := zstd.NewWriter(nil)
	must(t, err)
	var bomb strings.Builder
	w.Reset(&bomb)
	zeros := make([]byte, 1<<20)
	for range 1024 {
		_, err := w.Write(zeros)
		must(t, err)
	}
	must(t, w.Close())
	for _, size := range []int64{8, store.MaxBody, 1 << 40, -1} {
		tamper(t, url, `UPDATE evidence SET body = $1, size = $2`, []byte(bomb.String()), size)
		if _, err := s.Evidence(ctx, e.Evidence); err == nil {
			t.Errorf("size %d: unpacked", size)
		}
	}
}

func testJobs(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	for n := range 20 {
		must(t, s.Enqueue(ctx, store.Notice{Target: "hook", Payload: []byte{byte(n)}}, Start))
	}
	stores := []*store.Store{s, reopen(t, url)}
	var mu sync.Mutex
	seen := map[string]int{}
	var jobs []store.Job
	var group sync.WaitGroup
	for n := range 10 {
		group.Go(func() {
			got, err := stores[n%2].Jobs(ctx, "hook", 4, time.Minute, Start)
			soft(t, err)
			mu.Lock()
			defer mu.Unlock()
			for _, j := range got {
				seen[j.ID]++
				jobs = append(jobs, j)
			}
		})
	}
	group.Wait()
	// With SKIP LOCKED a worker may come home with less than it asked for.
	rest, err := s.Jobs(ctx, "", 20, time.Minute, Start)
	must(t, err)
	for _, j := range rest {
		seen[j.ID]++
	}
	jobs = append(jobs, rest...)
	if len(seen) != 20 || len(jobs) != 20 {
		t.Fatalf("%d jobs, %d given out", len(seen), len(jobs))
	}
	must(t, s.Done(ctx, jobs[0]))
	want(t, s.Done(ctx, jobs[0]), store.ErrConflict)
	must(t, s.Retry(ctx, jobs[1], "answer 503", Start.Add(time.Hour)))
	must(t, s.Retry(ctx, jobs[2], "answer 410", time.Time{}))
	dead, err := s.DeadLetters(ctx, 10)
	must(t, err)
	if len(dead) != 1 || dead[0].ID != jobs[2].ID || dead[0].Error != "answer 410" || dead[0].Payload[0] != jobs[2].Payload[0] {
		t.Errorf("dead letters: %+v", dead)
	}
	// The leases of the other 17 run out: a dead worker loses nothing.
	again, err := s.Jobs(ctx, "", 100, time.Minute, Start.Add(time.Minute))
	must(t, err)
	if len(again) != 17 || again[0].Attempts != 2 {
		t.Errorf("%d jobs after the lease, %+v", len(again), again)
	}
	want(t, s.Done(ctx, jobs[5]), store.ErrConflict) // by the worker that was too slow
	must(t, s.Revive(ctx, jobs[2].ID, "eve", Start))
	got, err := s.Jobs(ctx, "", 100, time.Minute, Start)
	must(t, err)
	if len(got) != 1 || got[0].ID != jobs[2].ID || got[0].Attempts != 1 {
		t.Errorf("revived: %+v", got)
	}
	// An event and its notices come together.
	Enrol(t, s, "a")
	r := good(Start, 1, 0, 1)
	r.Status, r.Notices = store.Untrusted, []store.Notice{{Target: "hook", Payload: []byte("x")}}
	e, err := s.Attest(ctx, state(t, s, "a", Start), r)
	must(t, err)
	got, err = s.Jobs(ctx, "", 100, time.Minute, Start)
	must(t, err)
	if len(got) != 1 || got[0].Event != e.Seq {
		t.Errorf("notice of event %d: %+v", e.Seq, got)
	}
}

func testTokens(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	k := store.Token{Name: "ci", Role: "reader", Created: Start, Expires: Start.Add(time.Hour)}
	must(t, s.PutToken(ctx, k, answer("secret"), "eve"))
	want(t, s.PutToken(ctx, k, answer("other"), "eve"), store.ErrExists)
	k.Name = "copy"
	want(t, s.PutToken(ctx, k, answer("secret"), "eve"), store.ErrExists)
	must(t, s.PutToken(ctx, store.Token{Name: "root", Role: "admin", Created: Start}, answer("for ever"), "eve"))
	for _, c := range []struct {
		secret string
		now    time.Time
		name   string
	}{
		{"secret", Start, "ci"},
		{"secret", Start.Add(time.Hour), ""},
		{"Secret", Start, ""},
		{"for ever", Start.Add(1000 * time.Hour), "root"},
	} {
		got, err := s.Token(ctx, answer(c.secret), c.now)
		if c.name == "" {
			want(t, err, store.ErrNotFound)
		}
		if got.Name != c.name {
			t.Errorf("%s at %v: %+v, %v", c.secret, c.now, got, err)
		}
	}
	must(t, s.DeleteToken(ctx, "ci", "eve", Start))
	want(t, s.DeleteToken(ctx, "ci", "eve", Start), store.ErrNotFound)
	if all, err := s.Tokens(ctx); err != nil || len(all) != 1 || all[0].Role != "admin" {
		t.Errorf("tokens: %+v, %v", all, err)
	}
	if head, err := s.VerifyChain(ctx, store.Head{}); err != nil || head.Seq != 3 {
		t.Errorf("events: %+v, %v", head, err)
	}
}
