package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/server"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// verifier is the real server, with its database and its TLS, which a test can stop.
type verifier struct {
	t         *testing.T
	dir       string
	address   [2]string // registrar, verifier; chosen at the first start, kept after it
	ca        string    // file
	cert      tls.Certificate
	store     *store.Store
	listeners []*server.Listener
	admin     string
	options   server.Options
	end       func() // of what the server does by itself
}

func newVerifier(t *testing.T, change ...func(*server.Options)) *verifier {
	t.Helper()
	v := &verifier{t: t, dir: t.TempDir(), address: [2]string{"127.0.0.1:0", "127.0.0.1:0"}}
	v.issue()
	if _, _, err := store.Migrate(t.Context(), v.database()); err != nil {
		t.Fatal(err)
	}
	v.options = server.Options{TOFU: true, Interval: 10 * time.Second, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&v.options)
	}
	v.start()
	t.Cleanup(v.stop)
	var err error
	if v.admin, _, err = server.AddToken(t.Context(), v.store, "test", server.Admin, 0, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *verifier) database() string { return filepath.Join(v.dir, "attest.db") }

// issue makes a certificate for 127.0.0.1 and the file of its CA.
func (v *verifier) issue() {
	v.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		v.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "verifier"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		v.t.Fatal(err)
	}
	v.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	v.ca = filepath.Join(v.dir, "ca.crt")
	if err := os.WriteFile(v.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		v.t.Fatal(err)
	}
}

func (v *verifier) start() {
	v.t.Helper()
	var err error
	if v.store, err = store.Open(v.t.Context(), v.database()); err != nil {
		v.t.Fatal(err)
	}
	v.options.Store = v.store
	s, err := server.New(v.options)
	if err != nil {
		v.t.Fatal(err)
	}
	conf := server.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &v.cert, nil })
	for i, h := range []http.Handler{s.Registrar(), s.Verifier()} {
		l := &server.Listener{Address: v.address[i], Handler: h, TLS: conf}
		if err := l.Open(context.Background(), s.Limits, v.options.Log); err != nil {
			v.t.Fatal(err)
		}
		v.address[i] = l.Address
		v.listeners = append(v.listeners, l)
		go l.Serve()
	}
	ctx, stop := context.WithCancel(context.Background())
	v.end = stop
	if v.options.Notices.Key != nil {
		go s.Run(ctx)
	}
}

func (v *verifier) stop() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // no mercy: as a crash
	for _, l := range v.listeners {
		l.Close(ctx)
	}
	v.listeners = nil
	if v.end != nil {
		v.end()
	}
	if v.store != nil {
		_ = v.store.Close()
		v.store = nil
	}
}

// api calls the management API, and returns its answer.
func (v *verifier) api(method, path string, body any, want int) []byte {
	v.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		v.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(v.t.Context(), method, "https://"+v.address[1]+"/api/v1"+path, bytes.NewReader(text))
	if err != nil {
		v.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+v.admin)
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
	got, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != want {
		v.t.Fatalf("%s %s: %d, want %d: %s: %v", method, path, res.StatusCode, want, got, err)
	}
	return got
}

// allow lets the device run these files, and no other.
func (v *verifier) allow(id string, paths ...string) {
	v.t.Helper()
	digests := map[string][]string{}
	for _, p := range paths {
		digests[p] = []string{hex.EncodeToString(content(p))}
	}
	v.api("POST", "/policies/image?activate=true", map[string]any{"schema": "attest.policy/v1", "rules": `required = ["` + paths[0] + `"]`,
		"runtime_policy": map[string]any{"meta": map[string]any{"version": 1, "generator": 3, "timestamp": "2026-11-22 00:00:00"}, "release": 0, "digests": digests,
			"excludes": []string{}, "keyrings": map[string]any{}, "ima": map[string]any{"ignored_keyrings": []string{}, "log_hash_alg": "sha1", "dm_policy": nil},
			"ima-buf": map[string]any{}, "verification-keys": ""}}, http.StatusCreated)
	v.api("PATCH", "/devices/"+id, map[string]any{"policies": []string{"image"}}, http.StatusOK)
}

// content is the digest of the file at path in the release that allow allows.
func content(path string) []byte {
	sum := sha256.Sum256([]byte("content of " + path))
	return sum[:]
}

