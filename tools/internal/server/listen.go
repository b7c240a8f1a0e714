package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Times that a client has: for the TLS handshake and the header each, for a request, and
// between two requests on a connection.
const (
	headerTime = 5 * time.Second
	readTime   = 20 * time.Second
	idleTime   = 3 * time.Minute
)

// Listener is a part of the server at one address.
type Listener struct {
	Address string
	Handler http.Handler
	TLS     *tls.Config // nil for operations on the loopback device only

	net  net.Listener
	http *http.Server
}

// TLSConfig is what a listener for devices and operators speaks. Client certificates are
// taken from who has one; who issued them is looked at where a route needs it.
func TLSConfig(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: get, ClientAuth: tls.RequestClientCert, NextProtos: []string{"http/1.1"}}
}

// Open binds the address, so that the caller may drop privileges and say that it is ready.
// Of "host:0" Address is the one that was chosen.
func (l *Listener) Open(ctx context.Context, limits Limits, log *slog.Logger) error {
	if l.TLS == nil && !IsLoopback(l.Address) {
		return fmt.Errorf("listen on %s: not without TLS", l.Address)
	}
	inner, err := new(net.ListenConfig).Listen(ctx, "tcp", l.Address)
	if err != nil {
		return err
	}
	l.Address = inner.Addr().String()
	l.net = &boundedListener{Listener: inner, all: limits.Connections, each: limits.ConnectionsIP, peers: map[string]int{}}
	var one http.Protocols
	one.SetHTTP1(true) // an agent has one request at a time: nothing is lost without HTTP/2
	l.http = &http.Server{
		Handler: l.Handler, TLSConfig: l.TLS.Clone(), Protocols: &one, ReadHeaderTimeout: headerTime, ReadTimeout: readTime, WriteTimeout: requestTime + readTime,
		IdleTimeout: idleTime, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return nil
}

func IsLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Serve answers until Close.
func (l *Listener) Serve() error {
	var err error
	if l.TLS != nil {
		err = l.http.ServeTLS(l.net, "", "")
	} else {
		err = l.http.Serve(l.net)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Address, err)
}

// Close lets requests end until ctx does, and cuts off those that remain.
func (l *Listener) Close(ctx context.Context) {
	if l.http.Shutdown(ctx) != nil {
		_ = l.http.Close() // nobody is left to be told
	}
}

// boundedListener closes connections beyond a number, of one address and of all.
type boundedListener struct {
	net.Listener
	all, each int

	mu    sync.Mutex
	count int
	peers map[string]int
}

func (b *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := peerOf(conn.RemoteAddr().String())
		if b.enter(peer) {
			return &boundedConn{Conn: conn, leave: sync.OnceFunc(func() { b.leave(peer) })}, nil
		}
		_ = conn.Close() // refused
	}
}

func (b *boundedListener) enter(peer string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.count >= b.all || b.peers[peer] >= b.each {
		return false
	}
	b.count++
	b.peers[peer]++
	return true
}

func (b *boundedListener) leave(peer string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count--
	if b.peers[peer]--; b.peers[peer] == 0 {
		delete(b.peers, peer)
	}
}

type boundedConn struct {
	net.Conn
	leave func()
}

func (c *boundedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
