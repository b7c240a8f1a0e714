package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// alarms puts bad verdicts into a database, with a notice each for the webhook siem.
func alarms(t *testing.T, path string, many int) {
	t.Helper()
	st, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	now := time.Now()
	for n := range many {
		id := fmt.Sprint("d", n)
		key := func(kind string) store.Key { return store.Key{SPKI: []byte(kind + id), Public: []byte(kind + id)} }
		answer := sha256.Sum256([]byte(id))
		if err := st.Register(t.Context(), store.Attempt{Device: id, Peer: id, Identity: store.Identity{EK: key("ek"), AK: key("ak")}, Answer: answer, Expires: now.Add(time.Minute)}, now); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Activate(t.Context(), store.Activation{Device: id, Peer: id, Answer: answer, Attest: true, Due: now.Add(time.Hour)}, now); err != nil {
			t.Fatal(err)
		}
		state, err := st.State(t.Context(), id, now)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Attest(t.Context(), state, store.Result{Status: store.Untrusted, At: now, Due: now.Add(time.Hour), Index: -1,
			Detail: json.RawMessage(`{"reasons":[{"code":"unknown_file","path":"/x","advice":"y"}]}`), Notices: []store.Notice{{Target: "webhook:siem"}}}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKillDelivery kills two replicas, one after the other, while they deliver: each notice
// arrives, and one that arrived twice has the same id.
func TestKillDelivery(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for a lease to end; not with -short")
	}
	const many = 40
	dir := t.TempDir()
	path := build(t, dir)
	alarms(t, filepath.Join(dir, "attest.db"), many)
	var mu sync.Mutex
	ids, requests, deaf, lost := map[string]int{}, 0, false, 0
	hook := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if deaf {
			lost++
			mu.Unlock()
			<-r.Context().Done() // until the sender dies
			mu.Lock()
			return
		}
		ids[r.Header.Get("webhook-id")]++
		requests++
	}))
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls/server.crt"), filepath.Join(dir, "tls/server.key"))
	if err != nil {
		t.Fatal(err)
	}
	hook.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	hook.StartTLS()
	defer hook.Close()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("whsec_"+strings.Repeat("A", 40)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "v.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("[[notices.webhook]]\nname = \"siem\"\nurl = \"%s/in\"\nsecret = \"secret\"\nca = \"tls/ca.crt\"\n", hook.URL)
	if err := os.WriteFile(filepath.Join(dir, "v.d", "hook.toml"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	count := func() (different, all int) {
		mu.Lock()
		defer mu.Unlock()
		return len(ids), requests
	}
	await := func(n int) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
			if got, _ := count(); got >= n {
				return
			}
			if time.Now().After(end) {
				got, all := count()
				t.Fatalf("%d of %d notices, in %d requests", got, n, all)
			}
		}
	}
	for _, n := range []int{5, 15} {
		p := start(t, path)
		await(n)
		mu.Lock()
		deaf = true
		was, now := lost, lost
		mu.Unlock()
		for now == was {
			time.Sleep(5 * time.Millisecond)
			mu.Lock()
			now = lost
			mu.Unlock()
		}
		_ = p.cmd.Process.Kill()
		<-p.ended
		mu.Lock()
		deaf = false
		mu.Unlock()
	}
	one, two := start(t, path), start(t, path)
	await(many)
	for _, p := range []*program{one, two} {
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	_, all := count()
	t.Logf("%d notices in %d requests and %d that were in the hands of the dead", many, all, lost)
	st, err := store.Open(context.Background(), filepath.Join(dir, "attest.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if dead, err := st.DeadLetters(t.Context(), 10); err != nil || len(dead) != 0 {
		t.Errorf("dead letters: %+v, %v", dead, err)
	}
}

// TestNoticesConfig: what is not good is refused at the start, and says where.
func TestNoticesConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := build(t, dir)
	run := func(args ...string) (string, error) {
		c := exec.CommandContext(t.Context(), path, args...)
		c.Dir = dir
		out, err := c.CombinedOutput()
		return string(out), err
	}
	if out, err := run("certificate", "notices", "--out", "tls"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, text := range map[string]string{"good": "whsec_" + strings.Repeat("A", 40), "bad": "hunter2"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "open"), []byte("whsec_"+strings.Repeat("A", 40)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "v.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	hook := func(name, url, secret string) string {
		return fmt.Sprintf("[[notices.webhook]]\nname = %q\nurl = %q\nsecret = %q\n", name, url, secret)
	}
	for _, c := range []struct{ text, want string }{
		{hook("a", "http://x/", "good"), "webhook a: its url is not https://HOST"},
		{hook("a", "https://x/", "bad"), "want whsec_"},
		{hook("a", "https://x/", "open"), "chmod 600"},
		{hook("a", "https://x/", "none"), "no such file"},
		{hook("", "https://x/", "good"), "has no name"},
		{hook("a b", "https://x/", "good"), "webhook: name"},
		{hook("a", "https://x/", "good") + hook("a", "https://y/", "good"), "or that of another"},
		{hook("a", "https://x/", "good") + "secrte = 1\n", `unknown key "notices.webhook.secrte"`},
		{"[notices]\nkey = \"tls/notices.key\"\n", "a key needs its certificate"},
		{"[notices]\nkey = \"tls/server.key\"\ncert = \"tls/notices.crt\"\n", "not that of the key"},
	} {
		if err := os.WriteFile(filepath.Join(dir, "v.d", "n.toml"), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		cmd := exec.CommandContext(ctx, path, "--config", "v.toml", "serve")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(string(out), c.want) || strings.Contains(string(out), "hunter2") {
			t.Errorf("%s: %v, %s", c.text, err, out)
		}
	}
	// A later file replaces all webhooks, and what is shown can be read again.
	if err := os.WriteFile(filepath.Join(dir, "v.d", "a.toml"), []byte(hook("old", "https://old/", "good")+"ca = \"tls/ca.crt\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "v.d", "n.toml"), []byte(hook("new", "https://new/?a=\"b", "good")), 0o600); err != nil {
		t.Fatal(err)
	}
	shown, err := run("--config", "v.toml", "config", "show")
	if err != nil || !strings.Contains(shown, `webhook = [{name = "new", url = "https://new/?a=\"b", secret = "good"}]`) {
		t.Errorf("%v: %s", err, shown)
	}
	if err := os.WriteFile(filepath.Join(dir, "again.toml"), []byte(shown), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := run("--config", "again.toml", "config", "show"); err != nil || again != shown {
		t.Errorf("%v: %s, was %s", err, again, shown)
	}
	if out, err := run("--config", "v.toml", "--set", "notices.webhook=x", "config", "show"); err == nil || !strings.Contains(out, "can only be set in a file") {
		t.Errorf("%v: %s", err, out)
	}
}
