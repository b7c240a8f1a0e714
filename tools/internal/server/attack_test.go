package server

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/release"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// enrolled is a device that is trusted under policy "image".
func (w *world) enrolled(e *tpmtest.Emulator) *machine {
	w.t.Helper()
	m := w.machine(e)
	m.runFile("/sbin/init")
	m.enrol()
	m.session()
	w.policy("image", "/sbin/init", "/bin/sh", "/bin/ls")
	w.assign(m.id, "image")
	m.expect(store.Trusted, "")
	return m
}

// TestForgery is CVE-2023-3674 and its like: what is not authentic turns the device red
// at once, is kept, and goes away with the next good attestation.
func TestForgery(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.enrolled(tpmtest.Start(t))
	flip := func(b []byte) { b[len(b)/2] ^= 1 }
	for _, c := range []struct {
		name, code string
		forge      func(*evidence.Collected)
	}{
		{"signature", "quote_signature", func(c *evidence.Collected) { flip(c.Collected[0].Data.Signature) }},
		{"quote", "quote_signature", func(c *evidence.Collected) { flip(c.Collected[0].Data.Message) }},
		{"PCR values", "pcr_digest", func(c *evidence.Collected) { c.Collected[0].Data.PCRs[160] ^= 1 }},
		{"no list", "log_missing", func(c *evidence.Collected) { c.Collected = c.Collected[:1] }},
		{"list of nothing", "ima_pcr_mismatch", func(c *evidence.Collected) { c.Collected[1].Data.Entries = "" }},
		{"other list", "ima_log", func(c *evidence.Collected) {
			c.Collected[1].Data = evidence.NewLog([]byte("junk"), evidence.FormatBinary, 1)
		}},
		{"not base64", "malformed", func(c *evidence.Collected) { c.Collected[1].Data.Entries = "%" }},
		{"Certify instead of a quote", "not_a_quote", func(c *evidence.Collected) {
			message, signature, err := m.ak.Certify(evidence.NewNonce())
			if err != nil {
				t.Fatal(err)
			}
			c.Collected[0].Data.Message, c.Collected[0].Data.Signature = message, signature
		}},
	} {
		m.runFile("/bin/ls") // so that there is something to send
		location, asked := m.negotiate()
		forged := m.collect(asked)
		c.forge(&forged)
		if a := m.submit(location, forged); a.status != http.StatusAccepted {
			t.Errorf("%s: %d %s", c.name, a.status, a.body)
		}
		w.expect(m.id, store.Broken, c.code)
		m.expect(store.Trusted, "")
	}
}

// TestReplay: evidence counts once, for the device and the challenge that it was made for.
func TestReplay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m, other := w.enrolled(tpmtest.Start(t)), w.machine(tpmtest.Start(t))
	other.runFile("/sbin/init")
	other.enrol()
	other.session()
	w.assign(other.id, "image")

	location, asked := m.negotiate()
	good := m.collect(asked)
	if a := m.submit(location, good); a.status != http.StatusAccepted {
		t.Fatalf("attest: %d %s", a.status, a.body)
	}
	for _, where := range []string{location, strings.TrimSuffix(location, "1") + "latest", "/v3.0/agents/" + m.id + "/attestations/999"} {
		if a := m.submit(where, good); a.status != http.StatusForbidden {
			t.Errorf("the same again at %s: %d %s", where, a.status, a.body)
		}
	}
	location, _ = m.negotiate()
	m.submit(location, good)
	w.expect(m.id, store.Broken, "nonce")

	// What another device proves says nothing about this one.
	location, asked = other.negotiate()
	if a := other.submit(location, m.collect(asked)); a.status != http.StatusAccepted {
		t.Errorf("another's quote: %d %s", a.status, a.body)
	}
	w.expect(other.id, store.Broken, "quote_signature")
	other.expect(store.Trusted, "")
	m.expect(store.Trusted, "")

	location, asked = m.negotiate()
	w.clock.pass(time.Hour)
	m.session()
	if a := m.submit(location, m.collect(asked)); a.status != http.StatusForbidden {
		t.Errorf("an answer that comes late: %d %s", a.status, a.body)
	}
}

