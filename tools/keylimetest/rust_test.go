package keylimetest

import (
	"archive/zip"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// TestRustPush: rust-keylime's agent of the push model before our registrar and verifier.
func TestRustPush(t *testing.T) {
	t.Parallel()
	installed(t, "rust")
	p := startPlace(t)
	d := newDevice(t)
	d.run("/sbin/init")
	p.allow("/sbin/init", "/bin/sh")
	id := d.ekHash("rsa2048")
	p.api("POST", "/devices", map[string]any{"ek_hash": id, "policies": []string{"image"}}, 201)
	newRust(t, p, d, "rust-push.json").launch("keylime_push_model_agent")
	p.awaitVerdict(id, "trusted")
	p.goesOn(d, id)
}

// goesOn has a trusted device run what is allowed, before and after the verifier is killed
// and started again, and then what is not.
func (p *place) goesOn(d *device, id string) {
	p.t.Helper()
	d.run("/bin/sh")
	p.awaitMore(id)
	p.awaitVerdict(id, "trusted")
	p.end()
	p.start()
	p.awaitMore(id)
	p.awaitVerdict(id, "trusted")
	d.run("/tmp/evil")
	got := p.awaitVerdict(id, "untrusted")
	if r := fmt.Sprint(got.Verdict.Detail.Reasons); r != "[{unknown_file /tmp/evil}]" {
		p.t.Errorf("reasons %s", r)
	}
}

// TestRustAlgorithms: the same agents with other keys than their default ones. The
// push agent of 0.2.9 itself refuses to quote with a key on a curve ("Unsupported AK type").
func TestRustAlgorithms(t *testing.T) {
	t.Parallel()
	installed(t, "rust")
	for _, c := range []struct{ agent, template, encryption, signing string }{
		{"keylime_push_model_agent", "rsa2048", "rsa", "rsapss"},
		{"keylime_agent", "rsa2048", "rsa", "rsapss"},
		{"keylime_agent", "ecc-p256", "ecc", "ecdsa"},
	} {
		t.Run(c.agent+" "+c.signing, func(t *testing.T) {
			p := startPlace(t)
			p.allow("/sbin/init")
			d := newDevice(t)
			d.run("/sbin/init")
			a := newRust(t, p, d, "")
			a.env = append(a.env, "KEYLIME_AGENT_TPM_ENCRYPTION_ALG="+c.encryption, "KEYLIME_AGENT_TPM_SIGNING_ALG="+c.signing)
			m := map[string]any{"ek_hash": d.ekHash(c.template), "policies": []string{"image"}}
			if c.agent == "keylime_agent" {
				if os.Getuid() != 0 {
					t.Skip("keylime_agent mounts a tmpfs, which root alone may do")
				}
				m["model"] = "pull"
				p.api("POST", "/devices", m, http.StatusCreated)
				a.launchPull(p)
			} else {
				p.api("POST", "/devices", m, http.StatusCreated)
				a.launch(c.agent)
			}
			p.awaitVerdict(d.ekHash(c.template), "trusted")
		})
	}
}

// TestRustPull: rust-keylime's agent of the pull model, polled by our verifier.
func TestRustPull(t *testing.T) {
	t.Parallel()
	installed(t, "rust")
	if os.Getuid() != 0 {
		t.Skip("keylime_agent mounts a tmpfs, which root alone may do")
	}
	p := startPlace(t)
	d := newDevice(t)
	d.run("/sbin/init")
	p.allow("/sbin/init", "/bin/sh")
	a := newRust(t, p, d, "rust-pull.json")
	id := d.ekHash("rsa2048")
	p.api("POST", "/devices", map[string]any{"ek_hash": id, "policies": []string{"image"}}, 201)
	agent := a.launchPull(p)
	until(t, "the agent to enrol", func() bool { return p.device(id).State == "active" })
	contact := a.contact(p)
	p.api("PATCH", "/devices/"+id, map[string]any{"model": "pull", "contact": contact}, 200)
	p.awaitVerdict(id, "trusted")

	// As keylime_tenant does: the payload and U go to the agent, V to the verifier.
	key, archive := make([]byte, evidence.ShareSize), zipped(t, "greeting", "hello")
	_, _ = rand.Read(key)
	u, v := evidence.SplitKey(key)
	a.deliver(p, id, key, u, archive)
	if err := p.store.SetPull(t.Context(), id, store.PullSettings{Contact: contact, Share: v}, "tenant", time.Now()); err != nil {
		t.Fatal(err)
	}
	unpacked := filepath.Join(a.home, "secure", "unzipped", "greeting")
	until(t, "the payload", func() bool { b, err := os.ReadFile(unpacked); return err == nil && string(b) == "hello" })
	until(t, "the share to be forgotten", func() bool { return p.device(id).Poll.Share == "handed over" })

	p.goesOn(d, id)
	p.allow("/sbin/init", "/bin/sh", "/tmp/evil")
	p.awaitVerdict(id, "trusted")
	agent.stop()
	got := p.awaitVerdict(id, "overdue")
	if got.Poll.Failures == 0 || a.record == nil && !strings.Contains(got.Poll.Error, "refused") {
		t.Errorf("the agent is gone: %+v", got.Poll)
	}
}

// zipped is an archive with one file.
func zipped(t *testing.T, name, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create(name)
	if err == nil {
		_, err = w.Write([]byte(content))
	}
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// deliver gives the agent the payload and the tenant's share of its key.
func (a *rust) deliver(p *place, id string, key, u, payload []byte) {
	a.t.Helper()
	answer, err := evidence.DecodeAnswer[evidence.KeyAnswer](bytes.NewReader(a.call(p, "GET", "/v2.2/keys/pubkey", nil)))
	if err != nil {
		a.t.Fatal(err)
	}
	share, err := evidence.SealShare(answer.Results.Key, u)
	if err != nil {
		a.t.Fatal(err)
	}
	sealed, err := evidence.SealPayload(key, payload)
	if err != nil {
		a.t.Fatal(err)
	}
	a.call(p, "POST", "/v2.2/keys/ukey", evidence.UShare{AuthTag: evidence.KeyTag(key, id), Share: share, Payload: sealed})
}

// call asks the agent as a tenant does.
func (a *rust) call(p *place, method, path string, body any) []byte {
	a.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		a.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(a.t.Context(), method, "https://"+a.listen+path, bytes.NewReader(text))
	if err != nil {
		a.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{p.client}}} // on this machine, in this test
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(r)
	if err != nil {
		a.t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		a.t.Fatalf("%s %s: %d: %s %v", method, path, res.StatusCode, got, err)
	}
	return got
}
