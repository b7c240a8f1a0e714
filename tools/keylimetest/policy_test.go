package keylimetest

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/server"
)

// keylimePolicy runs keylime-policy in a folder.
func keylimePolicy(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(installed(t, "python"), "bin", "keylime-policy"), args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("keylime-policy %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func readCertificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("%s is not PEM", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestKeylimePolicy: what keylime-policy makes and signs is taken, by our program and by our
// server through the tenant, and a signature counts for a certificate of the configuration
// only. Keylime's verifier believes the certificate in the envelope.
func TestKeylimePolicy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := newDevice(t)
	d.run("/sbin/init")
	keylimePolicy(t, dir, "create", "runtime", "-m", d.ascii, "-o", "made.json")
	for _, who := range []string{"ours", "other"} {
		keylimePolicy(t, dir, "sign", "runtime", "-b", "x509", "-p", who+".key", "-c", who+".crt", "-r", "made.json", "-o", who+".json")
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	cert := readCertificate(t, at("ours.crt"))
	public := at("ours.pub")
	if err := os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: cert.RawSubjectPublicKeyInfo}), 0o600); err != nil {
		t.Fatal(err)
	}
	keylimePolicy(t, dir, "sign", "runtime", "-b", "ecdsa", "-k", "ours.key", "-r", "made.json", "-o", "ecdsa.json")

	o := startOurs(t, func(s *server.Options) { s.Releases = []*x509.Certificate{cert} }).withTenant()
	program := buildAttest(t)
	for _, p := range []struct {
		args []string
		code int
	}{
		{[]string{"--runtime-policy", at("made.json")}, 0},
		{[]string{"--runtime-policy", at("ours.json"), "--cert", at("ours.crt")}, 0},
		{[]string{"--runtime-policy", at("ours.json")}, 2},
		{[]string{"--runtime-policy", at("other.json"), "--cert", at("ours.crt")}, 2},
	} {
		if _, code := o.attest(program, append([]string{"fleet", "policy", "put", "signed", "--dry-run"}, p.args...)...); code != p.code {
			t.Errorf("attest fleet policy put %s: exit code %d, want %d", strings.Join(p.args, " "), code, p.code)
		}
	}
	launch(t, "attest-agent", d.agent("run", append(o.flags(), "--verifier-url", o.verifierURL())...)).await("enrolled ")
	id := d.id()
	o.says([]string{"201"}, "-c", "addruntimepolicy", "--runtime-policy", at("ours.json"), "--runtime-policy-sig-key", public, "--runtime-policy-name", "signed")
	o.says([]string{"201"}, "-c", "addruntimepolicy", "--runtime-policy", at("ecdsa.json"), "--runtime-policy-sig-key", public, "--runtime-policy-name", "ecdsa")
	o.says([]string{"payloadType"}, "-c", "showruntimepolicy", "--runtime-policy-name", "signed")
	// The tenant wants a key for each signed policy; others need not.
	o.puts(t, "no trusted certificate signed it", "other", at("other.json"))
	otherKey := at("other.pub")
	if err := os.WriteFile(otherKey, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: readCertificate(t, at("other.crt")).RawSubjectPublicKeyInfo}), 0o600); err != nil {
		t.Fatal(err)
	}
	keylimePolicy(t, dir, "sign", "runtime", "-b", "ecdsa", "-k", "other.key", "-r", "made.json", "-o", "other-ecdsa.json")
	o.refused("not of a certificate", "-c", "addruntimepolicy", "--runtime-policy", at("other-ecdsa.json"), "--runtime-policy-sig-key", otherKey, "--runtime-policy-name", "other")
	o.says([]string{"added to"}, "-c", "add", "--push-model", "-u", id, "--runtime-policy-name", "signed")
	until(t, "the device to pass by the signed policy", func() bool { return o.status(id).Attestation == "PASS" })
	changedPayload(t, at("ours.json"), at("changed.json"))
	o.puts(t, "no trusted certificate signed it", "changed", at("changed.json"))
}

// puts adds a policy as a tenant that does not look at it would.
func (o *ours) puts(t *testing.T, want, name, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	client := o.client()
	defer client.CloseIdleConnections()
	body, err := json.Marshal(map[string]string{"runtime_policy": base64.StdEncoding.EncodeToString(text), "tpm_policy": "{}", "runtime_policy_key": ""})
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Post(o.verifierURL()+"/v2.6/allowlists/"+name, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode/100 != 4 || !strings.Contains(string(answer), want) {
		t.Errorf("%s: %d %s, %v; want %q", name, res.StatusCode, answer, err, want)
	}
}

// changedPayload writes an envelope with a payload that nobody signed.
func changedPayload(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	var e map[string]any
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatal(err)
	}
	payload := e["payload"].(string)
	e["payload"] = payload[:20] + "AAAA" + payload[24:]
	if text, err = json.Marshal(e); err == nil {
		err = os.WriteFile(to, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// buildAttest compiles the operator's program.
func buildAttest(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "attest")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../attest").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}
