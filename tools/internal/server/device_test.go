package server

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/store/storetest"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// TestDevice is the life of a device with a real TPM: enrolled, unverified without a
// policy, trusted with one, untrusted after a file that nobody knows, and trusted again
// after a boot. It is the same on each database.
func TestDevice(t *testing.T) {
	t.Parallel()
	t.Run("SQLite", func(t *testing.T) { testDevice(t, newSQLite(t)) })
	t.Run("PostgreSQL", func(t *testing.T) { testDevice(t, storetest.StartPostgres(t)(t)) })
}

func testDevice(t *testing.T, url string) {
	emulator := tpmtest.Start(t)
	w := newWorldOn(t, url)
	m := w.machine(emulator)
	m.runFile("/sbin/init")
	m.enrol()
	w.expect(m.id, store.Unverified, "")
	m.session()
	m.expect(store.Unverified, "no_policy")

	w.policy("image", "/sbin/init", "/bin/sh")
	w.assign(m.id, "image")
	m.expect(store.Trusted, "")
	m.runFile("/bin/sh")
	if _, asked := m.negotiate(); *asked.Requested[1].Parameters.Offset != 2 {
		t.Errorf("a steady device is asked from entry %d", *asked.Requested[1].Parameters.Offset)
	}
	m.expect(store.Trusted, "")
	m.runFile("/tmp/evil")
	m.expect(store.Untrusted, "unknown_file")
	m.expect(store.Untrusted, "unknown_file")
	m.reboot(emulator)
	m.boot = m.boot.Add(time.Hour)
	m.expect(store.Trusted, "")
	w.clock.pass(w.s.due() + time.Second)
	w.s.sweep(t.Context())
	w.expect(m.id, store.Overdue, "")
	w.api("GET", "/devices/"+m.id+"/verdict", nil, 200)
	w.api("GET", "/events/check", nil, 200)
	w.api("DELETE", "/devices/"+m.id, nil, http.StatusNoContent)
}

// TestInvalid: what cannot be stored is said to be the sender's fault.
func TestInvalid(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Secrets = secretKeys(t, 1) })
	id := strings.Repeat("a", 64)
	w.api("POST", "/devices", map[string]any{"ek_hash": id}, http.StatusCreated)
	long := strings.Repeat("g", store.MaxText+1)
	for _, c := range []struct {
		method, path string
		body         map[string]any
	}{
		{"POST", "/devices", map[string]any{"ek_hash": strings.Repeat("b", 64), "group": long}},
		{"PATCH", "/devices/" + id, map[string]any{"group": "a\x00b"}},
		{"PATCH", "/devices/" + id, map[string]any{"labels": map[string]string{"rack": "a\x00b"}}}, // no notice could hold it
		{"PATCH", "/devices/" + id, map[string]any{"policies": []string{"image", "image"}}},
		{"PATCH", "/secrets/web", map[string]any{"add": map[string]any{"groups": []string{long}}}},
	} {
		if a := w.send(c.method, w.verifier+"/api/v1"+c.path, w.admin, c.body); a.status != http.StatusBadRequest {
			t.Errorf("%s %s %.80v: %d %s", c.method, c.path, c.body, a.status, a.body)
		}
	}
}
