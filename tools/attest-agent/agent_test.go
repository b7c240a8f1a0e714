package main

import (
	"strings"
	"testing"
)

// TestDevice is the life of a device: enrolled, unverified without a policy, trusted with
// one, untrusted after a file that nobody knows, trusted again after a boot.
func TestDevice(t *testing.T) {
	t.Parallel()
	v := newVerifier(t)
	m := newMachine(t, v)
	m.run("/sbin/init")
	out := m.call(0, "enrol")
	id := m.state().ID
	if !strings.Contains(out, "enrolled "+id) || len(id) != 64 {
		t.Fatalf("enrol said %q", out)
	}
	key := m.key()
	m.call(0, "enrol")
	if m.key() != key || m.state().ID != id {
		t.Error("a second enrolment changed the key or the id")
	}
	if out := m.call(exitUntrusted, "run", "--once"); !strings.Contains(out, "no_policy") {
		t.Errorf("without a policy: %s", out)
	}
	v.allow(id, "/sbin/init", "/bin/sh")
	m.call(0, "run", "--once")
	m.call(0, "status")
	m.run("/bin/sh")
	m.call(0, "run", "--once")
	m.run("/tmp/evil")
	if out := m.call(exitUntrusted, "run", "--once"); !strings.Contains(out, "/tmp/evil") {
		t.Errorf("an unknown file: %s", out)
	}
	m.call(exitUntrusted, "status")
	m.tpm.Reboot()
	m.boot()
	m.run("/sbin/init")
	// The boot id of the machine under test stays the same, as it did not boot; the TPM
	// says that it did, and the verifier asks for the whole list then.
	m.callUntil(0, "run", "--once")
	m.call(0, "status")
}
