//go:build !nopull

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// TestPolledDoor: nobody gets in without a certificate of the CA, plain HTTP gets no
// answer, and who holds connections open does not stop the verifier.
func TestPolledDoor(t *testing.T) {
	t.Parallel()
	_, _, c, _ := newPolled(t)
	foreign := newCaller(t, c.listen)
	foreign.pin = c.pin
	none := *c
	none.cert = nil
	for name, who := range map[string]*caller{"another CA": foreign, "no certificate": &none} {
		if res, err := who.client().Get("https://" + c.listen + "/version"); err == nil {
			res.Body.Close()
			t.Errorf("%s: answered with %d", name, res.StatusCode)
		}
	}
	if res, err := http.Get("http://" + c.listen + "/version"); err == nil {
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest || json.Valid(text) {
			t.Errorf("plain HTTP: answered with %d: %s", res.StatusCode, text)
		}
	}
	for range maxCallers + 4 {
		conn, err := net.Dial("tcp", c.listen)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	until(t, "an answer beside those who say nothing", func() bool {
		res, err := c.client().Get("https://" + c.listen + "/version")
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})
}

// TestPolledBounds: one request on a connection, of HTTP/1 and TLS 1.2 or newer, with a
// head that is not too long and does not take too long.
func TestPolledBounds(t *testing.T) {
	t.Parallel()
	_, _, c, _ := newPolled(t)
	conf := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*c.cert}}
	old := conf.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if conn, err := tls.Dial("tcp", c.listen, old); err == nil {
		conn.Close()
		t.Error("TLS 1.1 is spoken")
	}
	newer := conf.Clone()
	newer.NextProtos = []string{"h2", "http/1.1"}
	conn, err := tls.Dial("tcp", c.listen, newer)
	if err != nil {
		t.Fatal(err)
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("protocol %q", got)
	}
	conn.Close()
	const request = "GET /version HTTP/1.1\r\nHost: agent\r\n"
	var all sync.WaitGroup
	defer all.Wait()
	for name, tt := range map[string]struct {
		sent    string
		answers int
		first   string
	}{
		"two requests": {request + "\r\n" + request + "\r\n", 1, "HTTP/1.1 200"},
		"a long head":  {request + "X-Long: " + strings.Repeat("x", maxHead+8<<10) + "\r\n\r\n", 1, "HTTP/1.1 431"},
		"half a head":  {request, 0, ""},
		"nothing":      {"", 0, ""},
		"half a body":  {"POST /v2.6/keys/ukey HTTP/1.1\r\nHost: agent\r\nContent-Length: 100\r\n\r\n{", 1, "HTTP/1.1 400"},
	} {
		conn, err := tls.Dial("tcp", c.listen, conf)
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			defer conn.Close()
			if _, err := io.WriteString(conn, tt.sent); err != nil {
				t.Error(err)
			}
			_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
			got, _ := io.ReadAll(conn) // the agent ends it
			if n := strings.Count(string(got), "HTTP/1.1 "); n != tt.answers || !strings.HasPrefix(string(got), tt.first) {
				t.Errorf("%s: %.300q, want %d answers", name, got, tt.answers)
			}
		})
	}
}

// TestPolledPortLost: the agent ends with its port, and not in silence.
func TestPolledPortLost(t *testing.T) {
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port.Close()
	c := newCaller(t, "")
	l := &listener{net: port, server: &http.Server{TLSConfig: &tls.Config{Certificates: []tls.Certificate{*c.cert}}}}
	if err := l.serve(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := l.serve(ctx); err != nil {
		t.Errorf("stopped: %v", err)
	}
}

// TestPolledMemory polls for a list of 10 000 entries, two at a time.
func TestPolledMemory(t *testing.T) {
	t.Parallel()
	m := longList(t)
	c := newCaller(t, freeAddress(t))
	p := m.startProgram(build(t, t.TempDir(), runtime.GOARCH, "pull"), append(append([]string{"run"}, m.settings()...), "--verifier-url", "", "--listen", c.listen, "--listen-ca", c.ca))
	p.expect("enrolled ")
	c.wait()
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for range 3 {
				c.quote(m.savedAK(), evidence.State{}, evidence.QuoteRequest{PCRs: []int{10}})
			}
		})
	}
	all.Wait()
	checkMemory(t, p)
}
