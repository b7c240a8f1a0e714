package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestProxy enrols over a proxy, which sees no more than a name and TLS.
func TestProxy(t *testing.T) {
	t.Parallel()
	v := newVerifier(t)
	m := newMachine(t, v)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan string, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go connect(c, v.address[0], asked)
		}
	}()
	c := m.command("enrol", "--registrar-url", "https://verifier.test:8891")
	c.Env = append(c.Env, "HTTPS_PROXY=http://user:word@"+l.Addr().String(), "NO_PROXY=other.test")
	out, err := c.CombinedOutput()
	// The certificate is that of an address: what is shown is that its owner was reached.
	if err == nil || len(asked) == 0 {
		t.Fatalf("%v: %s", err, out)
	}
	if got, want := <-asked, "CONNECT verifier.test:8891 Basic dXNlcjp3b3Jk"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if want := "use a name in verifier_url that stands in the server's certificate"; !strings.Contains(string(out), want) {
		t.Errorf("%s", out)
	}
	c = m.command("enrol") // at an address of this machine, which no proxy is asked for
	c.Env = append(c.Env, "HTTPS_PROXY=http://"+l.Addr().String())
	if out, err := c.CombinedOutput(); err != nil || len(asked) != 0 {
		t.Errorf("%v, %d at the proxy: %s", err, len(asked), out)
	}
}

// connect is a proxy that sends every caller to one address.
func connect(c net.Conn, to string, asked chan<- string) {
	defer c.Close()
	from := bufio.NewReader(c)
	r, err := http.ReadRequest(from)
	if err != nil {
		return
	}
	asked <- r.Method + " " + r.Host + " " + r.Header.Get("Proxy-Authorization")
	s, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer s.Close()
	if _, err := io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	go func() { _, _ = io.Copy(s, from) }()
	_, _ = io.Copy(c, s)
}

// TestClient: the token goes to no other place, HTTP/2 is not spoken, and nothing of a
// server's is without a bound.
func TestClient(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.ProtoMajor != 1:
			t.Errorf("%s is spoken", r.Proto)
		case r.URL.Path == "/elsewhere":
			elsewhere.Add(1)
		case r.URL.Path == "/head":
			w.Header().Set("X-Long", strings.Repeat("x", 65<<10))
		case r.URL.Path == "/slow":
			<-r.Context().Done()
		default:
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	v := newVerifier(t)
	c, err := newClient(&Config{values: map[string]string{"ca": v.ca}, timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c.http.Transport.(*http.Transport).TLSClientConfig.RootCAs = s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	base, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	c.token = "secret"
	for path, want := range map[string]string{"/": "307 Temporary Redirect", "/head": "headers exceeded", "/slow": "Timeout exceeded"} {
		res, err := c.do(t.Context(), request{what: "ask", method: http.MethodGet, base: base, path: path, content: typeJSON, want: http.StatusOK, bearer: true})
		if err == nil {
			res.Body.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", path, err, want)
		}
	}
	if elsewhere.Load() != 0 {
		t.Error("a redirect was followed")
	}
}
