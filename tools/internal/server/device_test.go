package server

import (
	"net/http"
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
