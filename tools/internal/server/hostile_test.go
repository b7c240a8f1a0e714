package server

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math/bits"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/evidence/evidencetest"
	"github.com/meta-attest/meta-attest/tools/internal/release"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/store/storetest"
)

// zeros are as many bytes as somebody likes to read.
type zeros struct{ b byte }

func (z zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = z.b
	}
	return len(p), nil
}

// TestBombs is CVE-2022-23951: what is small on the way and large in memory. Nothing that
// a client sends is unpacked, and a body ends where it must.
func TestBombs(t *testing.T) {
	w := newWorld(t)
	d := w.trustedSoft("d")
	var zipped, packed bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = io.CopyN(z, zeros{'['}, 256<<20) // to memory
	_ = z.Close()
	s, err := zstd.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.CopyN(s, zeros{'['}, 256<<20)
	_ = s.Close()
	before := heap()
	for name, c := range map[string]struct {
		encoding string
		body     io.Reader
		status   int
	}{
		"gzip":            {"gzip", &zipped, http.StatusBadRequest},
		"zstd":            {"zstd", &packed, http.StatusBadRequest},
		"nested":          {"", io.LimitReader(zeros{'['}, 8<<20), http.StatusBadRequest},
		"spaces, endless": {"", zeros{' '}, http.StatusRequestEntityTooLarge},
		"digits, endless": {"", io.MultiReader(strings.NewReader(`{"data":{"attributes":`), zeros{'1'}), http.StatusRequestEntityTooLarge},
	} {
		location, _, err := d.Negotiate(w.verifierOf())
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequestWithContext(t.Context(), "PATCH", location, c.body)
		r.ContentLength = -1
		r.Header.Set("Authorization", "Bearer "+d.Token)
		if c.encoding != "" {
			r.Header.Set("Content-Encoding", c.encoding)
		}
		rec := httptest.NewRecorder()
		w.s.Verifier().ServeHTTP(rec, r)
		if rec.Code != c.status {
			t.Errorf("%s: %d %.200s", name, rec.Code, rec.Body)
		}
	}
	if grown := heap() - before; grown > 64<<20 {
		t.Errorf("%d MiB stay", grown>>20)
	}
	w.judge(d, store.Trusted, "")
}

