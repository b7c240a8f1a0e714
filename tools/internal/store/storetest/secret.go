package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// sealed makes a body that says what it is of.
func sealed(r store.SecretRef) ([]byte, error) {
	return fmt.Appendf(nil, "%s %d", r.Name, r.Revision), nil
}

func putSecret(t *testing.T, s *store.Store, name string) store.SecretRef {
	t.Helper()
	ref, err := s.PutSecret(t.Context(), name, "run", 5, sealed, "eve", Start)
	must(t, err)
	return ref
}

// refsOf are the names and revisions that a device gets.
func refsOf(t *testing.T, s *store.Store, device string) string {
	t.Helper()
	refs, err := s.SecretRefs(t.Context(), device)
	must(t, err)
	all, err := s.SecretsOf(t.Context(), device, "", 100)
	must(t, err)
	var names []string
	for i, r := range refs {
		names = append(names, fmt.Sprintf("%s %d", r.Name, r.Revision))
		if len(all) != len(refs) || all[i].SecretRef != r || string(all[i].Body) != names[i] || all[i].Run != "run" {
			t.Errorf("the secret of %v is %+v", r, all)
		}
	}
	return strings.Join(names, ", ")
}

func testSecrets(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	Enrol(t, s, "a")
	Enrol(t, s, "b")
	edge := "edge"
	must(t, s.UpdateDevice(ctx, "b", store.Change{Group: &edge}, "eve", Start))
	if got := putSecret(t, s, "web"); got != (store.SecretRef{Name: "web", Revision: 1}) {
		t.Errorf("first revision: %v", got)
	}
	putSecret(t, s, "db")
	if got := refsOf(t, s, "a"); got != "" {
		t.Errorf("before it was assigned: %s", got)
	}
	must(t, s.AssignSecret(ctx, "web", store.Grant{Devices: []string{"a", "a"}, Groups: []string{"edge"}}, store.Grant{}, "eve", Start))
	must(t, s.AssignSecret(ctx, "db", store.Grant{Devices: []string{"b"}, Groups: []string{"edge"}}, store.Grant{}, "eve", Start))
	want(t, s.AssignSecret(ctx, "web", store.Grant{Devices: []string{"c"}}, store.Grant{}, "eve", Start), store.ErrNotFound)
	want(t, s.AssignSecret(ctx, "none", store.Grant{}, store.Grant{}, "eve", Start), store.ErrNotFound)
	if err := s.AssignSecret(ctx, "web", store.Grant{Groups: []string{""}}, store.Grant{}, "eve", Start); err == nil {
		t.Error("devices without a group got a secret")
	}
	expect := func(a, b string) {
		t.Helper()
		if gotA, gotB := refsOf(t, s, "a"), refsOf(t, s, "b"); gotA != a || gotB != b {
			t.Errorf("a gets %q, b gets %q, want %q and %q", gotA, gotB, a, b)
		}
	}
	expect("web 1", "db 1, web 1")
	if got := putSecret(t, s, "web"); got.Revision != 2 {
		t.Errorf("second revision: %v", got)
	}
	expect("web 2", "db 1, web 2")
	page, err := s.SecretsOf(ctx, "b", "db", 1)
	if must(t, err); len(page) != 1 || page[0].Name != "web" {
		t.Errorf("after db: %+v", page)
	}
	all, err := s.Secrets(ctx, "")
	must(t, err)
	wantAll := []store.Secret{
		{SecretRef: store.SecretRef{Name: "db", Revision: 1}, Run: "run", Size: 5, Created: Start, Grant: store.Grant{Devices: []string{"b"}, Groups: []string{"edge"}}},
		{SecretRef: store.SecretRef{Name: "web", Revision: 2}, Run: "run", Size: 5, Created: Start, Grant: store.Grant{Devices: []string{"a"}, Groups: []string{"edge"}}},
	}
	if d := cmp.Diff(wantAll, all); d != "" {
		t.Errorf("list (-want +got):\n%s", d)
	}

	must(t, s.AssignSecret(ctx, "web", store.Grant{}, store.Grant{Devices: []string{"a", "x"}}, "eve", Start))
	must(t, s.AssignSecret(ctx, "db", store.Grant{}, store.Grant{Groups: []string{"edge"}}, "eve", Start))
	expect("", "db 1, web 2")
	none := ""
	must(t, s.UpdateDevice(ctx, "b", store.Change{Group: &none}, "eve", Start))
	expect("", "db 1")
	// What a device of that id had, another TPM under that id does not get.
	must(t, s.DeleteDevice(ctx, "b", "eve", Start))
	Enrol(t, s, "b")
	expect("", "")

	must(t, s.DeleteSecret(ctx, "web", "eve", Start))
	want(t, s.DeleteSecret(ctx, "web", "eve", Start), store.ErrNotFound)
	want(t, s.AssignSecret(ctx, "web", store.Grant{Devices: []string{"a"}}, store.Grant{}, "eve", Start), store.ErrNotFound)
	must(t, s.UpdateDevice(ctx, "b", store.Change{Group: &edge}, "eve", Start))
	if got := putSecret(t, s, "web"); got.Revision != 3 {
		t.Errorf("a revision was used again: %v", got)
	}
	expect("", "")

	must(t, s.ReplaceSecretBody(ctx, store.SecretRef{Name: "web", Revision: 3}, []byte("new"), "eve", Start))
	want(t, s.ReplaceSecretBody(ctx, store.SecretRef{Name: "web", Revision: 2}, []byte("new"), "eve", Start), store.ErrConflict)
	bodies, err := s.SecretBodies(ctx, "db", 10)
	if must(t, err); len(bodies) != 1 || string(bodies[0].Body) != "new" {
		t.Errorf("bodies: %+v", bodies)
	}
	failed := errors.New("no key")
	_, err = s.PutSecret(ctx, "web", "", 1, func(store.SecretRef) ([]byte, error) { return nil, failed }, "eve", Start)
	want(t, err, failed)
	if all, err := s.Secrets(ctx, "web"); err != nil || len(all) != 1 || all[0].Revision != 3 {
		t.Errorf("after a secret that could not be encrypted: %+v, %v", all, err)
	}
	_, err = s.VerifyChain(ctx, store.Head{})
	must(t, err)
}

