package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/server"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

func fast(o *server.Options) { o.Interval = 2 * time.Second }

// TestRun is the loop: it enrols by itself, prints each change of the verdict, and lives
// through kill -9 of itself, a verifier that is gone for a while, and one that forgot it.
func TestRun(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, fast)
	m := newMachine(t, v)
	m.run("/sbin/init")
	p := m.startAgent()
	p.expect("enrolled ")
	p.expect("verdict: unverified")
	id, key := m.state().ID, m.key()
	v.allow(id, "/sbin/init", "/bin/sh")
	p.expect("verdict: trusted")

	v.stop()
	p.expect("attestation failed, trying again in ")
	v.start()
	p.expect("attesting again")

	p.kill(m)
	p = m.startAgent()
	p.attestsAgain(m)
	if m.key() != key || m.state().ID != id {
		t.Error("a restart changed the key or the id")
	}

	v.api("DELETE", "/devices/"+id, nil, http.StatusNoContent)
	p.expect("enrolled " + id)
	p.expect("verdict: unverified")
	if m.key() != key {
		t.Error("to enrol again changed the key")
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// TestKilledWhileEnrolling kills the agent at many moments of its first minutes: whatever
// was done, the key that was saved stays, and enrolment is completed.
func TestKilledWhileEnrolling(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, fast)
	m := newMachine(t, v)
	key := ""
	for wait := time.Duration(0); wait < 240*time.Millisecond; wait += 12 * time.Millisecond {
		p := m.startAgent()
		time.Sleep(wait)
		p.kill(m)
		if _, err := os.Stat(filepath.Join(m.dir, "state", keyFile)); err == nil {
			if key != "" && m.key() != key {
				t.Fatal("the key was lost")
			}
			key = m.key()
		}
	}
	m.call(0, "enrol")
	if key != "" && m.key() != key {
		t.Error("the key was lost")
	}
	m.call(exitUntrusted, "run", "--once") // unverified: there is no policy
}

// TestForeignTPM: with another TPM the device is another device, and the old key is kept.
func TestForeignTPM(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, fast)
	m, other := newMachine(t, v), newMachine(t, v)
	m.call(0, "enrol")
	id := m.state().ID
	m.tpm, m.list = other.tpm, other.list
	m.call(exitUntrusted, "run", "--once")
	if m.state().ID == id {
		t.Error("another TPM attests under the first one's id")
	}
	if old, err := filepath.Glob(filepath.Join(m.dir, "state", "ak-*.old")); err != nil || len(old) != 1 {
		t.Errorf("the first TPM's key was not kept: %v, %v", old, err)
	}
}