// TestOneAnswer: of many answers to one challenge one counts.
func TestOneAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.enrolled(tpmtest.Start(t))
	location, asked := m.negotiate()
	body, err := json.Marshal(evidence.NewDocument("", m.collect(asked)))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var wait sync.WaitGroup
	got := map[int]int{}
	for range 8 {
		wait.Go(func() {
			a, err := w.try(w.client, "PATCH", w.verifier+location, m.token, body)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			got[a.status]++
		})
	}
	wait.Wait()
	if got[http.StatusAccepted] != 1 || got[http.StatusForbidden]+got[http.StatusServiceUnavailable] != 7 {
		t.Errorf("answers by status: %v", got)
	}
}

// TestReboot: a boot is noticed by the TPM's counters, whatever the agent says of it, and
// a bad boot is forgotten with the next good one.
func TestReboot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	emulator := tpmtest.Start(t)
	m := w.enrolled(emulator)
	m.runFile("/bin/evil")
	m.expect(store.Untrusted, "unknown_file")
	m.reboot(emulator)
	v := m.attest()
	if v.State != string(store.Untrusted) || len(v.Reasons) != 1 || v.Reasons[0].Code != "reboot" {
		t.Errorf("told at the reboot: %+v", v)
	}
	m.expect(store.Trusted, "")
	// With the hint the list comes whole at once.
	m.reboot(emulator)
	m.boot = m.boot.Add(time.Hour)
	m.expect(store.Trusted, "")
}

// reboot starts the device anew; it runs init.
func (m *machine) reboot(e *tpmtest.Emulator) {
	m.w.t.Helper()
	blob := m.ak.Blob()
	e.Reboot()
	m.dev = e.Open()
	var err error
	if m.ak, err = m.dev.LoadAK(blob); err != nil {
		m.w.t.Fatal(err)
	}
	m.list, m.ends = nil, nil
	m.measureAggregate()
	m.runFile("/sbin/init")
}

// TestPanic is CVE-2022-3500: a fault of the verifier is no good verdict, and the device is
// judged again.
func TestPanic(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.enrolled(tpmtest.Start(t))
	good := w.s.judge
	w.s.judge = func(*evidence.Claims, *appraise.Reference, appraise.State) (appraise.Verdict, appraise.State, error) {
		panic("a fault")
	}
	m.expect(store.Unverified, "internal")
	w.s.judge = good
	m.runFile("/bin/evil")
	m.expect(store.Untrusted, "unknown_file")
}

