package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestProxyFor(t *testing.T) {
	for _, c := range []struct{ host, proxy, no, want string }{
		{"verifier.example", "", "", ""},
		{"verifier.example", "http://p:3128", "", "p:3128"},
		{"verifier.example", "p:3128", "other.example", "p:3128"},
		{"verifier.example", "p", "", "p:80"},
		{"verifier.example", "http://p:3128", "a, Verifier.Example", ""},
		{"a.verifier.example", "http://p:3128", "verifier.example", ""},
		{"a.verifier.example", "http://p:3128", ".verifier.example", ""},
		{"averifier.example", "http://p:3128", "verifier.example", "p:3128"},
		{"verifier.example", "http://p:3128", "*", ""},
		{"192.0.2.7", "http://p:3128", "192.0.2.0/24", ""},
		{"192.0.3.7", "http://p:3128", "192.0.2.0/24,192.0.3.1", "p:3128"},
		{"localhost", "http://p:3128", "", ""},
		{"127.0.0.1", "http://p:3128", "", ""},
	} {
		u, err := proxyFor(c.host, func(name string) string { return map[string]string{"HTTPS_PROXY": c.proxy, "no_proxy": c.no}[name] })
		if err != nil {
			t.Error(err)
		}
		got := ""
		if u != nil {
			got = u.Host
		}
		if got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
	for _, bad := range []string{"socks5://p:1", "https://p:1", "http://", "http://a b"} {
		if u, err := proxyFor("h", func(string) string { return bad }); err == nil && u != nil {
			t.Errorf("%q: %v", bad, u)
		}
	}
}

// TestProxy enrols over a proxy, which sees no more than a name and TLS.
func TestProxy(t *testing.T) {
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
	c.Env = append(c.Env, "HTTPS_PROXY=http://user:word@"+l.Addr().String())
	out, err := c.CombinedOutput()
	// The certificate is that of an address: what is shown is that its owner was reached.
	if err == nil || len(asked) == 0 || string(out) == "" {
		t.Fatalf("%v: %s", err, out)
	}
	if got, want := <-asked, "CONNECT verifier.test:8891 Basic dXNlcjp3b3Jk"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if want := "certificate"; !strings.Contains(string(out), want) {
		t.Errorf("%s", out)
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
