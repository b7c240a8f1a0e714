// Package storetest is the contract of package store as tests, to be run against each
// database that it can use.
package storetest

import (
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// Run tests the contract. Each test gets a database of its own from newDB, which returns
// the URL of one that is empty or that does not exist yet.
func Run(t *testing.T, newDB func(testing.TB) string) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, string)
	}{
		{"Schema", testSchema},
		{"NewerSchema", testNewerSchema},
		{"Devices", testDevices},
		{"HostileIDs", testHostileIDs},
		{"Enrolment", testEnrolment},
		{"FailedEnrolmentChangesNothing", testFailedEnrolment},
		{"EnrolmentBounds", testEnrolmentBounds},
		{"ReRegistrationRace", testReRegistrationRace},
		{"FirstRegistrationRace", testFirstRegistrationRace},
		{"Sessions", testSessions},
		{"SessionBounds", testSessionBounds},
		{"Attest", testAttest},
		{"Counters", testCounters},
		{"AttestRace", testAttestRace},
		{"AttestRefuses", testAttestRefuses},
		{"Pending", testPending},
		{"Overdue", testOverdue},
		{"PolicyVersions", testPolicyVersions},
		{"PolicyChangeStopsJudgement", testPolicyChange},
		{"LargePolicy", testLargePolicy},
		{"Chain", testChain},
		{"ChainManyWriters", testChainManyWriters},
		{"EvidenceAndPrune", testPrune},
		{"EvidenceBomb", testBomb},
		{"Jobs", testJobs},
		{"JobTargets", testJobTargets},
		{"PruneJobs", testPruneJobs},
		{"Alarms", testAlarms},
		{"Pull", testPull},
		{"PullRace", testPullRace},
		{"Tokens", testTokens},
		{"TenantAgents", testTenantAgents},
		{"TenantRace", testTenantRace},
		{"Import", testImport},
		{"Secrets", testSecrets},
		{"SecretBounds", testSecretBounds},
		{"Release", testRelease},
		{"ReleaseRace", testReleaseRace},
		{"ReleaseTakenRace", testReleaseTakenRace},
		{"BadWriteInBatch", testBadWriteInBatch},
		{"Closed", testClosed},
		{"Crash", testCrash},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, newDB(t)) })
	}
}

// Start is when the tests happen.
var Start = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

func key(name string) store.Key {
	return store.Key{SPKI: []byte("spki of " + name), Public: []byte("area of " + name)}
}

// identity is that of the TPM with this name.
func identity(tpm string) store.Identity {
	return store.Identity{EK: key("EK " + tpm), AK: key("AK " + tpm), EKCerts: []byte("cert " + tpm), IP: "192.0.2.1", Port: 9002}
}

func answer(s string) [32]byte { return sha256.Sum256([]byte(s)) }

// Enrol takes a device through registration and activation.
func Enrol(t testing.TB, s *store.Store, id string, policies ...string) {
	t.Helper()
	must(t, s.Register(t.Context(), store.Attempt{Device: id, Identity: identity(id), Answer: answer(id), Expires: Start.Add(time.Minute)}, Start))
	_, err := s.Activate(t.Context(), store.Activation{Device: id, Answer: answer(id), Policies: policies, Attest: true, Due: Start.Add(time.Hour)}, Start)
	must(t, err)
}

func state(t testing.TB, s *store.Store, id string, now time.Time) *store.State {
	t.Helper()
	st, err := s.State(t.Context(), id, now)
	must(t, err)
	return st
}

