package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// TestFleetClient: a token is sent to the server that it is for and to no other, and a
// server that is something else is said to be.
func TestFleetClient(t *testing.T) {
	sent := 0
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { sent++ }))
	defer other.Close()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/v1/devices/moved":
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		case "/api/v1/devices/login":
			w.Write([]byte("<html>log in</html>"))
		case "/api/v1/evidence/00":
			w.Write([]byte(`{"schema":"attest.evidence/v1"}`))
		default:
			http.Error(w, "\x1b[2J nginx", http.StatusBadGateway)
		}
	}))
	defer server.Close()
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Setenv("ATTEST_FLEET_TOKEN", "attest_0000000000000000")
	o := &fleetFlags{flags: fleetSettings{Server: server.URL}}
	c, err := o.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	trusted := server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	c.http.Transport.(*http.Transport).TLSClientConfig.RootCAs = trusted
	for path, want := range map[string]string{"/devices/moved": "answers 307", "/devices/login": "read the verifier's answer", "/devices/x": "answers 502 Bad Gateway, and is no attest-verifier"} {
		var v any
		if err := c.get(t.Context(), path, nil, &v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if sent > 0 {
		t.Error("the redirection was followed")
	}
	if _, err := c.evidence(t.Context(), "00"); err == nil || !strings.Contains(err.Error(), "SHA-256 differs") {
		t.Error(err)
	}
}

// TestReach: what is wrong with a certificate decides what a person has to do.
func TestReach(t *testing.T) {
	leaf := &x509.Certificate{DNSNames: []string{"verifier.example.com"}}
	for name, c := range map[string]struct{ err, want error }{
		"authority": {x509.UnknownAuthorityError{Cert: leaf}, errServerCA},
		"expired":   {x509.CertificateInvalidError{Cert: leaf, Reason: x509.Expired}, errServerDate},
		"name":      {x509.HostnameError{Certificate: leaf, Host: "localhost"}, errServerName},
	} {
		err := reach(&url.Error{Op: "Get", URL: "https://localhost:8881", Err: &tls.CertificateVerificationError{Err: c.err}})
		if !errors.Is(err, c.want) || hintFor(err) == "" {
			t.Errorf("%s: %v, hint %q", name, err, hintFor(err))
		}
	}
	err := reach(&url.Error{Op: "Get", URL: "https://verifer:8881", Err: &net.OpError{Op: "dial", Err: &net.DNSError{Name: "verifer", Err: "no such host"}}})
	if !errors.Is(err, errNoHost) || hintFor(err) == "" {
		t.Errorf("%v, hint %q", err, hintFor(err))
	}
}
