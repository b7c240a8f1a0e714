package keylimetest

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// tenantTranscript is what keylime_tenant said to our servers, and their answers.
type tenantTranscript struct {
	Keylime   string           `json:"keylime"` // version of the tenant
	Exchanges []tenantExchange `json:"exchanges"`

	mu sync.Mutex
}

type tenantExchange struct {
	Server string `json:"server"` // registrar_tls, verifier
	exchange
}

// listen writes down what the tenant says to a server; not what others do.
func (tr *tenantTranscript) listen(name string, h http.Handler) http.Handler {
	if !recording() {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.UserAgent(), "python-requests") {
			h.ServeHTTP(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, r)
		tr.mu.Lock()
		tr.Exchanges = append(tr.Exchanges, tenantExchange{name, exchange{Method: r.Method, URI: r.URL.RequestURI(), Type: r.Header.Get("Content-Type"),
			Body: compact(body), Status: answer.Code, Answer: compact(answer.Body.Bytes())}})
		tr.mu.Unlock()
		for k, v := range answer.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	})
}

// write keeps the transcript of a good test, when it is to be recorded.
func (tr *tenantTranscript) write(t *testing.T, name string) {
	t.Helper()
	if !recording() || t.Failed() {
		return
	}
	tr.Keylime = "7.14.3"
	text, err := json.MarshalIndent(tr, "", " ")
	if err == nil {
		err = os.WriteFile(filepath.Join("testdata", name), append(text, '\n'), 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}

// enrol makes the device that a transcript is about one that our registrar knows.
func (o *ours) enrol(tr *tenantTranscript) {
	o.t.Helper()
	for _, e := range tr.Exchanges {
		var a struct {
			Results struct {
				ID string `json:"agent_id"`
				AK []byte `json:"aik_tpm"`
				EK []byte `json:"ek_tpm"`
			} `json:"results"`
		}
		if json.Unmarshal(e.Answer, &a) != nil || a.Results.ID == "" {
			continue
		}
		ek, err := evidence.ParseEK(a.Results.EK)
		if err != nil {
			o.t.Fatal(err)
		}
		ak, err := evidence.ParseAK(a.Results.AK)
		if err != nil {
			o.t.Fatal(err)
		}
		i := store.Imported{Device: a.Results.ID, Source: "transcript"}
		i.EK.Public, i.AK.Public = ek.Public(), ak.Public()
		if i.EK.SPKI, err = x509.MarshalPKIXPublicKey(ek.Key()); err != nil {
			o.t.Fatal(err)
		}
		if i.AK.SPKI, err = x509.MarshalPKIXPublicKey(ak.Key()); err != nil {
			o.t.Fatal(err)
		}
		if _, err := o.store.Import(o.t.Context(), i, "test", time.Now()); err != nil {
			o.t.Fatal(err)
		}
		return
	}
	o.t.Fatal("the transcript has no answer of the registrar about a device")
}

// members are the names in a JSON value, with those of the objects in it; an element of an
// array is taken for all.
func members(prefix string, v any) (names []string) {
	switch v := v.(type) {
	case map[string]any:
		for name, inner := range v {
			names = append(append(names, prefix+name), members(prefix+name+".", inner)...)
		}
	case []any:
		if len(v) > 0 {
			names = members(prefix+"[].", v[0])
		}
	}
	slices.Sort(names)
	return names
}

// TestTenantRecorded says to our servers what keylime_tenant said when the transcripts were
// made, where Keylime is not installed too: each answer has the status and the members that
// the tenant was content with.
func TestTenantRecorded(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"tenant.json", "tenant-policies.json"} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("testdata", name))
			if err != nil {
				t.Fatal(err)
			}
			var tr tenantTranscript
			if err := json.Unmarshal(text, &tr); err != nil {
				t.Fatal(err)
			}
			o := startOurs(t)
			o.enrol(&tr)
			client := o.client()
			defer client.CloseIdleConnections()
			for i, e := range tr.Exchanges {
				o.say(fmt.Sprintf("%s: %d: %s %s", name, i, e.Method, e.URI), client, &e)
			}
			t.Logf("%d requests of keylime_tenant %s", len(tr.Exchanges), tr.Keylime)
		})
	}
}

// client has the certificate of the tenant.
func (o *ours) client() *http.Client {
	o.t.Helper()
	pair, err := tls.LoadX509KeyPair(o.path("cv_ca/client-cert.crt"), o.path("cv_ca/client-private.pem"))
	if err != nil {
		o.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(readCertificate(o.t, o.path("cv_ca/cacert.crt")))
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}}}
}

func (o *ours) say(what string, client *http.Client, e *tenantExchange) {
	o.t.Helper()
	r, err := http.NewRequestWithContext(o.t.Context(), e.Method, fmt.Sprintf("https://127.0.0.1:%d%s", o.ports[e.Server], e.URI), bytes.NewReader(e.Body))
	if err != nil {
		o.t.Fatal(err)
	}
	if e.Type != "" {
		r.Header.Set("Content-Type", e.Type)
	}
	res, err := client.Do(r)
	if err != nil {
		o.t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		o.t.Fatal(err)
	}
	if res.StatusCode != e.Status {
		o.t.Errorf("%s: %d %.300s, want %d %.300s", what, res.StatusCode, got, e.Status, e.Answer)
		return
	}
	if len(e.Answer) == 0 {
		return
	}
	var have, want any
	if json.Unmarshal(got, &have) != nil || json.Unmarshal(e.Answer, &want) != nil {
		o.t.Errorf("%s: %.300s is no JSON", what, got)
		return
	}
	if h, w := members("", have), members("", want); !slices.Equal(h, w) {
		o.t.Errorf("%s: members %q, want %q", what, h, w)
	}
}
