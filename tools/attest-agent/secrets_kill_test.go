package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// verifierProgram is the program attest-verifier, which a test can kill.
type verifierProgram struct {
	*verifier
	path string
	cmd  *exec.Cmd
}

func newVerifierProgram(t *testing.T) *verifierProgram {
	t.Helper()
	dir := t.TempDir()
	p := &verifierProgram{verifier: &verifier{t: t, dir: dir, ca: filepath.Join(dir, "tls/ca.crt")}, path: filepath.Join(dir, "attest-verifier")}
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", p.path, "../attest-verifier").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for i := range p.address {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p.address[i] = l.Addr().String()
		l.Close()
	}
	conf := fmt.Sprintf("database = \"attest.db\"\n[tls]\ncert = \"tls/server.crt\"\nkey = \"tls/server.key\"\n[registrar]\nlisten = %q\n[verifier]\nlisten = %q\n"+
		"[operations]\nlisten = \"\"\n[attestation]\nek_check = \"tofu\"\ninterval = \"1s\"\n[secrets]\nkey = \"secrets.key\"\n", p.address[0], p.address[1])
	for name, text := range map[string]string{"v.toml": conf, "secrets.key": strings.Repeat("0123456789abcdef", 2)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.do("certificate", "init", "--host", "127.0.0.1", "--out", "tls")
	p.do("migrate")
	p.admin = strings.TrimSpace(p.do("token", "create", "test", "--role", "admin"))
	p.serve()
	t.Cleanup(p.kill)
	return p
}

func (p *verifierProgram) command(args ...string) *exec.Cmd {
	c := exec.Command(p.path, append([]string{"--config", "v.toml"}, args...)...)
	c.Dir = p.dir
	return c
}

func (p *verifierProgram) do(args ...string) string {
	p.t.Helper()
	out, err := p.command(args...).Output()
	if err != nil {
		p.t.Fatalf("attest-verifier %v: %v", args, err)
	}
	return string(out)
}

// serve starts it and waits until it listens.
func (p *verifierProgram) serve() {
	p.t.Helper()
	p.cmd = p.command("serve")
	out, err := p.cmd.StderrPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for n := 0; n < 2 && lines.Scan(); {
		if strings.Contains(lines.Text(), `"listening"`) {
			n++
		}
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
}

func (p *verifierProgram) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// TestSecretsVerifierKilled kills the verifier again and again while it gives secrets: what
// a device got is in the history, and in the end it has what it is to have.
func TestSecretsVerifierKilled(t *testing.T) {
	t.Parallel()
	v := newVerifierProgram(t)
	m := newMachine(t, v.verifier)
	needTmpfs(t, m)
	m.run("/sbin/init")
	m.call(0, "enrol")
	id := m.state().ID
	v.allow(id, "/sbin/init")
	v.secret("web", "", "0")
	v.assign("web", id)
	p := m.startAgent()
	p.expect("payload web is in")
	const rounds = 12
	for n := range rounds {
		v.secret("web", "", fmt.Sprint(n+1))
		time.Sleep(rand.N(1200 * time.Millisecond))
		v.kill()
		v.serve()
	}
	m.has(map[string]string{"web/key": fmt.Sprintf("-rw------- %d", rounds)})
	p.terminate()
	v.kill()
	st, err := store.Open(t.Context(), filepath.Join(v.dir, "attest.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := st.VerifyChain(t.Context(), store.Head{}); err != nil {
		t.Error(err)
	}
	v.store = st
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := 1 + strings.Count(p.out.String(), "payload web is in")
	if n := v.released(); kept > n || kept < 2 {
		t.Errorf("the device got %d secrets, the history knows of %d", kept, n)
	} else {
		t.Logf("killed %d times: %d releases in the history, %d at the device", rounds, n, kept)
	}
	v.store = nil
}
