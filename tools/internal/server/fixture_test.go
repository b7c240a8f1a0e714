package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// clock is a time that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// logBuffer is a log that a test reads.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// world is a server with all its listeners on real TLS, and its database.
type world struct {
	t         testing.TB
	s         *Server
	store     *store.Store
	clock     *clock
	log       *logBuffer
	pki       *pki
	registrar string // https://...
	verifier  string
	ops       string
	admin     string // token
	client    *http.Client
}

func newWorld(t testing.TB, change ...func(*Options)) *world {
	t.Helper()
	w := &world{t: t, clock: &clock{now: time.Now()}, log: &logBuffer{}, pki: newPKI(t)}
	url := filepath.Join(t.TempDir(), "attest.db")
	if _, _, err := store.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.store, err = store.Open(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.store.Close() })
	o := Options{Store: w.store, Log: slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})), TOFU: true, Now: w.clock.Now,
		ClientCA: []*x509.Certificate{w.pki.ca}, Limits: Limits{RequestsIP: 100_000, RequestsDevice: 100_000}}
	for _, f := range change {
		f(&o)
	}
	if w.s, err = New(o); err != nil {
		t.Fatal(err)
	}
	server := w.pki.issue(t, pkix.Name{CommonName: "verifier"}, time.Hour)
	conf := TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &server, nil })
	w.registrar = "https://" + w.listen(w.s.Registrar(), conf)
	w.verifier = "https://" + w.listen(w.s.Verifier(), conf)
	w.ops = "http://" + w.listen(w.s.Operations(map[string]*x509.Certificate{"server": server.Leaf}), nil)
	w.client = w.pki.client()
	t.Cleanup(w.client.CloseIdleConnections)
	w.admin = w.token("root", Admin)
	return w
}

func (w *world) listen(h http.Handler, conf *tls.Config) string {
	w.t.Helper()
	l := &Listener{Address: "127.0.0.1:0", Handler: h, TLS: conf}
	if err := l.Open(w.t.Context(), w.s.Limits, w.s.Log); err != nil {
		w.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Serve() }()
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		l.Close(ctx)
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	return l.Address
}