func testSecretBounds(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	large := func(store.SecretRef) ([]byte, error) { return make([]byte, store.MaxSecretBody+1), nil }
	if _, err := s.PutSecret(ctx, "large", "", 1, large, "eve", Start); err == nil {
		t.Error("a body that is too large was taken")
	}
	for n := range store.MaxSecrets {
		putSecret(t, s, fmt.Sprint("s", n))
	}
	_, err := s.PutSecret(ctx, "one-more", "", 1, sealed, "eve", Start)
	want(t, err, store.ErrTooMany)
	putSecret(t, s, "s0")
	must(t, s.DeleteSecret(ctx, "s1", "eve", Start))
	putSecret(t, s, "one-more")
}

// testRelease takes each fact that a release depends on away, after the state was read.
func testRelease(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	clock := uint64(0)
	group := "edge"
	judge := func(status store.Status) {
		t.Helper()
		clock++
		r := good(Start, 1, 0, clock)
		r.Status, r.Due = status, Start.Add(time.Minute)
		_, err := s.Attest(ctx, state(t, s, "a", Start), r)
		must(t, err)
	}
	web := store.SecretRef{Name: "web", Revision: 1}
	begin := func() *store.State {
		t.Helper()
		Enrol(t, s, "a")
		web = putSecret(t, s, "web")
		must(t, s.UpdateDevice(ctx, "a", store.Change{Group: &group}, "eve", Start))
		must(t, s.AssignSecret(ctx, "web", store.Grant{Groups: []string{"edge"}}, store.Grant{}, "eve", Start))
		clock = 0
		judge(store.Trusted)
		return state(t, s, "a", Start)
	}
	st := begin()
	must(t, s.ReleaseSecrets(ctx, st, []store.SecretRef{web}, "key", Start))
	events, err := s.Events(ctx, "a", 0, 1)
	if must(t, err); len(events) != 1 || events[0].Kind != "secret-released" || events[0].Detail != `{"key":"key","secrets":[{"name":"web","revision":1}]}` {
		t.Errorf("event: %+v", events)
	}
	want(t, s.ReleaseSecrets(ctx, st, []store.SecretRef{web}, "key", Start.Add(2*time.Minute)), store.ErrUntrusted) // overdue
	count := func() int {
		t.Helper()
		all, err := s.Events(ctx, "", 0, 10_000)
		must(t, err)
		return len(slices.DeleteFunc(all, func(e store.Event) bool { return e.Kind != "secret-released" }))
	}
	off, other := false, "other"
	for name, change := range map[string]func(){
		"red":        func() { judge(store.Untrusted) },
		"broken":     func() { judge(store.Broken) },
		"unverified": func() { judge(store.Unverified) },
		"red, green": func() { judge(store.Untrusted); judge(store.Trusted) },
		"disabled":   func() { must(t, s.UpdateDevice(ctx, "a", store.Change{Attest: &off}, "eve", Start)) },
		"group":      func() { must(t, s.UpdateDevice(ctx, "a", store.Change{Group: &other}, "eve", Start)) },
		"policy": func() {
			_, err := s.PutPolicy(ctx, "p", 0, "manifest", fmt.Appendf(nil, "body %d", count()), "eve", Start)
			must(t, err)
			must(t, s.ActivatePolicy(ctx, "p", []int64{1}, true, "eve", Start))
		},
		"unassigned": func() {
			must(t, s.AssignSecret(ctx, "web", store.Grant{}, store.Grant{Groups: []string{"edge"}}, "eve", Start))
		},
		"replaced": func() { putSecret(t, s, "web") },
		"deleted":  func() { must(t, s.DeleteSecret(ctx, "web", "eve", Start)) },
	} {
		must(t, s.DeleteDevice(ctx, "a", "eve", Start))
		st := begin()
		change()
		before := count()
		if err := s.ReleaseSecrets(ctx, st, []store.SecretRef{web}, "key", Start); !errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
		if count() != before {
			t.Errorf("%s: an event says that it was released", name)
		}
	}
	must(t, s.DeleteDevice(ctx, "a", "eve", Start))
	st = begin()
	must(t, s.DeleteDevice(ctx, "a", "eve", Start))
	want(t, s.ReleaseSecrets(ctx, st, []store.SecretRef{web}, "key", Start), store.ErrNotFound)
	begin()
	judge(store.Untrusted)
	want(t, s.ReleaseSecrets(ctx, state(t, s, "a", Start), []store.SecretRef{web}, "key", Start), store.ErrUntrusted)
	_, err = s.VerifyChain(ctx, store.Head{})
	must(t, err)
}

