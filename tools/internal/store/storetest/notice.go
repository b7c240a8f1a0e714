package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// A worker takes the jobs of its target only, so that a slow one keeps nobody else waiting.
func testJobTargets(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	for _, target := range []string{"webhook:a", "webhook:ab", "webhook:a:b", "revocation", "revocation:x", "webhook"} {
		must(t, s.Enqueue(ctx, store.Notice{Target: target}, Start))
	}
	for target, n := range map[string]int{"webhook:a": 2, "webhook:a_": 0, "revocation": 2, "web": 0} {
		jobs, err := s.Jobs(ctx, target, 10, time.Minute, Start)
		must(t, err)
		if len(jobs) != n {
			t.Errorf("%s: %d jobs, want %d: %+v", target, len(jobs), n, jobs)
		}
		if target != "revocation" || len(jobs) == 0 {
			continue
		}
		// One job becomes several, once.
		must(t, s.Split(ctx, jobs[0], []store.Notice{{Target: "revocation:1"}, {Target: "revocation:2"}}, Start))
		want(t, s.Split(ctx, jobs[0], []store.Notice{{Target: "revocation:3"}}, Start), store.ErrConflict)
	}
	all, err := s.Queue(ctx, 100)
	must(t, err)
	if len(all) != 7 {
		t.Errorf("%d jobs are left, want 7: %+v", len(all), all)
	}
	must(t, s.Drop(ctx, all[0].ID, "eve", Start))
	want(t, s.Drop(ctx, all[0].ID, "eve", Start), store.ErrConflict)
	want(t, s.Revive(ctx, all[1].ID, "eve", Start), store.ErrConflict) // it is not dead
	if waiting, dead, err := s.CountJobs(ctx); err != nil || waiting != 6 || dead != 0 {
		t.Errorf("%d waiting, %d dead: %v", waiting, dead, err)
	}
	if head, err := s.VerifyChain(ctx, store.Head{}); err != nil || head.Seq != 1 {
		t.Errorf("events: %+v, %v", head, err)
	}
}

// What nobody took is forgotten in the end, and not what is still tried.
func testPruneJobs(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	for _, target := range []string{"dead", "gone", "tried", "revived"} {
		must(t, s.Enqueue(ctx, store.Notice{Target: target}, Start))
	}
	later := Start.Add(time.Hour)
	for target, at := range map[string]time.Time{"dead": {}, "tried": later, "revived": {}} {
		jobs, err := s.Jobs(ctx, target, 1, time.Minute, Start)
		if must(t, err); len(jobs) != 1 {
			t.Fatalf("%s: %+v", target, jobs)
		}
		must(t, s.Retry(ctx, jobs[0], "answer 503", at))
		if target == "revived" {
			must(t, s.Revive(ctx, jobs[0].ID, "eve", later))
		}
	}
	for _, want := range []int64{1, 1, 0} {
		if n, err := s.PruneJobs(ctx, later, 1); err != nil || n != want {
			t.Errorf("%d jobs pruned, want %d: %v", n, want, err)
		}
	}
	if all, err := s.Queue(ctx, 10); err != nil || len(all) != 2 || all[0].Target == "gone" || all[1].Target == "gone" {
		t.Errorf("left: %+v, %v", all, err)
	}
}

