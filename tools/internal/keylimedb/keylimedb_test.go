package keylimedb

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/store/storetest"
)

// schema is that of Keylime 7.14.3 (keylime/migrations), of the tables that are read.
const schema = `
CREATE TABLE registrarmain (agent_id VARCHAR(80) NOT NULL PRIMARY KEY, key VARCHAR, aik_tpm VARCHAR, ekcert VARCHAR, ek_tpm VARCHAR, mtls_cert VARCHAR,
	virtual INTEGER, ip VARCHAR(15), port INTEGER, active INTEGER, provider_keys TEXT, regcount INTEGER);
CREATE TABLE allowlists (id INTEGER NOT NULL PRIMARY KEY, name VARCHAR(255), checksum VARCHAR(128), generator INTEGER, tpm_policy TEXT, ima_policy TEXT);
CREATE TABLE mbpolicies (id INTEGER NOT NULL PRIMARY KEY, name VARCHAR(255), mb_policy TEXT);
CREATE TABLE verifiermain (agent_id VARCHAR(80) NOT NULL PRIMARY KEY, v VARCHAR, revocation_key VARCHAR, ima_policy_id INTEGER, mb_policy_id INTEGER, tpm_policy TEXT,
	meta_data TEXT, accept_tpm_hash_algs TEXT, accept_tpm_encryption_algs TEXT, accept_tpm_signing_algs TEXT, ak_tpm VARCHAR, ima_sign_verification_keys TEXT);
`

const content = `
INSERT INTO registrarmain VALUES ('a', 'secret', 'QUs=', 'Q0VSVA==', 'RUs=', 'disabled', 0, '192.0.2.1', 9002, 1, '{}', 1);
INSERT INTO registrarmain VALUES ('b', NULL, 'QUs=', NULL, 'RUs=', 'MIIB', 1, NULL, NULL, 0, '{}', 1);
INSERT INTO allowlists VALUES (1, 'a', 'x', 3, '{"mask":"0x400"}', '{"digests":{}}');
INSERT INTO allowlists VALUES (2, 'empty', 'x', 1, NULL, NULL);
INSERT INTO mbpolicies VALUES (1, 'a', NULL);
INSERT INTO mbpolicies VALUES (2, 'grub', '{"kernels":[]}');
INSERT INTO verifiermain VALUES ('a', 'secret', 'PRIVATE KEY', 1, 2, '"{\"7\": [\"00\"]}"', '{"x":1}', '["sha256"]', '["rsa"]', '["rsassa"]', 'b3RoZXI=', '');
INSERT INTO verifiermain VALUES ('c', NULL, '', 2, 1, '"{}"', '{}', '[]', '[]', '[]', 'QUs=', 'keys');
`

