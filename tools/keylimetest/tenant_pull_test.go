package keylimetest

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestTenantPull: keylime_tenant adds our agent, which listens, to our verifier, which polls
// it, with a payload whose key the two bring in halves.
func TestTenantPull(t *testing.T) {
	t.Parallel()
	p := startPlace(t)
	d := newDevice(t)
	d.run("/sbin/init")
	p.withTenant(d)
	secrets := memory(t)
	agent := launch(t, "attest-agent", d.agent("run", append(p.flags(), "--listen", d.listen, "--listen-ca", p.path("cv_ca/cacert.crt"), "--secrets-dir", secrets)...))
	agent.await("enrolled ")
	id := d.id()
	file := p.path("payload.txt")
	if err := os.WriteFile(file, []byte("a secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(d.listen)
	p.mustTenant("-c", "add", "-u", id, "-t", host, "-tp", port, "--runtime-policy", p.runtime("runtime.json", "/sbin/init"), "-f", file, "--verify")
	p.awaitVerdict(id, "trusted")
	if got, err := os.ReadFile(filepath.Join(secrets, "keylime", "decrypted_payload")); err != nil || string(got) != "a secret" {
		t.Errorf("payload %q, %v", got, err)
	}
	if s := p.status(id); s.Attestation != "PASS" {
		t.Errorf("%+v", s)
	}
	d.run("/tmp/evil")
	p.awaitVerdict(id, "untrusted")
	p.mustTenant("-c", "delete", "-u", id)
	if _, err := p.store.Pull(t.Context(), id); err == nil {
		t.Error("a device that was taken from the verifier is still polled")
	}
}