func (w *world) token(name string, role Role) string {
	w.t.Helper()
	token, _, err := AddToken(w.t.Context(), w.store, name, role, 0, "test", w.clock.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (w *world) send(method, url, token string, body any) answer {
	w.t.Helper()
	a, err := w.try(w.client, method, url, token, body)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (w *world) try(client *http.Client, method, url, token string, body any) (answer, error) {
	var text []byte
	switch b := body.(type) {
	case nil:
	case []byte:
		text = b
	default:
		var err error
		if text, err = json.Marshal(body); err != nil {
			return answer{}, err
		}
	}
	r, err := http.NewRequestWithContext(w.t.Context(), method, url, bytes.NewReader(text))
	if err != nil {
		return answer{}, err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, got}, err
}

// api calls the management API as admin and decodes the answer.
func (w *world) api(method, path string, body any, want int) map[string]any {
	w.t.Helper()
	a := w.send(method, w.verifier+"/api/v1"+path, w.admin, body)
	if a.status != want {
		w.t.Fatalf("%s %s: %d, want %d: %s", method, path, a.status, want, a.body)
	}
	got := map[string]any{}
	if len(a.body) > 0 {
		if err := json.Unmarshal(a.body, &got); err != nil {
			w.t.Fatalf("%s %s: %v: %s", method, path, err, a.body)
		}
	}
	return got
}

// machine is a device: a TPM, its keys, and a kernel that measures.
type machine struct {
	w     *world
	dev   *tpm.TPM
	ek    *tpm.EK
	ak    *tpm.AK
	id    string
	token string
	list  []byte
	ends  []int // of the list's entries
	boot  time.Time
}

func (w *world) machine(e *tpmtest.Emulator) *machine {
	w.t.Helper()
	m := &machine{w: w, dev: e.Open(), boot: w.clock.Now()}
	var err error
	if m.ek, err = m.dev.EK(""); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(m.ek.Close)
	if m.ak, err = m.dev.CreateAK("ecdsa"); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(m.ak.Close)
	ek, err := evidence.ParseEK(m.ek.Public)
	if err != nil {
		w.t.Fatal(err)
	}
	if m.id, err = ek.ID(); err != nil {
		w.t.Fatal(err)
	}
	m.measureAggregate()
	return m
}

// entry makes an ima-ng entry and its template data.
func entry(path string, digest []byte) (line, data []byte) {
	le := binary.LittleEndian
	d := append([]byte("sha256:\x00"), digest...)
	data = append(le.AppendUint32(nil, uint32(len(d))), d...)
	data = append(le.AppendUint32(data, uint32(len(path)+1)), path+"\x00"...)
	sum := sha1.Sum(data)
	line = append(le.AppendUint32(nil, 10), sum[:]...)
	line = append(le.AppendUint32(line, 6), "ima-ng"...)
	return append(le.AppendUint32(line, uint32(len(data))), data...), data
}

// run has the kernel measure a file and the TPM extend PCR 10.
func (m *machine) run(path string, digest []byte) {
	m.w.t.Helper()
	line, data := entry(path, digest)
	m.list = append(m.list, line...)
	m.ends = append(m.ends, len(m.list))
	tpmtest.Extend(m.w.t, m.dev, 10, func(h crypto.Hash) []byte { s := h.New(); s.Write(data); return s.Sum(nil) })
}

func (m *machine) runFile(path string) {
	m.w.t.Helper()
	m.run(path, content(path))
}

// content is the digest of the file at path in the release of policyOf.
func content(path string) []byte {
	sum := sha256.Sum256([]byte("content of " + path))
	return sum[:]
}

// measureAggregate measures boot_aggregate as Linux does: SHA-256 of PCR 0 to 9.
func (m *machine) measureAggregate() {
	m.w.t.Helper()
	sel, err := evidence.Selection{"sha256": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}.TPM()
	if err != nil {
		m.w.t.Fatal(err)
	}
	values, err := m.dev.PCRs(sel)
	if err != nil {
		m.w.t.Fatal(err)
	}
	sum := sha256.Sum256(bytes.Join(values, nil))
	m.run("boot_aggregate", sum[:])
}

func (m *machine) from(entry int) []byte {
	switch {
	case entry == 0:
		return m.list
	case entry > len(m.ends):
		return nil // it has booted since
	}
	return m.list[m.ends[entry-1]:]
}

func (m *machine) registration() evidence.Registration {
	issuers := append([]byte{}, m.ek.Certificate...)
	ders, err := evidence.CutCertificates(issuers)
	if err != nil {
		m.w.t.Fatal(err)
	}
	cert := evidence.FormatCertificates(ders)
	return evidence.Registration{AK: m.ak.Public(), EK: m.ek.Public, EKCert: &cert}
}

// enrol registers and activates under id.
func (m *machine) enrol() {
	m.w.t.Helper()
	a := m.w.send("POST", m.w.registrar+"/v2.6/agents/"+m.id, "", m.registration())
	if a.status != http.StatusOK {
		m.w.t.Fatalf("register: %d %s", a.status, a.body)
	}
	challenge, err := evidence.DecodeAnswer[evidence.Challenge](bytes.NewReader(a.body))
	if err != nil {
		m.w.t.Fatal(err)
	}
	a = m.w.send("PUT", m.w.registrar+"/v2.6/agents/"+m.id+"/activate", "", evidence.Activation{AuthTag: evidence.AuthTag(m.open(challenge.Results), m.id)})
	if a.status != http.StatusOK {
		m.w.t.Fatalf("activate: %d %s", a.status, a.body)
	}
}

// open opens a credential with the TPM.
func (m *machine) open(c evidence.Challenge) []byte {
	m.w.t.Helper()
	idObject, encrypted, err := c.Credential()
	if err != nil {
		m.w.t.Fatal(err)
	}
	secret, err := m.ek.Activate(m.ak, idObject, encrypted)
	if err != nil {
		m.w.t.Fatal(err)
	}
	return secret
}

// session proves possession of the AK and keeps the token.
func (m *machine) session() {
	m.w.t.Helper()
	a := m.w.send("POST", m.w.verifier+"/v3.0/sessions", "", evidence.NewDocument("", evidence.SessionRequest{Agent: m.id, Supported: []evidence.Method{evidence.Possession()}}))
	if a.status != http.StatusOK {
		m.w.t.Fatalf("session: %d %s", a.status, a.body)
	}
	c, err := evidence.Decode[evidence.SessionChallenge](bytes.NewReader(a.body))
	if err != nil {
		m.w.t.Fatal(err)
	}
	message, signature, err := m.ak.Certify(c.Data.Attributes.Requested[0].Parameters.Challenge)
	if err != nil {
		m.w.t.Fatal(err)
	}
	a = m.w.send("PATCH", m.w.verifier+"/v3.0/sessions/"+c.Data.ID, "", evidence.NewDocument(c.Data.ID, evidence.NewSessionProof(m.id, message, signature)))
	if a.status != http.StatusOK {
		m.w.t.Fatalf("prove session: %d %s", a.status, a.body)
	}
	r, err := evidence.Decode[evidence.SessionResult](bytes.NewReader(a.body))
	if err != nil {
		m.w.t.Fatal(err)
	}
	m.token = r.Data.Attributes.Token
}

func (m *machine) capabilities() evidence.Capabilities {
	n, yes := len(m.ends), true
	return evidence.Capabilities{
		Supported: []evidence.Supported{
			{Class: evidence.ClassCertification, Type: evidence.TypeQuote, Capabilities: evidence.Capability{Version: "2.0", Hashes: []string{"sha256"}, Schemes: []string{"ecdsa"},
				Keys: []evidence.Key{{Class: "asymmetric", Algorithm: "ecc", Size: 256, Server: "ak", Name: base64.StdEncoding.EncodeToString(m.ak.Name())}}}},
			{Class: evidence.ClassLog, Type: evidence.TypeIMA, Capabilities: evidence.Capability{Entries: &n, Partial: &yes, Appendable: &yes, Formats: []string{evidence.FormatBinary, evidence.FormatText}}},
		},
		System: evidence.SystemInfo{BootTime: m.boot.UTC()},
	}
}

// negotiate asks what to send.
func (m *machine) negotiate() (location string, asked evidence.Requests) {
	m.w.t.Helper()
	a := m.w.send("POST", m.w.verifier+"/v3.0/agents/"+m.id+"/attestations", m.token, evidence.NewDocument("", m.capabilities()))
	if a.status != http.StatusCreated {
		m.w.t.Fatalf("negotiate: %d %s", a.status, a.body)
	}
	d, err := evidence.Decode[evidence.Requests](bytes.NewReader(a.body))
	if err != nil {
		m.w.t.Fatal(err)
	}
	return a.header.Get("Location"), d.Data.Attributes
}

// collect makes what was asked for.
func (m *machine) collect(asked evidence.Requests) evidence.Collected {
	m.w.t.Helper()
	var c evidence.Collected
	for _, q := range asked.Requested {
		item := evidence.Item{Class: q.Class, Type: q.Type}
		if q.Type == evidence.TypeIMA {
			item.Data = evidence.NewLog(m.from(*q.Parameters.Offset), q.Parameters.Format, len(m.ends)-*q.Parameters.Offset)
		} else {
			item.Data = m.quote(q.Parameters)
		}
		c.Collected = append(c.Collected, item)
	}
	return c
}

func (m *machine) quote(p evidence.Parameters) evidence.Data {
	m.w.t.Helper()
	sel, err := evidence.Selection(p.Selected).TPM()
	if err != nil {
		m.w.t.Fatal(err)
	}
	q, err := m.ak.Quote(p.Challenge, sel)
	if err != nil {
		m.w.t.Fatal(err)
	}
	blob, err := evidence.AppendPCRBlob(nil, sel, q.Values)
	if err != nil {
		m.w.t.Fatal(err)
	}
	return evidence.Data{Message: q.Message, Signature: q.Signature, PCRs: blob}
}

// submit sends evidence and returns the answer.
func (m *machine) submit(location string, c evidence.Collected) answer {
	m.w.t.Helper()
	return m.w.send("PATCH", m.w.verifier+location, m.token, evidence.NewDocument("", c))
}

// attest does one round and returns what the device is told.
func (m *machine) attest() evidence.Verdict {
	m.w.t.Helper()
	location, asked := m.negotiate()
	a := m.submit(location, m.collect(asked))
	if a.status != http.StatusAccepted {
		m.w.t.Fatalf("attest: %d %s", a.status, a.body)
	}
	d, err := evidence.Decode[evidence.Accepted](bytes.NewReader(a.body))
	if err != nil {
		m.w.t.Fatal(err)
	}
	if d.Meta == nil || d.Meta.Verdict == nil || d.Meta.Next == 0 {
		m.w.t.Fatalf("attest: no verdict or time in %s", a.body)
	}
	return *d.Meta.Verdict
}

func (m *machine) expect(status store.Status, codes string) {
	m.w.t.Helper()
	if v := m.attest(); v.State != string(status) {
		m.w.t.Fatalf("the device is told %+v, want %s", v, status)
	}
	m.w.expect(m.id, status, codes)
}

// expect compares the stored verdict.
func (w *world) expect(id string, status store.Status, codes string) {
	w.t.Helper()
	d, err := w.store.Device(w.t.Context(), id, w.clock.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	if d.Verdict.Status != status || d.Verdict.Codes != codes {
		w.t.Fatalf("verdict of %s: %s (%s), want %s (%s): %s", id, d.Verdict.Status, d.Verdict.Codes, status, codes, d.Verdict.Detail)
	}
}

// runtimePolicy is one of Keylime that allows these files.
func runtimePolicy(paths ...string) map[string]any {
	digests := map[string][]string{}
	for _, p := range paths {
		digests[p] = []string{fmt.Sprintf("%x", content(p))}
	}
	return map[string]any{"meta": map[string]any{"version": 1, "generator": 3, "timestamp": "2026-11-22 00:00:00"}, "release": 0, "digests": digests,
		"excludes": []string{}, "keyrings": map[string]any{}, "ima": map[string]any{"ignored_keyrings": []string{}, "log_hash_alg": "sha1", "dm_policy": nil},
		"ima-buf": map[string]any{}, "verification-keys": ""}
}

// policy puts, activates and assigns nothing: see assign.
func (w *world) policy(name string, paths ...string) {
	w.t.Helper()
	w.api("POST", "/policies/"+name+"?activate=true", map[string]any{"schema": schemaPolicy, "rules": `required = ["` + paths[0] + `"]`,
		"runtime_policy": runtimePolicy(paths...)}, http.StatusCreated)
}

func (w *world) assign(id string, policies ...string) {
	w.t.Helper()
	w.api("PATCH", "/devices/"+id, map[string]any{"policies": policies}, http.StatusOK)
}

// pki is a certification authority for TLS.
type pki struct {
	key *ecdsa.PrivateKey
	ca  *x509.Certificate
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: time.Now().Add(-48 * time.Hour),
		NotAfter: time.Now().Add(48 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pki{key, ca}
}

// issue makes a certificate for both ends that is valid for so long from an hour ago on.
func (p *pki) issue(t testing.TB, subject pkix.Name, life time.Duration) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: subject, NotBefore: time.Now().Add(-24 * time.Hour),
		NotAfter: time.Now().Add(life), DNSNames: []string{"localhost"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, p.ca, key.Public(), p.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (p *pki) client(certs ...tls.Certificate) *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(p.ca)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: certs}}}
}

// direct calls a handler without a network.
func (m *machine) direct(h http.Handler, method, path string, body []byte) answer {
	m.w.t.Helper()
	r := httptest.NewRequestWithContext(m.w.t.Context(), method, path, bytes.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+m.token)
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return answer{rec.Code, rec.Header(), rec.Body.Bytes()}
}
