package server

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// members are the names in a JSON object with those of the objects in it, "a.b", and of the
// first element of an array, "a[].b".
func members(t *testing.T, text []byte) []string {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	var names []string
	var walk func(prefix string, v any)
	walk = func(prefix string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, inner := range v {
				names = append(names, prefix+name)
				walk(prefix+name+".", inner)
			}
		case []any:
			if len(v) > 0 {
				walk(strings.TrimSuffix(prefix, ".")+"[].", v[0])
			}
		}
	}
	walk("", v)
	slices.Sort(names)
	return names
}

// looksLike compares an answer with one that Keylime 7.14 gave an agent: status, type, and
// every member that rust-keylime 0.2.9 reads.
func looksLike(t *testing.T, what string, a answer, status int, content string, recorded string) {
	t.Helper()
	if a.status != status || a.header.Get("Content-Type") != content {
		t.Errorf("%s: %d %s, want %d %s", what, a.status, a.header.Get("Content-Type"), status, content)
	}
	got := members(t, a.body)
	for _, name := range members(t, []byte(recorded)) {
		if !slices.Contains(got, name) {
			t.Errorf("%s: no %s in %s", what, name, a.body)
		}
	}
}

func TestKeylimeRegistrar(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.machine(tpmtest.Start(t))
	// As agents of Keylime send it, with members that ours do not have.
	registration, err := json.Marshal(m.registration())
	if err != nil {
		t.Fatal(err)
	}
	registration = append(bytes.TrimSuffix(registration, []byte("}")), `,"iak_tpm":null,"iak_cert":null,"idevid_tpm":null,"ip":"127.0.0.1","port":9002,"mtls_cert":"disabled"}`...)
	looksLike(t, "version", w.send("GET", w.registrar+"/version", "", nil), 200, contentJSON,
		`{"code":200,"status":"Success","results":{"current_version":"2.6","supported_versions":["2.1"]}}`)
	a := w.send("POST", w.registrar+"/v2.1/agents/"+m.id, "", registration)
	looksLike(t, "register", a, 200, contentJSON, `{"code":200,"status":"Success","results":{"blob":"utzA3gAAAAEARAAg"}}`)
	c, err := evidence.DecodeAnswer[evidence.Challenge](bytes.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	tag, err := json.Marshal(map[string]string{"auth_tag": evidence.AuthTag(m.open(c.Results), m.id)})
	if err != nil {
		t.Fatal(err)
	}
	looksLike(t, "refused", w.send("PUT", w.registrar+"/v2.1/agents/nobody/activate", "", tag), 403, contentJSON, `{"code":403,"status":"x","results":{}}`)
	looksLike(t, "activate", w.send("PUT", w.registrar+"/v2.1/agents/"+m.id+"/activate", "", tag), 200, contentJSON, `{"code":200,"status":"Success","results":{}}`)
}

func TestKeylimePush(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.machine(tpmtest.Start(t))
	m.enrol()
	a := w.send("POST", w.verifier+"/v3.0/sessions", "", []byte(`{"data":{"type":"session","attributes":{"agent_id":"`+m.id+
		`","authentication_supported":[{"authentication_class":"pop","authentication_type":"tpm_pop"}]}}}`))
	looksLike(t, "session", a, 200, contentPush, `{"data":{"type":"session","id":"x","attributes":{"agent_id":"U","authentication_requested":[
		{"authentication_class":"pop","authentication_type":"tpm_pop","chosen_parameters":{"challenge":"x"}}],"created_at":"x","challenges_expire_at":"x"}}}`)
	m.session()
	location, _ := m.negotiate()
	if want := "/v3.0/agents/" + m.id + "/attestations/0"; location != want {
		t.Errorf("Location %q, want %q", location, want)
	}
	a = w.send("POST", w.verifier+"/v3.0/agents/"+m.id+"/attestations", m.token, evidence.NewDocument("", m.capabilities()))
	looksLike(t, "negotiate", a, 201, contentPush, `{"data":{"type":"attestation","id":"1","attributes":{"stage":"awaiting_evidence","evidence_requested":[
		{"evidence_class":"certification","evidence_type":"tpm_quote","chosen_parameters":{"challenge":"x","signature_scheme":"rsassa","hash_algorithm":"sha256",
		"selected_subjects":{"sha1":[],"sha256":[10]},"certification_key":{"key_class":"asymmetric","key_algorithm":"rsa","key_size":2048,"server_identifier":"ak","local_identifier":"x"}}},
		{"evidence_class":"log","evidence_type":"ima_log","chosen_parameters":{"starting_offset":0,"format":"text/plain"}}],
		"system_info":{"boot_time":"x"},"capabilities_received_at":"x","challenges_expire_at":"x"}}}`)
	d, err := evidence.Decode[evidence.Requests](bytes.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	if p := d.Data.Attributes.Requested[1].Parameters; p.Offset == nil || p.Format == "" {
		t.Errorf("the log is asked for with %+v", p)
	}
	a = m.submit(a.header.Get("Location"), m.collect(d.Data.Attributes))
	looksLike(t, "evidence", a, 202, contentPush, `{"data":{"type":"attestation","id":"1","attributes":{"stage":"evaluating_evidence","evidence":[],"system_info":{"boot_time":"x"}}},
		"meta":{"seconds_to_next_attestation":5}}`)
	looksLike(t, "result", w.send("GET", w.verifier+"/v3.0/agents/"+m.id+"/attestations/latest", w.admin, nil), 200, contentPush,
		`{"data":{"type":"attestation","id":"1","attributes":{"stage":"verification_complete","evaluation":"fail"}}}`)
	looksLike(t, "no such session", w.send("PATCH", w.verifier+"/v3.0/sessions/x", "", evidence.NewDocument("", evidence.NewSessionProof(m.id, []byte{1}, []byte{1}))), 401, contentPush,
		`{"errors":[{"status":"401","title":"x","detail":"x"}]}`)
	w.clock.pass(2 * time.Hour)
	if a := w.send("POST", w.verifier+"/v3.0/agents/"+m.id+"/attestations", m.token, evidence.NewDocument("", m.capabilities())); a.status != http.StatusUnauthorized {
		t.Errorf("a session that is over: %d %s", a.status, a.body)
	}
}
