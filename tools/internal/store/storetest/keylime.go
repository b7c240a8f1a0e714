package storetest

import (
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

const tenantKind = "of a tenant"

func testTenantAgents(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	Enrol(t, s, "a")
	Enrol(t, s, "b")
	epoch := func() int64 {
		n, err := s.PolicyEpoch(ctx)
		must(t, err)
		return n
	}
	put := func(fresh bool, bodies ...string) store.TenantPolicy {
		p := store.TenantPolicy{Name: "image", Kind: "runtime", New: fresh}
		for _, b := range bodies {
			p.Bodies = append(p.Bodies, []byte(b))
		}
		return p
	}
	change := func(c store.TenantChange) error { return s.ChangeByTenant(ctx, c, "tenant", Start) }

	before := epoch()
	must(t, change(store.TenantChange{Epoch: before, Policies: []store.TenantPolicy{put(true, "v1")}}))
	want(t, change(store.TenantChange{Epoch: before, Policies: []store.TenantPolicy{put(false, "v2")}}), store.ErrConflict)
	want(t, change(store.TenantChange{Epoch: epoch(), Policies: []store.TenantPolicy{put(true, "v2")}}), store.ErrExists)

	// One act of several parts happens whole or not at all.
	add := store.TenantChange{Epoch: epoch(), Assign: []string{"image.with.x"}, Due: Start.Add(time.Hour),
		Policies: []store.TenantPolicy{{Name: "image.with.x", Kind: tenantKind, Bodies: [][]byte{[]byte("v1 and pins")}, Derived: true}},
		MB:       &store.TenantMB{Name: "boot", Body: []byte("{}"), New: true},
		Agent:    &store.TenantAgent{Device: "nobody", Runtime: "image", MBPolicy: "boot", TPM: `{"7":[]}`, Settings: json.RawMessage(`{"x":1}`)}}
	want(t, change(add), store.ErrNotFound)
	if names, err := s.MBPolicies(ctx); err != nil || len(names) != 0 {
		t.Errorf("half of an act stayed: %q, %v", names, err)
	}
	add.Agent.Device, add.Epoch = "a", epoch()
	must(t, change(add))
	add.Epoch, add.MB = epoch(), nil
	want(t, change(add), store.ErrExists)
	a, err := s.TenantAgent(ctx, "a")
	if must(t, err); a.Runtime != "image" || a.MBPolicy != "boot" || a.TPM != `{"7":[]}` || string(a.Settings) != `{"x":1}` || !a.Created.Equal(Start) {
		t.Errorf("agent: %+v", a)
	}
	d, err := s.Device(ctx, "a", Start)
	if must(t, err); !slices.Equal(d.Policies, []string{"image.with.x"}) || !d.Attest {
		t.Errorf("device: %+v", d)
	}
	must(t, s.UpdateDevice(ctx, "b", store.Change{Policies: &[]string{"image"}}, "eve", Start))
	late := store.TenantChange{Epoch: epoch(), Agent: &store.TenantAgent{Device: "b", Settings: json.RawMessage(`{}`)}}
	want(t, change(late), store.ErrExists) // an operator was first
	must(t, s.UpdateDevice(ctx, "b", store.Change{Policies: &[]string{}}, "eve", Start))
	if ids, err := s.VerifierDevices(ctx, "", 10); err != nil || !slices.Equal(ids, []string{"a"}) {
		t.Errorf("devices of the verifier: %q, %v", ids, err)
	}
	for _, find := range [][2]string{{"image", ""}, {"", "boot"}} {
		if uses, err := s.TenantUses(ctx, find[0], find[1]); err != nil || len(uses) != 1 || uses[0].Device != "a" {
			t.Errorf("uses of %q: %+v, %v", find, uses, err)
		}
	}
	if uses, err := s.TenantUses(ctx, "", ""); err != nil || len(uses) != 0 {
		t.Errorf("uses of nothing: %+v, %v", uses, err)
	}
	want(t, s.DeletePolicy(ctx, "image", "tenant", Start), store.ErrInUse)
	want(t, s.DeleteMBPolicy(ctx, "boot", "tenant", Start), store.ErrInUse)

	// To go back is for an operator; what is derived may.
	must(t, change(store.TenantChange{Epoch: epoch(), Policies: []store.TenantPolicy{put(false, "v2")}}))
	want(t, change(store.TenantChange{Epoch: epoch(), Policies: []store.TenantPolicy{put(false, "v1")}}), store.ErrDowngrade)
	for _, body := range []string{"v2 and pins", "v1 and pins"} {
		must(t, change(store.TenantChange{Epoch: epoch(), Policies: []store.TenantPolicy{{Name: "image.with.x", Kind: tenantKind, Bodies: [][]byte{[]byte(body)}, Derived: true}}}))
		st := state(t, s, "a", Start)
		if got, err := s.PolicyBody(ctx, st.Policies[0].Digest); err != nil || len(st.Policies) != 1 || string(got) != body {
			t.Errorf("device has %q, want %q: %v", got, body, err)
		}
	}
	want(t, change(store.TenantChange{Epoch: epoch(), MB: &store.TenantMB{Name: "other", Body: []byte("{}")}}), store.ErrNotFound)
	must(t, change(store.TenantChange{Epoch: epoch(), MB: &store.TenantMB{Name: "boot", Body: []byte(`{"x":2}`)}}))
	if body, err := s.MBPolicy(ctx, "boot"); err != nil || string(body) != `{"x":2}` {
		t.Errorf("measured boot policy: %s, %v", body, err)
	}

	testStopped(t, s, change, epoch)
	must(t, s.RemoveFromVerifier(ctx, "a", tenantKind, true, "tenant", Start))
	want(t, s.RemoveFromVerifier(ctx, "nobody", tenantKind, true, "tenant", Start), store.ErrNotFound)
	_, err = s.TenantAgent(ctx, "a")
	want(t, err, store.ErrNotFound)
	if d, err = s.Device(ctx, "a", Start); err != nil || d.Attest || len(d.Policies) != 0 {
		t.Errorf("removed device: %+v, %v", d, err)
	}
	if left, err := s.Policies(ctx, "image.with.x"); err != nil || len(left) != 0 {
		t.Errorf("what was derived for the device stays: %+v, %v", left, err)
	}
	must(t, s.DeleteMBPolicy(ctx, "boot", "tenant", Start))
	must(t, s.DeletePolicy(ctx, "image", "tenant", Start))
	// A name that was deleted begins above its mark, so that nothing seems to go back.
	must(t, change(store.TenantChange{Epoch: epoch(), Policies: []store.TenantPolicy{put(true, "v1")}}))
	_, err = s.VerifyChain(ctx, store.Head{})
	must(t, err)
}

func testImport(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	device := func(id, tpm string) store.Imported {
		return store.Imported{Identity: identity(tpm), Device: id, Source: "Keylime", Labels: map[string]string{"imported": "yes"}, Due: Start.Add(time.Hour)}
	}
	for i, wantAdded := range []bool{true, false} {
		added, err := s.Import(ctx, device("a", "one"), "admin", Start)
		if must(t, err); added != wantAdded {
			t.Errorf("import %d: added is %t", i+1, added)
		}
	}
	_, err := s.Import(ctx, device("a", "two"), "admin", Start)
	want(t, err, store.ErrIdentity)
	_, err = s.Import(ctx, device("b", "one"), "admin", Start)
	want(t, err, store.ErrIdentity)
	d, err := s.Device(ctx, "a", Start)
	if must(t, err); d.State != store.Active || d.Verdict.Status != store.Unverified || d.Labels["imported"] != "yes" || d.RegCount != 1 {
		t.Errorf("imported: %+v", d)
	}
	must(t, s.AddDevice(ctx, store.Device{ID: "c", Attest: true}, "op", Start))
	if added, err := s.Import(ctx, device("c", "three"), "admin", Start); err != nil || !added {
		t.Errorf("an expected device: %t, %v", added, err)
	}
	events, err := s.Events(ctx, "a", 0, 10)
	if must(t, err); len(events) != 1 || events[0].Kind != "device-imported" || events[0].Actor != "admin" {
		t.Errorf("events: %+v", events)
	}
	// It enrols as the device that it is, which is not its first time.
	id := identity("one")
	must(t, s.Register(ctx, store.Attempt{Device: "a", Identity: id, Answer: answer("a"), Expires: Start.Add(time.Minute)}, Start))
	if first, err := s.Activate(ctx, store.Activation{Device: "a", Answer: answer("a"), Attest: true, Due: Start.Add(time.Hour)}, Start); err != nil || first {
		t.Errorf("enrolled afterwards: first %t, %v", first, err)
	}
	_, err = s.VerifyChain(ctx, store.Head{})
	must(t, err)
}

// testStopped: what an operator stopped no tenant lets attest again, nor forgets.
func testStopped(t *testing.T, s *store.Store, change func(store.TenantChange) error, epoch func() int64) {
	t.Helper()
	ctx := t.Context()
	Enrol(t, s, "stopped")
	attest := func(may, tenant bool) error {
		return s.UpdateDevice(ctx, "stopped", store.Change{Attest: &may, Tenant: tenant}, "eve", Start)
	}
	add := func() error {
		return change(store.TenantChange{Tenant: true, Epoch: epoch(), Due: Start.Add(time.Hour), Agent: &store.TenantAgent{Device: "stopped", Settings: json.RawMessage(`{}`)}})
	}
	must(t, add())
	must(t, attest(false, true))
	must(t, attest(true, true)) // its own word
	must(t, s.RemoveFromVerifier(ctx, "stopped", tenantKind, true, "tenant", Start))
	must(t, add())
	must(t, attest(false, false))
	for _, do := range []func() error{func() error { return nil }, func() error { return attest(false, true) },
		func() error { return s.RemoveFromVerifier(ctx, "stopped", tenantKind, true, "tenant", Start) }} {
		must(t, do())
		want(t, attest(true, true), store.ErrStopped)
		want(t, s.ForgetDevice(ctx, "stopped", "tenant", Start), store.ErrStopped)
	}
	want(t, add(), store.ErrStopped)
	must(t, attest(true, false))
	must(t, add())
	must(t, s.ForgetDevice(ctx, "stopped", "tenant", Start))
	want(t, s.ForgetDevice(ctx, "stopped", "tenant", Start), store.ErrNotFound)
}

// testTenantRace adds and removes devices that share a policy: none is left without it while
// it has it.
func testTenantRace(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	var group sync.WaitGroup
	for _, id := range []string{"a", "b", "c"} {
		Enrol(t, s, id)
		group.Go(func() {
			for n := 0; n < 15; {
				epoch, err := s.PolicyEpoch(ctx)
				soft(t, err)
				err = s.ChangeByTenant(ctx, store.TenantChange{Tenant: true, Epoch: epoch, Due: Start.Add(time.Hour), Assign: []string{"image.with.x"},
					Policies: []store.TenantPolicy{{Name: "image.with.x", Kind: tenantKind, Bodies: [][]byte{[]byte("v1")}, Derived: true}},
					Agent:    &store.TenantAgent{Device: id, Settings: json.RawMessage(`{}`)}}, "tenant", Start)
				if errors.Is(err, store.ErrConflict) {
					continue
				}
				soft(t, err)
				time.Sleep(time.Millisecond)
				if st, err := s.State(ctx, id, Start); err != nil || len(st.Policies) != 1 {
					t.Errorf("%s has no policy: %v", id, err)
				}
				soft(t, s.RemoveFromVerifier(ctx, id, tenantKind, true, "tenant", Start))
				n++
			}
		})
	}
	group.Wait()
	if left, err := s.Policies(ctx, ""); err != nil || len(left) != 0 {
		t.Errorf("policies of nobody: %+v, %v", left, err)
	}
}