// TestPolicy: a change of policy holds from the next attestation on, for all that the
// device ran; back goes only who says so, and only an admin.
func TestPolicy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.enrolled(tpmtest.Start(t))
	m.runFile("/bin/new")
	location, asked := m.negotiate()
	second := map[string]any{"schema": release.Schema, "release": "second", "runtime_policy": runtimePolicy("/sbin/init", "/bin/new"), "rules": `required = ["/sbin/init"]`}
	w.api("POST", "/policies/image", second, http.StatusCreated)
	w.api("PUT", "/policies/image/active", map[string]any{"versions": []int{1, 2}}, http.StatusOK)
	if a := m.submit(location, m.collect(asked)); a.status != http.StatusAccepted || !bytes.Contains(a.body, []byte("need_whole")) {
		t.Errorf("judged by a policy that came meanwhile: %d %s", a.status, a.body)
	}
	m.expect(store.Trusted, "")
	d, err := w.store.Device(t.Context(), m.id, w.clock.Now())
	if err != nil || d.Verdict.Fitted != "image@2 second" {
		t.Errorf("fits %q, %v", d.Verdict.Fitted, err)
	}
	w.api("PUT", "/policies/image/active", map[string]any{"versions": []int{1}}, http.StatusConflict)
	operator := w.token("op", Operator)
	if a := w.send("PUT", w.verifier+"/api/v1/policies/image/active", operator, map[string]any{"versions": []int{1}, "downgrade": true}); a.status != http.StatusForbidden {
		t.Errorf("a downgrade by an operator: %d %s", a.status, a.body)
	}
	w.api("PUT", "/policies/image/active", map[string]any{"versions": []int{1}, "downgrade": true}, http.StatusOK)
	m.expect(store.Untrusted, "unknown_file")
	w.api("PUT", "/policies/image/active", map[string]any{"versions": []int{}}, http.StatusOK)
	m.expect(store.Unverified, "no_policy")
	w.api("DELETE", "/policies/image", nil, http.StatusConflict)
	for name, bad := range map[string]any{"nothing allowed": map[string]any{"schema": release.Schema}, "unknown member": map[string]any{"schema": release.Schema, "exclude": 1},
		"no schema": map[string]any{}, "an array": []int{1}} {
		if a := w.send("POST", w.verifier+"/api/v1/policies/bad", w.admin, bad); a.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	unsigned := map[string]any{"schema": release.Schema, "manifests": []string{"{}"}}
	w.api("POST", "/policies/bad", unsigned, http.StatusUnprocessableEntity)
}

// TestOverdue: silence is no good verdict (issue #1091 of Keylime), whoever looks.
func TestOverdue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.enrolled(tpmtest.Start(t))
	w.clock.pass(w.s.due() + time.Second)
	w.expect(m.id, store.Overdue, "")
	w.s.sweep(t.Context())
	if n := len(w.api("GET", "/devices?status=overdue", nil, 200)["devices"].([]any)); n != 1 {
		t.Errorf("%d devices are overdue", n)
	}
	m.expect(store.Trusted, "")
	kinds := ""
	events, err := w.store.Events(t.Context(), m.id, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		kinds = e.Kind + ":" + string(e.Status) + " " + kinds
	}
	if !strings.HasSuffix(kinds, "verdict:trusted overdue: verdict:trusted ") {
		t.Errorf("events: %s", kinds)
	}
}

// TestExplain: the event of a verdict leads to evidence that says the same again.
func TestExplain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.enrolled(tpmtest.Start(t))
	m.runFile("/opt/evil")
	m.expect(store.Untrusted, "unknown_file")
	x := w.api("GET", "/devices/"+m.id+"/verdict", nil, 200)
	detail, _ := json.Marshal(x["verdict"])
	if !bytes.Contains(detail, []byte("/opt/evil")) || !bytes.Contains(detail, []byte(hex.EncodeToString(content("/opt/evil")))) {
		t.Errorf("neither path nor digest in %s", detail)
	}
	digest := x["event"].(map[string]any)["evidence"].(string)
	a := w.send("GET", w.verifier+"/api/v1/evidence/"+digest, w.admin, nil)
	b, err := evidence.DecodeBody[evidence.Bundle](bytes.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	claims, _, err := b.Verify()
	if err != nil || b.Device != m.id {
		t.Fatalf("evidence of %s: %v", b.Device, err)
	}
	found := false
	for e, err := range claims.Entries() {
		found = found || err == nil && string(e.Path) == "/opt/evil"
	}
	if !found {
		t.Error("the evidence does not have the file")
	}
	w.api("GET", "/events/check", nil, 200)
	w.api("GET", "/events/check?seq=1&hash="+strings.Repeat("00", 32), nil, http.StatusConflict)
	w.api("GET", "/events?device="+m.id+"&limit=1", nil, 200)
}

