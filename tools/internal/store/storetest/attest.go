package storetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

func testAttest(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	Enrol(t, s, "a")
	st := state(t, s, "a", Start)
	if st.Counters != nil || st.Verdict.Status != store.Unverified || st.LastIndex != -1 || st.Pending != nil || string(st.AK.SPKI) != "spki of AK a" {
		t.Errorf("new state: %+v", st)
	}
	r := good(Start, 1, 0, 100)
	r.Evidence, r.Appraise, r.Raw, r.Fitted, r.Detail = []byte("offset 7"), []byte("seen"), []byte("the log"), "image 42", json.RawMessage(`{"n":1}`)
	e, err := s.Attest(ctx, st, r)
	must(t, err)
	if e == nil || e.Status != store.Trusted || e.Device != "a" || e.Seq == 0 {
		t.Fatalf("event of the first verdict: %+v", e)
	}
	if kept, err := s.Evidence(ctx, e.Evidence); err != nil || string(kept) != "the log" {
		t.Errorf("evidence: %q, %v", kept, err)
	}
	later := Start.Add(time.Minute)
	st = state(t, s, "a", later)
	if *st.Counters != *r.Counters || string(st.Evidence) != "offset 7" || string(st.Appraise) != "seen" {
		t.Errorf("state: %+v", st)
	}
	v := st.Verdict
	if v.Status != store.Trusted || v.Fitted != "image 42" || string(v.Detail) != `{"n":1}` || !v.Since.Equal(Start) || v.Total != 1 || v.Event != e.Seq {
		t.Errorf("verdict: %+v", v)
	}
	// The same verdict again is no event; the reasons' codes are part of it; so is a demand.
	if e, err = s.Attest(ctx, st, good(later, 1, 0, 101)); err != nil || e != nil {
		t.Errorf("same verdict: %+v, %v", e, err)
	}
	bad := store.Result{Status: store.Broken, Codes: "quote.signature", At: later, Due: later.Add(time.Minute), Index: -1}
	e, err = s.Attest(ctx, state(t, s, "a", later), bad)
	if must(t, err); e == nil {
		t.Error("a broken quote made no event")
	}
	st = state(t, s, "a", later)
	if st.Counters == nil || st.Counters.Clock != 101 || st.Verdict.Status != store.Broken || !st.Verdict.Since.Equal(later) {
		t.Errorf("after a broken quote: %+v", st)
	}
	if e, err = s.Attest(ctx, st, bad); err != nil || e != nil {
		t.Errorf("broken again: %+v, %v", e, err)
	}
	bad.Codes = "quote.nonce"
	if e, err = s.Attest(ctx, state(t, s, "a", later), bad); err != nil || e == nil {
		t.Errorf("broken otherwise: %+v, %v", e, err)
	}
	bad.Record = true
	if e, err = s.Attest(ctx, state(t, s, "a", later), bad); err != nil || e == nil {
		t.Errorf("on demand: %+v, %v", e, err)
	}
	_, err = s.Attest(ctx, state(t, s, "a", later), good(later, 2, 0, 5)) // a reset set the clock back
	must(t, err)
	_, err = s.VerifyChain(ctx, store.Head{})
	must(t, err)
}

// after says whether a counter that wraps around has passed b.
func after(a, b uint32) bool { return a != b && a-b < 1<<31 }

// The counters that were accepted rise strictly, whatever comes in whatever order.
func testCounters(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	var device int
	rapid.Check(t, func(rt *rapid.T) {
		device++
		id := fmt.Sprint("d", device)
		Enrol(t, s, id)
		var last *store.Counters
		stale := state(t, s, id, Start)
		for range rapid.IntRange(1, 12).Draw(rt, "quotes") {
			c := store.Counters{
				Reset:   rapid.SampledFrom([]uint32{0, 1, 2, 1 << 31, math.MaxUint32}).Draw(rt, "reset"),
				Restart: rapid.SampledFrom([]uint32{0, 1, math.MaxUint32}).Draw(rt, "restart"),
				Clock:   rapid.SampledFrom([]uint64{0, 1, 2, 1 << 40, math.MaxInt64}).Draw(rt, "clock"),
			}
			st := state(t, s, id, Start)
			old := rapid.Bool().Draw(rt, "judged an old state")
			if old {
				st = stale
			}
			_, err := s.Attest(ctx, st, good(Start, c.Reset, c.Restart, c.Clock))
			rises := last == nil || after(c.Reset, last.Reset) || c.Reset == last.Reset &&
				(after(c.Restart, last.Restart) || c.Restart == last.Restart && c.Clock > last.Clock)
			switch {
			case !rises:
				if !errors.Is(err, store.ErrReplay) {
					rt.Fatalf("%+v after %+v: %v", c, last, err)
				}
			case old && last != nil:
				if !errors.Is(err, store.ErrConflict) {
					rt.Fatalf("judged an old state: %v", err)
				}
			case err != nil:
				rt.Fatalf("%+v after %+v: %v", c, last, err)
			default:
				last = &c
			}
		}
		if got := state(t, s, id, Start).Counters; (got == nil) != (last == nil) || got != nil && *got != *last {
			rt.Fatalf("stored %+v, accepted %+v", got, last)
		}
	})
}

