package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

func testEnrolment(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	a := store.Attempt{Device: "a", Identity: identity("a"), Answer: answer("right"), Expires: Start.Add(time.Minute)}
	must(t, s.Register(ctx, a, Start))
	_, err := s.Device(ctx, "a", Start)
	want(t, err, store.ErrNotFound) // an attempt is not a device
	first, err := s.Activate(ctx, store.Activation{Device: "a", Answer: answer("right"), Group: "lab", Attest: true, Due: Start.Add(time.Hour)}, Start)
	must(t, err)
	d, err := s.Device(ctx, "a", Start)
	must(t, err)
	if !first || d.State != store.Active || d.RegCount != 1 || d.Group != "lab" || d.Verdict.Status != store.Unverified || !cmp.Equal(d.Identity, a.Identity) {
		t.Errorf("first time %v, device %+v", first, d)
	}
	_, err = s.Activate(ctx, store.Activation{Device: "a", Answer: answer("right")}, Start)
	want(t, err, store.ErrProof) // an answer is used up

	// The agent starts anew, with another address and another certificate.
	a.IP, a.TLSCert, a.EK.Public, a.Answer = "192.0.2.2", []byte("new"), []byte("other attributes"), answer("second")
	must(t, s.Register(ctx, a, Start))
	first, err = s.Activate(ctx, store.Activation{Device: "a", Answer: answer("second"), Group: "other"}, Start)
	must(t, err)
	d, err = s.Device(ctx, "a", Start)
	must(t, err)
	if first || d.RegCount != 2 || d.IP != "192.0.2.2" || string(d.TLSCert) != "new" || d.Group != "lab" || !d.Attest || string(d.EK.Public) != "area of EK a" {
		t.Errorf("first time %v, device %+v", first, d)
	}

	// An operator pinned the EK of a device that is to come.
	must(t, s.AddDevice(ctx, store.Device{ID: "p", Identity: store.Identity{EK: key("EK p")}, Group: "pinned", Attest: true}, "eve", Start))
	want(t, s.Register(ctx, store.Attempt{Device: "p", Identity: identity("q"), Expires: Start.Add(time.Minute)}, Start), store.ErrIdentity)
	Enrol(t, s, "p")
	if d, err = s.Device(ctx, "p", Start); err != nil || d.Group != "pinned" || d.State != store.Active {
		t.Errorf("pinned device: %+v, %v", d, err)
	}
	_, err = s.VerifyChain(ctx, store.Head{})
	must(t, err)
}

func testFailedEnrolment(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	Enrol(t, s, "a")
	Enrol(t, s, "b")
	before, err := s.Device(ctx, "a", Start)
	must(t, err)
	events, err := s.Events(ctx, "", 0, 100)
	must(t, err)

	mixed := func(ek, ak string) store.Identity { return store.Identity{EK: key(ek), AK: key(ak)} }
	for _, c := range []struct {
		name, id string
		identity store.Identity
	}{
		{"another TPM", "a", identity("c")},
		{"another AK", "a", mixed("EK a", "AK c")},
		{"another EK", "a", mixed("EK c", "AK a")},
		{"the AK of b", "a", mixed("EK a", "AK b")},
		{"a's TPM under another id", "c", identity("a")},
		{"a's EK under another id", "c", mixed("EK a", "AK c")},
		{"a's AK under another id", "c", mixed("EK c", "AK a")},
		{"b's TPM", "a", identity("b")},
	} {
		err := s.Register(ctx, store.Attempt{Device: c.id, Identity: c.identity, Answer: answer("x"), Expires: Start.Add(time.Minute)}, Start)
		if !errors.Is(err, store.ErrIdentity) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// Wrong answers to an attempt of the device itself: three tries, and none of them hurts.
	must(t, s.Register(ctx, store.Attempt{Device: "a", Identity: identity("a"), Answer: answer("right"), Expires: Start.Add(time.Minute)}, Start))
	for range 3 {
		_, err := s.Activate(ctx, store.Activation{Device: "a", Answer: answer("wrong")}, Start)
		want(t, err, store.ErrProof)
	}
	_, err = s.Activate(ctx, store.Activation{Device: "a", Answer: answer("right")}, Start)
	want(t, err, store.ErrProof)
	// Late.
	must(t, s.Register(ctx, store.Attempt{Device: "a", Identity: identity("a"), Answer: answer("right"), Expires: Start.Add(time.Minute)}, Start))
	_, err = s.Activate(ctx, store.Activation{Device: "a", Answer: answer("right")}, Start.Add(time.Minute))
	want(t, err, store.ErrProof)
	// Another peer's wrong answers do not count against it.
	must(t, s.Register(ctx, store.Attempt{Device: "a", Peer: "2001:db8::1", Identity: identity("a"), Answer: answer("mine"), Expires: Start.Add(time.Minute)}, Start))
	for range 5 {
		_, err := s.Activate(ctx, store.Activation{Device: "a", Peer: "2001:db8::2", Answer: answer("mine")}, Start)
		want(t, err, store.ErrProof)
	}

	after, err := s.Device(ctx, "a", Start)
	must(t, err)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the enrolled record changed: %s", diff)
	}
	now, err := s.Events(ctx, "", 0, 100)
	must(t, err)
	if len(now) != len(events) {
		t.Errorf("%d events were written by strangers", len(now)-len(events))
	}
	_, err = s.Activate(ctx, store.Activation{Device: "a", Peer: "2001:db8::1", Answer: answer("mine")}, Start)
	must(t, err)
}