// testReleaseRace releases while verdicts turn red: by the chain of events, no release
// comes after a red verdict and before the next green one.
func testReleaseRace(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	Enrol(t, s, "a")
	web := putSecret(t, s, "web")
	must(t, s.AssignSecret(ctx, "web", store.Grant{Devices: []string{"a"}}, store.Grant{}, "eve", Start))
	done := make(chan struct{})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				st, err := s.State(ctx, "a", Start)
				if err == nil && st.Verdict.Status == store.Trusted {
					err = s.ReleaseSecrets(ctx, st, []store.SecretRef{web}, "key", Start)
				}
				if err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrUntrusted) {
					t.Error(err)
					return
				}
			}
		})
	}
	for clock := range uint64(60) {
		r := good(Start, 1, 0, clock+1)
		if clock%2 == 1 {
			r.Status = store.Untrusted
		}
		_, err := s.Attest(ctx, state(t, s, "a", Start), r)
		must(t, err)
		time.Sleep(2 * time.Millisecond)
	}
	close(done)
	group.Wait()
	events, err := s.Events(ctx, "a", 0, 100_000)
	must(t, err)
	slices.Reverse(events)
	status, releases := store.Unverified, 0
	for _, e := range events {
		if e.Status != "" {
			status = e.Status
		}
		if e.Kind == "secret-released" {
			if releases++; status != store.Trusted {
				t.Errorf("event %d: released while %s", e.Seq, status)
			}
		}
	}
	if releases == 0 {
		t.Error("nothing was released")
	}
	t.Logf("%d releases among %d events", releases, len(events))
}

// testReleaseTakenRace gives a secret and takes it away while devices ask for it: none is
// released that was taken away.
func testReleaseTakenRace(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	web := putSecret(t, s, "web")
	done := make(chan struct{})
	var group sync.WaitGroup
	devices := store.Grant{}
	for i := range 4 {
		id := string(rune('a' + i))
		Enrol(t, s, id)
		_, err := s.Attest(ctx, state(t, s, id, Start), good(Start, 1, 0, 1))
		must(t, err)
		devices.Devices = append(devices.Devices, id)
	}
	for _, id := range devices.Devices {
		st := state(t, s, id, Start)
		group.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := s.ReleaseSecrets(ctx, st, []store.SecretRef{web}, "key", Start); err != nil && !errors.Is(err, store.ErrConflict) {
					t.Error(err)
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	for range 30 {
		must(t, s.AssignSecret(ctx, "web", devices, store.Grant{}, "eve", Start))
		time.Sleep(time.Millisecond)
		must(t, s.AssignSecret(ctx, "web", store.Grant{}, devices, "eve", Start))
	}
	close(done)
	group.Wait()
	events, err := s.Events(ctx, "", 0, 100_000)
	must(t, err)
	slices.Reverse(events)
	assigned, releases := false, 0
	for _, e := range events {
		switch e.Kind {
		case "secret-assigned":
			assigned = strings.Contains(e.Detail, `"not_devices":null`)
		case "secret-released":
			if releases++; !assigned {
				t.Errorf("event %d: released after it was taken away", e.Seq)
			}
		}
	}
	if releases == 0 {
		t.Error("nothing was released")
	}
	t.Logf("%d releases among %d events", releases, len(events))
}
