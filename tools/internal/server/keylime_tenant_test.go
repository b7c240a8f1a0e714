package server

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// tenantOf is a client with a certificate of a CA that the server has for tenants.
func (w *world) tenantOf() *http.Client {
	ca := newPKI(w.t)
	w.s.tenants = poolOf([]*x509.Certificate{ca.ca})
	return w.pki.client(ca.issue(w.t, pkix.Name{CommonName: "client"}, time.Hour))
}

// addition is what keylime_tenant 7.14 sends for a device.
func (m *machine) addition(change map[string]any) map[string]any {
	body := map[string]any{"v": nil, "cloudagent_ip": nil, "cloudagent_port": nil, "verifier_ip": "127.0.0.1", "verifier_port": "8881", "tpm_policy": `{"mask": "0x0"}`,
		"runtime_policy": "", "runtime_policy_name": "", "runtime_policy_key": "", "mb_policy": nil, "mb_policy_name": "", "ima_sign_verification_keys": "",
		"metadata": "{}", "revocation_key": "", "accept_tpm_hash_algs": []string{"sha512", "sha384", "sha256"}, "accept_tpm_encryption_algs": []string{"ecc", "rsa"},
		"accept_tpm_signing_algs": []string{"ecdsa", "rsassa"}, "ak_tpm": base64.StdEncoding.EncodeToString(m.ak.Public()), "mtls_cert": nil, "supported_version": "2.6"}
	for k, v := range change {
		body[k] = v
	}
	return body
}

func encoded(t *testing.T, policy any) string {
	t.Helper()
	b, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b)
}

