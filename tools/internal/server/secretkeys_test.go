package server

import (
	"bytes"
	"database/sql"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// TestSecretsAtRest plays someone who can write to the database and has no key.
func TestSecretsAtRest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withSecrets(t))
	m := w.enrolled(tpmtest.Start(t))
	w.putSecret("a", "?run=key")
	w.putSecret("b", "?run=key")
	w.assignSecret("a", map[string][]string{"devices": {m.id}}, nil)
	_, challenge := m.attested(store.Trusted)
	db, err := sql.Open("sqlite", w.database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	exec := func(q string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE TABLE spare AS SELECT * FROM secret`)
	for _, q := range []string{
		`UPDATE secret SET body = (SELECT body FROM spare WHERE name = 'b') WHERE name = 'a'`,
		`UPDATE secret SET revision = 7 WHERE name = 'a'`,
		`UPDATE secret SET run = '' WHERE name = 'a'`,
		`UPDATE secret SET body = x'00' WHERE name = 'a'`,
		`UPDATE secret SET body = substr(body, 1, 8) WHERE name = 'a'`,
		`UPDATE secret SET body = substr(body, 1, length(body) - 1) WHERE name = 'a'`,
	} {
		exec(q)
		key := m.newKey()
		if a, _, _ := m.ask(m.ak, key, evidence.SecretQualifier(m.id, challenge), ""); a.status != http.StatusInternalServerError {
			t.Errorf("%s: %d %s", q, a.status, a.body)
		}
		exec(`UPDATE secret SET (body, revision, run) = (SELECT body, revision, run FROM spare WHERE name = 'a') WHERE name = 'a'`)
		key.Close()
	}
	if got := m.secrets(challenge); got != "a 1 key"+canary+" of a" {
		t.Errorf("after all was put back: %q", got)
	}
	if n := w.kinds("secret-released"); n != 1 {
		t.Errorf("%d releases are events", n)
	}
}

// TestSecretKeys: the newest key encrypts, all decrypt, and rekeying makes the old ones useless.
func TestSecretKeys(t *testing.T) {
	t.Parallel()
	for name, b := range map[string][]byte{
		"empty": nil, "short": make([]byte, 31), "text": []byte(strings.Repeat("x", 64) + "\n"), "zeros": make([]byte, 32),
		"twice": append(bytes.Repeat([]byte("ab"), 16), bytes.Repeat([]byte("ab"), 16)...), "many": bytes.Repeat([]byte("x"), 17*32),
	} {
		if k, err := ParseSecretKeys(b); err == nil || k != nil {
			t.Errorf("%s: taken", name)
		}
	}
	w := newWorld(t, withSecrets(t))
	w.putSecret("a", "")
	w.putSecret("b", "?run=key")
	old, both, fresh := secretKeys(t, 1), secretKeys(t, 1, 2), secretKeys(t, 2)
	opened := func(k *SecretKeys) (n int) {
		t.Helper()
		all, err := w.store.SecretBodies(t.Context(), "", 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range all {
			if b, err := k.open(one.SecretRef, one.Run, one.Body); err == nil && bytes.Contains(b, []byte(canary)) {
				n++
			} else if !errors.Is(err, errSecretKey) {
				t.Error(err)
			}
		}
		return n
	}
	if opened(old) != 2 || opened(both) != 2 || opened(fresh) != 0 {
		t.Error("before: the old key opens, with or without a newer one")
	}
	if _, err := RekeySecrets(t.Context(), w.store, fresh, "eve", w.clock.Now()); !errors.Is(err, errSecretKey) {
		t.Errorf("rekeyed without the old key: %v", err)
	}
	for _, want := range []int{2, 0} {
		if n, err := RekeySecrets(t.Context(), w.store, both, "eve", w.clock.Now()); err != nil || n != want {
			t.Errorf("rekeyed %d, %v, want %d", n, err, want)
		}
	}
	if opened(old) != 0 || opened(both) != 2 || opened(fresh) != 2 {
		t.Error("after: the new key alone opens")
	}
}