// TestStateFolder: it is the agent's alone, one agent's at a time, and what is in it may be
// damaged.
func TestStateFolder(t *testing.T) {
	v := newVerifier(t, fast)
	m := newMachine(t, v)
	m.call(0, "enrol")
	dir := filepath.Join(m.dir, "state")
	for name, want := range map[string]os.FileMode{"": 0o700, keyFile: 0o600, stateFile: 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
	held, err := openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if out := m.call(exitError, "enrol"); !strings.Contains(out, errBusy.Error()) {
		t.Errorf("a held folder: %s", out)
	}
	held.close()
	for _, damage := range []string{"", "{", `{"schema":"other"}`, `{"schema":"` + schemaState + `","boot":7}`} {
		if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		m.call(0, "enrol")
	}
	key := m.key()
	if err := os.Truncate(filepath.Join(dir, keyFile), 40); err != nil {
		t.Fatal(err)
	}
	m.call(exitError, "enrol")
	if out := m.call(exitError, "enrol", "--new-key"); !strings.Contains(out, "attest fleet delete") {
		t.Errorf("a second key for an enrolled device: %s", out)
	}
	v.api("DELETE", "/devices/"+m.state().ID, nil, http.StatusNoContent)
	m.call(0, "enrol", "--new-key")
	if m.key() == key {
		t.Error("the key is the old one")
	}
	m.call(exitUntrusted, "run", "--once")
}

// TestStateFolderTraps: the user that the agent becomes may put anything into its folder, and
// root, which opens it, gives no file of another away and writes into none.
func TestStateFolderTraps(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root gives a folder away")
	}
	dir := t.TempDir()
	victim, state := filepath.Join(dir, "victim"), filepath.Join(dir, "state")
	const text = "of root\n"
	if err := os.WriteFile(victim, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openFolder(state)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	const uid = 4711
	for name, trap := range map[string]func(string) error{
		"hard link":     func(path string) error { return os.Link(victim, path) },
		"symbolic link": func(path string) error { return os.Symlink(victim, path) },
		"fifo":          func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"folder":        func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		for _, where := range []string{"any", "." + stateFile + ".tmp"} {
			path := filepath.Join(state, where)
			if err := trap(path); err != nil {
				t.Fatal(err)
			}
			if err := f.give(uid, uid); err == nil {
				t.Errorf("%s: given away", name)
			}
			if err := f.save(&State{Schema: schemaState}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
	if err := f.give(uid, uid); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]uint32{victim: 0, state: uid, filepath.Join(state, stateFile): uid, filepath.Join(state, "lock"): uid} {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Sys().(*syscall.Stat_t).Uid; got != want {
			t.Errorf("%s belongs to %d, want %d", path, got, want)
		}
	}
	if got, err := os.ReadFile(victim); err != nil || string(got) != text {
		t.Errorf("the victim: %q, %v", got, err)
	}
	for _, name := range []string{stateFile, keyFile} {
		_ = os.Remove(filepath.Join(state, name))
		if err := syscall.Mkfifo(filepath.Join(state, name), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := f.read(name); len(b) > 0 { // and it does not wait for somebody who writes
			t.Errorf("a pipe: %q, %v", b, err)
		}
	}
}

// TestStateFolderOfOthers: a setting that names a folder of the system's locks nobody out.
func TestStateFolderOfOthers(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"lib", "lib/other"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if f, err := openFolder(filepath.Join(dir, "lib")); err == nil {
		f.close()
		t.Error("it was taken")
	}
	if info, err := os.Stat(filepath.Join(dir, "lib")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	f, err := openFolder(filepath.Join(dir, "lib", "other"))
	if err != nil {
		t.Fatal(err)
	}
	f.close()
}

// TestKeyStays: there is no moment without a key that the registrar may know.
func TestKeyStays(t *testing.T) {
	f, err := openFolder(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	if err := f.write(keyFile, []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := f.adoptKey(); err == nil {
		t.Error("a key was adopted that is not there")
	}
	if b, err := f.read(keyFile); string(b) != "old" {
		t.Errorf("the key in use: %q, %v", b, err)
	}
	if err := f.write(nextKeyFile, []byte("new")); err != nil {
		t.Fatal(err)
	}
	if err := f.adoptKey(); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{keyFile: "new", "ak-damaged.old": "old"} {
		if b, err := f.read(name); string(b) != want {
			t.Errorf("%s: %q, %v, want %q", name, b, err, want)
		}
	}
}

// TestEmulatorRestarted: before it is enrolled, too, the agent finds a TPM again that went
// away with the key it had loaded.
func TestEmulatorRestarted(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, fast)
	m := newMachine(t, v)
	v.stop()
	p := m.startAgent()
	p.expect("attestation failed")
	m.tpm.Reboot()
	v.start()
	p.expect("enrolled ")
	p.expect("verdict: ")
	m.tpm.Reboot()
	p.attestsAgain(m)
	p.attestsAgain(m)
}

// TestTPMLost: a connection that ends while the key is opened is not used again.
func TestTPMLost(t *testing.T) {
	t.Parallel()
	socket := strings.TrimPrefix(tpmtest.Start(t).Address, "unix:")
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "tpm"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	commands := []int{0, 1, 2, 3, 1000} // that each connection lives for
	go func() {
		defer l.Close()
		for _, n := range commands {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if n > 0 {
				relay(t, c, socket, n)
			}
			c.Close()
		}
	}()
	f, err := openFolder(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	d := &device{config: &Config{values: map[string]string{"tpm": "unix:" + l.Addr().String(), "ak": "ecdsa"}}, folder: f}
	defer d.close()
	for i := range commands {
		if _, err := d.openKey(); (err == nil) != (i == len(commands)-1) {
			t.Errorf("connection %d: %v", i+1, err)
		}
	}
}

// TestWrongServer: a server with a certificate of somebody else is told nothing.
func TestWrongServer(t *testing.T) {
	t.Parallel()
	v, other := newVerifier(t), newVerifier(t)
	m := newMachine(t, v)
	v.ca = other.ca
	if out := m.call(exitError, "enrol"); !strings.Contains(out, "unknown authority") || !strings.Contains(out, "hint: set ca") {
		t.Errorf("enrol said: %s", out)
	}
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	v := newVerifier(t)
	m := newMachine(t, v)
	result := func(wantCode int) map[string]finding {
		var doc struct {
			Schema   string
			Findings []finding
		}
		out := m.callOut(wantCode, "doctor", "--json")
		if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.Schema != "attest.doctor/v1" {
			t.Fatalf("%v: %s", err, out)
		}
		all := map[string]finding{}
		for _, f := range doc.Findings {
			all[f.Check] = f
			if (f.Result == resultFail) != (f.Result != resultOK && f.Result != resultNote) || f.Result == resultFail && f.Mend == "" {
				t.Errorf("finding %+v", f)
			}
		}
		return all
	}
	before := result(exitFindings)
	for check, want := range map[string]string{"kernel": resultOK, "template": resultOK, "tpm": resultOK, "pcr banks": resultOK, "ek": resultOK,
		"ak": resultFail, "agent": resultFail, "policy": resultFail, "verifier": resultOK, "registrar": resultOK, "clock": resultOK} {
		if got := before[check]; got.Result != want {
			t.Errorf("before enrolment: %+v, want %s", got, want)
		}
	}
	m.call(0, "enrol")
	m.run("/sbin/init")
	for check, f := range result(0) {
		if f.Result == resultFail {
			t.Errorf("%s: %+v", check, f)
		}
	}
	v.stop()
	after := result(exitFindings)
	if after["verifier"].Result != resultFail || after["registrar"].Result != resultFail {
		t.Errorf("without a server: %+v", after)
	}
}

// relay carries so many commands to a TPM, and their answers back.
func relay(t *testing.T, c net.Conn, socket string, commands int) {
	var behind net.Conn
	var err error
	for range 100 { // swtpm has one connection at a time, and room for another to wait
		if behind, err = net.Dial("unix", socket); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Error(err)
		return
	}
	defer behind.Close()
	for b := make([]byte, 4096); commands > 0; commands-- {
		for _, way := range [][2]net.Conn{{c, behind}, {behind, c}} {
			n, err := way[0].Read(b)
			if err == nil {
				_, err = way[1].Write(b[:n])
			}
			if err != nil {
				return
			}
		}
	}
}