// good is the result of a quote with these counters.
func good(at time.Time, reset, restart uint32, clock uint64) store.Result {
	return store.Result{Status: store.Trusted, At: at, Due: at.Add(5 * time.Minute), Index: -1,
		Counters: &store.Counters{Reset: reset, Restart: restart, Clock: clock}}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// soft is must for goroutines, which must not end a test.
func soft(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func want(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("got %v, want %v", err, target)
	}
}

// Raw opens the database as somebody else would, to change what the store would not.
func Raw(t testing.TB, url string) *sql.DB {
	t.Helper()
	driver := "sqlite"
	if strings.HasPrefix(url, "postgres:") {
		driver = "pgx"
	} else {
		url = "file:" + url + "?_pragma=busy_timeout(10000)"
	}
	db, err := sql.Open(driver, url)
	must(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func tamper(t testing.TB, url, q string, args ...any) {
	t.Helper()
	r, err := Raw(t, url).Exec(q, args...)
	must(t, err)
	if n, err := r.RowsAffected(); err != nil || n == 0 {
		t.Fatalf("%s: changed %d rows, %v", q, n, err)
	}
}

func testSchema(t *testing.T, url string) {
	_, err := store.Open(t.Context(), url)
	want(t, err, store.ErrSchema)
	before, after, err := store.Migrate(t.Context(), url)
	must(t, err)
	if before != 0 || after < 1 {
		t.Errorf("migrated from %d to %d", before, after)
	}
	if again, same, err := store.Migrate(t.Context(), url); err != nil || again != after || same != after {
		t.Errorf("second migration: from %d to %d, %v", again, same, err)
	}
	must(t, reopen(t, url).Ping(t.Context()))
}

// A database of a newer program is usable as long as that one says so.
func testNewerSchema(t *testing.T, url string) {
	open(t, url)
	tamper(t, url, `UPDATE schema_version SET version = version + 1`)
	reopen(t, url)
	tamper(t, url, `UPDATE schema_version SET compatible = version`)
	_, err := store.Open(t.Context(), url)
	want(t, err, store.ErrSchema)
	_, _, err = store.Migrate(t.Context(), url)
	want(t, err, store.ErrSchema)
}

func testDevices(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	_, err := s.PutPolicy(ctx, "image", 0, "manifest", []byte("v1"), "eve", Start)
	must(t, err)
	want(t, s.AddDevice(ctx, store.Device{ID: "x", Policies: []string{"none"}}, "eve", Start), store.ErrNotFound)
	must(t, s.AddDevice(ctx, store.Device{ID: "a", Group: "lab", Attest: true, Labels: map[string]string{"site": "north"}, Policies: []string{"image"}}, "eve", Start))
	want(t, s.AddDevice(ctx, store.Device{ID: "a"}, "eve", Start), store.ErrExists)
	Enrol(t, s, "b")
	Enrol(t, s, "c")

	d, err := s.Device(ctx, "a", Start)
	must(t, err)
	if d.State != store.Expected || d.Group != "lab" || d.Labels["site"] != "north" || len(d.Policies) != 1 || !d.Attest {
		t.Errorf("added device: %+v", d)
	}
	ids := func(f store.Filter, after string, limit int) string {
		all, err := s.Devices(ctx, f, after, limit, Start)
		must(t, err)
		var ids []string
		for _, d := range all {
			ids = append(ids, d.ID)
		}
		return strings.Join(ids, " ")
	}
	for _, c := range []struct{ got, want string }{
		{ids(store.Filter{}, "", 10), "a b c"},
		{ids(store.Filter{}, "a", 1), "b"},
		{ids(store.Filter{Group: "lab"}, "", 10), "a"},
		{ids(store.Filter{State: store.Active}, "", 10), "b c"},
		{ids(store.Filter{Status: store.Trusted}, "", 10), ""},
	} {
		if c.got != c.want {
			t.Errorf("devices: got %q, want %q", c.got, c.want)
		}
	}
	group, off := "field", false
	must(t, s.UpdateDevice(ctx, "b", store.Change{Group: &group, Attest: &off, Policies: &[]string{"image"}}, "eve", Start))
	d, err = s.Device(ctx, "b", Start)
	must(t, err)
	if d.Group != "field" || d.Attest || fmt.Sprint(d.Policies) != "[image]" {
		t.Errorf("changed device: %+v", d)
	}
	counts, err := s.CountDevices(ctx, Start)
	must(t, err)
	if counts[store.Unverified] != 2 || len(counts) != 1 {
		t.Errorf("counts: %v", counts)
	}
	must(t, s.DeleteDevice(ctx, "b", "eve", Start))
	_, err = s.Device(ctx, "b", Start)
	want(t, err, store.ErrNotFound)
	want(t, s.DeleteDevice(ctx, "b", "eve", Start), store.ErrNotFound)
	Enrol(t, s, "b") // an operator gave the id free
}

func testHostileIDs(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	for _, id := range []string{"", ".", "..", "a/b", "a\nb", "a\x00", "a b", "\x1b[31m", "\u202etxt", "é", "a'; DROP TABLE device; --", "\xff",
		strings.Repeat("a", store.MaxID+1), strings.Repeat("a", 1<<20)} {
		errs := []error{
			s.Register(ctx, store.Attempt{Device: id, Identity: identity("x"), Expires: Start.Add(time.Hour)}, Start),
			s.AddDevice(ctx, store.Device{ID: id}, "eve", Start),
			s.NewSession(ctx, store.Session{ID: "s", Device: id}, Start),
			s.UpdateDevice(ctx, id, store.Change{}, "eve", Start),
			s.DeleteDevice(ctx, id, "eve", Start),
			s.PutToken(ctx, store.Token{Name: id}, answer("x"), "eve"),
		}
		_, err := s.Activate(ctx, store.Activation{Device: id}, Start)
		errs = append(errs, err)
		_, err = s.State(ctx, id, Start)
		errs = append(errs, err)
		_, err = s.Device(ctx, id, Start)
		errs = append(errs, err)
		_, err = s.Negotiate(ctx, id, nil, Start)
		errs = append(errs, err)
		_, err = s.TakeSession(ctx, id, Start)
		errs = append(errs, err)
		_, err = s.PutPolicy(ctx, id, 0, "", []byte("x"), "eve", Start)
		errs = append(errs, err)
		for i, err := range errs {
			if err == nil || len(err.Error()) > 400 || strings.ContainsAny(err.Error(), "\n\x00\x1b\u202e") {
				t.Errorf("id %.20q, call %d: %v", id, i, err)
			}
		}
	}
	for _, group := range []string{"a\x00b", "\xff", strings.Repeat("a", store.MaxText+1)} {
		if err := s.AddDevice(ctx, store.Device{ID: "a", Group: group}, "eve", Start); err == nil {
			t.Errorf("group %.20q was taken", group)
		}
	}
	for _, name := range []string{"a\x00", "\xff"} {
		if all, err := s.Policies(ctx, name); err != nil || len(all) != 0 {
			t.Errorf("policies called %q: %v, %v", name, all, err)
		}
	}
	if all, err := s.Devices(ctx, store.Filter{}, "", 10, Start); err != nil || len(all) != 0 {
		t.Errorf("left behind: %v, %v", all, err)
	}
}
