package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/payload"
)

// TestService runs the agent as systemd does: by root, with a socket for notices and a
// watchdog. It says that it is ready and alive, and it is not root any more while it
// attests, in its second life too. Nobody reads its notices then: that does not stop it.
func TestService(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("to give up root needs root")
	}
	v := newVerifier(t, fast, withSecrets(t))
	m := newMachine(t, v)
	m.run("/sbin/init")
	for _, dir := range []string{m.dir, filepath.Dir(m.dir), v.dir, filepath.Dir(v.dir), filepath.Dir(m.secrets)} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(m.dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	start := func() *process {
		cmd := m.command("run", "--user", "65534", "--secrets-execute", "1")
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=200000")
		return m.start(cmd)
	}
	p := start()
	for _, want := range []string{"READY=1", "STATUS=unverified", "WATCHDOG=1"} {
		expectNotice(t, conn, want)
	}
	p.expect("verdict: unverified")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nUid:\t65534\t65534\t65534\t65534\n", "\nGid:\t65534\t65534\t65534\t65534\n", "\nGroups:\t \n", "\nCapPrm:\t0000000000000000\n", "\nCapEff:\t0000000000000000\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("%q is missing in:\n%s", want, status)
		}
	}
	v.allow(m.state().ID, "/sbin/init")
	p.expect("verdict: trusted")
	if strings.HasPrefix(m.secrets, "/dev/shm/") {
		v.secret("job", "run.sh", "x", payload.File{Name: "run.sh", Mode: 0o700, Data: []byte("#!/bin/sh\necho runs as $(id -u), and sees $(ls)\n")})
		v.assign("job", m.state().ID)
		p.expect("run.sh of payload job says: runs as 65534, and sees key run.sh")
	}
	p.kill(m)
	p = start()
	p.attestsAgain(m)
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	expectNotice(t, conn, "STOPPING=1")
	if err := p.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func expectNotice(t *testing.T, conn *net.UnixConn, want string) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 4096); ; {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("no notice %q: %v", want, err)
		}
		if strings.Contains(string(buf[:n]), want) {
			return
		}
	}
}

// TestUnit: systemd takes the units.
func TestUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed (Debian: apt-get install systemd)")
	}
	dir := t.TempDir()
	units, err := filepath.Glob("attest-agent*.[ps]*[eh]")
	if err != nil || len(units) != 3 {
		t.Fatalf("units %v: %v", units, err)
	}
	args := []string{"verify", "--man=no"}
	for _, name := range units {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		// The program is not installed where the test runs.
		text = []byte(strings.Replace(string(text), "/usr/bin/attest-agent", os.Args[0], 1))
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, filepath.Join(dir, name))
	}
	out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "attest-agent") {
			t.Error(strings.TrimSpace(line))
		}
	}
	if err != nil && !strings.Contains(string(out), "attest-agent") {
		t.Logf("systemd-analyze: %v\n%s", err, out)
	}
}

// TestManual: the manual page has every verb and every setting.
func TestManual(t *testing.T) {
	text, err := os.ReadFile("attest-agent.1")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.ReplaceAll(string(text), `\-`, "-")
	for verb := range verbs {
		if !strings.Contains(page, ".B "+verb) {
			t.Errorf("the verb %s is missing", verb)
		}
	}
	for _, k := range known {
		if !strings.Contains(page, ".B "+k.key+"\n") {
			t.Errorf("the setting %s is missing", k.key)
		}
	}
}
