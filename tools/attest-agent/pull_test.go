//go:build !nopull

package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/server"
)

// caller is who polls a device: a verifier or a tenant, with a certificate.
type caller struct {
	t      *testing.T
	listen string
	ca     string // file, for the agent
	cert   *tls.Certificate
	pin    []byte // the agent's certificate, DER; nil: not looked at
}

// newCaller makes a CA and a certificate of it.
func newCaller(t *testing.T, listen string) *caller {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "poller"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "client"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c := &caller{t: t, listen: listen, ca: filepath.Join(t.TempDir(), "listen-ca.crt"), cert: &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}
	if err := os.WriteFile(c.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER}), 0o644); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *caller) client() *http.Client {
	conf := &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		if c.pin != nil && !bytes.Equal(s.PeerCertificates[0].Raw, c.pin) {
			return fmt.Errorf("another certificate")
		}
		return nil
	}}
	if c.cert != nil {
		conf.Certificates = []tls.Certificate{*c.cert}
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}, Timeout: time.Minute}
}

// do sends a request and returns status and answer.
func (c *caller) do(method, uri string, body []byte) (int, []byte) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), method, "https://"+c.listen+uri, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := c.client().Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return res.StatusCode, text
}

// want sends a request that has to be answered with a status.
func (c *caller) want(status int, method, uri string, message any) []byte {
	c.t.Helper()
	body, ok := message.([]byte)
	if !ok && message != nil {
		var err error
		if body, err = json.Marshal(message); err != nil {
			c.t.Fatal(err)
		}
	}
	got, text := c.do(method, uri, body)
	if got != status {
		c.t.Errorf("%s %.100s: %d, want %d: %.300s", method, uri, got, status, text)
	}
	if !json.Valid(text) {
		c.t.Errorf("%s %.100s: not JSON: %.300s", method, uri, text)
	}
	return text
}

// quote asks for a quote and checks it as a verifier does.
func (c *caller) quote(ak *evidence.AK, state evidence.State, q evidence.QuoteRequest) (*evidence.Claims, evidence.State, string) {
	c.t.Helper()
	if q.Nonce == "" {
		q.Nonce = rand.Text()[:20]
	}
	text := c.want(200, "GET", "/v2.6/quotes/integrity?"+q.Query(), nil)
	a, err := evidence.DecodeAnswer[evidence.QuoteAnswer](bytes.NewReader(text))
	if err != nil {
		c.t.Fatalf("%s: %v", text, err)
	}
	ev, err := a.Results.Evidence()
	if err != nil {
		c.t.Fatal(err)
	}
	claims, state, err := evidence.Verify(ev, evidence.Expected{AK: ak, Nonce: []byte(q.Nonce), PCRs: evidence.Selection{"sha256": q.WithKeyPCR()}, IMA: true}, state)
	if err != nil {
		c.t.Fatal(err)
	}
	return claims, state, a.Results.Key
}

