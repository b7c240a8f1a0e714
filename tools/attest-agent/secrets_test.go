package main

import (
	"archive/zip"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meta-attest/meta-attest/tools/internal/payload"
	"github.com/meta-attest/meta-attest/tools/internal/server"
)

func withSecrets(t *testing.T) func(*server.Options) {
	t.Helper()
	keys, err := server.ParseSecretKeys([]byte(strings.Repeat("0123456789abcdef", 2)))
	if err != nil {
		t.Fatal(err)
	}
	return func(o *server.Options) { o.Secrets = keys }
}

const canary = "canary-5d20e8"

// secret puts a revision of a secret, whose first file is key.
func (v *verifier) secret(name, run, key string, more ...payload.File) {
	v.t.Helper()
	p := payload.Payload{Files: append([]payload.File{{Name: "key", Mode: 0o644, Data: []byte(key)}}, more...)}
	body, err := p.Zip()
	if err != nil {
		v.t.Fatal(err)
	}
	v.archive(name, run, body)
}

func (v *verifier) archive(name, run string, body []byte) {
	v.t.Helper()
	r, err := http.NewRequestWithContext(v.t.Context(), "POST", "https://"+v.address[1]+"/api/v1/secrets/"+name+"?run="+url.QueryEscape(run), bytes.NewReader(body))
	if err != nil {
		v.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+v.admin)
	r.Header.Set("Content-Type", "application/zip")
	pool, err := readCA(v.ca)
	if err != nil {
		v.t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		v.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		v.t.Fatalf("put secret: %s", res.Status)
	}
}

func (v *verifier) assign(name string, devices ...string) {
	v.t.Helper()
	v.api("PATCH", "/secrets/"+name, map[string]any{"add": map[string]any{"devices": devices}}, http.StatusOK)
}

// released counts the events that say so.
func (v *verifier) released() (n int) {
	v.t.Helper()
	all, err := v.store.Events(v.t.Context(), "", 0, 100_000)
	if err != nil {
		v.t.Fatal(err)
	}
	for _, e := range all {
		if e.Kind == "secret-released" {
			n++
		}
	}
	return n
}

// has waits until exactly these files are in the folder for secrets, each with its content.
func (m *machine) has(want map[string]string) {
	m.t.Helper()
	var got map[string]string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		got = map[string]string{}
		err := filepath.WalkDir(m.secrets, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			b, err := os.ReadFile(path)
			got[strings.TrimPrefix(path, m.secrets+"/")] = info.Mode().String() + " " + string(b)
			return err
		})
		if err == nil && cmp.Equal(want, got) {
			return
		}
	}
	m.t.Fatalf("secrets (-want +got):\n%s", cmp.Diff(want, got))
}

func (p *process) terminate() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("after SIGTERM: %v", err)
	}
}

func needTmpfs(t *testing.T, m *machine) {
	t.Helper()
	if !strings.HasPrefix(m.secrets, "/dev/shm/") {
		t.Skip("/dev/shm cannot be written to: secrets are not tested")
	}
}

