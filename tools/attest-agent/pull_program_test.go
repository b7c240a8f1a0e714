//go:build !nopull

package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// TestPolledByProgram: the program attest-verifier, as [pull] of its file has it, polls two
// devices, and tells the one of the other's bad verdict.
func TestPolledByProgram(t *testing.T) {
	t.Parallel()
	key, cert := revocationKey(t)
	v := newVerifierProgram(t)
	v.kill()
	v.do("certificate", "client", "poller", "--role", "pull", "--ca", "tls", "--out", "tls")
	conf, err := os.ReadFile(filepath.Join(v.dir, "v.toml"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"revocation.key": string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		"v.toml": string(conf) + `[pull]
cert = "tls/poller.crt"
key = "tls/poller.key"
networks = ["127.0.0.0/8"]
revocation_key = "revocation.key"
`,
	} {
		if err := os.WriteFile(filepath.Join(v.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	v.serve()

	verdict := func(id string) string {
		var d struct {
			Verdict struct {
				Status string `json:"status"`
			} `json:"verdict"`
		}
		if err := json.Unmarshal(v.api("GET", "/devices/"+id, nil, http.StatusOK), &d); err != nil {
			t.Fatal(err)
		}
		return d.Verdict.Status
	}
	polled := func() (*machine, *process, string) {
		m := newMachine(t, v.verifier)
		m.tpm.Share()
		m.run("/sbin/init")
		p := m.start(m.command("run", "--verifier-url", "", "--listen", freeAddress(t), "--listen-ca", v.ca,
			"--revocation-cert", cert, "--notices-dir", filepath.Join(m.dir, "notices")))
		p.expect("enrolled ")
		id := m.state().ID
		v.allow(id, "/sbin/init")
		v.api("PATCH", "/devices/"+id, map[string]any{"model": "pull", "group": "paris"}, http.StatusOK)
		until(t, "the device to be trusted", func() bool { return verdict(id) == "trusted" })
		return m, p, id
	}
	bad, _, id := polled()
	_, p, _ := polled()
	bad.run("/opt/evil")
	p.expect("notice: revocation of " + id)
	if got := verdict(id); got != "untrusted" {
		t.Errorf("the verdict is %s", got)
	}
}
