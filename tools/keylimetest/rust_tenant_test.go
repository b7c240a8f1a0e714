package keylimetest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// withTenant writes the settings of keylime_tenant for p.
func (p *place) withTenant(devices ...*device) {
	p.t.Helper()
	p.bin = filepath.Join(installed(p.t, "python"), "bin")
	certs := p.path("tpm_cert_store")
	if err := os.Mkdir(certs, 0o700); err != nil {
		p.t.Fatal(err)
	}
	for i, d := range devices {
		for name, text := range map[string][]byte{"root": d.tpm.RootCA, "issuer": d.tpm.Issuer} {
			if err := os.WriteFile(filepath.Join(certs, fmt.Sprintf("%s%d.pem", name, i)), text, 0o600); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	p.keylime.ports["registrar_tls"] = p.ports["registrar"]
	p.configure("pull")
}

// TestRustTenant: Keylime's tenant adds an agent of rust-keylime to our verifier, with a
// payload; all but our server are others' programs. Then one agent is told of the other.
func TestRustTenant(t *testing.T) {
	t.Parallel()
	installed(t, "rust")
	if os.Getuid() != 0 {
		t.Skip("keylime_agent mounts a tmpfs, which root alone may do")
	}
	p := startPlace(t)
	one, two := newDevice(t), newDevice(t)
	p.withTenant(one, two)
	file := p.path("payload.zip")
	if err := os.WriteFile(file, zipped(t, "greeting", "hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	agents := map[*device]*program{}
	for _, d := range []*device{one, two} {
		d.run("/sbin/init")
		a := newRust(t, p, d, "")
		agents[d] = a.launchPull(p)
		id := d.ekHash("rsa2048")
		until(t, "the agent to enrol", func() bool { _, err := p.store.Device(t.Context(), id, time.Now()); return err == nil })
		host, port, _ := net.SplitHostPort(d.listen)
		p.mustTenant("-c", "add", "-u", id, "-t", host, "-tp", port, "--runtime-policy", p.runtime("runtime.json", "/sbin/init", "/bin/sh"), "-f", file, "--verify")
		p.awaitVerdict(id, "trusted")
		unpacked := filepath.Join(a.home, "secure", "unzipped", "greeting")
		until(t, "the payload", func() bool { b, err := os.ReadFile(unpacked); return err == nil && string(b) == "hello" })
	}
	one.run("/tmp/evil")
	p.awaitVerdict(one.ekHash("rsa2048"), "untrusted")
	agents[two].await("Received revocation")
	agents[two].await("Revocation processed successfully")
	p.mustTenant("-c", "delete", "-u", one.ekHash("rsa2048"))
	if d := p.device(one.ekHash("rsa2048")); d.Model != "push" {
		t.Errorf("deleted, and polled still: %+v", d)
	}
}
