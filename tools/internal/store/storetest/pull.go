package storetest

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// A device is polled by one at a time, and again by another when the first one dies.
func testPull(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	want(t, s.SetPull(ctx, "a", store.PullSettings{}, "eve", Start), store.ErrNotFound)
	Enrol(t, s, "a")
	must(t, s.AddDevice(ctx, store.Device{ID: "expected", Attest: true}, "eve", Start))
	Enrol(t, s, "stopped")
	must(t, s.UpdateDevice(ctx, "stopped", store.Change{Attest: new(bool)}, "eve", Start))
	share := bytes.Repeat([]byte{7}, store.ShareSize)
	for _, bad := range []store.PullSettings{{Contact: "agent.example:9002"}, {Contact: "10.0.0.1"}, {Contact: "10.0.0.1:0"},
		{Contact: "[fe80::1%eth0]:9002"}, {Share: share[1:]}, {Version: "123456789"}} {
		if err := s.SetPull(ctx, "a", bad, "eve", Start); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	for _, id := range []string{"a", "expected", "stopped"} {
		must(t, s.SetPull(ctx, id, store.PullSettings{Contact: "192.0.2.7:9002", Share: share}, "eve", Start))
	}
	claim := func(now time.Time, n int) []store.PullClaim {
		t.Helper()
		claims, err := s.ClaimPulls(ctx, 10, time.Minute, now)
		must(t, err)
		if len(claims) != n {
			t.Fatalf("%d claims, want %d: %+v", len(claims), n, claims)
		}
		return claims
	}
	// The two that may not attest are nobody's turn.
	first := claim(Start, 1)[0]
	if first.Device != "a" || first.Contact != "192.0.2.7:9002" || !bytes.Equal(first.Share, share) || first.IP != "192.0.2.1" || first.Port != 9002 {
		t.Errorf("claimed %+v", first)
	}
	claim(Start, 0)
	second := claim(Start.Add(time.Minute), 1)[0] // the first one died
	want(t, s.EndClaim(ctx, first, store.PullResult{Next: Start, Handed: true}, Start), store.ErrConflict)
	must(t, s.EndClaim(ctx, second, store.PullResult{Next: Start.Add(time.Hour), Version: "2.2", Error: "connection refused"}, Start))
	p, err := s.Pull(ctx, "a")
	must(t, err)
	if p.Failures != 1 || p.Error != "connection refused" || !p.Waiting || p.Version != "2.2" || !p.Handed.IsZero() || !p.Next.Equal(Start.Add(time.Hour)) {
		t.Errorf("after a failure: %+v", p)
	}
	third := claim(Start.Add(time.Hour), 1)[0]
	checkShare(t, s, third, second, Start.Add(time.Hour))
	must(t, s.EndClaim(ctx, third, store.PullResult{Next: Start.Add(2 * time.Hour), Version: "2.2", Handed: true}, Start.Add(time.Hour)))
	if p, err = s.Pull(ctx, "a"); err != nil || p.Failures != 0 || p.Error != "" || p.Waiting || !p.Handed.Equal(Start.Add(time.Hour)) {
		t.Errorf("after the share was handed over: %+v, %v", p, err)
	}
	if c := claim(Start.Add(2*time.Hour), 1)[0]; c.Share != nil {
		t.Error("a share that was handed over is still there")
	}
	// New settings end the poll that is under way.
	fourth := claim(Start.Add(4*time.Hour), 1)[0]
	must(t, s.SetPull(ctx, "a", store.PullSettings{Share: share}, "eve", Start))
	want(t, s.EndClaim(ctx, fourth, store.PullResult{Next: Start, Handed: true}, Start), store.ErrConflict)
	if p, err = s.Pull(ctx, "a"); err != nil || !p.Waiting || p.Contact != "" {
		t.Errorf("after new settings: %+v, %v", p, err)
	}
	if all, err := s.Pulls(ctx, "", "a", 10); err != nil || len(all) != 2 || all[0].Device != "expected" {
		t.Errorf("polled devices after a: %+v, %v", all, err)
	}
	if all, err := s.Pulls(ctx, "another", "", 10); err != nil || len(all) != 0 {
		t.Errorf("polled devices of another group: %+v, %v", all, err)
	}
	must(t, s.EndPull(ctx, "a", "eve", Start))
	want(t, s.EndPull(ctx, "a", "eve", Start), store.ErrNotFound)
	testPullAgain(t, s, share)
	must(t, s.DeleteDevice(ctx, "stopped", "eve", Start))
	_, err = s.Pull(ctx, "stopped")
	want(t, err, store.ErrNotFound)
	if _, err := s.VerifyChain(ctx, store.Head{}); err != nil {
		t.Error(err)
	}
}

// testPullAgain takes a device away while it is polled and adds it anew, as Keylime's tenant
// updates one: what came of the old poll says nothing of the new share.
func testPullAgain(t *testing.T, s *store.Store, share []byte) {
	t.Helper()
	ctx := t.Context()
	poll := func() store.PullClaim {
		t.Helper()
		must(t, s.SetPull(ctx, "a", store.PullSettings{Share: share}, "tenant", Start))
		claims, err := s.ClaimPulls(ctx, 1, time.Minute, Start)
		if must(t, err); len(claims) != 1 {
			t.Fatalf("claims %+v", claims)
		}
		return claims[0]
	}
	old := poll()
	must(t, s.EndPull(ctx, "a", "tenant", Start))
	poll()
	want(t, s.ReleaseShare(ctx, old, Start.Add(time.Hour)), store.ErrConflict)
	want(t, s.EndClaim(ctx, old, store.PullResult{Next: Start, Handed: true}, Start), store.ErrConflict)
	if p, err := s.Pull(ctx, "a"); err != nil || !p.Waiting {
		t.Errorf("added anew: %+v, %v", p, err)
	}
	must(t, s.EndPull(ctx, "a", "tenant", Start))
}

// checkShare releases the share of the device that a poller has, which nobody judged yet.
func checkShare(t *testing.T, s *store.Store, has, had store.PullClaim, now time.Time) {
	t.Helper()
	ctx := t.Context()
	want(t, s.ReleaseShare(ctx, has, now), store.ErrUntrusted)
	_, err := s.Attest(ctx, state(t, s, has.Device, now), good(now, 1, 0, 1))
	must(t, err)
	want(t, s.ReleaseShare(ctx, had, now), store.ErrConflict)
	want(t, s.ReleaseShare(ctx, has, now.Add(6*time.Minute)), store.ErrUntrusted) // overdue
	must(t, s.UpdateDevice(ctx, has.Device, store.Change{Attest: new(bool)}, "eve", now))
	want(t, s.ReleaseShare(ctx, has, now), store.ErrConflict)
	may := true
	must(t, s.UpdateDevice(ctx, has.Device, store.Change{Attest: &may}, "eve", now))
	must(t, s.ReleaseShare(ctx, has, now))
	events, err := s.Events(ctx, has.Device, 0, 1)
	if must(t, err); len(events) != 1 || events[0].Kind != "share-released" {
		t.Errorf("events: %+v", events)
	}
	want(t, s.ReleaseShare(ctx, store.PullClaim{Pull: store.Pull{Device: "nobody"}}, now), store.ErrConflict)
}

// Many pollers share the devices: each is one's alone.
func testPullRace(t *testing.T, url string) {
	s, other, ctx := open(t, url), reopen(t, url), t.Context()
	const devices = 20
	for i := range devices {
		id := "d" + string(rune('a'+i))
		Enrol(t, s, id)
		must(t, s.SetPull(ctx, id, store.PullSettings{}, "eve", Start))
	}
	var mu sync.Mutex
	seen := map[string]int{}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			db := s
			if i%2 == 1 {
				db = other
			}
			for range 10 {
				claims, err := db.ClaimPulls(ctx, 3, time.Hour, Start)
				soft(t, err)
				mu.Lock()
				for _, c := range claims {
					seen[c.Device]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != devices {
		t.Errorf("%d of %d devices were claimed", len(seen), devices)
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("device %s was claimed %d times", id, n)
		}
	}
}