// machine is a device with a real TPM, and a folder in which the test plays the kernel.
type machine struct {
	t    *testing.T
	dir  string
	tpm  *tpmtest.Emulator
	v    *verifier
	list string
	// secrets is on a tmpfs where this system has one, and else a folder that is refused.
	secrets string
}

func newMachine(t *testing.T, v *verifier) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), tpm: tpmtest.Start(t), v: v}
	m.list, m.secrets = filepath.Join(m.dir, "binary_runtime_measurements"), filepath.Join(m.dir, "secrets")
	if dir, err := os.MkdirTemp("/dev/shm", "agent-*"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		m.secrets = filepath.Join(dir, "secrets")
	}
	m.boot()
	return m
}

// kernel does what Linux does with the TPM, which serves one connection at a time.
func (m *machine) kernel(do func(*tpm.TPM)) {
	m.t.Helper()
	dev, err := tpm.Open(m.tpm.Address)
	if err != nil {
		m.t.Fatal(err)
	}
	defer dev.Close()
	do(dev)
}

// boot starts an empty list with boot_aggregate.
func (m *machine) boot() {
	m.t.Helper()
	for _, path := range []string{m.list, m.ascii()} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	selection, err := evidence.Selection{"sha256": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}.TPM()
	if err != nil {
		m.t.Fatal(err)
	}
	m.kernel(func(dev *tpm.TPM) {
		values, err := dev.PCRs(selection)
		if err != nil {
			m.t.Fatal(err)
		}
		sum := sha256.Sum256(bytes.Join(values, nil))
		m.measure(dev, "boot_aggregate", sum[:])
	})
}

// run has the kernel measure files.
func (m *machine) run(paths ...string) {
	m.t.Helper()
	m.kernel(func(dev *tpm.TPM) {
		for _, p := range paths {
			m.measure(dev, p, content(p))
		}
	})
}

func (m *machine) measure(dev *tpm.TPM, path string, digest []byte) {
	m.t.Helper()
	line, data := entry(path, digest)
	m.append(m.list, line)
	m.append(m.ascii(), fmt.Appendf(nil, "10 %x ima-ng sha256:%x %s\n", line[4:4+sha1.Size], digest, path))
	tpmtest.Extend(m.t, dev, 10, func(h crypto.Hash) []byte { s := h.New(); s.Write(data); return s.Sum(nil) })
}

// ascii is the list as text, which lies beside.
func (m *machine) ascii() string { return filepath.Join(m.dir, "ascii_runtime_measurements") }

func (m *machine) append(path string, b []byte) {
	m.t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		m.t.Fatal(err)
	}
}

// entry is an ima-ng entry and its template data, as ima_measurements_show writes them.
func entry(path string, digest []byte) (line, data []byte) {
	le := binary.LittleEndian
	d := append([]byte("sha256:\x00"), digest...)
	data = append(le.AppendUint32(nil, uint32(len(d))), d...)
	data = append(le.AppendUint32(data, uint32(len(path)+1)), path+"\x00"...)
	sum := sha1.Sum(data)
	line = append(le.AppendUint32(nil, 10), sum[:]...)
	line = append(le.AppendUint32(line, 6), "ima-ng"...)
	return append(le.AppendUint32(line, uint32(len(data))), data...), data
}

// settings are the flags that every call of the agent gets.
func (m *machine) settings() []string {
	return []string{"--verifier-url", "https://" + m.v.address[1], "--registrar-url", "https://" + m.v.address[0], "--ca", m.v.ca, "--tpm", m.tpm.Address,
		"--state-dir", filepath.Join(m.dir, "state"), "--ima-list", m.list, "--firmware-log", filepath.Join(m.dir, "none"), "--user", "", "--retry-max", "2s", "--secrets-dir", m.secrets}
}

// TestMain lets the test's own program be the agent, so that it can be killed.
func TestMain(m *testing.M) {
	if os.Getenv("ATTEST_TEST_AGENT") != "" {
		os.Unsetenv("ATTEST_TEST_AGENT")
		main()
	}
	// They wait for other processes more than they compute. A flag of the caller's wins.
	// A test that takes a lock or writes a script itself is not parallel: what the others
	// fork holds its files open for a moment.
	if err := flag.Set("test.parallel", "12"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func (m *machine) command(verb string, more ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], append(append([]string{verb}, m.settings()...), more...)...)
	c.Env = append(os.Environ(), "ATTEST_TEST_AGENT=1")
	return c
}

