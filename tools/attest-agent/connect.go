package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/http1"
)

// transport carries one request on each connection. TLS resumes sessions, so that another
// connection costs no signature.
type transport struct {
	tls     *tls.Config
	timeout time.Duration // of all: name, connection, request, and the answer with its body
}

// send sends a request to the host of u. The answer's body is to be closed.
func (t *transport) send(ctx context.Context, u *url.URL, q *http1.Request, size int64) (*http1.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	conn, err := t.dial(ctx, u)
	if err != nil {
		cancel()
		return nil, err
	}
	c := &call{conn: conn, ctx: ctx, cancel: cancel}
	c.stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	written := q.Write(conn, u.Host, size)
	res, err := http1.ReadResponse(bufio.NewReader(conn))
	if err != nil {
		// A server that refuses early may have answered before all was written.
		if written != nil {
			err = written
		}
		err = c.because(err)
		c.Close()
		return nil, err
	}
	c.Reader = res.Body
	res.Body = c
	return res, nil
}

// call is the body of an answer, with what ends together with it.
type call struct {
	io.Reader
	conn   net.Conn
	ctx    context.Context
	cancel context.CancelFunc
	stop   func() bool
}

func (c *call) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = c.because(err)
	}
	return n, err
}

// because is the end of the context, where that is why err is there.
func (c *call) because(err error) error {
	if c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	return err
}

func (c *call) Close() error {
	c.stop()
	c.cancel()
	return c.conn.Close()
}

// dial connects to the host of u, over a proxy where the environment names one.
func (t *transport) dial(ctx context.Context, u *url.URL) (net.Conn, error) {
	to := u.Host
	if u.Port() == "" {
		to = net.JoinHostPort(u.Hostname(), "443")
	}
	proxy, err := proxyFor(u.Hostname(), os.Getenv)
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	d := net.Dialer{}
	if proxy == nil {
		conn, err = d.DialContext(ctx, "tcp", to)
	} else {
		conn, err = d.DialContext(ctx, "tcp", proxy.Host)
	}
	if err != nil {
		return nil, err
	}
	conf := t.tls.Clone()
	conf.ServerName = u.Hostname()
	c := tls.Client(conn, conf)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if proxy != nil {
		err = tunnel(conn, proxy, to)
	}
	if err == nil {
		err = c.HandshakeContext(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// tunnel asks a proxy for a connection (RFC 9110, 9.3.6).
func tunnel(conn net.Conn, proxy *url.URL, to string) error {
	auth := ""
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		auth = "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)) + "\r\n"
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n%s\r\n", to, auth); err != nil {
		return err
	}
	// The server says nothing before the client does, so nothing of it is lost in the reader.
	res, err := http1.ReadResponse(bufio.NewReader(conn))
	if err != nil {
		return fmt.Errorf("proxy %s: %w", proxy.Host, err)
	}
	if res.StatusCode != http1.StatusOK {
		return fmt.Errorf("proxy %s: it answers %d", proxy.Host, res.StatusCode)
	}
	return nil
}

// proxyFor is the proxy for a host, or nil: HTTPS_PROXY, unless NO_PROXY has the host, a
// domain above it, its address, or a network with that ("*": all).
func proxyFor(host string, getenv func(string) string) (*url.URL, error) {
	both := func(name string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return getenv(strings.ToLower(name))
	}
	text := both("HTTPS_PROXY")
	if text == "" {
		return nil, nil
	}
	addr, _ := netip.ParseAddr(host)
	if host == "localhost" || addr.IsLoopback() {
		return nil, nil
	}
	for no := range strings.SplitSeq(both("NO_PROXY"), ",") {
		no = strings.ToLower(strings.TrimSpace(no))
		network, err := netip.ParsePrefix(no)
		if no == "*" || no != "" && (strings.EqualFold(host, no) || strings.HasSuffix(strings.ToLower(host), "."+strings.TrimPrefix(no, "."))) || err == nil && network.Contains(addr) {
			return nil, nil
		}
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" {
		return nil, fmt.Errorf("HTTPS_PROXY is not http://HOST:PORT")
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), "80")
	}
	return u, nil
}