func testEnrolmentBounds(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	register := func(device, peer string, n int, now time.Time) error {
		name := fmt.Sprintf("%s %s %d", device, peer, n)
		return s.Register(ctx, store.Attempt{Device: device, Peer: peer, Identity: identity(name), Answer: answer(name), Expires: now.Add(time.Minute)}, now)
	}
	// One peer pushes out its own oldest attempts, and only these.
	must(t, register("a", "honest", 0, Start))
	for n := range 3 * store.MaxAttemptsPeer {
		must(t, register("a", "flood", n, Start.Add(time.Duration(n)*time.Millisecond)))
	}
	_, err := s.Activate(ctx, store.Activation{Device: "a", Peer: "flood", Answer: answer("a flood 0")}, Start)
	want(t, err, store.ErrProof)
	_, err = s.Activate(ctx, store.Activation{Device: "a", Peer: "honest", Answer: answer("a honest 0")}, Start)
	must(t, err)
	// Many peers are stopped.
	var refused error
	for n := 0; n < 2*store.MaxAttemptsDevice && refused == nil; n++ {
		refused = register("b", fmt.Sprint(n), n, Start)
	}
	want(t, refused, store.ErrTooMany)
	must(t, register("c", "", 0, Start))
	must(t, register("b", "late", 0, Start.Add(time.Minute))) // the others have expired
	var many sync.WaitGroup
	errs := make(chan error, store.MaxAttempts+1)
	for n := range store.MaxAttempts + 1 {
		many.Go(func() { errs <- register(fmt.Sprint("d", n), "", n, Start.Add(time.Minute)) })
	}
	many.Wait()
	close(errs)
	var taken int
	for err := range errs {
		if err == nil {
			taken++
		} else if !errors.Is(err, store.ErrTooMany) {
			t.Fatal(err)
		}
	}
	if taken > store.MaxAttempts {
		t.Errorf("%d attempts were taken, at most %d should", taken, store.MaxAttempts)
	}
	// Whom the verifier knows has room all the same.
	want(t, register("stranger", "", 0, Start.Add(time.Minute)), store.ErrTooMany)
	must(t, s.Register(ctx, store.Attempt{Device: "a", Identity: identity("a honest 0"), Answer: answer("again"), Expires: Start.Add(time.Hour)}, Start.Add(time.Minute)))
	must(t, s.AddDevice(ctx, store.Device{ID: "named"}, "eve", Start))
	must(t, register("named", "", 0, Start.Add(time.Minute)))
}

// 100 TPMs fight for the id of a device that is enrolled, while it registers anew.
func testReRegistrationRace(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	Enrol(t, s, "victim")
	var group sync.WaitGroup
	for n := range 100 {
		group.Go(func() {
			name := fmt.Sprint("thief", n)
			want(t, s.Register(ctx, store.Attempt{Device: "victim", Peer: name, Identity: identity(name), Answer: answer(name), Expires: Start.Add(time.Minute)}, Start), store.ErrIdentity)
			_, err := s.Activate(ctx, store.Activation{Device: "victim", Peer: name, Answer: answer(name)}, Start)
			want(t, err, store.ErrProof)
		})
	}
	group.Go(func() {
		soft(t, s.Register(ctx, store.Attempt{Device: "victim", Peer: "v", Identity: identity("victim"), Answer: answer("v"), Expires: Start.Add(time.Minute)}, Start))
		_, err := s.Activate(ctx, store.Activation{Device: "victim", Peer: "v", Answer: answer("v")}, Start)
		soft(t, err)
	})
	group.Wait()
	d, err := s.Device(ctx, "victim", Start)
	must(t, err)
	if string(d.EK.SPKI) != "spki of EK victim" || d.RegCount != 2 {
		t.Errorf("victim: %+v", d)
	}
}