// call runs a verb to its end.
func (m *machine) call(wantCode int, verb string, more ...string) string {
	m.t.Helper()
	c := m.command(verb, more...)
	out, err := c.CombinedOutput()
	if c.ProcessState == nil {
		m.t.Fatal(err)
	}
	if got := c.ProcessState.ExitCode(); got != wantCode {
		m.t.Fatalf("attest-agent %s: exit code %d, want %d:\n%s", verb, got, wantCode, out)
	}
	return string(out)
}

// process is a running agent.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	mu  sync.Mutex
	out bytes.Buffer
	new chan struct{}
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out.Write(b)
	select {
	case p.new <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (m *machine) startAgent() *process {
	m.t.Helper()
	return m.start(m.command("run"))
}

// startProgram is startAgent of another build.
func (m *machine) startProgram(program string, args []string) *process {
	m.t.Helper()
	return m.start(exec.Command(program, args...))
}

func (m *machine) start(cmd *exec.Cmd) *process {
	m.t.Helper()
	p := &process{t: m.t, cmd: cmd, new: make(chan struct{}, 1)}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.WaitDelay = 10 * time.Second // what it started may hold its output
	if err := p.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	return p
}

// expect waits until the agent has printed a text that it had not when expect last came
// back.
func (p *process) expect(text string) {
	p.t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		p.mu.Lock()
		before, after, ok := strings.Cut(p.out.String(), text)
		if ok {
			p.out.Reset()
			p.out.WriteString(after)
		}
		p.mu.Unlock()
		if ok {
			p.t.Logf("agent: %s%s", before, text)
			return
		}
		select {
		case <-p.new:
		case <-deadline:
			p.t.Fatalf("the agent did not say %q but:\n%s", text, before)
		}
	}
}

func (m *machine) state() *State {
	m.t.Helper()
	s, err := (&folder{path: filepath.Join(m.dir, "state")}).state()
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

func (m *machine) key() string {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(m.dir, "state", keyFile))
	if err != nil {
		m.t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

// callUntil is call, a second time where the first told the verifier of a boot.
func (m *machine) callUntil(wantCode int, verb string, more ...string) {
	m.t.Helper()
	if c := m.command(verb, more...); c.Run() == nil && wantCode == 0 {
		return
	}
	m.call(wantCode, verb, more...)
}

// callOut is call, of standard output only.
func (m *machine) callOut(wantCode int, verb string, more ...string) string {
	m.t.Helper()
	var out, talk bytes.Buffer
	c := m.command(verb, more...)
	c.Stdout, c.Stderr = &out, &talk
	if err := c.Run(); c.ProcessState == nil {
		m.t.Fatal(err)
	}
	if got := c.ProcessState.ExitCode(); got != wantCode {
		m.t.Fatalf("attest-agent %s: exit code %d, want %d:\n%s%s", verb, got, wantCode, &out, &talk)
	}
	return out.String()
}

// kill ends the agent with SIGKILL. What it had loaded into the TPM is flushed, as Linux
// does behind /dev/tpmrm0 when a process ends.
func (p *process) kill(m *machine) {
	m.t.Helper()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	m.kernel(func(dev *tpm.TPM) {
		for _, kind := range []tpm2.TPMHandle{0x80000000, 0x03000000, 0x02000000} { // objects, sessions
			rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(kind), PropertyCount: 16}.Execute(dev)
			if err != nil {
				m.t.Fatal(err)
			}
			handles, err := rsp.CapabilityData.Data.Handles()
			if err != nil {
				m.t.Fatal(err)
			}
			for _, h := range handles.Handle {
				if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(dev); err != nil {
					m.t.Fatal(err)
				}
			}
		}
	})
}

// attestsAgain waits until evidence is taken that was not when it was called.
func (p *process) attestsAgain(m *machine) {
	m.t.Helper()
	since := m.state().Attested
	for deadline := time.Now().Add(time.Minute); !m.state().Attested.After(since); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.mu.Lock()
			defer p.mu.Unlock()
			m.t.Fatalf("nothing was attested for a minute: %+v\n%s", m.state(), &p.out)
		}
	}
}
