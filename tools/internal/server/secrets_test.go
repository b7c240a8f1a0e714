package server

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/payload"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// secretKeys are keys from their first bytes.
func secretKeys(t testing.TB, firsts ...byte) *SecretKeys {
	t.Helper()
	var all []byte
	for _, b := range firsts {
		all = append(append(all, b), bytes.Repeat([]byte{'k'}, secretKeySize-1)...)
	}
	k, err := ParseSecretKeys(all)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func withSecrets(t testing.TB) func(*Options) {
	return func(o *Options) { o.Secrets = secretKeys(t, 1) }
}

const canary = "canary-7f3a91"

// putSecret puts files whose content begins with the canary.
func (w *world) putSecret(name, query string, files ...payload.File) {
	w.t.Helper()
	if len(files) == 0 {
		files = []payload.File{{Name: "key", Mode: 0o600, Data: []byte(canary + " of " + name)}}
	}
	body, err := (&payload.Payload{Files: files}).Zip()
	if err != nil {
		w.t.Fatal(err)
	}
	if a := w.sendZip(name, query, body); a.status != http.StatusCreated {
		w.t.Fatalf("put secret: %d %s", a.status, a.body)
	}
}

func (w *world) sendZip(name, query string, body []byte) answer {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), "POST", w.verifier+"/api/v1/secrets/"+name+query, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+w.admin)
	r.Header.Set("Content-Type", contentZip)
	res, err := w.client.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(res.Body); err != nil {
		w.t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, b.Bytes()}
}

func (w *world) assignSecret(name string, add, remove map[string][]string) {
	w.t.Helper()
	w.api("PATCH", "/secrets/"+name, map[string]any{"add": add, "remove": remove}, http.StatusOK)
}

// attested does a round and returns the tag and the challenge.
func (m *machine) attested(want store.Status) (tag string, challenge []byte) {
	m.w.t.Helper()
	location, asked := m.negotiate()
	a := m.submit(location, m.collect(asked))
	d, err := evidence.Decode[evidence.Accepted](bytes.NewReader(a.body))
	if err != nil || d.Meta == nil || d.Meta.Verdict == nil || d.Meta.Verdict.State != string(want) {
		m.w.t.Fatalf("attest: %d %s, want %s", a.status, a.body, want)
	}
	return d.Meta.Secrets, asked.Challenge()
}

// ask asks for secrets with key.
func (m *machine) ask(ak *tpm.AK, key *tpm.SecretKey, qualifier []byte, after string) (answer, *evidence.Secrets, evidence.SecretContext) {
	m.w.t.Helper()
	message, signature, boot, err := ak.CertifySecretKey(key, qualifier)
	if err != nil {
		m.w.t.Fatal(err)
	}
	a := m.w.send("POST", m.w.verifier+"/v3.0/agents/"+m.id+"/secrets", m.token, evidence.NewDocument("",
		evidence.SecretRequest{Public: key.Public(), Message: message, Signature: signature, After: after}))
	context := evidence.SecretContext{Device: m.id, ResetCount: boot.ResetCount, RestartCount: boot.RestartCount}
	if a.status != http.StatusOK {
		return a, nil, context
	}
	d, err := evidence.Decode[evidence.Secrets](bytes.NewReader(a.body))
	if err != nil {
		m.w.t.Fatal(err)
	}
	return a, &d.Data.Attributes, context
}

func (m *machine) newKey() *tpm.SecretKey {
	m.w.t.Helper()
	key, err := m.dev.CreateSecretKey()
	if err != nil {
		m.w.t.Fatal(err)
	}
	m.w.t.Cleanup(key.Close)
	return key
}

// secrets asks for all secrets as the agent does, and returns the first file of each.
func (m *machine) secrets(challenge []byte) string {
	m.w.t.Helper()
	key := m.newKey()
	defer key.Close()
	var all []string
	for after := ""; ; {
		a, page, context := m.ask(m.ak, key, evidence.SecretQualifier(m.id, challenge), after)
		if page == nil {
			m.w.t.Fatalf("secrets: %d %s", a.status, a.body)
		}
		for _, one := range page.Secrets {
			c := context
			c.Name, c.Revision, c.Run = one.Name, one.Revision, one.Run
			zip, err := evidence.OpenSecret(key, key.Name(), c, one.Sealed)
			if err != nil {
				m.w.t.Fatal(err)
			}
			p, err := payload.ParseZip(zip)
			if err != nil {
				m.w.t.Fatal(err)
			}
			all = append(all, fmt.Sprintf("%s %d %s%.40s", one.Name, one.Revision, one.Run, p.Files[0].Data))
			after = one.Name
		}
		if !page.More {
			return strings.Join(all, ", ")
		}
	}
}

