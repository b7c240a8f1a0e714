package storetest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// activate is what the server does for an operator.
func activate(t *testing.T, s *store.Store, name string, versions []int64, downgrade bool) error {
	epoch, err := s.PolicyEpoch(t.Context())
	must(t, err)
	return s.ChangePolicies(t.Context(), store.PolicyChange{Epoch: epoch,
		Activate: &store.ActivePolicy{Name: name, Versions: versions, Downgrade: downgrade}}, "eve", Start)
}

func testPolicyVersions(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	put := func(name string, version int64, body string) (store.PolicyRef, error) {
		return s.PutPolicy(ctx, name, version, "manifest", []byte(body), "eve", Start)
	}
	one, err := put("image", 0, "body 1")
	must(t, err)
	sum := sha256.Sum256([]byte("body 1"))
	if one.Version != 1 || !bytes.Equal(one.Digest, sum[:]) {
		t.Errorf("first revision: %+v", one)
	}
	again, err := put("image", 0, "body 1")
	if must(t, err); again.Version != 1 {
		t.Errorf("same body: %+v", again)
	}
	_, err = put("image", 1, "another body")
	want(t, err, store.ErrExists)
	_, err = put("image", 2, "body 1")
	want(t, err, store.ErrExists)
	for version, body := range map[int64]string{41: "body 41", 42: "body 42", 43: "body 43"} {
		_, err = put("image", version, body)
		must(t, err)
	}
	if _, err = put("other", 0, "body 42"); err != nil { // shares the body
		t.Error(err)
	}
	Enrol(t, s, "a", "image", "other")
	allowed := func() (versions []int64) {
		for _, p := range state(t, s, "a", Start).Policies {
			if p.Name != "image" || p.Kind != "manifest" {
				t.Errorf("allowed: %+v", p)
			}
			versions = append(versions, p.Version)
		}
		return versions
	}
	if len(allowed()) != 0 {
		t.Error("a revision is active before anyone activated it")
	}
	for _, step := range []struct {
		versions  []int64
		downgrade bool
		err       error
	}{
		{[]int64{41}, false, nil},
		{[]int64{42, 41, 41}, false, nil}, // roll-out
		{[]int64{41}, false, store.ErrDowngrade},
		{[]int64{42}, false, nil},
		{[]int64{42, 41}, false, store.ErrDowngrade}, // allows an old one anew
		{nil, false, nil},
		{[]int64{41}, false, store.ErrDowngrade},
		{[]int64{42, 44}, false, store.ErrNotFound},
		{[]int64{43}, false, nil},
		{[]int64{41}, true, nil},
		{[]int64{42}, false, nil},
	} {
		before := allowed()
		err := activate(t, s, "image", step.versions, step.downgrade)
		if !errors.Is(err, step.err) || (err == nil) != (step.err == nil) {
			t.Errorf("to %d: %v, want %v", step.versions, err, step.err)
		}
		expect := slices.Compact(slices.Sorted(slices.Values(step.versions)))
		slices.Reverse(expect)
		if err != nil {
			expect = before
		}
		if got := allowed(); !slices.Equal(got, expect) {
			t.Errorf("to %d: allowed %d, want %d", step.versions, got, expect)
		}
	}
	want(t, s.DeletePolicy(ctx, "image", "eve", Start), store.ErrInUse)
	must(t, s.UpdateDevice(ctx, "a", store.Change{Policies: &[]string{}}, "eve", Start))
	must(t, s.DeletePolicy(ctx, "image", "eve", Start))
	want(t, s.DeletePolicy(ctx, "image", "eve", Start), store.ErrNotFound)
	_, err = s.PolicyBody(ctx, one.Digest)
	want(t, err, store.ErrNotFound)
	all, err := s.Policies(ctx, "")
	must(t, err)
	if len(all) != 1 || all[0].Name != "other" || all[0].Size != 7 {
		t.Errorf("left: %+v", all)
	}
	if body, err := s.PolicyBody(ctx, all[0].Digest); err != nil || string(body) != "body 42" {
		t.Errorf("shared body: %q, %v", body, err)
	}
	// Deleting does not forget how far it was: the way back is closed all the same.
	_, err = put("image", 41, "body 41")
	must(t, err)
	want(t, activate(t, s, "image", []int64{41}, false), store.ErrDowngrade)
	events, err := s.Events(ctx, "", 0, 100)
	must(t, err)
	if n := len(slices.DeleteFunc(events, func(e store.Event) bool { return e.Kind != "policy-downgraded" || e.Actor != "eve" })); n != 1 {
		t.Errorf("%d events of a downgrade, want 1", n)
	}
	testVersionsNeverDecrease(t, s)
}

