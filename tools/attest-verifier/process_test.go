package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program is a running attest-verifier.
type program struct {
	cmd   *exec.Cmd
	url   map[string]string // by what it listens for
	ended chan error
}

// build puts the program, which is this one under its name (see TestMain), and what it needs
// into dir.
func build(t testing.TB, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "attest-verifier")
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	conf := "database = \"attest.db\"\n[tls]\ncert = \"tls/server.crt\"\nkey = \"tls/server.key\"\nclient_ca = \"tls/ca.crt\"\n" +
		"[registrar]\nlisten = \"127.0.0.1:0\"\n[verifier]\nlisten = \"127.0.0.1:0\"\n[operations]\nlisten = \"127.0.0.1:0\"\n[attestation]\nek_check = \"tofu\"\n"
	if err := os.WriteFile(filepath.Join(dir, "v.toml"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"certificate", "init", "--host", "127.0.0.1", "--out", "tls"},
		{"certificate", "client", "alice", "--role", "admin", "--ca", "tls"}, {"--config", "v.toml", "migrate"}} {
		cmd := exec.CommandContext(t.Context(), path, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	return path
}

// start runs the program until it listens everywhere.
func start(t testing.TB, path string, env ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(path, "--config", "v.toml", "serve"), url: map[string]string{}, ended: make(chan error, 1)}
	p.cmd.Dir, p.cmd.Env = filepath.Dir(path), append(os.Environ(), env...)
	out, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	for len(p.url) < 3 && lines.Scan() {
		var line struct{ For, Address string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("not a line of JSON: %s", lines.Bytes())
		}
		if line.For != "" {
			p.url[line.For] = "https://" + line.Address
		}
	}
	if len(p.url) < 3 {
		t.Fatal("it does not listen")
	}
	go func() {
		for lines.Scan() { // a full pipe would stop it
		}
		p.ended <- p.cmd.Wait()
	}()
	return p
}

// operator is an HTTP client with the certificate of alice.
func operator(t *testing.T, dir string) *http.Client {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join(dir, "tls/ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "alice.crt"), filepath.Join(dir, "alice.key"))
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}}}
}

// TestKill kills the server while it writes: what it had answered is there when it runs
// again, and the history is whole.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	path, client := build(t, dir), operator(t, dir)
	kept := 0
	for round := range 3 {
		p := start(t, path)
		time.AfterFunc(200*time.Millisecond, func() { _ = p.cmd.Process.Kill() })
		for {
			body := fmt.Sprintf(`{"ek_hash":"%064x"}`, kept)
			res, err := client.Post(p.url["verifier"]+"/api/v1/devices", "application/json", strings.NewReader(body))
			if err != nil {
				break
			}
			_ = res.Body.Close()
			if res.StatusCode != http.StatusCreated && res.StatusCode != http.StatusConflict { // the answer to this one was lost
				t.Fatalf("add a device: %s", res.Status)
			}
			kept++
		}
		<-p.ended
		client.CloseIdleConnections()
		t.Logf("round %d: %d devices", round, kept)
	}
	p := start(t, path)
	for i := range kept {
		res, err := client.Get(fmt.Sprintf("%s/api/v1/devices/%064x", p.url["verifier"], i))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("device %d is lost: %s", i, res.Status)
		}
	}
	res, err := client.Get(p.url["verifier"] + "/api/v1/events/check")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK || kept == 0 {
		t.Errorf("history of %d devices: %s", kept, res.Status)
	}
}

// TestService is what systemd sees: ready when it listens, a watchdog that is fed, and an
// end without an error.
func TestService(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := build(t, dir)
	sock := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: sock, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p := start(t, path, "NOTIFY_SOCKET="+sock, "WATCHDOG_USEC=150000")
	var said bytes.Buffer
	hear := func(what string) {
		t.Helper()
		for !strings.Contains(said.String(), what) {
			b := make([]byte, 256)
			_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
			n, err := conn.Read(b)
			if err != nil {
				t.Fatalf("heard %q and no %s: %v", said.String(), what, err)
			}
			said.Write(append(b[:n], '\n'))
		}
	}
	hear("READY=1")
	hear("WATCHDOG=1")
	ops := strings.Replace(p.url["operations"], "https", "http", 1)
	for _, probe := range []string{"/livez", "/readyz", "/metrics"} {
		res, err := http.Get(ops + probe)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", probe, res.Status)
		}
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hear("STOPPING=1")
	if err := <-p.ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

// TestOldTLS: nothing older than TLS 1.2 is spoken, and nothing at all without TLS.
func TestOldTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := start(t, build(t, dir))
	for _, url := range []string{p.url["registrar"], p.url["verifier"]} {
		address := strings.TrimPrefix(url, "https://")
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
		if err == nil {
			_ = conn.Close()
			t.Errorf("%s speaks TLS 1.1", address)
		}
		res, err := http.Get("http://" + address + "/version")
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode < 400 {
				t.Errorf("%s answers without TLS: %s", address, res.Status)
			}
		}
	}
}