// TestSecrets takes secrets through their life: assigned to a device and to a group, two
// revisions, taken away, deleted; and a device through its own.
func TestSecrets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withSecrets(t))
	m := w.enrolled(tpmtest.Start(t))
	if tag, _ := m.attested(store.Trusted); tag != "" {
		t.Errorf("tag %q before there is a secret", tag)
	}
	w.putSecret("web", "?run=key")
	w.putSecret("db", "")
	w.api("PATCH", "/devices/"+m.id, map[string]any{"group": "edge"}, http.StatusOK)
	w.assignSecret("web", map[string][]string{"devices": {m.id}}, nil)
	w.assignSecret("db", map[string][]string{"groups": {"edge"}}, nil)
	first, challenge := m.attested(store.Trusted)
	if got, want := m.secrets(challenge), "db 1 "+canary+" of db, web 1 key"+canary+" of web"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	w.putSecret("web", "", payload.File{Name: "key", Mode: 0o600, Data: []byte("new")})
	second, challenge := m.attested(store.Trusted)
	if got, want := m.secrets(challenge), "db 1 "+canary+" of db, web 2 new"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	w.assignSecret("db", nil, map[string][]string{"groups": {"edge"}})
	third, challenge := m.attested(store.Trusted)
	if got, want := m.secrets(challenge), "web 2 new"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if w.api("DELETE", "/secrets/web", nil, http.StatusNoContent); first == "" || first == second || second == third || third == "" {
		t.Errorf("tags %q %q %q", first, second, third)
	}
	tag, challenge := m.attested(store.Trusted)
	if got := m.secrets(challenge); got != "" || tag != "" {
		t.Errorf("after all were deleted: %q, tag %q", got, tag)
	}
	released := 0
	for _, e := range w.events(m.id) {
		if e["kind"] == "secret-released" {
			released++
		}
	}
	if released != 3 {
		t.Errorf("%d releases are events, not 3", released)
	}
}

func (w *world) events(device string) (all []map[string]any) {
	w.t.Helper()
	for _, e := range w.api("GET", "/events?limit=1000&device="+device, nil, http.StatusOK)["events"].([]any) {
		all = append(all, e.(map[string]any))
	}
	return all
}

// TestSecretPages: an answer holds what fits, the others follow.
func TestSecretPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withSecrets(t))
	m := w.enrolled(tpmtest.Start(t))
	var want []string
	for i := range 40 {
		name := fmt.Sprintf("s%02d", i)
		data := []byte(name)
		if i%10 == 9 {
			data = append(data, make([]byte, payload.MaxSize/2)...)
		}
		if i == 20 {
			data = bytes.Repeat([]byte{'x'}, payload.MaxSize-200)
		}
		w.putSecret(name, "", payload.File{Name: "f", Mode: 0o600, Data: data})
		w.assignSecret(name, map[string][]string{"devices": {m.id}}, nil)
		want = append(want, fmt.Sprintf("%s 1 %.40s", name, data))
	}
	_, challenge := m.attested(store.Trusted)
	if got := m.secrets(challenge); got != strings.Join(want, ", ") {
		t.Errorf("got %q", got)
	}
}

