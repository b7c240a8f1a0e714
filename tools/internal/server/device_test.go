package server

import (
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// TestDevice is the life of a device with a real TPM: enrolled, unverified without a
// policy, trusted with one, untrusted after a file that nobody knows, and trusted again
// after a boot.
func TestDevice(t *testing.T) {
	emulator := tpmtest.Start(t)
	w := newWorld(t)
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
}
