package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/release"
	"github.com/meta-attest/meta-attest/tools/internal/store"
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
	database  string // path
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
	return newWorldOn(t, newSQLite(t), change...)
}

func newSQLite(t testing.TB) string { return filepath.Join(t.TempDir(), "attest.db") }

// newWorldOn makes a world on a database of any kind, empty or not.
func newWorldOn(t testing.TB, url string, change ...func(*Options)) *world {
	t.Helper()
	w := &world{t: t, clock: &clock{now: time.Now()}, log: &logBuffer{}, pki: newPKI(t)}
	w.database = url
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
	w.ops = "http://" + w.listen(w.s.Operations(func() map[string]*x509.Certificate { return map[string]*x509.Certificate{"server": server.Leaf} }), nil)
	w.client = w.pki.client()
	t.Cleanup(w.client.CloseIdleConnections)
	w.admin = w.token(rand.Text(), Admin) // another in each world on a database
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
	w.api("POST", "/policies/"+name+"?activate=true", map[string]any{"schema": release.Schema, "rules": `required = ["` + paths[0] + `"]`,
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