// The same evidence reaches two verifiers many times at once: it is accepted once.
func testAttestRace(t *testing.T, url string) {
	one := open(t, url)
	stores := []*store.Store{one, reopen(t, url)}
	Enrol(t, one, "a")
	for round := range 20 {
		st := state(t, one, "a", Start)
		var mu sync.Mutex
		var accepted int
		var group sync.WaitGroup
		for n := range 10 {
			group.Go(func() {
				_, err := stores[n%2].Attest(t.Context(), st, good(Start, 1, 0, uint64(round)))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					accepted++
				} else {
					want(t, err, store.ErrReplay)
				}
			})
		}
		group.Wait()
		if accepted != 1 {
			t.Fatalf("round %d: accepted %d times", round, accepted)
		}
	}
	if v := state(t, one, "a", Start).Verdict; v.Total != 20 {
		t.Errorf("%d attestations", v.Total)
	}
}

func testAttestRefuses(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	Enrol(t, s, "a")
	fine := good(Start, 1, 0, 1)
	for name, spoil := range map[string]func(*store.Result){
		"trusted for ever":        func(r *store.Result) { r.Due = time.Time{} },
		"trusted without a quote": func(r *store.Result) { r.Counters = nil },
		"overdue":                 func(r *store.Result) { r.Status = store.Overdue },
		"no status":               func(r *store.Result) { r.Status = "" },
		"status with a newline":   func(r *store.Result) { r.Status = "trusted\n" },
		"clock out of range":      func(r *store.Result) { r.Counters = &store.Counters{Clock: math.MaxUint64} },
		"detail is not JSON":      func(r *store.Result) { r.Detail = json.RawMessage("{") },
		"detail too large":        func(r *store.Result) { r.Detail, _ = json.Marshal(string(make([]byte, store.MaxDetail))) },
		"codes with a NUL":        func(r *store.Result) { r.Codes = "a\x00" },
		"state too large":         func(r *store.Result) { r.Evidence = make([]byte, store.MaxState+1) },
		"evidence too large":      func(r *store.Result) { r.Raw = make([]byte, store.MaxBody+1) },
		"index never negotiated":  func(r *store.Result) { r.Index = 0 },
		"notice without end": func(r *store.Result) {
			r.Notices = []store.Notice{{Target: "x", Payload: make([]byte, store.MaxState+1)}}
		},
		"notice for a bad address": func(r *store.Result) { r.Notices = []store.Notice{{Target: "\xff"}} },
	} {
		r := fine
		spoil(&r)
		if _, err := s.Attest(ctx, state(t, s, "a", Start), r); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if v := state(t, s, "a", Start).Verdict; v.Status != store.Unverified || v.Total != 0 {
			t.Fatalf("%s: verdict %+v", name, v)
		}
	}
	off := false
	st := state(t, s, "a", Start)
	must(t, s.UpdateDevice(ctx, "a", store.Change{Attest: &off}, "eve", Start))
	_, err := s.Attest(ctx, st, fine)
	want(t, err, store.ErrConflict)
	_, err = s.Attest(ctx, state(t, s, "a", Start), fine)
	want(t, err, store.ErrConflict)
	must(t, s.DeleteDevice(ctx, "a", "eve", Start))
	_, err = s.Attest(ctx, st, fine)
	want(t, err, store.ErrNotFound)
	// The id came into other hands between reading and writing.
	must(t, s.Register(ctx, store.Attempt{Device: "a", Identity: identity("z"), Answer: answer("z"), Expires: Start.Add(time.Minute)}, Start))
	_, err = s.Activate(ctx, store.Activation{Device: "a", Answer: answer("z"), Attest: true}, Start)
	must(t, err)
	_, err = s.Attest(ctx, st, fine)
	want(t, err, store.ErrConflict)
}

