package server

import (
	"bytes"
	"compress/gzip"
	"database/sql"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/evidence/evidencetest"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/store/storetest"
)

// testdata/schemaN.db.gz is a database of schema N as the programs of that time left it, and
// schemaN.json what somebody remembers of them. Write one with the last program of a schema,
// before the migration to the next:
//
//	go test -run TestOldDatabase ./tools/internal/server -write-database testdata/schema2
var writeDatabase = flag.String("write-database", "", "write the database that later programs are tested with")

// memory is what is known of a server outside of its database.
type memory struct {
	At       time.Time         `json:"at"`
	Operator string            `json:"operator"` // token
	Devices  map[string]string `json:"devices"`  // tokens by id
	Clock    uint64            `json:"clock"`    // of all TPMs
	Location string            `json:"location"` // of an attestation of "good" that is under way
	Asked    evidence.Requests `json:"asked"`
}

// TestOldDatabase is CVE-2025-1057, where rows of the version before were not understood:
// with the database of an older program devices and operators go on where they were, in the
// midst of an attestation.
func TestOldDatabase(t *testing.T) {
	t.Parallel()
	if *writeDatabase != "" {
		leaveDatabase(t, *writeDatabase)
	}
	names, err := filepath.Glob("testdata/schema*.db.gz")
	if err != nil || len(names) == 0 {
		t.Fatalf("no databases: %v", err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) { takeUp(t, strings.TrimSuffix(name, ".db.gz")) })
	}
}

// leaveDatabase lives for a while and leaves the database and what is remembered.
func leaveDatabase(t *testing.T, name string) {
	path := filepath.Join(t.TempDir(), "attest.db")
	w := newWorldOn(t, path)
	k := memory{At: w.clock.Now().UTC(), Devices: map[string]string{}, Operator: w.token("operator", Operator)}
	good, evil := w.trustedSoft("good"), w.soft("evil")
	w.assign(evil.ID, "image")
	evil.Run("/opt/evil", content("/opt/evil"))
	w.judge(evil, store.Untrusted, "unknown_file")
	w.api("POST", "/devices", map[string]any{"ek_hash": strings.Repeat("ab", 32), "group": "new", "policies": []string{"image"}}, http.StatusCreated)
	var err error
	if k.Location, k.Asked, err = good.Negotiate(w.verifierOf()); err != nil {
		t.Fatal(err)
	}
	k.Devices["good"], k.Devices["evil"] = good.Token, evil.Token
	k.Clock = max(good.Clock.Milliseconds, evil.Clock.Milliseconds)
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(db) // to memory
	_ = z.Close()
	text, err := json.MarshalIndent(k, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	for end, b := range map[string][]byte{".db.gz": packed.Bytes(), ".json": append(text, '\n')} {
		if err := os.WriteFile(name+end, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// takeUp serves an old database.
func takeUp(t *testing.T, name string) {
	var k memory
	text, err := os.ReadFile(name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &k); err != nil {
		t.Fatal(err)
	}
	w := newWorldOn(t, unpack(t, name+".db.gz"), func(o *Options) { o.Now = (&clock{now: k.At.Add(30 * time.Second)}).Now })
	w.clock.now = k.At.Add(30 * time.Second)
	good, evil := evidencetest.New(t, "good"), evidencetest.New(t, "evil")
	for _, d := range []*evidencetest.Device{good, evil} {
		d.Token, d.Clock.Milliseconds, d.BootTime = k.Devices[d.ID], k.Clock, k.At
		d.Run("/sbin/init", content("/sbin/init"))
	}
	evil.Run("/opt/evil", content("/opt/evil"))
	good.Run("/bin/sh", content("/bin/sh"))

	// What the old program asked for is answered to the new one; it goes on from there.
	if *k.Asked.Requested[1].Parameters.Offset == 0 {
		t.Error("the old program asked for the whole list")
	}
	if v, err := good.Submit(w.verifierOf(), k.Location, good.Collect(k.Asked)); err != nil || v.State != string(store.Trusted) {
		t.Fatalf("an attestation that the old program began: %+v, %v", v, err)
	}
	w.judge(good, store.Trusted, "")
	good.Run("/opt/evil", content("/opt/evil"))
	w.judge(good, store.Untrusted, "unknown_file")
	w.expect("evil", store.Untrusted, "unknown_file")
	w.judge(evil, store.Untrusted, "unknown_file")

	// Operators find what was there.
	get := func(path string) string {
		a := w.send("GET", w.verifier+"/api/v1"+path, k.Operator, nil)
		if a.status != http.StatusOK {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
		return string(a.body)
	}
	for path, want := range map[string]string{"/devices": strings.Repeat("ab", 32), "/devices?group=new": `"state":"expected"`, "/policies/image": "image",
		"/devices/evil/verdict": "/opt/evil", "/events/check": "seq", "/events?device=evil": "untrusted"} {
		if got := get(path); !strings.Contains(got, want) {
			t.Errorf("%s: no %s in %s", path, want, got)
		}
	}
	x := w.api("GET", "/devices/evil/verdict", nil, http.StatusOK)
	b, err := evidence.DecodeBody[evidence.Bundle](strings.NewReader(get("/evidence/" + x["event"].(map[string]any)["evidence"].(string))))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Verify(); err != nil {
		t.Errorf("evidence of then: %v", err)
	}
	w.judge(w.soft("newcomer"), store.Unverified, "no_policy")
}

// unpack makes a database file of a packed one.
func unpack(t *testing.T, name string) string {
	t.Helper()
	packed, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	db, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "attest.db")
	if err := os.WriteFile(path, db, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestNewerDatabase: while a newer program is rolled out, this one goes on with a database
// that has more columns, tables and indexes than it knows, until a migration says that it
// must not.
func TestNewerDatabase(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(testing.TB) string{"SQLite": newSQLite, "PostgreSQL": func(t testing.TB) string { return storetest.StartPostgres(t)(t) }} {
		t.Run(name, func(t *testing.T) {
			url := make(t)
			before := newWorldOn(t, url)
			d := before.trustedSoft("d")
			db := storetest.Raw(t, url)
			for _, table := range []string{"device", "attestation", "attempt", "session", "policy", "policy_body", "policy_revision", "event", "evidence", "job", "token"} {
				execute(t, db, fmt.Sprintf("ALTER TABLE %s ADD COLUMN later TEXT NOT NULL DEFAULT 'x'", table))
			}
			execute(t, db, "CREATE TABLE later (id BIGINT PRIMARY KEY)")
			execute(t, db, "CREATE INDEX later_device ON device (later, id)")
			execute(t, db, "UPDATE schema_version SET version = version + 1")
			before.judge(d, store.Trusted, "") // the program that runs
			w := newWorldOn(t, url)
			w.judge(d, store.Trusted, "") // and one that starts
			other := w.soft("other")
			w.policy("second", "/sbin/init")
			w.assign(other.ID, "second")
			w.judge(other, store.Trusted, "")
			w.api("GET", "/events/check", nil, http.StatusOK)
			w.api("GET", "/devices", nil, http.StatusOK)
			w.api("DELETE", "/devices/other", nil, http.StatusNoContent)
			execute(t, db, "UPDATE schema_version SET compatible = version")
			if s, err := store.Open(t.Context(), url); err == nil || !strings.Contains(err.Error(), "use a newer program") {
				t.Errorf("a schema that is not for this program: %v, %v", s, err)
			}
		})
	}
}

func execute(t *testing.T, db *sql.DB, q string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), q); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
}
