package main

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/notice"
	"github.com/meta-attest/meta-attest/tools/internal/server"
)

// TestNotices: a device hears of its own bad verdict and acts, over the real server; with
// another certificate in its image it does not, and says why.
func TestNotices(t *testing.T) {
	a := newActor(t)
	v := newVerifier(t, fast, func(o *server.Options) { o.Notices.Key, o.Notices.Cert = a.key, a.cert })
	m := newMachine(t, v)
	m.run("/sbin/init")
	run := func(ca string) *process {
		return m.start(m.command("run", "--state-dir", filepath.Join(m.dir, "state"), "--notice-ca", filepath.Join(a.dir, ca), "--notices-dir", filepath.Join(a.dir, "notices")))
	}
	_, foreign := noticeKey(t)
	a.write("foreign.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: foreign.Raw})), 0o644)
	p := run("notices.crt")
	p.expect("verdict: unverified")
	v.allow(m.state().ID, "/sbin/init")
	p.expect("verdict: trusted")
	p.kill(m)
	m.run("/opt/evil")
	p = run("notices.crt")
	p.expect("is untrusted\n")
	a.write("state/state.json", fmt.Sprintf(`{"schema":"attest.agent-state/v1","id":%q}`, m.state().ID), 0o600)
	a.act(0)
	a.acts(m.state().ID + " untrusted self=true boot=false")
	p.kill(m)
	p = run("foreign.crt")
	p.expect("no notices, trying again in ")
	p.expect("not signed by a key that is trusted")
	p.kill(m)
	if left, err := os.ReadDir(filepath.Join(a.dir, "notices")); err != nil || len(left) != 0 {
		t.Errorf("left for act: %v, %v", left, err)
	}
	// A new process asks for what holds from the begin; to act, that is old.
	p = run("notices.crt")
	p.expect("is untrusted\n")
	if out := a.act(0); !strings.Contains(out, "it is not newer than") {
		t.Errorf("a replay: %s", out)
	}
	a.acts("")
}

// TestNoticesFromEvil: a verifier that was taken over, without the key of notices.
func TestNoticesFromEvil(t *testing.T) {
	a := newActor(t)
	var mu sync.Mutex
	var answer func(http.ResponseWriter, *http.Request)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		answer(w, r)
	}))
	defer s.Close()
	a.write("tls.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})), 0o644)
	fs := newFlags("run", "")
	cf := addConfigFlags(fs)
	a.write("agent.toml", "", 0o644)
	if err := fs.FlagSet.Parse([]string{"--config", filepath.Join(a.dir, "agent.toml"), "--verifier-url", s.URL, "--ca", filepath.Join(a.dir, "tls.crt"),
		"--notice-ca", filepath.Join(a.dir, "notices.crt"), "--notices-dir", filepath.Join(a.dir, "notices")}); err != nil {
		t.Fatal(err)
	}
	c, err := cf.load(nil)
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNotices(&agent{config: c, in: &invocation{stdout: t.Output()}})
	if err != nil {
		t.Fatal(err)
	}
	page := func(envelopes ...[]byte) func(http.ResponseWriter, *http.Request) {
		raw := []json.RawMessage{}
		for _, e := range envelopes {
			raw = append(raw, e)
		}
		return func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(map[string]any{"notices": raw})
		}
	}
	stranger := &actor{t: t}
	stranger.key, stranger.cert = noticeKey(t)
	for _, row := range []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request)
		want   string
		files  int
	}{
		{"forged", page(stranger.envelope(9, "x", "untrusted")), "not signed", 0},
		{"an old one", page(a.envelope(5, "x", "untrusted")), "number 5 after 5", 0},
		{"the wrong way round", page(a.envelope(7, "x", "untrusted"), a.envelope(6, "x", "trusted")), "number 6 after 7", 1},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			for range 1 << 10 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}, "more than", 0},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.invalid/", http.StatusFound)
		}, "302", 0},
		{"not JSON", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{") }, "unexpected end", 0},
		{"nothing", page(), "", 0},
		{"good", page(a.envelope(6, "x", "untrusted"), a.envelope(8, "y", "trusted", func(e *notice.Event) { e.Data.Labels = nil })), "", 2},
	} {
		mu.Lock()
		answer = row.answer
		mu.Unlock()
		_, err := n.ask(t.Context(), &noticeSession{"me", "token"}, 5)
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %s", row.name, err, row.want)
		}
		left, err := filepath.Glob(filepath.Join(a.dir, "notices", "*.json"))
		if err != nil || len(left) != row.files {
			t.Errorf("%s: %d files, want %d: %v", row.name, len(left), row.files, err)
		}
		for _, f := range left {
			_ = os.Remove(f)
		}
	}
	// Nobody takes them away: what comes later waits at the verifier, and nothing is lost.
	for seq := range int64(maxNotices) {
		if err := n.keep(fmt.Sprintf("%019d.json", seq+10), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	answer = page(a.envelope(400, "x", "untrusted"))
	mu.Unlock()
	if after, err := n.ask(t.Context(), &noticeSession{"me", "token"}, 399); after != 399 || err == nil || !strings.Contains(err.Error(), "nobody takes them") {
		t.Errorf("after %d: %v", after, err)
	}
	if err := os.Remove(filepath.Join(a.dir, "notices", "0000000000000000010.json")); err != nil {
		t.Error(err)
	}
	if after, err := n.ask(t.Context(), &noticeSession{"me", "token"}, 399); after != 400 || err != nil {
		t.Errorf("after %d: %v", after, err)
	}
}

// TestNoticesFolder: a setting that names a folder of the system's takes nothing away.
func TestNoticesFolder(t *testing.T) {
	dir := t.TempDir()
	n := &notices{dir: filepath.Join(dir, "a", "b")}
	for range 2 {
		if err := n.makeFolder(os.Geteuid(), os.Getegid()); err != nil {
			t.Error(err)
		}
	}
	n.dir = filepath.Join(dir, "a")
	if err := n.makeFolder(65534, 65534); err == nil || !strings.Contains(err.Error(), "notices_dir: ") {
		t.Errorf("%v", err)
	}
	if info, err := os.Stat(n.dir); err != nil || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
		t.Errorf("given away: %v", err)
	}
}