// TestTenantRefused: what a tenant asks for and cannot have is refused, and changes nothing.
func TestTenantRefused(t *testing.T) {
	w := newWorld(t)
	tenant := w.tenantOf()
	m := w.machine(tpmtest.Start(t))
	m.enrol()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	private := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
	w.api("POST", "/devices", map[string]any{"id": "expected", "ek": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: mustPKIX(t, key)}))}, http.StatusCreated)
	good := encoded(t, runtimePolicy("/sbin/init"))
	weak := runtimePolicy("/sbin/init")
	weak["digests"] = map[string][]string{}
	weak["meta"] = map[string]any{"version": 1, "generator": 1}
	excludes := runtimePolicy("/sbin/init")
	excludes["excludes"] = []string{"("}
	all := runtimePolicy("/sbin/init")
	all["excludes"] = []string{".*"}
	zero := strings.Repeat("0", 64)
	// Rules are for operators, however the name of the member is written.
	ruled := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, `{"sch\u0065ma":"attest.policy/v1","rules":"missing = \"pass\"","runtime_policy":%s}`, decoded(t, good)))
	for _, c := range []struct {
		name   string
		id     string
		change map[string]any
		status int
		text   string
	}{
		{"another attestation key", m.id, map[string]any{"ak_tpm": base64.StdEncoding.EncodeToString(m.ek.Public)}, 403, "ak_tpm"},
		{"another certificate", m.id, map[string]any{"mtls_cert": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"}, 403, "mtls_cert"},
		{"too much metadata", m.id, map[string]any{"metadata": strings.Repeat("x", store.MaxDetail)}, 400, "settings"},
		{"a device that nobody knows", "nobody", nil, 404, ""},
		{"a device that has not enrolled", "expected", nil, 404, ""},
		{"an id that is none", "a%0Ab", nil, 400, "id"},
		{"an unknown member", m.id, map[string]any{"skip_checks": true}, 400, "unknown field"},
		{"a key share for a device that listens nowhere", m.id, map[string]any{"v": base64.StdEncoding.EncodeToString(make([]byte, 32))}, 400, "listens nowhere"},
		{"a short key share", m.id, map[string]any{"v": "AAAA"}, 400, "32 bytes"},
		{"a revocation key", m.id, map[string]any{"revocation_key": private}, 400, "revocation_key"},
		{"an algorithm that is not accepted", m.id, map[string]any{"accept_tpm_signing_algs": []string{"rsassa"}}, 400, "accept_tpm_signing_algs"},
		{"keys beside the policy", m.id, map[string]any{"ima_sign_verification_keys": "{}"}, 400, "ima_sign_verification_keys"},
		{"a policy that checks nothing", m.id, map[string]any{"runtime_policy": encoded(t, weak)}, 422, "no digest"},
		{"a bad exclude", m.id, map[string]any{"runtime_policy": encoded(t, excludes)}, 422, "exclude"},
		{"an exclude of everything", m.id, map[string]any{"runtime_policy": encoded(t, all)}, 422, "leaves nothing"},
		{"a policy with rules", m.id, map[string]any{"runtime_policy": ruled}, 400, "no runtime policy"},
		{"a policy that is not there", m.id, map[string]any{"runtime_policy_name": "none"}, 404, ""},
		{"a derived policy", m.id, map[string]any{"runtime_policy_name": "a.with.b"}, 400, "not the name"},
		{"pins without a policy", m.id, map[string]any{"tpm_policy": `{"7":["` + zero + `"]}`}, 400, "needs a runtime policy"},
		{"a pin of IMA's PCR", m.id, map[string]any{"runtime_policy": good, "tpm_policy": `{"10":["` + zero + `"]}`}, 422, "IMA"},
		{"an empty measured boot policy", m.id, map[string]any{"runtime_policy": good, "mb_policy": "{}"}, 400, "mb_policy"},
		{"a key for what is not signed", m.id, map[string]any{"runtime_policy": good, "runtime_policy_key": base64.StdEncoding.EncodeToString([]byte(private))}, 403, "runtime_policy_key"},
	} {
		a, err := w.try(tenant, "POST", w.verifier+"/v2.6/agents/"+c.id, "", m.addition(c.change))
		if err != nil {
			t.Fatal(err)
		}
		if a.status != c.status || !strings.Contains(string(a.body), c.text) {
			t.Errorf("%s: %d %s, want %d %q", c.name, a.status, a.body, c.status, c.text)
		}
	}
	if ids, err := w.store.VerifierDevices(t.Context(), "", 10); err != nil || len(ids) != 0 {
		t.Errorf("on the verifier: %q, %v", ids, err)
	}
	if all, err := w.store.Policies(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("policies of what was refused: %+v, %v", all, err)
	}
}

func decoded(t *testing.T, text string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestTenantForget: a tenant forgets no device of which an operator said something.
func TestTenantForget(t *testing.T) {
	w := newWorld(t)
	tenant := w.tenantOf()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	w.api("POST", "/devices", map[string]any{"id": "expected", "ek": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: mustPKIX(t, key)}))}, http.StatusCreated)
	m := w.machine(tpmtest.Start(t))
	m.enrol()
	w.policy("image", "/sbin/init")
	w.assign(m.id, "image")
	forget := func(id string, want int) {
		t.Helper()
		a, err := w.try(tenant, "DELETE", w.registrar+"/v2.6/agents/"+id, "", nil)
		if err != nil || a.status != want {
			t.Errorf("forget %s: %d %s, %v, want %d", id, a.status, a.body, err, want)
		}
	}
	forget("nobody", http.StatusNotFound)
	forget("expected", http.StatusNotFound)
	w.api("GET", "/devices/expected", nil, http.StatusOK)
	forget(m.id, http.StatusConflict)
	if a, err := w.try(tenant, "DELETE", w.verifier+"/v2.6/agents/"+m.id, "", nil); err != nil || a.status != http.StatusForbidden {
		t.Errorf("remove what operators judge: %d %s, %v", a.status, a.body, err)
	}
	w.api("PATCH", "/devices/"+m.id, map[string]any{"attest": false}, http.StatusOK)
	forget(m.id, http.StatusForbidden)
	if a, err := w.try(tenant, "POST", w.verifier+"/v2.6/agents/"+m.id, "", m.addition(nil)); err != nil || a.status != http.StatusForbidden {
		t.Errorf("add what an operator stopped: %d %s, %v", a.status, a.body, err)
	}
	w.api("PATCH", "/devices/"+m.id, map[string]any{"policies": []string{}}, http.StatusOK)
	forget(m.id, http.StatusForbidden) // it is stopped all the same
	w.api("PATCH", "/devices/"+m.id, map[string]any{"attest": true}, http.StatusOK)
	forget(m.id, http.StatusOK)
}