// TestChallenges is CVE-2026-6420, where the challenge was always the same: those of
// sessions and of quotes are 32 bytes, come once, and have as many ones as zeros.
func TestChallenges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.trustedSoft("d")
	seen := map[string]bool{}
	const n = 500
	for range n {
		_, challenge, err := d.Challenge(w.verifierOf())
		if err != nil {
			t.Fatal(err)
		}
		_, asked, err := d.Negotiate(w.verifierOf())
		if err != nil {
			t.Fatal(err)
		}
		seen[string(challenge)], seen[string(asked.Requested[0].Parameters.Challenge)] = true, true
	}
	ones := 0
	for c := range seen {
		if len(c) != 32 {
			t.Errorf("a challenge of %d bytes", len(c))
		}
		for _, b := range []byte(c) {
			ones += bits.OnesCount8(b)
		}
	}
	// Of 256 000 bits the standard deviation is 253.
	if len(seen) != 2*n || ones < n*256-2000 || ones > n*256+2000 {
		t.Errorf("%d of %d challenges differ, %d bits are set", len(seen), 2*n, ones)
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{join .Imports "\n"}}`, "../evidence").Output()
	if err != nil || !strings.Contains(string(out), "crypto/rand") || strings.Contains(string(out), "math/rand") {
		t.Errorf("whatever makes challenges imports %s, %v", out, err)
	}
}

// TestReplicas: of two servers on one database each knows at once what the other has
// written: sessions, policies, an attestation under way, and what is no longer good.
func TestReplicas(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(testing.TB) string{"SQLite": newSQLite, "PostgreSQL": func(t testing.TB) string { return storetest.StartPostgres(t)(t) }} {
		t.Run(name, func(t *testing.T) { testReplicas(t, make(t)) })
	}
}

func testReplicas(t *testing.T, url string) {
	a, b := newWorldOn(t, url), newWorldOn(t, url)
	d := a.trustedSoft("d")
	b.judge(d, store.Trusted, "")
	location, asked, err := d.Negotiate(a.verifierOf())
	if err != nil {
		t.Fatal(err)
	}
	if v, err := d.Submit(b.verifierOf(), location, d.Collect(asked)); err != nil || v.State != string(store.Trusted) {
		t.Errorf("asked by one, answered to the other: %+v, %v", v, err)
	}
	if _, err := d.Submit(a.verifierOf(), location, d.Collect(asked)); !refusedWith(err, http.StatusForbidden, "challenges_expired") {
		t.Errorf("and again to the first: %v", err)
	}
	// A policy holds from the next request on, wherever.
	d.Run("/bin/sh", content("/bin/sh"))
	b.judge(d, store.Trusted, "")
	location, asked, err = d.Negotiate(b.verifierOf())
	if err != nil {
		t.Fatal(err)
	}
	a.api("POST", "/policies/image?activate=true", map[string]any{"schema": release.Schema, "runtime_policy": runtimePolicy("/sbin/init"), "rules": `required = ["/sbin/init"]`}, http.StatusCreated)
	a.api("PUT", "/policies/image/active", map[string]any{"versions": []int{2}}, http.StatusOK)
	if v, err := d.Submit(b.verifierOf(), location, d.Collect(asked)); err != nil || len(v.Reasons) != 1 || v.Reasons[0].Code != "need_whole" {
		t.Errorf("judged by a policy that is gone: %+v, %v", v, err)
	}
	b.judge(d, store.Untrusted, "unknown_file")
	a.api("PUT", "/policies/image/active", map[string]any{"versions": []int{1, 2}, "downgrade": true}, http.StatusOK)
	b.judge(d, store.Trusted, "")
	a.api("PATCH", "/devices/d", map[string]any{"policies": []string{}}, http.StatusOK)
	b.judge(d, store.Unverified, "no_policy")
	// What one takes back is good nowhere.
	a.api("PATCH", "/devices/d", map[string]any{"attest": false}, http.StatusOK)
	if _, err := d.Attest(b.verifierOf()); !refusedWith(err, http.StatusForbidden, "agent_attestations_disabled") {
		t.Errorf("switched off at the other: %v", err)
	}
	a.api("PATCH", "/devices/d", map[string]any{"attest": true}, http.StatusOK)
	b.judge(d, store.Unverified, "no_policy")
	operator := a.token("passing", Operator)
	if got := b.send("GET", b.verifier+"/api/v1/devices", operator, nil); got.status != http.StatusOK {
		t.Errorf("a token of the other: %d %s", got.status, got.body)
	}
	a.api("DELETE", "/tokens/passing", nil, http.StatusNoContent)
	if got := b.send("GET", b.verifier+"/api/v1/devices", operator, nil); got.status != http.StatusUnauthorized {
		t.Errorf("a token that was taken back at the other: %d %s", got.status, got.body)
	}
	a.api("DELETE", "/devices/d", nil, http.StatusNoContent)
	if _, err := d.Attest(b.verifierOf()); !refusedWith(err, http.StatusUnauthorized, "token") {
		t.Errorf("deleted at the other: %v", err)
	}
	// Another TPM under the id: nothing that is remembered of the first one counts.
	other := evidencetest.New(t, "another TPM")
	other.ID, other.BootTime = d.ID, d.BootTime
	other.Run("/sbin/init", content("/sbin/init"))
	a.enrolSoft(other)
	a.assign(d.ID, "image")
	b.judge(other, store.Trusted, "")
	if _, err := d.Attest(b.verifierOf()); !refusedWith(err, http.StatusUnauthorized, "token") {
		t.Errorf("the TPM before: %v", err)
	}
}

// TestKeysForgotten: however many keys were seen, a bounded number is remembered.
func TestKeysForgotten(t *testing.T) {
	t.Parallel()
	k, ak := newAKCache(), &evidence.AK{}
	for i := range 5 * maxYoungAKs / 2 {
		k.put(fmt.Sprint(i), ak)
		if k.find("0") != ak {
			t.Fatalf("a key that is in use was forgotten after %d", i)
		}
	}
	if n := len(k.young) + len(k.old); n > 2*maxYoungAKs {
		t.Errorf("%d keys are remembered", n)
	}
}

// TestPathTricks: a path is whatever was measured; it is judged, stored and told as such,
// and writes no line of the log.
func TestPathTricks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.trustedSoft("d")
	lines := strings.Count(w.log.String(), "\n")
	for _, path := range []string{"/tmp/a\nb", "/tmp/\x1b[31mred", "/sbin/init\n", "/tmp/../sbin/init", "sbin/init", "/tmp/\xff\xfe", "/bin/sh_(deleted)",
		"/tmp/\u202etxt.exe", "/" + strings.Repeat("x", 4094), strings.Repeat("/d", 2000), "/sbin//init", "/tmp/<script>"} {
		d.Reboot()
		d.BootTime = d.BootTime.Add(time.Hour)
		d.Run("/sbin/init", content("/sbin/init"))
		w.judge(d, store.Trusted, "")
		d.Run(path, content("evil"))
		w.judge(d, store.Untrusted, "unknown_file")
		if x := w.send("GET", w.verifier+"/api/v1/devices/d/verdict", w.admin, nil); !json.Valid(x.body) || bytes.ContainsAny(x.body, "\x1b\u202e") {
			t.Errorf("%.40q: told as %.300q", path, x.body)
		}
	}
	// Linux writes an underscore for a space, which would make a line of text ambiguous.
	d.Run("/bin/sh (deleted)", content("/bin/sh"))
	w.judge(d, store.Broken, "ima_log")
	for line := range strings.Lines(w.log.String()) {
		lines--
		if !json.Valid([]byte(line)) || strings.ContainsAny(line, "\x1b\u202e") {
			t.Errorf("not a line of JSON: %q", line)
		}
	}
	if lines >= 0 {
		t.Error("nothing was logged")
	}
}

// TestTamperedHistory: who edits the database cannot edit the history.
func TestTamperedHistory(t *testing.T) {
	t.Parallel()
	url := newSQLite(t)
	w := newWorldOn(t, url)
	d := w.trustedSoft("d")
	d.Run("/opt/evil", content("/opt/evil"))
	w.judge(d, store.Untrusted, "unknown_file")
	w.api("GET", "/events/check", nil, http.StatusOK)
	db := storetest.Raw(t, url)
	for _, q := range []struct{ change, undo string }{
		{`UPDATE event SET status = 'trusted' WHERE status = 'untrusted'`, `UPDATE event SET status = 'untrusted' WHERE seq = (SELECT max(seq) FROM event)`},
		{`UPDATE event SET at = at + 1 WHERE seq = 2`, `UPDATE event SET at = at - 1 WHERE seq = 2`},
		{`UPDATE event SET device = 'e' WHERE seq = (SELECT max(seq) FROM event)`, `UPDATE event SET device = 'd' WHERE device = 'e'`},
		{`DELETE FROM event WHERE seq = 3`, ``},
	} {
		execute(t, db, q.change)
		w.api("GET", "/events/check", nil, http.StatusConflict)
		if q.undo != "" {
			execute(t, db, q.undo)
			w.api("GET", "/events/check", nil, http.StatusOK)
		}
	}
}