// TestSecrets: they are there from a good verdict to the next bad one, and not a moment
// longer; and what the verifier takes away is taken away.
func TestSecrets(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, fast, withSecrets(t))
	m := newMachine(t, v)
	needTmpfs(t, m)
	m.run("/sbin/init")
	p := m.startAgent()
	p.expect("verdict: unverified")
	id := m.state().ID
	v.secret("web", "", canary)
	v.secret("db", "key", "db", payload.File{Name: "d/x", Mode: 0o600, Data: []byte("deep")})
	v.assign("web", id)
	v.assign("db", id)
	p.attestsAgain(m)
	m.has(map[string]string{})
	if n := v.released(); n != 0 {
		t.Fatalf("%d releases to a device that is not trusted", n)
	}
	v.allow(id, "/sbin/init")
	p.expect("verdict: trusted")
	p.expect("key of payload db is not run: secrets_execute is not set")
	first := map[string]string{"web/key": "-rw------- " + canary, "db/key": "-rwx------ db", "db/d/x": "-rw------- deep"}
	m.has(first)
	before := v.released()
	p.attestsAgain(m)
	p.attestsAgain(m)
	if n := v.released(); n != before {
		t.Errorf("released again without a reason: %d, was %d", n, before)
	}

	// A verifier that was killed keeps them, and they are not asked for again.
	v.stop()
	p.expect("attestation failed")
	v.start()
	p.attestsAgain(m)
	m.has(first)
	v.secret("web", "", "second")
	v.api("DELETE", "/secrets/db", nil, http.StatusNoContent)
	p.expect("secret db erased")
	second := map[string]string{"web/key": "-rw------- second"}
	m.has(second)

	v.allow(id, "/bin/other") // now what it ran is not allowed
	p.expect("verdict: untrusted")
	p.expect("secrets erased")
	m.has(map[string]string{})
	before = v.released()
	p.attestsAgain(m)
	if n := v.released(); n != before {
		t.Error("released to a device that is untrusted")
	}
	v.allow(id, "/sbin/init", "/bin/sh")
	m.has(second)
	v.api("PATCH", "/devices/"+id, map[string]any{"attest": false}, http.StatusOK) // 403
	p.expect("secrets erased")
	m.has(map[string]string{})
	v.api("PATCH", "/devices/"+id, map[string]any{"attest": true}, http.StatusOK)
	m.has(second)
	v.api("DELETE", "/devices/"+id, nil, http.StatusNoContent) // 404
	p.expect("secrets erased")
	p.expect("enrolled " + id)
	m.has(map[string]string{})

	v.api("PATCH", "/devices/"+id, map[string]any{"policies": []string{"image"}}, http.StatusOK)
	v.assign("web", id)
	m.has(second)
	p.terminate()
	m.has(map[string]string{})
}

// TestSecretsOfAnotherProcess: what a killed agent left is erased before anything is asked.
func TestSecretsOfAnotherProcess(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, fast, withSecrets(t))
	m := newMachine(t, v)
	needTmpfs(t, m)
	m.run("/sbin/init")
	m.call(0, "enrol")
	id := m.state().ID
	v.allow(id, "/sbin/init")
	v.secret("web", "", canary)
	v.assign("web", id)
	p := m.startAgent()
	all := map[string]string{"web/key": "-rw------- " + canary}
	m.has(all)
	p.kill(m)
	m.has(all) // nobody was there to erase it; a service manager removes the folder
	v.stop()
	p = m.startAgent()
	p.expect("attestation failed")
	m.has(map[string]string{})
	v.start()
	m.has(all)
	p.kill(m)

	// After a reset of the TPM the device has to prove itself anew.
	m.tpm.Reboot()
	m.boot()
	p = m.startAgent()
	p.expect("verdict: unverified") // it did not run what is required
	m.has(map[string]string{})
	p.terminate()
}

// TestSecretsExecuted: what a payload runs is bounded, and nothing runs unless told.
func TestSecretsExecuted(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, fast, withSecrets(t))
	m := newMachine(t, v)
	needTmpfs(t, m)
	m.run("/sbin/init")
	m.call(0, "enrol")
	id := m.state().ID
	v.allow(id, "/sbin/init")
	script := "#!/bin/sh\necho runs as $(id -u) in $PWD\nprintf 'red \\033[31m\\n'\nyes | head -c 1000000\nexit 3\n"
	v.secret("job", "run.sh", "x", payload.File{Name: "run.sh", Mode: 0o600, Data: []byte(script)})
	v.assign("job", id)
	m.call(exitError, "run", "--secrets-execute", "yes")
	p := m.start(m.command("run", "--secrets-execute", "1"))
	p.expect(fmt.Sprintf("run.sh of payload job says: runs as %d in %s/job\n", os.Getuid(), m.secrets))
	p.expect("run.sh of payload job says: red \ufffd[31m\n")
	p.expect("run.sh of payload job: exit status 3")
	p.attestsAgain(m)
	p.terminate()
	p.mu.Lock()
	defer p.mu.Unlock()
	if strings.Contains(p.out.String(), "run.sh of payload job says") {
		t.Error("it was run again for the same revision")
	}
}