// TestTenantStopped: what an operator stopped stays so, whatever a tenant does, and in which order.
func TestTenantStopped(t *testing.T) {
	w := newWorld(t)
	tenant := w.tenantOf()
	m := w.machine(tpmtest.Start(t))
	m.enrol()
	agent := w.verifier + "/v2.6/agents/" + m.id
	do := func(method, url string, body any, want int) {
		t.Helper()
		if a, err := w.try(tenant, method, url, "", body); err != nil || a.status != want {
			t.Errorf("%s %s: %d %s, %v, want %d", method, url, a.status, a.body, err, want)
		}
		if d, err := w.store.Device(t.Context(), m.id, w.clock.Now()); err != nil || want == http.StatusForbidden && d.Attest {
			t.Errorf("%s %s: it attests again, %v", method, url, err)
		}
	}
	// Nor is one that no tenant has.
	w.api("PATCH", "/devices/"+m.id, map[string]any{"attest": false}, http.StatusOK)
	do("POST", agent, m.addition(nil), http.StatusForbidden)
	w.api("PATCH", "/devices/"+m.id, map[string]any{"attest": true}, http.StatusOK)
	do("POST", agent, m.addition(nil), http.StatusOK)
	do("PUT", agent+"/stop", nil, http.StatusOK)
	do("PUT", agent+"/reactivate", nil, http.StatusOK) // its own word
	do("DELETE", agent, nil, http.StatusOK)
	do("POST", agent, m.addition(nil), http.StatusOK)

	w.api("PATCH", "/devices/"+m.id, map[string]any{"attest": false}, http.StatusOK)
	do("PUT", agent+"/stop", nil, http.StatusOK)
	do("PUT", agent+"/reactivate", nil, http.StatusForbidden)
	do("DELETE", agent, nil, http.StatusOK)
	do("POST", agent, m.addition(nil), http.StatusForbidden)
	do("DELETE", w.registrar+"/v2.6/agents/"+m.id, nil, http.StatusForbidden)
	w.api("PATCH", "/devices/"+m.id, map[string]any{"attest": true}, http.StatusOK)
	// What an operator deletes leaves nothing of what was its alone.
	do("POST", agent, m.addition(map[string]any{"runtime_policy": encoded(t, runtimePolicy("/sbin/init")), "tpm_policy": `{"15":["` + strings.Repeat("0", 64) + `"]}`}), http.StatusOK)
	if all, err := w.store.Policies(t.Context(), ""); err != nil || len(all) != 2 {
		t.Errorf("policies: %+v, %v", all, err)
	}
	w.api("DELETE", "/devices/"+m.id, nil, http.StatusNoContent)
	if all, err := w.store.Policies(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("policies of nobody: %+v, %v", all, err)
	}
}

// TestTenantLongName: the name of a derived policy is one, however long those of its parts are.
func TestTenantLongName(t *testing.T) {
	w := newWorld(t)
	tenant := w.tenantOf()
	m := w.machine(tpmtest.Start(t))
	m.enrol()
	name := strings.Repeat("n", store.MaxID)
	w.api("POST", "/policies/"+name+"?activate=true", runtimePolicy("/sbin/init"), http.StatusCreated)
	a, err := w.try(tenant, "POST", w.verifier+"/v2.6/agents/"+m.id, "", m.addition(map[string]any{"runtime_policy_name": name,
		"tpm_policy": `{"15":["` + strings.Repeat("0", 64) + `"]}`}))
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("%d %s, %v", a.status, a.body, err)
	}
	if one, other := derivedName(name, "a", ""), derivedName(name[1:]+"x", "a", ""); store.CheckID(one) != nil || one == other {
		t.Errorf("names %s and %s", one, other)
	}
}