func newDatabase(t testing.TB, statements ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keylime.sqlite")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// wanted is what the content holds.
func wanted(t *testing.T, s *Snapshot) {
	t.Helper()
	b := s.Agents[1]
	if !strings.HasPrefix(b.TLSCert, "-----BEGIN CERTIFICATE-----\nMIIB\n") || b.Active || b.Verified {
		t.Errorf("agent b: %+v", b)
	}
	want := Agent{ID: "a", AK: "QUs=", EK: "RUs=", EKCert: "Q0VSVA==", IP: "192.0.2.1", Port: 9002, Active: true, Verified: true, Runtime: "a", MB: "grub",
		TPM: `{"7": ["00"]}`, Metadata: `{"x":1}`, Hashes: []string{"sha256"}, Encs: []string{"rsa"}, Signs: []string{"rsassa"}}
	if !reflect.DeepEqual(s.Agents[0], want) {
		t.Errorf("agent a: %+v\nwant %+v", s.Agents[0], want)
	}
	if c := s.Agents[2]; len(s.Agents) != 3 || !c.Verified || c.AK != "" || c.Runtime != "" || c.MB != "" {
		t.Errorf("agent c: %+v", c)
	}
	if len(s.Runtime) != 1 || s.Runtime[0].Text != `{"digests":{}}` || len(s.MB) != 1 || s.MB[0].Name != "grub" {
		t.Errorf("policies: %+v %+v", s.Runtime, s.MB)
	}
	for _, note := range []string{"different attestation keys", "empty", "provider's keys", "ima_sign_verification_keys"} {
		if !strings.Contains(strings.Join(s.Notes, "\n"), note) {
			t.Errorf("no note of %q in %q", note, s.Notes)
		}
	}
	if strings.Contains(strings.Join(s.Notes, "\n"), `mb policy "a"`) {
		t.Errorf("a note of what Keylime makes for each agent: %q", s.Notes)
	}
	if strings.Contains(fmt.Sprintf("%+v", s), "secret") || strings.Contains(fmt.Sprintf("%+v", s), "PRIVATE") {
		t.Error("a secret was read")
	}
}

func TestSQLite(t *testing.T) {
	path := newDatabase(t, schema, content)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Read(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	wanted(t, s)
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the database was changed: %v", err)
	}
}

func TestPostgres(t *testing.T) {
	url := storetest.StartPostgres(t)(t)
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(schema + content); err != nil {
		t.Fatal(err)
	}
	s, err := Read(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	wanted(t, s)
}

// TestHostile: a file whose schema would have more done than read.
func TestHostile(t *testing.T) {
	endless := `CREATE VIEW registrarmain AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT CAST(x AS TEXT) AS agent_id FROM n`
	for name, test := range map[string]struct {
		statements []string
		want       string
	}{
		"a view":          {[]string{endless}, errNoTables.Error()},
		"a virtual table": {[]string{`CREATE VIRTUAL TABLE registrarmain USING fts5(agent_id)`}, errNoTables.Error()},
		"a disguised table": {[]string{`CREATE TABLE registrarmain (agent_id)`, `PRAGMA writable_schema = 1`,
			`UPDATE sqlite_master SET sql = 'CREATE  VIRTUAL TABLE registrarmain USING fts5(agent_id)'`}, errNoTables.Error()},
		"nothing":             {[]string{`CREATE TABLE other (x)`}, errNoTables.Error()},
		"without its columns": {[]string{`CREATE TABLE registrarmain (x)`}, "no column agent_id"},
		"too many policies": {[]string{schema, fmt.Sprintf(`WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x <= %d)
			INSERT INTO mbpolicies SELECT x, CAST(x AS TEXT), '{"x":1}' FROM n`, maxPolicies)}, "more than"},
	} {
		if s, err := Read(t.Context(), newDatabase(t, test.statements...)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %+v, %v; want %q", name, s, err, test.want)
		}
	}
	s, err := Read(t.Context(), newDatabase(t, schema, `INSERT INTO registrarmain (agent_id, aik_tpm) VALUES ('large', hex(zeroblob(100000))), ('small', 'x')`))
	if err != nil || len(s.Agents) != 1 || s.Agents[0].ID != "small" || len(s.Notes) != 1 {
		t.Errorf("a large field: %+v, %v", s, err)
	}
	s, err = Read(t.Context(), newDatabase(t, schema, `INSERT INTO registrarmain (agent_id, aik_tpm) VALUES ('large', CAST(zeroblob(100000) AS TEXT))`))
	if err != nil || len(s.Agents) != 0 || len(s.Notes) != 1 {
		t.Errorf("a large field behind a NUL: %d agents, %v", len(s.Agents), err)
	}
	s, err = Read(t.Context(), newDatabase(t, schema, `INSERT INTO registrarmain (agent_id, port) VALUES (x'ff00', 'many')`))
	if err != nil || len(s.Agents) != 1 {
		t.Errorf("odd types: %+v, %v", s, err)
	}
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("SQLite format 3\x00garbage", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{garbage, t.TempDir(), filepath.Join(t.TempDir(), "missing"), "postgres://user:hidden@127.0.0.1:1/x"} {
		if _, err := Read(t.Context(), path); err == nil || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

const answers = `{"code":200,"status":"Success","results":{"uuids":[["a"],["b"]]}}
{"results":{"agent_id":"a","aik_tpm":"QUs=","ek_tpm":"RUs=","ekcert":null,"mtls_cert":null,"ip":"192.0.2.1","port":9002,"regcount":1}}
{"results":{"b":{"aik_tpm":"QUs=","ek_tpm":"RUs=","ekcert":null,"ip":null,"port":null,"operational_state":"Registered"}}}
{"results":{"a":{"operational_state":"Get Quote","attestation_status":"PASS","tpm_policy":"{}","meta_data":"{}","has_runtime_policy":1,"has_mb_refstate":0}}}
{"results":{"name":"image","tmp_policy":null,"runtime_policy":"{\"digests\":{}}"}}
{"results":{"name":"grub","mb_policy":"{\"kernels\":[]}"}}`

func TestAnswers(t *testing.T) {
	s, err := ReadAnswers(strings.NewReader(answers))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Agents) != 2 || !s.Agents[0].Active || !s.Agents[0].Verified || s.Agents[1].Verified || s.Agents[0].Port != 9002 {
		t.Errorf("agents: %+v", s.Agents)
	}
	if len(s.Runtime) != 1 || s.Runtime[0] != (Policy{Name: "image", Text: `{"digests":{}}`}) || len(s.MB) != 1 || len(s.Notes) != 1 {
		t.Errorf("policies: %+v %+v %q", s.Runtime, s.MB, s.Notes)
	}
	for _, bad := range []string{`{`, `[]`, `{"results":null}`, `{"results":{"a":{}}}`, `{"results":{"name":"x"}}`, `{"results":{"uuids":[1]}}`, `{"results":{"aik_tpm":"x"}}`} {
		if s, err := ReadAnswers(strings.NewReader(bad)); err == nil {
			t.Errorf("%s: %+v", bad, s)
		}
	}
	if _, err := ReadAnswers(errorReader{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a file that cannot be read: %v", err)
	}
}

type errorReader struct{}

func (errorReader) Read([]byte) (int, error) { return 0, os.ErrClosed }

func FuzzAnswers(f *testing.F) {
	f.Add(answers)
	for line := range strings.Lines(answers) {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ReadAnswers(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, a := range s.Agents {
			if a.Active && a.AK == "" && !strings.Contains(text, "aik_tpm") {
				t.Errorf("%+v", a)
			}
		}
	})
}