// TestSecretsBounded: a device holds so many bytes of secrets and no more, however small
// they came; and those that it cannot have keep no others.
func TestSecretsBounded(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, fast, withSecrets(t))
	m := newMachine(t, v)
	needTmpfs(t, m)
	m.run("/sbin/init")
	m.call(0, "enrol")
	id := m.state().ID
	v.allow(id, "/sbin/init")
	data := strings.Repeat("x", payload.MaxSize-1000)
	var body bytes.Buffer
	w := zip.NewWriter(&body)
	f, err := w.Create("key")
	if err == nil {
		_, err = io.WriteString(f, data)
	}
	if err := errors.Join(err, w.Close()); err != nil || body.Len() > 10_000 {
		t.Fatalf("%d bytes, %v", body.Len(), err)
	}
	want := map[string]string{}
	for i := range 18 {
		name := fmt.Sprintf("s%02d", i)
		v.archive(name, "", body.Bytes())
		v.assign(name, id)
		if i < 16 {
			want[name+"/key"] = "-rw------- " + data
		}
	}
	p := m.startAgent()
	p.expect("those from s16 on are not here")
	m.has(want)
	p.attestsAgain(m)
	v.api("DELETE", "/secrets/s00", nil, http.StatusNoContent)
	p.expect("secret s00 erased")
	delete(want, "s00/key")
	want["s16/key"] = "-rw------- " + data
	m.has(want)
	p.terminate()
}

// TestSecretsFolderRefused is CVE-2022-23948: a folder that is not in memory, or not the
// agent's alone, is given nothing, and nothing is released for it.
func TestSecretsFolderRefused(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, fast, withSecrets(t))
	m := newMachine(t, v)
	m.run("/sbin/init")
	m.call(0, "enrol")
	id := m.state().ID
	v.allow(id, "/sbin/init")
	v.secret("web", "", canary)
	v.assign("web", id)
	link := filepath.Join(m.dir, "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{filepath.Join(m.dir, "disk"): "not on tmpfs or ramfs", link: "secrets: secrets_dir"} {
		m.secrets = dir
		p := m.startAgent()
		p.expect(want)
		p.attestsAgain(m)
		p.terminate()
		if names, err := os.ReadDir(dir); len(names) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("in %s: %v, %v", dir, names, err)
		}
	}
	if n := v.released(); n != 0 {
		t.Errorf("%d releases to a device that could not keep them", n)
	}
}

// TestSecretsNowhere is CVE-2022-23948, too: strace names all files that the agent opens for
// writing, makes or renames, from its start to its end; none is outside of its two folders.
func TestSecretsNowhere(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is missing: where the agent writes is not tested")
	}
	v := newVerifier(t, fast, withSecrets(t))
	m := newMachine(t, v)
	needTmpfs(t, m)
	m.run("/sbin/init")
	m.call(0, "enrol")
	id := m.state().ID
	v.allow(id, "/sbin/init")
	v.secret("web", "", canary)
	v.assign("web", id)
	trace := filepath.Join(t.TempDir(), "trace")
	agent := m.command("run")
	c := exec.Command(strace, append([]string{"-f", "-y", "-s", "256", "-o", trace, "-e",
		"trace=open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat,write,pwrite64"}, agent.Args...)...)
	c.Env = agent.Env
	p := m.start(c)
	p.expect("payload web is in")
	m.has(map[string]string{"web/key": "-rw------- " + canary})
	p.attestsAgain(m)
	if err := syscall.Kill(agentOf(t, p), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	changes := regexp.MustCompile(`O_WRONLY|O_RDWR|O_CREAT|\b(creat|mkdir\w*|rename\w*|link\w*|symlink\w*|mknod\w*)\(`)
	found := 0
	for line := range strings.Lines(string(b)) {
		inSecrets, inState := strings.Contains(line, m.secrets), strings.Contains(line, filepath.Join(m.dir, "state"))
		if strings.Contains(line, canary) {
			if found++; !inSecrets {
				t.Errorf("the secret is written elsewhere: %s", line)
			}
		}
		ok := inSecrets || inState || strings.Contains(line, `"/dev/null"`) || strings.Contains(line, "/dev/shm/") || strings.Contains(line, `"`+m.dir+`"`)
		if changes.MatchString(line) && !ok {
			t.Errorf("the agent writes elsewhere: %s", line)
		}
	}
	if found == 0 {
		t.Error("strace did not see the secret being written: nothing is tested")
	}
	if strings.Contains(p.out.String(), canary) {
		t.Error("the secret is in the agent's log")
	}
	state, err := os.ReadFile(filepath.Join(m.dir, "state", stateFile))
	if err != nil || strings.Contains(string(state), canary) {
		t.Errorf("the secret is in the state: %v", err)
	}
}

// agentOf is the process that strace started.
func agentOf(t *testing.T, p *process) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}