// 100 TPMs fight for an id that nobody has, and one TPM for 100 ids: of each exactly one
// wins. Two stores stand for two verifiers.
func testFirstRegistrationRace(t *testing.T, url string) {
	one := open(t, url)
	stores := []*store.Store{one, reopen(t, url)}
	race := func(who func(n int) (id, tpm string)) {
		var mu sync.Mutex
		var won []string
		var group sync.WaitGroup
		for n := range 100 {
			s := stores[n%2]
			group.Go(func() {
				id, tpm := who(n)
				peer := fmt.Sprint(n % 20)
				ans := answer(id + tpm)
				err := s.Register(t.Context(), store.Attempt{Device: id, Peer: peer, Identity: identity(tpm), Answer: ans, Expires: Start.Add(time.Minute)}, Start)
				if err == nil {
					_, err = s.Activate(t.Context(), store.Activation{Device: id, Peer: peer, Answer: ans}, Start)
				}
				if err == nil {
					mu.Lock()
					won = append(won, id+" "+tpm)
					mu.Unlock()
				} else if !errors.Is(err, store.ErrIdentity) && !errors.Is(err, store.ErrTooMany) && !errors.Is(err, store.ErrProof) {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if len(won) != 1 {
			t.Errorf("%d won: %v", len(won), won)
		}
	}
	race(func(n int) (string, string) { return "prize", fmt.Sprint("tpm", n) })
	race(func(n int) (string, string) { return fmt.Sprint("id", n), "shared" })
	all, err := one.Devices(t.Context(), store.Filter{}, "", 1000, Start)
	must(t, err)
	if len(all) != 2 {
		t.Errorf("%d devices, want 2", len(all))
	}
	_, err = one.VerifyChain(t.Context(), store.Head{})
	must(t, err)
}

func testSessions(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	Enrol(t, s, "a")
	want(t, s.NewSession(ctx, store.Session{ID: "s0", Device: "nobody", Expires: Start.Add(time.Minute)}, Start), store.ErrNotFound)
	must(t, s.NewSession(ctx, store.Session{ID: "s1", Device: "a", Challenge: []byte("c"), Expires: Start.Add(time.Minute)}, Start))
	want(t, s.NewSession(ctx, store.Session{ID: "s1", Device: "a", Challenge: []byte("d"), Expires: Start.Add(time.Minute)}, Start), store.ErrExists)
	want(t, s.ProveSession(ctx, "s1", answer("t"), Start.Add(time.Hour), Start), store.ErrProof) // not taken
	got, err := s.TakeSession(ctx, "s1", Start)
	must(t, err)
	if got.Device != "a" || string(got.Challenge) != "c" || !got.Expires.Equal(Start.Add(time.Minute)) {
		t.Errorf("session: %+v", got)
	}
	_, err = s.TakeSession(ctx, "s1", Start)
	want(t, err, store.ErrProof)
	must(t, s.ProveSession(ctx, "s1", answer("token"), Start.Add(time.Hour), Start))
	want(t, s.ProveSession(ctx, "s1", answer("another"), Start.Add(time.Hour), Start), store.ErrProof)
	device := func(token string, now time.Time) string {
		d, err := s.TokenDevice(ctx, answer(token), now)
		if err != nil {
			want(t, err, store.ErrNotFound)
		}
		return d
	}
	if device("token", Start) != "a" || device("another", Start) != "" || device("token", Start.Add(time.Hour)) != "" {
		t.Error("token")
	}
	must(t, s.NewSession(ctx, store.Session{ID: "late", Device: "a", Challenge: []byte("c"), Expires: Start.Add(time.Minute)}, Start))
	_, err = s.TakeSession(ctx, "late", Start.Add(time.Minute))
	want(t, err, store.ErrProof)
}

func testSessionBounds(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	Enrol(t, s, "a")
	Enrol(t, s, "b")
	prove := func(device, id string, now time.Time) {
		must(t, s.NewSession(ctx, store.Session{ID: id, Device: device, Challenge: []byte("c"), Expires: now.Add(time.Minute)}, now))
		_, err := s.TakeSession(ctx, id, now)
		must(t, err)
		must(t, s.ProveSession(ctx, id, answer(id), now.Add(time.Hour), now))
	}
	prove("b", "b", Start)
	for n := range store.MaxTokens + 1 {
		prove("a", fmt.Sprint("t", n), Start.Add(time.Duration(n)*time.Second))
	}
	for n := range 10 * store.MaxChallenges {
		must(t, s.NewSession(ctx, store.Session{ID: fmt.Sprint("flood", n), Device: "a", Challenge: []byte("c"), Expires: Start.Add(time.Hour)}, Start.Add(time.Duration(n)*time.Second)))
	}
	var alive []string
	for _, id := range []string{"b", "t0", "t1", "t4"} {
		if _, err := s.TokenDevice(ctx, answer(id), Start.Add(time.Minute)); err == nil {
			alive = append(alive, id)
		}
	}
	if want := []string{"b", "t1", "t4"}; !slices.Equal(alive, want) {
		t.Errorf("tokens alive: %v, want %v", alive, want)
	}
	var n int
	must(t, Raw(t, url).QueryRow(`SELECT count(*) FROM session`).Scan(&n))
	if n != 1+store.MaxTokens+store.MaxChallenges {
		t.Errorf("%d sessions", n)
	}
}