func testVersionsNeverDecrease(t *testing.T, s *store.Store) {
	for v := range int64(6) {
		_, err := s.PutPolicy(t.Context(), "p", v+1, "", []byte{byte(v)}, "eve", Start)
		must(t, err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		must(t, activate(t, s, "p", []int64{1}, true))
		active, highest := []int64{1}, int64(1)
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			next := rapid.SliceOfNDistinct(rapid.Int64Range(1, 6), 0, 3, rapid.ID[int64]).Draw(rt, "versions")
			err := activate(t, s, "p", next, false)
			if err != nil && !errors.Is(err, store.ErrDowngrade) {
				rt.Fatal(err)
			}
			if err != nil {
				continue
			}
			for _, v := range next {
				if v < highest && !slices.Contains(active, v) {
					rt.Fatalf("%d became active after %d", v, highest)
				}
			}
			if len(next) > 0 && slices.Max(next) < highest {
				rt.Fatalf("from %d to %d", highest, next)
			}
			active = next
			if len(next) > 0 {
				highest = slices.Max(next)
			}
		}
	})
}

// What was judged by an old policy, or by the policies of before, is not written.
func testPolicyChange(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	for _, body := range []string{"1", "2"} {
		_, err := s.PutPolicy(ctx, "image", 0, "manifest", []byte(body), "eve", Start)
		must(t, err)
	}
	must(t, activate(t, s, "image", []int64{1}, false))
	Enrol(t, s, "a", "image")
	other := reopen(t, url)
	for n, change := range []func() error{
		func() error { return activate(t, other, "image", []int64{2}, false) },
		func() error {
			return other.UpdateDevice(ctx, "a", store.Change{Policies: &[]string{}}, "eve", Start)
		},
		func() error { return activate(t, other, "image", nil, false) },
	} {
		st := state(t, s, "a", Start)
		must(t, change())
		_, err := s.Attest(ctx, st, good(Start, 1, 0, uint64(n)))
		want(t, err, store.ErrConflict)
		_, err = s.Attest(ctx, state(t, s, "a", Start), good(Start, 1, 0, uint64(n)))
		must(t, err)
	}
}

func testLargePolicy(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	body := make([]byte, store.MaxBody)
	if _, err := rand.Read(body[:store.MaxBody/4]); err != nil { // the rest compresses
		t.Fatal(err)
	}
	ref, err := s.PutPolicy(ctx, "large", 0, "", body, "eve", Start)
	must(t, err)
	got, err := s.PolicyBody(ctx, ref.Digest)
	must(t, err)
	if !bytes.Equal(got, body) {
		t.Error("the body came back changed")
	}
	if _, err := s.PutPolicy(ctx, "large", 0, "", make([]byte, store.MaxBody+1), "eve", Start); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a larger one: %v", err)
	}
	tamper(t, url, `UPDATE policy_body SET body = $1, size = 3`, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x03, 0x19, 0, 0, 'x', 'y', 'z'})
	_, err = s.PolicyBody(ctx, ref.Digest)
	want(t, err, store.ErrChain)
}