// Others are told that a verdict turned bad, and that it is good again, and nothing else.
func testAlarms(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	for _, id := range []string{"a", "b", "c"} {
		Enrol(t, s, id)
		must(t, s.UpdateDevice(ctx, id, store.Change{Group: ptr(map[string]string{"a": "g", "b": "g", "c": "other"}[id]), Labels: ptr(map[string]string{"n": id})}, "eve", Start))
	}
	clock := uint64(0)
	attest := func(id string, status store.Status) int64 {
		t.Helper()
		clock++
		r := good(Start, 1, 0, clock)
		r.Status, r.Record, r.Notices = status, true, []store.Notice{{Target: "hook"}, {Target: store.TargetGroup}}
		if status == store.Unverified {
			r.Notices = nil // as the caller has it
		}
		e, err := s.Attest(ctx, state(t, s, id, Start), r)
		must(t, err)
		return e.Seq
	}
	jobs := func(n int) {
		t.Helper()
		got, err := s.Jobs(ctx, "", 100, time.Minute, Start)
		must(t, err)
		if len(got) != n {
			t.Errorf("%d jobs, want %d: %+v", len(got), n, got)
		}
		for _, j := range got {
			must(t, s.Done(ctx, j))
		}
	}
	has := func(group string, after int64, want ...int64) {
		t.Helper()
		all, err := s.Alarms(ctx, group, after, 100)
		must(t, err)
		var seqs []int64
		for _, a := range all {
			seqs = append(seqs, a.Seq)
		}
		if fmt.Sprint(seqs) != fmt.Sprint(want) {
			t.Errorf("alarms of %s after %d: %v, want %v", group, after, seqs, want)
		}
	}
	attest("a", store.Trusted)
	jobs(0) // it was never bad
	has("g", 0)
	first := attest("a", store.Untrusted)
	jobs(1)
	attest("a", store.Unverified)
	good := attest("a", store.Trusted)
	jobs(1)
	attest("a", store.Trusted)
	jobs(0)
	has("g", 0, good) // the last one of a device
	has("g", first, good)
	has("g", good)
	bad := attest("b", store.Broken)
	foreign := attest("c", store.Untrusted)
	has("g", 0, good, bad)
	has("other", 0, foreign)
	if last, err := s.LastAlarm(ctx); err != nil || last != foreign {
		t.Errorf("last alarm %d, want %d: %v", last, foreign, err)
	}
	if groups, err := s.AlarmedGroups(ctx, good, bad); err != nil || fmt.Sprint(groups) != "[g]" {
		t.Errorf("groups with alarms: %v, %v", groups, err)
	}
	if g, err := s.Group(ctx, "c"); err != nil || g != "other" {
		t.Errorf("group of c: %q, %v", g, err)
	}
	_, err := s.Group(ctx, "nobody")
	want(t, err, store.ErrNotFound)
	// What is told is what was so at that time.
	must(t, s.UpdateDevice(ctx, "b", store.Change{Group: ptr("moved"), Labels: ptr(map[string]string{})}, "eve", Start))
	a, err := s.Alarm(ctx, bad)
	must(t, err)
	e, err := s.Event(ctx, bad)
	must(t, err)
	if a.Device != "b" || a.Group != "g" || a.Labels["n"] != "b" || a.Status != store.Broken || string(a.Hash) != string(e.Hash) || !a.At.Equal(e.At) {
		t.Errorf("alarm: %+v", a)
	}
	jobs(2)
	must(t, s.DeleteDevice(ctx, "b", "eve", Start))
	if n, err := s.PruneAlarms(ctx, Start.Add(-time.Hour), 100); err != nil || n != 1 { // the first of a
		t.Errorf("pruned %d alarms, want 1: %v", n, err)
	}
	has("g", 0, good, bad)
	if n, err := s.PruneAlarms(ctx, Start.Add(time.Hour), 100); err != nil || n != 1 { // that of b
		t.Errorf("pruned %d alarms, want 1: %v", n, err)
	}
	has("g", 0, good)
	if _, err := s.Alarm(ctx, first); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("alarm %d: %v", first, err)
	}
	last := attest("a", store.Broken)
	for seq, want := range map[int64]bool{good: true, last: false} {
		a, err := s.Alarm(ctx, seq)
		must(t, err)
		if again, err := s.BadAgain(ctx, a); err != nil || again != want {
			t.Errorf("bad again after %d: %t, %v", seq, again, err)
		}
	}
}

func ptr[T any](v T) *T { return &v }