// TestSecretsRefused is CVE-2021-43310: nobody but the trusted device gets a secret, now.
func TestSecretsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withSecrets(t))
	emulator := tpmtest.Start(t)
	m := w.enrolled(emulator)
	other := w.machine(tpmtest.Start(t))
	other.runFile("/sbin/init")
	other.enrol()
	other.session()
	w.assign(other.id, "image")
	w.putSecret("web", "")
	w.assignSecret("web", map[string][]string{"devices": {m.id}}, nil)
	_, old := m.attested(store.Trusted)
	_, challenge := m.attested(store.Trusted)
	_, theirs := other.attested(store.Trusted)
	key := m.newKey()
	refuse := func(what string, m *machine, ak *tpm.AK, key *tpm.SecretKey, qualifier []byte, code string) {
		t.Helper()
		a, _, _ := m.ask(ak, key, qualifier, "")
		if a.status != http.StatusForbidden || !strings.Contains(string(a.body), `"`+code+`"`) || strings.Contains(string(a.body), "sealed") {
			t.Errorf("%s: %d %s, want 403 %s", what, a.status, a.body, code)
		}
	}
	good := evidence.SecretQualifier(m.id, challenge)
	refuse("the challenge before", m, m.ak, key, evidence.SecretQualifier(m.id, old), "nonce")
	refuse("another device's challenge", m, m.ak, key, evidence.SecretQualifier(m.id, theirs), "nonce")
	refuse("another device's id", m, m.ak, key, evidence.SecretQualifier(other.id, challenge), "nonce")
	if got := other.secrets(theirs); got != "" {
		t.Errorf("another device gets %q", got)
	}
	stolen := other.newKey()
	refuse("a key of another TPM", m, other.ak, stolen, good, "quote_signature")
	a, _, _ := other.ask(other.ak, stolen, good, "")
	if a.status != http.StatusForbidden {
		t.Errorf("another device with this one's challenge: %d %s", a.status, a.body)
	}
	mine := m.token
	m.token = other.token
	refuse("the session of another device", m, m.ak, key, good, "other_device")
	m.token = mine

	// Recorded, and played after the verdict turned.
	message, signature, _, err := m.ak.CertifySecretKey(key, good)
	if err != nil {
		t.Fatal(err)
	}
	record, err := json.Marshal(evidence.NewDocument("", evidence.SecretRequest{Public: key.Public(), Message: message, Signature: signature}))
	if err != nil {
		t.Fatal(err)
	}
	play := func(what, code string, status int) {
		t.Helper()
		a := w.send("POST", w.verifier+"/v3.0/agents/"+m.id+"/secrets", m.token, record)
		if a.status != status || code != "" && !strings.Contains(string(a.body), `"`+code+`"`) {
			t.Errorf("%s: %d %s, want %d %s", what, a.status, a.body, status, code)
		}
	}
	play("in time", "", http.StatusOK)
	w.clock.pass(4 * time.Minute)
	m.session()
	play("overdue", "not_trusted", http.StatusForbidden)
	m.attested(store.Trusted)
	play("after another attestation", "nonce", http.StatusForbidden)
	m.runFile("/tmp/evil")
	m.attested(store.Untrusted)
	play("untrusted", "not_trusted", http.StatusForbidden)
	key.Close()
	if a, _, _ := m.ask(m.ak, m.newKey(), good, ""); a.status != http.StatusForbidden {
		t.Errorf("untrusted, a new key: %d %s", a.status, a.body)
	}
	if kinds := w.kinds("secret-released"); kinds != 1 {
		t.Errorf("%d releases are events, not 1", kinds)
	}
}

func (w *world) kinds(kind string) int {
	return len(slices.DeleteFunc(w.events(""), func(e map[string]any) bool { return e["kind"] != kind }))
}

// TestSecretsBoot: what was released before a reset cannot be opened after it, and what is
// asked for then, with the answers of before, is not released.
func TestSecretsBoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withSecrets(t))
	emulator := tpmtest.Start(t)
	m := w.enrolled(emulator)
	w.putSecret("web", "")
	w.assignSecret("web", map[string][]string{"devices": {m.id}}, nil)
	_, challenge := m.attested(store.Trusted)
	key := m.newKey()
	a, page, context := m.ask(m.ak, key, evidence.SecretQualifier(m.id, challenge), "")
	if page == nil {
		t.Fatalf("%d %s", a.status, a.body)
	}
	context.Name, context.Revision = "web", 1
	blob := m.ak.Blob()
	emulator.Reboot()
	m.dev = emulator.Open()
	var err error
	if m.ak, err = m.dev.LoadAK(blob); err != nil {
		t.Fatal(err)
	}
	again := m.newKey()
	if _, err := evidence.OpenSecret(again, key.Name(), context, page.Secrets[0].Sealed); err == nil {
		t.Error("opened after a reset")
	}
	// The verdict is still the one of before, and trusted.
	if a, _, _ := m.ask(m.ak, again, evidence.SecretQualifier(m.id, challenge), ""); a.status != http.StatusForbidden || !strings.Contains(string(a.body), `"reboot"`) {
		t.Errorf("after a reset, before it attested: %d %s", a.status, a.body)
	}
}

// asking is a trusted device that has a secret, and what it sends to get it.
func asking(t *testing.T) (*world, *machine, []byte) {
	w := newWorld(t, withSecrets(t))
	m := w.enrolled(tpmtest.Start(t))
	w.putSecret("web", "")
	w.assignSecret("web", map[string][]string{"devices": {m.id}}, nil)
	_, challenge := m.attested(store.Trusted)
	key := m.newKey()
	message, signature, _, err := m.ak.CertifySecretKey(key, evidence.SecretQualifier(m.id, challenge))
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(evidence.NewDocument("", evidence.SecretRequest{Public: key.Public(), Message: message, Signature: signature}))
	if err != nil {
		t.Fatal(err)
	}
	return w, m, body
}