func testPending(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	Enrol(t, s, "a")
	Enrol(t, s, "b")
	for n := range int64(2) { // the second replaces the first
		i, err := s.Negotiate(ctx, "a", []byte{byte(n)}, Start.Add(time.Minute))
		if must(t, err); i != n {
			t.Errorf("index %d, want %d", i, n)
		}
	}
	st := state(t, s, "a", Start)
	if st.Pending == nil || st.Pending.Index != 1 || st.Pending.Body[0] != 1 || !st.Pending.Expires.Equal(Start.Add(time.Minute)) {
		t.Errorf("pending: %+v", st.Pending)
	}
	attest := func(index int64, at time.Time, clock uint64) error {
		r := good(at, 1, 0, clock)
		r.Index = index
		_, err := s.Attest(ctx, state(t, s, "a", at), r)
		return err
	}
	want(t, attest(0, Start, 10), store.ErrPending)
	want(t, attest(1, Start.Add(time.Minute+1000), 10), store.ErrPending) // late
	must(t, attest(1, Start, 10))
	want(t, attest(1, Start, 11), store.ErrPending) // used up
	want(t, attest(1, Start, 10), store.ErrReplay)
	if st = state(t, s, "a", Start); st.LastIndex != 1 || st.Pending != nil {
		t.Errorf("after: last %d, pending %+v", st.LastIndex, st.Pending)
	}
	if i, err := s.Negotiate(ctx, "b", nil, Start.Add(time.Minute)); err != nil || i != 0 {
		t.Errorf("first index of b: %d, %v", i, err)
	}
	off := false
	must(t, s.UpdateDevice(ctx, "b", store.Change{Attest: &off}, "eve", Start))
	_, err := s.Negotiate(ctx, "b", nil, Start.Add(time.Minute))
	want(t, err, store.ErrNotFound)
}

func testOverdue(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	for _, id := range []string{"green", "red", "new", "never"} {
		Enrol(t, s, id)
	}
	_, err := s.Attest(ctx, state(t, s, "green", Start), good(Start, 1, 0, 1))
	must(t, err)
	red := good(Start, 1, 0, 1)
	red.Status, red.Codes = store.Untrusted, "ima.unknown-file"
	_, err = s.Attest(ctx, state(t, s, "red", Start), red)
	must(t, err)
	at := func(id string, now time.Time) store.Status {
		d, err := s.Device(ctx, id, now)
		must(t, err)
		if st := state(t, s, id, now); st.Verdict.Status != d.Verdict.Status {
			t.Errorf("%s: state says %s, device says %s", id, st.Verdict.Status, d.Verdict.Status)
		}
		return d.Verdict.Status
	}
	due := Start.Add(5 * time.Minute)
	later := due.Add(time.Microsecond)
	if at("green", due) != store.Trusted || at("green", later) != store.Overdue || at("red", later) != store.Untrusted ||
		at("new", later) != store.Unverified || at("new", Start.Add(2*time.Hour)) != store.Overdue {
		t.Error("who is overdue when")
	}
	overdue, err := s.Devices(ctx, store.Filter{Status: store.Overdue}, "", 10, later)
	must(t, err)
	counts, err := s.CountDevices(ctx, later)
	must(t, err)
	if len(overdue) != 1 || overdue[0].ID != "green" || counts[store.Overdue] != 1 || counts[store.Trusted] != 0 || !overdue[0].Verdict.Since.Equal(due) {
		t.Errorf("overdue: %+v, counts %v", overdue, counts)
	}
	// Two verifiers sweep: one event for each device.
	stores := []*store.Store{s, reopen(t, url)}
	var mu sync.Mutex
	found := map[string]int{}
	var group sync.WaitGroup
	for n := range 10 {
		group.Go(func() {
			events, err := stores[n%2].SweepOverdue(ctx, later, 100, []store.Notice{{Target: "hook"}})
			soft(t, err)
			mu.Lock()
			defer mu.Unlock()
			for _, e := range events {
				found[e.Device]++
			}
		})
	}
	group.Wait()
	if len(found) != 2 || found["green"] != 1 || found["red"] != 1 {
		t.Errorf("swept: %v", found)
	}
	if jobs, err := s.Jobs(ctx, "", 10, time.Minute, later); err != nil || len(jobs) != 1 { // the red one is bad already
		t.Errorf("notices: %v, %v", jobs, err)
	}
	// It comes back: an event, though the stored status never changed.
	e, err := s.Attest(ctx, state(t, s, "green", later), good(later, 1, 0, 2))
	if must(t, err); e == nil {
		t.Error("coming back made no event")
	}
	d, err := s.Device(ctx, "green", later)
	must(t, err)
	if d.Verdict.Status != store.Trusted || !d.Verdict.Since.Equal(later) {
		t.Errorf("came back: %+v", d.Verdict)
	}
	_, err = s.VerifyChain(ctx, store.Head{})
	must(t, err)
}
