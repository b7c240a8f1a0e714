package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/notice"
)

// actor is a device with actions, and the key of its fleet.
type actor struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newActor(t *testing.T) *actor {
	t.Helper()
	a := &actor{t: t, dir: t.TempDir()}
	a.key, a.cert = noticeKey(t)
	a.write("notices.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})), 0o644)
	for _, d := range []string{"notices", "actions", "state"} {
		if err := os.Mkdir(filepath.Join(a.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(a.dir, "notices"), 0o700); err != nil {
		t.Fatal(err)
	}
	a.write("state/state.json", `{"schema":"attest.agent-state/v1","id":"me"}`, 0o600)
	a.write("actions/10-record", "#!/bin/sh\ncat >>"+a.dir+"/seen\necho \"$ATTEST_DEVICE $ATTEST_STATUS self=$ATTEST_SELF boot=$ATTEST_BOOT\" >>"+a.dir+"/acts\n", 0o755)
	return a
}

func noticeKey(t *testing.T) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "notices"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func (a *actor) write(name, text string, mode os.FileMode) {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		a.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		a.t.Fatal(err)
	}
}

func (a *actor) envelope(seq int64, device, status string, change ...func(*notice.Event)) []byte {
	a.t.Helper()
	sum := sha256.Sum256(fmt.Append(nil, seq))
	e := notice.New("urn:fleet:ours", seq, sum[:], time.Now(), notice.Data{Device: device, Status: status, Labels: map[string]string{"address": "10.1.0.1"}})
	for _, f := range change {
		f(e)
	}
	b, err := notice.Sign(e, a.key, a.cert)
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}

func (a *actor) leave(seq int64, b []byte) {
	a.t.Helper()
	a.write(fmt.Sprintf("notices/%019d.json", seq), string(b), 0o600)
}

func (a *actor) args() []string {
	return []string{"act", "--config", filepath.Join(a.dir, "agent.toml"), "--notice-ca", filepath.Join(a.dir, "notices.crt"), "--notices-dir", filepath.Join(a.dir, "notices"),
		"--actions", filepath.Join(a.dir, "actions"), "--actions-state", filepath.Join(a.dir, "done"), "--state-dir", filepath.Join(a.dir, "state")}
}

// act runs the verb, and returns what it said.
func (a *actor) act(wantCode int) string {
	a.t.Helper()
	a.write("agent.toml", "", 0o644)
	var out bytes.Buffer
	if code := start(a.args(), &out, &out); code != wantCode {
		a.t.Fatalf("exit code %d, want %d:\n%s", code, wantCode, &out)
	}
	if left, err := os.ReadDir(filepath.Join(a.dir, "notices")); err != nil || len(left) > 0 && wantCode == 0 {
		a.t.Errorf("left in the folder: %v, %v", left, err)
	}
	return out.String()
}

// acts are what the action wrote since the last call.
func (a *actor) acts(want ...string) {
	a.t.Helper()
	b, err := os.ReadFile(filepath.Join(a.dir, "acts"))
	if err != nil && !os.IsNotExist(err) {
		a.t.Fatal(err)
	}
	_ = os.Remove(filepath.Join(a.dir, "acts"))
	if got := strings.Split(strings.TrimSpace(string(b)), "\n"); strings.Join(got, "\n") != strings.Join(want, "\n") {
		a.t.Errorf("acted:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func (a *actor) state(change func(*actionsState)) *actionsState {
	a.t.Helper()
	path := filepath.Join(a.dir, "done", actionsFile)
	b, err := os.ReadFile(path)
	if err != nil {
		a.t.Fatal(err)
	}
	s := &actionsState{}
	if err := json.Unmarshal(b, s); err != nil {
		a.t.Fatal(err)
	}
	if change != nil {
		change(s)
		if b, err = json.Marshal(s); err == nil {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			a.t.Fatal(err)
		}
	}
	return s
}

// TestAct: a notice counts once, in its order, and what holds is done again after a boot.
func TestAct(t *testing.T) {
	a := newActor(t)
	a.act(0)
	a.acts("")
	a.leave(7, a.envelope(7, "other", "untrusted"))
	a.leave(8, a.envelope(8, "me", "broken"))
	a.act(0)
	a.acts("other untrusted self=false boot=false", "me broken self=true boot=false")
	seen, err := os.ReadFile(filepath.Join(a.dir, "seen"))
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(seen))
	for _, self := range []bool{false, true} {
		var e struct {
			SpecVersion string
			Self, Boot  bool
			Data        notice.Data
		}
		if err := d.Decode(&e); err != nil || e.SpecVersion != "1.0" || e.Self != self || e.Boot || e.Data.Labels["address"] != "10.1.0.1" {
			t.Errorf("standard input: %+v, %v: %s", e, err, seen)
		}
	}
	a.leave(7, a.envelope(7, "other", "untrusted"))
	a.leave(8, a.envelope(8, "me", "broken"))
	if out := a.act(0); strings.Count(out, "it is not newer than 8") != 2 {
		t.Errorf("a replay: %s", out)
	}
	a.acts("")

	a.state(func(s *actionsState) { s.BootID = "another boot" })
	a.act(0)
	a.acts("other untrusted self=false boot=true", "me broken self=true boot=true")
	a.act(0)
	a.acts("")
	a.leave(9, a.envelope(9, "other", "trusted"))
	a.act(0)
	a.acts("other trusted self=false boot=false")
	a.state(func(s *actionsState) { s.BootID = "a third boot" })
	a.act(0)
	a.acts("me broken self=true boot=true")

	// It was killed before it was done.
	a.state(func(s *actionsState) { s.Seq, s.Running = 10, a.envelope(10, "x", "overdue") })
	a.act(0)
	a.acts("x overdue self=false boot=false")
	a.act(0)
	a.acts("")
	if s := a.state(nil); s.Seq != 10 || s.Source != "urn:fleet:ours" || s.Device != "me" {
		t.Errorf("state %+v", s)
	}
	// Who loses the state must not begin anew unseen.
	if err := os.WriteFile(filepath.Join(a.dir, "done", actionsFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := a.act(1); !strings.Contains(out, "is not of schema") {
		t.Errorf("damaged state: %s", out)
	}
}

// TestActMany: more devices are bad than can be remembered, and what is remembered can be
// read again. The agent cannot change who this device is once it has been told.
func TestActMany(t *testing.T) {
	a := newActor(t)
	a.write("actions/10-record", "#!/bin/sh\necho \"$ATTEST_DEVICE $ATTEST_SELF\" >>"+a.dir+"/acts\n", 0o755)
	long := strings.Repeat("x", 4000)
	for seq := int64(1); seq <= 150; seq++ {
		a.leave(seq, a.envelope(seq, fmt.Sprint("d", seq), "untrusted", func(e *notice.Event) {
			e.Data.Labels = map[string]string{"address": "192.0.2.1", "note": long}
		}))
	}
	if out := a.act(0); !strings.Contains(out, "will not be remembered over a boot") {
		t.Errorf("%.3000s", out)
	}
	b, err := os.ReadFile(filepath.Join(a.dir, "acts"))
	if err != nil || strings.Count(string(b), "\n") != 150 {
		t.Errorf("acted %d times, want 150: %v", strings.Count(string(b), "\n"), err)
	}
	_ = os.Remove(filepath.Join(a.dir, "acts"))
	a.write("state/state.json", `{"schema":"attest.agent-state/v1","id":"victim"}`, 0o600)
	a.leave(151, a.envelope(151, "victim", "untrusted"))
	a.leave(152, a.envelope(152, "me", "untrusted"))
	a.act(0)
	a.acts("victim false", "me true")
}

// TestActRefuses: what the agent's user could put into the folder, were it not the agent.
func TestActRefuses(t *testing.T) {
	a := newActor(t)
	a.leave(5, a.envelope(5, "x", "untrusted"))
	a.act(0)
	a.acts("x untrusted self=false boot=false")
	good := a.envelope(6, "victim", "untrusted")
	stranger := &actor{t: t, dir: t.TempDir()}
	stranger.key, stranger.cert = noticeKey(t)
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, good, 0o600); err != nil {
		t.Fatal(err)
	}
	into := filepath.Join(a.dir, "notices", "0000000000000000006.json")
	for name, put := range map[string]func() error{
		"a foreign signature": func() error { return os.WriteFile(into, stranger.envelope(6, "victim", "untrusted"), 0o600) },
		"a changed byte":      func() error { return os.WriteFile(into, flipped, 0o600) },
		"another fleet": func() error {
			return os.WriteFile(into, a.envelope(6, "victim", "untrusted", func(e *notice.Event) { e.Source = "urn:fleet:staging" }), 0o600)
		},
		"an old number under a new name": func() error { return os.WriteFile(into, a.envelope(5, "victim", "untrusted"), 0o600) },
		"too long": func() error {
			return os.WriteFile(into, append(good, bytes.Repeat([]byte(" "), notice.MaxSize)...), 0o600)
		},
		"a link":  func() error { return os.Symlink(secret, into) },
		"a pipe":  func() error { return syscall.Mkfifo(into, 0o600) },
		"nothing": func() error { return os.WriteFile(into, nil, 0o600) },
		"a terminal's commands": func() error {
			return os.WriteFile(filepath.Join(a.dir, "notices", "\x1b[2J.json"), []byte("\x1b]0;x"), 0o600)
		},
	} {
		if err := put(); err != nil {
			t.Fatal(err)
		}
		if out := a.act(0); !strings.Contains(out, ": refused: ") || strings.Contains(out, "\x1b") {
			t.Errorf("%s: %q", name, out)
		}
		a.acts("")
	}
	if _, err := os.Stat(secret); err != nil {
		t.Errorf("the file behind a link: %v", err)
	}
	// A folder in the folder is nobody's notice, and stops nothing else.
	if err := os.Mkdir(filepath.Join(a.dir, "notices", "0.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	a.leave(6, good)
	var out bytes.Buffer
	if code := start(a.args(), &out, &out); code != 0 || !strings.Contains(out.String(), "stays where it is") {
		t.Errorf("%d: %s", code, &out)
	}
	_ = os.Remove(filepath.Join(a.dir, "notices", "0.json"))
	a.acts("victim untrusted self=false boot=false")

	// The folder itself becomes a link to where json files of root's are.
	valuable := filepath.Join(t.TempDir(), "1.json")
	if err := os.WriteFile(valuable, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(a.dir, "notices")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(valuable), filepath.Join(a.dir, "notices")); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if code := start(a.args(), &out, &out); code != 1 || !strings.Contains(out.String(), "too many levels of symbolic links") {
		t.Errorf("the folder is a link: %d, %s", code, &out)
	}
	if _, err := os.Stat(valuable); err != nil {
		t.Errorf("a file of somebody else's: %v", err)
	}
}

// TestActPrograms: which programs run, for how long, and with what.
func TestActPrograms(t *testing.T) {
	a := newActor(t)
	a.write("actions/20-fails", "#!/bin/sh\necho 'no \033[2J such thing' >&2\nexit 3\n", 0o755)
	a.write("actions/30-env", "#!/bin/sh\nenv | sort\nyes | head -c 1000000\n", 0o755)
	a.write("actions/40-no", "#!/bin/sh\necho >"+a.dir+"/ran\n", 0o644)
	a.write("actions/.hidden", "#!/bin/sh\necho >"+a.dir+"/ran\n", 0o755)
	if err := os.Symlink("40-no", filepath.Join(a.dir, "actions", "50-link")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ATTEST_AGENT_ID", "me")
	t.Setenv("LD_PRELOAD", "")
	a.leave(1, a.envelope(1, "x", "untrusted", func(e *notice.Event) {
		e.Data.Labels = map[string]string{"rack-4": "$(touch " + a.dir + "/ran); `id`\nATTEST_SELF=true"}
	}))
	out := a.act(1)
	for _, want := range []string{"action 20-fails: exit status 3", "action 20-fails says: no \ufffd[2J such thing", "action 30-env says: ATTEST_LABEL_RACK_4=$(touch", "ATTEST_SEQUENCE=1", "50-link is a link and not run", "error: 2 actions failed"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%.3000s", want, out)
		}
	}
	if strings.Contains(out, "LD_PRELOAD") || len(out) > 64<<10 {
		t.Errorf("%d bytes of output", len(out))
	}
	if _, err := os.Stat(filepath.Join(a.dir, "ran")); err == nil {
		t.Error("what is no action ran")
	}
	_ = os.Remove(filepath.Join(a.dir, "actions", "20-fails"))
	_ = os.Remove(filepath.Join(a.dir, "actions", "50-link"))
	for name, open := range map[string]func(){
		"a program that others may write": func() { a.write("actions/40-no", "#!/bin/sh\necho >"+a.dir+"/ran\n", 0o777) },
		"a folder that others may write":  func() { _ = os.Chmod(filepath.Join(a.dir, "actions"), 0o777) },
	} {
		open()
		a.leave(2, a.envelope(2, "x", "untrusted"))
		a.state(func(s *actionsState) { s.Seq = 1 })
		_ = os.Remove(filepath.Join(a.dir, "acts"))
		if out := a.act(1); !strings.Contains(out, "others may write it: nothing is run") {
			t.Errorf("%s: %s", name, out)
		}
		a.acts("")
		a.write("actions/40-no", "", 0o644)
		_ = os.Chmod(filepath.Join(a.dir, "actions"), 0o755)
	}
	programs, err := actionPrograms(filepath.Join(a.dir, "actions"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		_ = os.Remove(filepath.Join(a.dir, "actions", p))
	}
	a.leave(3, a.envelope(3, "x", "untrusted"))
	if out := a.act(0); !strings.Contains(out, "no executable program is in "+a.dir+"/actions: nothing was run") {
		t.Errorf("nothing but a file that is not executable: %s", out)
	}
}

// TestActKilled: what a program started ends with it, and the next one has its turn.
func TestActKilled(t *testing.T) {
	a := newActor(t)
	a.write("actions/05-hangs", "#!/bin/sh\nsleep 1000 &\necho $! >"+a.dir+"/child\nwait\n", 0o755)
	a.leave(1, a.envelope(1, "x", "untrusted"))
	a.write("agent.toml", "", 0o644)
	fs := newFlags("act", "")
	cf := addConfigFlags(fs)
	if err := fs.FlagSet.Parse(a.args()[1:]); err != nil {
		t.Fatal(err)
	}
	c, err := cf.load(nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	acting, err := openActions(c, &invocation{stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	acting.limit = time.Second
	if n, err := acting.scan(t.Context()); n != 1 || err != nil || acting.failed != 1 || !strings.Contains(out.String(), "action 05-hangs: killed after 1s") {
		t.Errorf("%d, %v: %s", n, err, &out)
	}
	a.acts("x untrusted self=false boot=false")
	child, err := os.ReadFile(filepath.Join(a.dir, "child"))
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(child)) + "/status")
	if err == nil && !strings.Contains(string(status), "State:\tZ") {
		t.Errorf("its child lives:\n%s", status)
	}
}

// TestActStopped: what was stopped in the middle is done again, and then no more.
func TestActStopped(t *testing.T) {
	key, cert := revocationKey(t)
	signed, err := evidence.SignRevocation(key, []byte(`{"type":"revocation","agent_id":"x","event_time":"Sun Nov 22 07:00:00 2026"}`))
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(signed)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("ATTEST_AGENT_REVOCATION_CERT", cert)
	t.Run("ours", func(t *testing.T) {
		a := newActor(t)
		testActStopped(t, a, "0000000000000000001.json", a.envelope(1, "x", "untrusted"))
	})
	t.Run("Keylime's", func(t *testing.T) { testActStopped(t, newActor(t), "keylime-1.json", text) })
}

func testActStopped(t *testing.T, a *actor, name string, notice []byte) {
	a.write("agent.toml", "", 0o644)
	a.write("actions/05-slow", "#!/bin/sh\n[ -e "+a.dir+"/begun ] && exit\n: >"+a.dir+"/begun\nsleep 1000\n", 0o755)
	a.write("notices/"+name, string(notice), 0o600)
	c := exec.Command(os.Args[0], a.args()...)
	c.Env = append(os.Environ(), "ATTEST_TEST_AGENT=1")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(a.dir, "begun")); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the action does not begin")
		}
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // an action failed
	a.acts("")
	a.act(0)
	a.acts("x untrusted self=false boot=false")
	a.act(0)
	a.acts("")
}

// TestActFullDisk: what cannot be noted is acted upon all the same.
func TestActFullDisk(t *testing.T) {
	a := newActor(t)
	a.act(0)
	full := filepath.Join(a.dir, "done", "."+actionsFile+".tmp")
	if err := os.MkdirAll(filepath.Join(full, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	a.leave(1, a.envelope(1, "x", "untrusted"))
	if out := a.act(1); !strings.Contains(out, "what was done cannot be noted: ") {
		t.Errorf("%s", out)
	}
	a.acts("x untrusted self=false boot=false")
	if left, err := os.ReadDir(filepath.Join(a.dir, "notices")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err) // the path unit would start it again at once
	}
	if err := os.RemoveAll(full); err != nil {
		t.Fatal(err)
	}
	a.leave(1, a.envelope(1, "x", "untrusted")) // the agent asks for it again when it starts
	a.act(0)
	a.acts("x untrusted self=false boot=false")
	a.leave(1, a.envelope(1, "x", "untrusted"))
	a.act(0)
	a.acts("")
}

// TestActPauses: an error that keeps the notices where they are is not met again at once,
// which is when the path unit starts the next process.
func TestActPauses(t *testing.T) {
	a := newActor(t)
	a.act(0)
	a.leave(1, a.envelope(1, "x", "untrusted"))
	if err := os.WriteFile(filepath.Join(a.dir, "done", actionsFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("INVOCATION_ID", "of systemd's")
	ctx, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	if err := runAct(ctx, &invocation{args: a.args()[1:], stdout: io.Discard, stderr: io.Discard}); err == nil || ctx.Err() == nil {
		t.Errorf("%v, %v", err, ctx.Err())
	}
}

// TestActWatch: without a service manager it stays and looks.
func TestActWatch(t *testing.T) {
	a := newActor(t)
	a.write("agent.toml", "", 0o644)
	c := exec.Command(os.Args[0], append(a.args(), "--watch")...)
	c.Env = append(os.Environ(), "ATTEST_TEST_AGENT=1")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill() }()
	for seq := int64(1); seq < 3; seq++ {
		a.leave(seq, a.envelope(seq, "x", "untrusted"))
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			b, _ := os.ReadFile(filepath.Join(a.dir, "acts"))
			if strings.Count(string(b), "\n") == int(seq) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("acts: %q", b)
			}
		}
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}

// TestActSelf: who does not know which device it is says so, as it does not act on itself.
func TestActSelf(t *testing.T) {
	a := newActor(t)
	if err := os.Rename(filepath.Join(a.dir, "state"), filepath.Join(a.dir, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", filepath.Join(a.dir, "state")); err != nil {
		t.Fatal(err)
	}
	a.leave(1, a.envelope(1, "me", "untrusted"))
	if out := a.act(0); !strings.Contains(out, "which device this is cannot be told, set id: ") {
		t.Error(out)
	}
	a.acts("me untrusted self=false boot=false")
}