func mustPKIX(t *testing.T, key *rsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestTenantDerived: an operator's change to a policy reaches what tenants made with it.
func TestTenantDerived(t *testing.T) {
	w := newWorld(t)
	tenant := w.tenantOf()
	m := w.machine(tpmtest.Start(t))
	m.enrol()
	call := func(method, path string, body any, want int) answer {
		t.Helper()
		a, err := w.try(tenant, method, w.verifier+path, "", body)
		if err != nil {
			t.Fatal(err)
		}
		if a.status != want {
			t.Fatalf("%s %s: %d %s, want %d", method, path, a.status, a.body, want)
		}
		return a
	}
	// What has rules is the operators'.
	w.policy("ruled", "/sbin/init")
	update := map[string]any{"runtime_policy": encoded(t, runtimePolicy("/sbin/init", "/tmp/evil")), "tpm_policy": "{}", "runtime_policy_key": ""}
	call("PUT", "/v2.6/allowlists/ruled", update, 403)
	call("POST", "/v2.6/allowlists/ruled", update, 409)
	call("DELETE", "/v2.6/allowlists/ruled", nil, 403)
	w.api("POST", "/policies/staged?activate=true", runtimePolicy("/sbin/init"), http.StatusCreated)
	w.api("POST", "/policies/staged", map[string]any{"schema": "attest.policy/v1", "rules": `required = ["/sbin/init"]`, "runtime_policy": runtimePolicy("/sbin/init")}, http.StatusCreated)
	call("PUT", "/v2.6/allowlists/staged", update, 403)
	call("DELETE", "/v2.6/allowlists/staged", nil, 403)
	w.api("POST", "/policies/image?activate=true", runtimePolicy("/sbin/init"), http.StatusCreated)
	call("POST", "/v2.6/agents/"+m.id, m.addition(map[string]any{"runtime_policy_name": "image", "tpm_policy": `{"15":["` + strings.Repeat("0", 64) + `"],"mask":"0x8400"}`}), 200)
	m.runFile("/sbin/init")
	m.session()
	m.attest()
	w.expect(m.id, store.Trusted, "")
	m.runFile("/bin/sh")
	m.attest()
	w.expect(m.id, store.Untrusted, "unknown_file")
	w.api("POST", "/policies/image?activate=true", runtimePolicy("/sbin/init", "/bin/sh"), http.StatusCreated)
	m.attest()
	w.expect(m.id, store.Trusted, "")
	var status struct{ Results map[string]any }
	if err := json.Unmarshal(call("GET", "/v2.6/agents/"+m.id, nil, 200).body, &status); err != nil {
		t.Fatal(err)
	}
	if r := status.Results; r["v"] != nil || r["attestation_status"] != "PASS" || r["attestation_count"] != 3.0 || r["has_runtime_policy"] != 1.0 {
		t.Errorf("status: %v", r)
	}
	call("PUT", "/v2.6/agents/"+m.id+"/stop", nil, 200)
	if a := call("GET", "/v2.6/agents/"+m.id, nil, 200); !strings.Contains(string(a.body), `"operational_state":10`) {
		t.Errorf("stopped: %s", a.body)
	}
	call("PUT", "/v2.6/agents/"+m.id+"/reactivate", nil, 200)
	w.api("PATCH", "/devices/"+m.id, map[string]any{"attest": false}, http.StatusOK)
	call("PUT", "/v2.6/agents/"+m.id+"/reactivate", nil, 403) // an operator's word
	w.api("PATCH", "/devices/"+m.id, map[string]any{"attest": true}, http.StatusOK)
	w.clock.pass(10 * time.Minute)
	if a := call("GET", "/v2.6/agents/"+m.id, nil, 200); !strings.Contains(string(a.body), `"attestation_status":"TIMEOUT"`) {
		t.Errorf("silent: %s", a.body)
	}
	by := w.api("GET", "/devices/"+m.id, nil, http.StatusOK)["policies"]
	w.assign(m.id, "ruled")
	call("DELETE", "/v2.6/agents/"+m.id, nil, 403)
	w.api("PATCH", "/devices/"+m.id, map[string]any{"policies": by}, http.StatusOK)
	call("DELETE", "/v2.6/agents/"+m.id, nil, 200)
	call("GET", "/v2.6/agents/"+m.id, nil, 404)
	call("GET", "/v2.9/agents/"+m.id, nil, 400)
}

// TestTenantWithdrawn: where nothing can be derived of what an operator makes active, it does not
// become active, and what is withdrawn is no policy of anybody from then on.
func TestTenantWithdrawn(t *testing.T) {
	w := newWorld(t)
	tenant := w.tenantOf()
	m := w.machine(tpmtest.Start(t))
	m.enrol()
	w.api("POST", "/policies/image?activate=true", runtimePolicy("/sbin/init", "/bin/sh"), http.StatusCreated)
	pins := `{"15":["` + strings.Repeat("0", 64) + `"]}`
	if a, err := w.try(tenant, "POST", w.verifier+"/v2.6/agents/"+m.id, "", m.addition(map[string]any{"runtime_policy_name": "image", "tpm_policy": pins})); err != nil || a.status != http.StatusOK {
		t.Fatalf("%d %s, %v", a.status, a.body, err)
	}
	m.runFile("/sbin/init")
	m.runFile("/bin/sh")
	m.session()
	m.attest()
	w.expect(m.id, store.Trusted, "")
	active := func() (versions []float64) {
		for _, p := range w.api("GET", "/policies/image", nil, http.StatusOK)["policies"].([]any) {
			if p := p.(map[string]any); p["active"].(bool) {
				versions = append(versions, p["version"].(float64))
			}
		}
		return versions
	}
	pinned := map[string]any{"schema": "attest.policy/v1", "runtime_policy": runtimePolicy("/sbin/init"), "tpm_policy": json.RawMessage(pins)}
	w.api("POST", "/policies/image?activate=true", pinned, http.StatusConflict)
	if got := active(); len(got) != 1 || got[0] != 1 {
		t.Errorf("active after a refusal: %v", got)
	}
	w.api("PUT", "/policies/image/active", map[string]any{"versions": []int{}}, http.StatusOK)
	m.attest()
	w.expect(m.id, store.Unverified, "no_policy")
	w.api("POST", "/policies/image?activate=true", runtimePolicy("/sbin/init"), http.StatusCreated)
	m.attest()
	w.expect(m.id, store.Untrusted, "unknown_file")
}

// TestImportDevice: keys that another registrar proved are bound on an admin's word, and
// nothing is green before the key signs.
func TestImportDevice(t *testing.T) {
	w := newWorld(t)
	e := tpmtest.Start(t)
	m, other := w.machine(e), w.machine(tpmtest.Start(t))
	b64 := base64.StdEncoding.EncodeToString
	body := func(ek, ak *machine, dry bool) map[string]any {
		return map[string]any{"source": "Keylime", "ek_tpm": b64(ek.ek.Public), "aik_tpm": b64(ak.ak.Public()), "dry_run": dry}
	}
	path := "/devices/gateway/import"
	w.api("POST", path, body(m, m, true), http.StatusCreated)
	if a := w.send("GET", w.verifier+"/api/v1/devices/gateway", w.admin, nil); a.status != http.StatusNotFound {
		t.Errorf("a dry run added a device: %s", a.body)
	}
	w.api("POST", path, body(m, m, false), http.StatusCreated)
	w.api("POST", path, body(m, m, false), http.StatusOK)
	for name, b := range map[string]map[string]any{"another TPM": body(other, other, false), "another AK": body(m, other, false), "another TPM, dry": body(other, other, true)} {
		if a := w.send("POST", w.verifier+"/api/v1"+path, w.admin, b); a.status != http.StatusForbidden {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	listens := body(m, m, true)
	listens["ip"], listens["port"], listens["mtls_cert"] = "192.0.2.9", 9002, string(e.RootCA)
	if a := w.send("POST", w.verifier+"/api/v1"+path, w.admin, listens); !strings.Contains(string(a.body), "not_polled\":\"this verifier polls no agents") {
		t.Errorf("a dry run of a device that waits to be polled: %d %s", a.status, a.body)
	}
	for _, dry := range []bool{false, true} {
		if a := w.send("POST", w.verifier+"/api/v1/devices/second/import", w.admin, body(m, m, dry)); a.status != http.StatusForbidden {
			t.Errorf("the same TPM as another device, dry run %t: %d %s", dry, a.status, a.body)
		}
	}
	for name, b := range map[string]map[string]any{"an AK that is an EK": {"ek_tpm": b64(m.ek.Public), "aik_tpm": b64(m.ek.Public)}, "nothing": {}, "no base64": {"ek_tpm": "!", "aik_tpm": "!"},
		"no port": {"ek_tpm": b64(other.ek.Public), "aik_tpm": b64(other.ak.Public()), "port": 70000}} {
		if a := w.send("POST", w.verifier+"/api/v1/devices/x/import", w.admin, b); a.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if a := w.send("POST", w.verifier+"/api/v1"+path, w.token("op", Operator), body(m, m, false)); a.status != http.StatusForbidden {
		t.Errorf("an operator: %d %s", a.status, a.body)
	}
	w.policy("image", "/sbin/init")
	w.assign("gateway", "image")
	w.expect("gateway", store.Unverified, "")
	m.runFile("/sbin/init")
	m.id = "gateway"
	m.session()
	m.attest()
	w.expect("gateway", store.Trusted, "")
	events, err := w.store.Events(t.Context(), "gateway", 0, 10)
	if err != nil || len(events) < 2 || events[len(events)-1].Kind != "device-imported" && !strings.Contains(fmt.Sprint(events), "device-imported") {
		t.Errorf("events: %+v, %v", events, err)
	}
	cas, err := evidence.NewCAStore(e.RootCA, e.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	strict := newWorld(t, func(o *Options) { o.TOFU, o.EKCA = false, cas })
	proven := body(m, m, false)
	proven["ekcert"] = m.registration().EKCert
	if proven["ekcert"] == nil {
		t.Fatal("the TPM has no certificate")
	}
	strict.api("POST", "/devices/proven/import", proven, http.StatusCreated)
	if a := strict.send("POST", strict.verifier+"/api/v1"+path, strict.admin, body(m, m, false)); a.status != http.StatusForbidden {
		t.Errorf("without a manufacturer's certificate: %d %s", a.status, a.body)
	}
}
