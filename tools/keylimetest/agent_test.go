package keylimetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPull: our agent before Keylime's registrar, tenant and verifier, in the pull model.
func TestPull(t *testing.T) {
	d := newDevice(t)
	d.run("/sbin/init")
	k := startKeylime(t, "pull", d)
	secrets := memory(t)
	agent := launch(t, "attest-agent", d.agent("run", append(k.flags(), "--listen", d.listen, "--listen-ca", k.path("cv_ca/cacert.crt"), "--secrets-dir", secrets)...))
	agent.await("enrolled ")
	id := d.id()
	file := k.path("payload.txt")
	if err := os.WriteFile(file, []byte("a secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	ip, port, _ := strings.Cut(d.listen, ":")
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