// TestIdle is CVE-2023-38200: who only connects keeps nobody out, and is shown out.
func TestIdle(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) { o.Limits.ConnectionsIP = 400 })
	address := strings.TrimPrefix(w.registrar, "https://")
	var conns []net.Conn
	for range 300 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	if a := w.send("GET", w.registrar+"/version", "", nil); a.status != 200 {
		t.Errorf("beside idle connections: %d %s", a.status, a.body)
	}
	for _, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadAll(c); err != nil {
			t.Fatalf("an idle connection was not closed: %v", err)
		}
	}
}

// TestLimits: what is too large, too much or too often has an answer that says so.
func TestLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) { o.Limits.RequestsIP, o.Limits.RequestsDevice = 30, 40 })
	m := w.enrolled(tpmtest.Start(t))
	location, asked := m.negotiate()
	large := m.collect(asked)
	large.Collected[1].Data.Entries = strings.Repeat("A", evidence.MaxSize)
	if a := m.submit(location, large); a.status != http.StatusRequestEntityTooLarge {
		t.Errorf("large evidence: %d %s", a.status, a.body)
	}
	// Whoever asks in the device's name uses up his own share, not the device's.
	var last answer
	for range 40 {
		last = w.send("POST", w.verifier+"/v3.0/sessions", "", evidence.NewDocument("", evidence.SessionRequest{Agent: m.id, Supported: []evidence.Method{evidence.Possession()}}))
	}
	if last.status != http.StatusTooManyRequests || last.header.Get("Retry-After") == "" {
		t.Errorf("the 40th session: %d %s", last.status, last.body)
	}
	m.expect(store.Trusted, "")
	for range 60 {
		last = w.send("POST", w.verifier+"/v3.0/agents/"+m.id+"/attestations", m.token, evidence.NewDocument("", m.capabilities()))
	}
	if last.status != http.StatusTooManyRequests || last.header.Get("Retry-After") == "" {
		t.Errorf("the 60th attestation: %d %s", last.status, last.body)
	}
	w.clock.pass(time.Minute)
	m.expect(store.Trusted, "")
}

// TestCanary: no log, no error and no metric has a secret in it.
func TestCanary(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.machine(tpmtest.Start(t))
	_, c := m.register(m.id, m.registration())
	secret := m.open(c)
	tag := evidence.AuthTag(secret, m.id)
	w.send("PUT", w.registrar+"/v2.1/agents/"+m.id, "", []byte(`{"auth_tag":"`+tag[:95]+`"}`))
	w.send("PUT", w.registrar+"/v2.1/agents/"+m.id, "", []byte(`{"auth_tag":"`+tag[:95]+`x"}`))
	w.send("PUT", w.registrar+"/v2.1/agents/"+m.id, "", evidence.Activation{AuthTag: tag})
	m.session()
	made := w.api("POST", "/tokens", map[string]any{"name": "alice", "role": "operator", "days": 1}, http.StatusCreated)["token"].(string)
	var said bytes.Buffer
	for _, token := range []string{made, m.token, made + "x", m.token + "x"} {
		for _, path := range []string{"/api/v1/tokens", "/api/v1/devices", "/api/v1/events", "/v3.0/agents/" + m.id + "/attestations/latest", "/v3.0/agents/x/attestations/latest"} {
			said.Write(w.send("GET", w.verifier+path, token, nil).body)
			said.Write(w.send("POST", w.verifier+path, token, []byte(`{"token":"`+token+`",`)).body)
		}
	}
	said.Write(w.send("GET", w.ops+"/metrics", "", nil).body)
	said.WriteString(w.log.String())
	for name, canary := range map[string]string{"secret of the credential": string(secret), "answer to it": tag[:95], "token of a device": m.token,
		"random part of it": m.token[strings.Index(m.token, ".")+1:], "token of an operator": made, "token of the admin": w.admin} {
		if strings.Contains(said.String(), canary) {
			t.Errorf("the %s was told", name)
		}
	}
	if !strings.Contains(said.String(), "attest_devices{status=\"unverified\"} 1") {
		t.Error("the metrics are not there")
	}
}
