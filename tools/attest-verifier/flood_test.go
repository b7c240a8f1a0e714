package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// floodSize is how many connections the flood holds at once, if the limits of the machine
// allow it.
const floodSize = 10_000

// TestFlood is CVE-2023-38200, where one connection that said nothing stopped the
// registrar: ten thousand that say nothing, or say it slowly, in the handshake, the header
// or the body, keep nobody out, and each is shown out.
func TestFlood(t *testing.T) {
	t.Parallel()
	n := floodSize
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if want := uint64(n + 2000); files.Cur < want { // Go has raised it as far as a user may
		more := syscall.Rlimit{Cur: want, Max: max(want, files.Max)}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &more) == nil {
			files = more
		}
	}
	if most := int(files.Cur) - 1000; most < n {
		t.Logf("only %d connections: ulimit -n is %d", most, files.Cur)
		n = most
	}
	dir := t.TempDir()
	p := start(t, build(t, dir))
	address := strings.TrimPrefix(p.url["verifier"], "https://")
	f := &flood{address: address, conf: clientTLS(t, dir)}
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() { f.one(i) })
	}
	for f.open.Load()+f.failed.Load() < int64(n) {
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("%d connections are open", f.open.Load()-f.closed.Load())
	for _, c := range []struct {
		name  string
		fresh bool
	}{{"on one connection", false}, {"each on a connection of its own", true}} {
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: f.conf, DisableKeepAlives: c.fresh}}
		var took []time.Duration
		for range 200 {
			began := time.Now()
			res, err := client.Get(p.url["verifier"] + "/version")
			if err != nil {
				t.Fatalf("a request beside the flood: %v", err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			if res.StatusCode != http.StatusOK {
				t.Fatalf("a request beside the flood: %s", res.Status)
			}
			took = append(took, time.Since(began))
		}
		client.CloseIdleConnections()
		slices.Sort(took)
		t.Logf("200 requests %s: median %v, p99 %v", c.name, took[100].Round(time.Microsecond), took[197].Round(time.Microsecond))
	}
	t.Logf("%d connections are open still", f.open.Load()-f.closed.Load())
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmHWM") {
			t.Log("the server's memory at most:", strings.Join(strings.Fields(line)[1:], " "))
		}
	}
	wait.Wait()
	if err := errors.Join(f.errs...); err != nil {
		t.Errorf("connections that were not closed: %v", err)
	}
	if n := f.late.Load(); n == f.open.Load()/10 {
		t.Error("no client dawdled after its handshake: none came so far")
	}
	if n := f.failed.Load(); n > 0 {
		t.Errorf("%d of the flood's connections could not be made: %v", n, f.why.Load())
	}
}

// clientTLS trusts the authority that the program made.
func clientTLS(t testing.TB, dir string) *tls.Config {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join(dir, "tls/ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
}

// flood is a number of clients that waste time.
type flood struct {
	address string
	conf    *tls.Config

	open, closed, failed atomic.Int64
	late                 atomic.Int64 // for a handshake
	why                  atomic.Value

	mu   sync.Mutex
	errs []error
}

// patience is how long a client waits until it says that nobody has closed its connection.
const patience = 2 * time.Minute

// one is a client: of ten eight say nothing, one begins a handshake, and one of twenty each
// dawdles in the header and in the body. All of 127.0.0.0/8 is this machine, so that no
// address has more connections than it may have.
func (f *flood) one(i int) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%20))}}
	conn, err := d.Dial("tcp", f.address)
	if err != nil {
		f.why.Store(err)
		f.failed.Add(1)
		return
	}
	defer conn.Close()
	f.open.Add(1)
	defer f.closed.Add(1)
	_ = conn.SetDeadline(time.Now().Add(patience))
	said := ""
	switch i % 20 {
	case 0:
		said = "GET /version HTTP/1.1\r\nHost: x\r\nX-Slow: "
	case 1:
		said = "POST /v3.0/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n{"
	case 2, 3:
		_, _ = conn.Write([]byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc}) // the beginning of a ClientHello
	}
	if said != "" {
		secure := tls.Client(conn, f.conf)
		if err := secure.HandshakeContext(context.Background()); err != nil {
			f.late.Add(1) // 5 seconds are given
			return
		}
		conn = secure
		_, _ = conn.Write([]byte(said))
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		go drip(ctx, conn)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.errs = append(f.errs, fmt.Errorf("client %d: %w", i, err))
	}
}

// drip says one byte a second, as long as somebody listens.
func drip(ctx context.Context, conn net.Conn) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			return
		}
	}
}
