package keylimetest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// exchange is one request and its answer.
type exchange struct {
	Method      string          `json:"method"`
	URI         string          `json:"uri"`
	Type        string          `json:"content_type,omitempty"`
	Body        json.RawMessage `json:"body,omitempty"`
	Status      int             `json:"status"`
	Answer      json.RawMessage `json:"answer,omitempty"`
	AnswerPlace string          `json:"location,omitempty"`
}

// transcript is what Keylime and our agent said to each other, with what a test needs to
// say it again.
type transcript struct {
	Keylime   string     `json:"keylime"`             // its version
	ID        string     `json:"id"`                  // of the device
	Transport string     `json:"transport,omitempty"` // private key that shares are encrypted to; it protects nothing
	Payload   string     `json:"payload,omitempty"`
	Exchanges []exchange `json:"exchanges"`

	mu sync.Mutex
}

// recording says whether transcripts are to be written anew:
//
//	ATTEST_RECORD=1 go test -run 'TestPull|TestPush' ./tools/keylimetest
func recording() bool { return os.Getenv("ATTEST_RECORD") != "" }

// pass listens as somebody with a certificate, and passes on what it hears to somebody else,
// with another, writing it down.
func (tr *transcript) pass(t *testing.T, server, client tls.Certificate, to string) (address string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert})
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: to})
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{client}}, DisableCompression: true}
	proxy.ModifyResponse = func(r *http.Response) error {
		answer, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		r.Body = io.NopCloser(bytes.NewReader(answer))
		body, _ := r.Request.Context().Value(bodyKey{}).(json.RawMessage)
		tr.mu.Lock()
		defer tr.mu.Unlock()
		tr.Exchanges = append(tr.Exchanges, exchange{r.Request.Method, r.Request.URL.RequestURI(), r.Request.Header.Get("Content-Type"),
			body, r.StatusCode, compact(answer), r.Header.Get("Location")})
		return nil
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		proxy.ServeHTTP(w, r.WithContext(contextWith(r, body)))
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// write keeps the first exchanges of each kind, so that the file is not as long as the test was.
func (tr *transcript) write(t *testing.T, name string, most int) {
	t.Helper()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	count := map[string]int{}
	var kept []exchange
	for _, e := range tr.Exchanges {
		u, err := url.Parse(e.URI)
		if err != nil {
			t.Fatal(err)
		}
		kind := e.Method + " " + strings.TrimRight(u.Path, "0123456789")
		if count[kind]++; count[kind] <= most {
			kept = append(kept, e)
		}
	}
	tr.Exchanges = kept
	text, err := json.MarshalIndent(tr, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("testdata", name), append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(os.Stderr, "wrote testdata/%s: %d exchanges\n", name, len(kept))
}

type bodyKey struct{}

func contextWith(r *http.Request, body []byte) context.Context {
	return context.WithValue(r.Context(), bodyKey{}, compact(body))
}

// compact is the JSON of b in one line, or b as a text where it is none.
func compact(b []byte) json.RawMessage {
	if len(b) == 0 {
		return nil
	}
	var out bytes.Buffer
	if json.Compact(&out, b) == nil {
		return out.Bytes()
	}
	text, err := json.Marshal(string(b))
	if err != nil {
		return nil
	}
	return text
}

// recordPull puts itself between Keylime and the agent, whose key it takes from the state
// folder: enrolling makes it.
func (k *keylime) recordPull(d *device) (contact string) {
	k.t.Helper()
	flags := append(k.flags(), "--listen", d.listen, "--listen-ca", k.path("cv_ca/cacert.crt"))
	if out, err := d.agent("enrol", flags...).CombinedOutput(); err != nil {
		k.t.Fatalf("%v\n%s", err, out)
	}
	pair := filepath.Join(d.dir, "state", "listen.pem")
	server, err := tls.LoadX509KeyPair(pair, pair)
	if err != nil {
		k.t.Fatal(err)
	}
	transport, err := os.ReadFile(filepath.Join(d.dir, "state", "transport.pem"))
	if err != nil {
		k.t.Fatal(err)
	}
	tr := &transcript{Keylime: filepath.Base(filepath.Dir(k.bin)), ID: d.id(), Transport: string(transport), Payload: "a secret"}
	contact = tr.pass(k.t, server, k.clientPair(), d.listen)
	k.t.Cleanup(func() { tr.write(k.t, "pull.json", 2) })
	return contact
}

// recordPush puts itself between the agent and both servers, whose certificate it has.
func (k *keylime) recordPush(d *device) (flags []string) {
	k.t.Helper()
	server, err := tls.LoadX509KeyPair(k.path("cv_ca/server-cert.crt"), k.path("cv_ca/server-private.pem"))
	if err != nil {
		k.t.Fatal(err)
	}
	tr := &transcript{Keylime: filepath.Base(filepath.Dir(k.bin))}
	registrar := tr.pass(k.t, server, tls.Certificate{}, fmt.Sprintf("127.0.0.1:%d", k.ports["registrar_tls"]))
	verifier := tr.pass(k.t, server, tls.Certificate{}, fmt.Sprintf("127.0.0.1:%d", k.ports["verifier"]))
	k.t.Cleanup(func() {
		tr.ID = d.id()
		tr.write(k.t, "push.json", 2)
	})
	return []string{"--registrar-url", "https://" + registrar, "--verifier-url", "https://" + verifier, "--ca", k.path("cv_ca/cacert.crt")}
}

// clientPair is the certificate of verifier and tenant.
func (k *keylime) clientPair() tls.Certificate {
	k.t.Helper()
	cert, err := tls.LoadX509KeyPair(k.path("cv_ca/client-cert.crt"), k.path("cv_ca/client-private.pem"))
	if err != nil {
		k.t.Fatal(err)
	}
	return cert
}