// newPolled is a machine whose agent listens.
func newPolled(t *testing.T, more ...string) (*machine, *process, *caller, []string) {
	t.Helper()
	v := newVerifier(t, func(o *server.Options) { o.AnyID = true })
	m := newMachine(t, v)
	m.tpm.Share()
	c := newCaller(t, freeAddress(t))
	dir, err := os.MkdirTemp("/dev/shm", "attest-agent-*")
	if err != nil {
		t.Skipf("no tmpfs for payloads: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	flags := append([]string{"--verifier-url", "", "--ak", "rsassa", "--listen", c.listen, "--listen-ca", c.ca, "--secrets-dir", filepath.Join(dir, "secrets")}, more...)
	p := m.start(m.command("run", flags...))
	p.expect("enrolled ")
	c.wait()
	return m, p, c, flags
}

// wait waits until the agent is enrolled and answers.
func (c *caller) wait() {
	c.t.Helper()
	until(c.t, "the agent to be ready", func() bool {
		r, err := c.client().Get("https://" + c.listen + "/v2.6/keys/pubkey")
		if err == nil {
			r.Body.Close()
		}
		return err == nil && r.StatusCode == 200
	})
}

// freeAddress is one that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

func (m *machine) savedAK() *evidence.AK {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(m.dir, "state", keyFile))
	if err != nil {
		m.t.Fatal(err)
	}
	ak, err := evidence.ParseAK(b[:2+int(b[0])<<8+int(b[1])])
	if err != nil {
		m.t.Fatal(err)
	}
	return ak
}

// TestPolled: quotes with the list from any entry on, in each version, before and after a
// restart of the agent, whose keys stay; a push-model verifier is not needed.
func TestPolled(t *testing.T) {
	t.Parallel()
	m, p, c, flags := newPolled(t)
	pair, err := tls.LoadX509KeyPair(filepath.Join(m.dir, "state", listenFile), filepath.Join(m.dir, "state", listenFile))
	if err != nil {
		t.Fatal(err)
	}
	c.pin = pair.Certificate[0]
	ak := m.savedAK()
	m.run("/sbin/init")
	claims, state, key := c.quote(ak, evidence.State{}, evidence.QuoteRequest{PCRs: []int{0, 10}, WithKey: true})
	if claims.Covered() != 2 {
		t.Errorf("%d entries are covered", claims.Covered())
	}
	checkKeyPCR(t, claims, key)
	m.run("/bin/sh")
	p.kill(m)
	registered := m.state().Contact
	_, port, _ := strings.Cut(c.listen, ":")
	// To be open at all addresses is to be polled at the one that the registrar sees.
	m.start(m.command("run", append(flags, "--listen", "0.0.0.0:"+port)...))
	c.wait()
	if at := m.state().Contact; at != registered || !strings.HasPrefix(at, c.listen+" ") {
		t.Errorf("polled at %s, was %s", at, registered)
	}
	claims, _, again := c.quote(ak, state, evidence.QuoteRequest{PCRs: []int{0, 10}, Offset: 2})
	if claims.Covered() != 3 || again != "" {
		t.Errorf("%d entries are covered, with key %q", claims.Covered(), again)
	}
	checkKeyPCR(t, claims, key)
	for _, version := range evidence.PullVersions() {
		text := c.want(200, "GET", "/v"+version+"/quotes/identity?nonce=1234567890ABCDEFGHIJ", nil)
		a, err := evidence.DecodeAnswer[evidence.QuoteAnswer](bytes.NewReader(text))
		if err != nil || a.Results.Key != key || a.Results.List != nil || a.Results.KeyAlg != evidence.Algorithm(ak.Key(), version) {
			t.Errorf("v%s: %v, %+v", version, err, a)
		}
	}
	if out, _ := m.command("doctor", flags...).CombinedOutput(); !strings.Contains(string(out), "polled at "+c.listen) || strings.Contains(string(out), "panic") {
		t.Errorf("doctor: %s", out)
	}
	if out, err := m.command("run", append(flags, "--contact", "0.0.0.0:"+port)...).CombinedOutput(); err == nil || !strings.Contains(string(out), "no address to be polled at\nattest-agent: hint: write contact") {
		t.Errorf("to be polled anywhere: %v: %s", err, out)
	}
	info, err := evidence.DecodeAnswer[evidence.AgentInfo](bytes.NewReader(c.want(200, "GET", "/v2.2/agent/info", nil)))
	if err != nil || info.Results.ID != m.state().ID {
		t.Errorf("%v, %+v", err, info)
	}
}

// checkKeyPCR looks whether the quote names the transport key.
func checkKeyPCR(t *testing.T, claims *evidence.Claims, key string) {
	t.Helper()
	for _, pcr := range claims.PCRs() {
		if pcr.Index == evidence.KeyPCR && bytes.Equal(pcr.Value, evidence.KeyPCRValue(crypto.SHA256, key)) {
			return
		}
	}
	t.Errorf("PCR %d is not that of the key: %+v", evidence.KeyPCR, claims.PCRs())
}

// TestPolledRefuses: what callers get wrong, by mistake or on purpose.
func TestPolledRefuses(t *testing.T) {
	t.Parallel()
	_, _, c, _ := newPolled(t)
	const nonce = "1234567890ABCDEFGHIJ"
	for uri, status := range map[string]int{
		"/version":                                                     200,
		"/v1.0/quotes/identity?nonce=" + nonce:                         400,
		"/v2.7/quotes/identity?nonce=" + nonce:                         400,
		"/v2.6/quotes/identity":                                        400,
		"/v2.6/quotes/identity?nonce=":                                 400,
		"/v2.6/quotes/identity?nonce=short":                            400,
		"/v2.6/quotes/identity?nonce=" + strings.Repeat("a", 65):       400,
		"/v2.6/quotes/identity?nonce=" + nonce + "%0a":                 400,
		"/v2.6/quotes/integrity?nonce=" + nonce + "&mask=0x1000000":    400,
		"/v2.6/quotes/integrity?nonce=" + nonce + "&mask=zz&partial=0": 400,
		"/v2.6/quotes/integrity?nonce=" + nonce + "&mask=0x400":        400,
		"/v2.6/keys/verify?challenge=" + nonce:                         400,
		"/v2.6/keys/verify?challenge=":                                 400,
		"/v2.6/../../etc/passwd":                                       400,
		"/":                                                            400,
	} {
		c.want(status, "GET", uri, nil)
	}
	c.want(400, "DELETE", "/v2.6/keys/ukey", nil)
	if text := c.want(400, "GET", "/v9.9/quotes/identity?nonce="+nonce, nil); !strings.Contains(string(text), "API version not supported") {
		t.Errorf("Keylime's verifier looks for another text than %s", text)
	}
	c.want(400, "POST", "/v2.6/keys/ukey", []byte("{"))
	c.want(400, "POST", "/v2.6/notifications/revocation", evidence.SignedRevocation{Message: "{}", Signature: []byte("x")})
}

// TestPolledShares: the shares of a payload's key in every wrong way, and once in the right one.
func TestPolledShares(t *testing.T) {
	t.Parallel()
	m, _, c, _ := newPolled(t)
	const nonce = "1234567890ABCDEFGHIJ"
	key := c.shareKey()
	k := bytes.Repeat([]byte{1}, evidence.ShareSize)
	u, v := evidence.SplitKey(k)
	id := m.state().ID
	// The verifier's share first: nothing to open, and nothing that waits for a tenant.
	c.want(200, "POST", "/v2.6/keys/vkey", evidence.VShare{Share: c.seal(key, v)})
	good := evidence.UShare{AuthTag: evidence.KeyTag(k, id), Share: c.seal(key, u), Payload: sealed(t, k, "a secret")}
	bad := good
	bad.AuthTag = evidence.KeyTag(k, "another device")
	c.want(200, "POST", "/v2.6/keys/ukey", bad)
	c.want(400, "GET", "/v2.6/keys/verify?challenge="+nonce, nil)
	c.want(400, "POST", "/v2.6/keys/vkey", evidence.VShare{Share: c.seal(key, v)})
	changed := good
	changed.Payload = bytes.Clone(good.Payload)
	changed.Payload[20] ^= 1
	c.want(200, "POST", "/v2.6/keys/ukey", changed)
	c.want(400, "POST", "/v2.6/keys/vkey", evidence.VShare{Share: c.seal(key, v)})
	huge := good
	huge.Payload = make([]byte, evidence.MaxPayload+100)
	c.want(400, "POST", "/v2.6/keys/ukey", huge)
	c.want(400, "GET", "/v2.6/keys/verify?challenge="+nonce, nil)
	// What is right is taken once; the same again changes nothing, and no other is taken.
	c.want(200, "POST", "/v2.6/keys/ukey", good)
	c.want(200, "POST", "/v2.6/keys/vkey", evidence.VShare{Share: c.seal(key, v)})
	proof, err := evidence.DecodeAnswer[evidence.KeyProof](bytes.NewReader(c.want(200, "GET", "/v2.6/keys/verify?challenge="+nonce, nil)))
	if err != nil || !proof.Results.Matches(k, nonce) {
		t.Errorf("%v, %+v", err, proof)
	}
	c.want(200, "POST", "/v2.6/keys/ukey", good)
	c.want(200, "POST", "/v2.6/keys/vkey", evidence.VShare{Share: c.seal(key, v)})
	other := bytes.Repeat([]byte{2}, evidence.ShareSize)
	u2, v2 := evidence.SplitKey(other)
	c.want(409, "POST", "/v2.6/keys/ukey", evidence.UShare{AuthTag: evidence.KeyTag(other, id), Share: c.seal(key, u2), Payload: sealed(t, other, "evil")})
	c.want(409, "POST", "/v2.6/keys/vkey", evidence.VShare{Share: c.seal(key, v2)})
}

func (c *caller) shareKey() string {
	c.t.Helper()
	a, err := evidence.DecodeAnswer[evidence.KeyAnswer](bytes.NewReader(c.want(200, "GET", "/v2.6/keys/pubkey", nil)))
	if err != nil {
		c.t.Fatal(err)
	}
	return a.Results.Key
}

func (c *caller) seal(key string, share []byte) []byte {
	c.t.Helper()
	b, err := evidence.SealShare(key, share)
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

func sealed(t *testing.T, key []byte, text string) []byte {
	t.Helper()
	b, err := evidence.SealPayload(key, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPolledNotice: a notice is believed if the certificate of the image signed it, and acted
// upon once.
func TestPolledNotice(t *testing.T) {
	key, file := revocationKey(t)
	actor := newActor(t)
	notices := filepath.Join(actor.dir, "notices")
	_, p, c, _ := newPolled(t, "--revocation-cert", file, "--notices-dir", notices)
	signed, err := evidence.SignRevocation(key, []byte(`{"type":"revocation","agent_id":"other","ip":"192.0.2.1","port":9002,"tpm_policy":"{}","meta_data":"{}","event_time":"Sun Nov 22 07:00:00 2026","event_id":"ima.pcr_mismatch"}`))
	if err != nil {
		t.Fatal(err)
	}
	changed := *signed
	changed.Message = strings.Replace(changed.Message, "other", "this", 1)
	c.want(400, "POST", "/v2.6/notifications/revocation", changed)
	c.want(200, "POST", "/v2.6/notifications/revocation", signed)
	p.expect("notice: revocation of other: ima.pcr_mismatch")
	act := func(more ...string) string {
		t.Helper()
		var out bytes.Buffer
		if code := start(append(actor.args(), more...), &out, &out); code != 0 {
			t.Fatalf("exit code %d:\n%s", code, &out)
		}
		return out.String()
	}
	actor.write("agent.toml", "", 0o644)
	// Without the certificate in the image root believes nobody, whatever the agent believed.
	kept, err := filepath.Glob(filepath.Join(notices, "keylime-*.json"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("%v, %v", kept, err)
	}
	text, err := os.ReadFile(kept[0])
	if err != nil {
		t.Fatal(err)
	}
	if out := act(); !strings.Contains(out, "refused: no revocation_cert is set") {
		t.Errorf("act said %s", out)
	}
	again := func(name string, b []byte) { actor.write("notices/keylime-"+name+".json", string(b), 0o600) }
	again("1", text)
	if out := act("--revocation-cert", file); !strings.Contains(out, "notice of Keylime's verifier: other is untrusted") {
		t.Errorf("act said %s", out)
	}
	again("2", text)
	if out := act("--revocation-cert", file); !strings.Contains(out, "refused: it was acted upon") {
		t.Errorf("act said %s", out)
	}
	again("3", bytes.Replace(text, []byte("other"), []byte("peers"), 1))
	if out := act("--revocation-cert", file); !strings.Contains(out, "refused: check revocation") {
		t.Errorf("act said %s", out)
	}
	if acts, err := os.ReadFile(filepath.Join(actor.dir, "acts")); err != nil || string(acts) != "other untrusted self=false boot=false\n" {
		t.Errorf("%q, %v", acts, err)
	}
}

// TestTranscript says to the agent what Keylime's tenant and verifier said, byte by byte,
// as tools/keylimetest recorded it.
func TestTranscript(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../keylimetest/testdata/pull.json")
	if err != nil {
		t.Fatal(err)
	}
	var tr struct {
		ID, Transport, Payload string
		Exchanges              []struct {
			Method, URI string
			Body        json.RawMessage
			Status      int
		}
	}
	if err := json.Unmarshal(b, &tr); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	if err := errors.Join(os.Chmod(state, 0o700), os.WriteFile(filepath.Join(state, shareFile), []byte(tr.Transport), 0o600)); err != nil {
		t.Fatal(err)
	}
	_, _, c, flags := newPolled(t, "--id", tr.ID, "--state-dir", state)
	for _, e := range tr.Exchanges {
		c.want(e.Status, e.Method, e.URI, []byte(e.Body))
	}
	secrets := flags[len(flags)-5]
	if got, err := os.ReadFile(filepath.Join(secrets, payloadName, payloadFile)); err != nil || string(got) != tr.Payload {
		t.Errorf("payload %q, %v", got, err)
	}
}