// TestSecretsRace asks for secrets while the verdict turns: by the chain of events none is
// released while the device is red.
func TestSecretsRace(t *testing.T) {
	t.Parallel()
	w, m, body := asking(t)
	var group sync.WaitGroup
	done := make(chan struct{})
	var asked, given atomic.Int64
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				a, err := w.try(w.client, "POST", w.verifier+"/v3.0/agents/"+m.id+"/secrets", m.token, body)
				if err != nil {
					t.Error(err)
					return
				}
				if a.status == http.StatusOK {
					given.Add(1)
				} else if strings.Contains(string(a.body), "sealed") {
					t.Errorf("%d %s", a.status, a.body)
				}
				asked.Add(1)
			}
		})
	}
	until(t, func() bool { return given.Load() > 0 })
	m.runFile("/tmp/evil")
	m.attested(store.Untrusted)
	before := asked.Load()
	until(t, func() bool { return asked.Load() >= before+8 })
	close(done)
	group.Wait()
	status, events := "trusted", w.events(m.id)
	slices.Reverse(events)
	released := int64(0)
	for _, e := range events {
		if s, ok := e["status"].(string); ok && s != "" {
			status = s
		}
		if e["kind"] == "secret-released" {
			if released++; status != "trusted" {
				t.Errorf("released while %s: %v", status, e)
			}
		}
	}
	if released != given.Load() {
		t.Errorf("%d answers, %d events", given.Load(), released)
	}
}

// TestSecretsNowhere looks for what a secret holds in all that the server writes or tells.
func TestSecretsNowhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withSecrets(t))
	m := w.enrolled(tpmtest.Start(t))
	w.putSecret("web", "?run=key")
	w.assignSecret("web", map[string][]string{"devices": {m.id}}, nil)
	_, challenge := m.attested(store.Trusted)
	if got := m.secrets(challenge); !strings.Contains(got, canary) {
		t.Fatal("the device did not get it: nothing is tested")
	}
	// Archives that are refused: their content is in no answer either.
	for _, bad := range [][]byte{[]byte(canary), append([]byte("PK\x03\x04"), canary...)} {
		if a := w.sendZip("bad", "", bad); a.status != http.StatusBadRequest || strings.Contains(string(a.body), canary) {
			t.Errorf("a bad archive: %d %s", a.status, a.body)
		}
	}
	if a := w.sendZip("bad", "?run=none", mustZip(t, "f", canary)); a.status != http.StatusBadRequest || strings.Contains(string(a.body), canary) {
		t.Errorf("a bad archive: %d %s", a.status, a.body)
	}
	where := map[string]string{"log": w.log.String(), "metrics": string(w.send("GET", w.ops+"/metrics", "", nil).body)}
	for _, r := range verifierRoutes {
		if r.method != "GET" {
			continue
		}
		path := strings.NewReplacer("{version}", "v3.0", "{id}", m.id, "{name}", "web", "{index}", "latest", "{policyVersion}", "1").Replace(r.path)
		if strings.Contains(path, "/notices") && r.roles[0] == Device {
			continue // waits
		}
		where[path] = string(w.send("GET", w.verifier+path, w.admin, nil).body)
	}
	for _, name := range []string{"", "-wal", "-shm"} {
		b, err := os.ReadFile(w.database + name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		where["database"+name] = string(b)
	}
	if len(where["database"])+len(where["database-wal"]) == 0 || !strings.Contains(where["/api/v1/secrets"], `"web"`) || !strings.Contains(where["log"], "secrets released") {
		t.Error("what is looked at is empty")
	}
	for name, text := range where {
		for _, form := range []string{canary, base64.StdEncoding.EncodeToString([]byte(canary))[:16], hex.EncodeToString([]byte(canary))} {
			if strings.Contains(text, form) {
				t.Errorf("the secret is in %s", name)
			}
		}
	}
}

func mustZip(t *testing.T, name, data string) []byte {
	t.Helper()
	b, err := (&payload.Payload{Files: []payload.File{{Name: name, Mode: 0o600, Data: []byte(data)}}}).Zip()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestNoSecretKey: without a key nothing is taken, and a device is told of none.
func TestNoSecretKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.sendZip("web", "", mustZip(t, "f", "x"))
	if a.status != http.StatusConflict || !strings.Contains(string(a.body), "[secrets] key") {
		t.Errorf("put: %d %s", a.status, a.body)
	}
	if a := w.send("PATCH", w.verifier+"/api/v1/secrets/web", w.admin, map[string]any{"add": map[string]any{"groups": []string{"g"}}}); a.status != http.StatusConflict {
		t.Errorf("assign: %d %s", a.status, a.body)
	}
	if got := fmt.Sprint(w.api("GET", "/secrets", nil, http.StatusOK)["secrets"]); got != "[]" {
		t.Errorf("list: %s", got)
	}
	m := w.enrolled(tpmtest.Start(t))
	if tag, _ := m.attested(store.Trusted); tag != "" {
		t.Errorf("tag %q", tag)
	}
}
