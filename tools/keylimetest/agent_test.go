package keylimetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPull: our agent before Keylime's registrar, tenant and verifier, in the pull model.
func TestPull(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.run("/sbin/init")
	k := startKeylime(t, "pull", d)
	secrets := memory(t)
	contact := d.listen
	if recording() {
		contact = k.recordPull(d)
	}
	agent := launch(t, "attest-agent", d.agent("run", append(k.flags(), "--listen", d.listen, "--contact", contact, "--listen-ca", k.path("cv_ca/cacert.crt"), "--secrets-dir", secrets)...))
	agent.await("enrolled ")
	id := d.id()
	file := k.path("payload.txt")
	if err := os.WriteFile(file, []byte("a secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	ip, port, _ := strings.Cut(contact, ":")
	k.mustTenant("-c", "add", "-u", id, "-t", ip, "-tp", port, "--runtime-policy", k.policy("/sbin/init", "/bin/sh"), "-f", file, "--verify")
	until(t, "three attestations", func() bool { return k.status(id).Count >= 3 })
	if s := k.status(id); s.Attestation != "PASS" {
		t.Errorf("%+v", s)
	}
	if got, err := os.ReadFile(filepath.Join(secrets, "keylime", "decrypted_payload")); err != nil || string(got) != "a secret" {
		t.Errorf("payload %q, %v", got, err)
	}
	d.run("/bin/sh")
	count := k.status(id).Count
	until(t, "an attestation after one more file", func() bool { return k.status(id).Count > count+1 })
	d.run("/tmp/evil")
	until(t, "the verifier to fail the device", func() bool { return k.status(id).Attestation == "FAIL" })
	if s := k.status(id); s.LastEvent != "ima.validation.ima-ng.not_in_allowlist" {
		t.Errorf("%+v", s)
	}
	k.verifier.await("/tmp/evil")
}

// memory is a folder on a tmpfs.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "keylimetest-*")
	if err != nil {
		t.Skipf("no tmpfs for payloads: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "secrets")
}

// TestPush: the same in the push model, where the agent sends and no port is open.
func TestPush(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.run("/sbin/init")
	k := startKeylime(t, "push", d)
	flags := append(k.flags(), "--verifier-url", k.verifierURL())
	if recording() {
		flags = k.recordPush(d)
	}
	agent := launch(t, "attest-agent", d.agent("run", flags...))
	agent.await("enrolled ")
	id := d.id()
	k.mustTenant("-c", "add", "--push-model", "-u", id, "--runtime-policy", k.policy("/sbin/init", "/bin/sh"))
	until(t, "three attestations", func() bool { return k.status(id).Count >= 3 })
	d.run("/bin/sh")
	count := k.status(id).Count
	until(t, "an attestation after one more file", func() bool { return k.status(id).Count > count+1 })
	if s := k.status(id); s.Attestation != "PASS" {
		t.Errorf("%+v", s)
	}
	d.run("/tmp/evil")
	until(t, "the verifier to fail the device", func() bool { return k.status(id).Attestation == "FAIL" })
	k.verifier.await("/tmp/evil")
}

// TestRevocation: a second device hears of the first one's failure, signed with the key that
// the tenant made, and believes it for the certificate that came with its payload. The
// first one is started again meanwhile, which Keylime must not take for a failure.
func TestRevocation(t *testing.T) {
	t.Parallel()
	bad, good := newDevice(t), newDevice(t)
	k := startKeylime(t, "pull", bad, good)
	agents := map[*device]*program{}
	start := func(d *device) {
		agents[d] = launch(t, "attest-agent", d.agent("run", append(k.flags(), "--listen", d.listen, "--listen-ca", k.path("cv_ca/cacert.crt"), "--secrets-dir", memory(t))...))
	}
	certs := k.path("payload_ca")
	for _, d := range []*device{bad, good} {
		d.run("/sbin/init")
		start(d)
		agents[d].await("enrolled ")
		ip, port, _ := strings.Cut(d.listen, ":")
		k.mustTenant("-c", "add", "-u", d.id(), "-t", ip, "-tp", port, "--runtime-policy", k.policy("/sbin/init"), "--cert", certs, "--verify")
	}
	until(t, "both to attest", func() bool { return k.status(bad.id()).Count > 0 && k.status(good.id()).Count > 0 })
	agents[bad].stop()
	start(bad)
	count := k.status(bad.id()).Count
	until(t, "attestations after a restart", func() bool { return k.status(bad.id()).Count > count+2 })
	bad.run("/tmp/evil")
	agents[good].await("notice: revocation of " + bad.id() + ": ima.validation.ima-ng.not_in_allowlist")
	if s := k.status(good.id()); s.Attestation != "PASS" {
		t.Errorf("the other device: %+v", s)
	}
}
