// Package keylimetest lets the programs of Keylime, which others wrote, work with ours:
// its registrar, verifier and tenant with our agent, its agents with our server.
//
// scripts/keylime installs them; what is missing is skipped aloud. What they said to our
// agent is recorded in testdata and played to it again where Keylime is not.
package keylimetest

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/tpm"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// installed is the folder of a peer in the cache; where it is not there the test is skipped.
func installed(t *testing.T, peer string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "../../scripts/keylime", peer, "--cached").Output()
	if err != nil {
		t.Skipf("Keylime is not installed: run scripts/keylime %s", peer)
	}
	return strings.TrimSpace(string(out))
}

// program is a running process with what it printed.
type program struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	mu   sync.Mutex
	out  bytes.Buffer
	seen int // bytes of out that await passed
	done chan struct{}
}

func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *program) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// launch starts a program, which ends with the test. What it printed is shown if that failed.
func launch(t *testing.T, name string, cmd *exec.Cmd) *program {
	t.Helper()
	p := &program{t: t, name: name, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p, p
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Keylime's servers fork
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			text := p.text()
			t.Logf("%s printed:\n%s", name, text[max(0, len(text)-8000):])
		}
	})
	return p
}

// stop ends the program and what it forked.
func (p *program) stop() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// await waits until the program has printed a text since the last call.
func (p *program) await(text string) {
	p.t.Helper()
	until(p.t, fmt.Sprintf("%s to print %q", p.name, text), func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		if i := strings.Index(p.out.String()[p.seen:], text); i >= 0 {
			p.seen += i + len(text)
			return true
		}
		return false
	})
}

// patience is for how long something that has to come is waited for, on a busy machine.
const patience = 2 * time.Minute

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
	}
}

// lastPort is what freePort gave last.
var lastPort atomic.Int32

// freePort is a port that nobody listens at and that no other test was given. It is below
// those that Linux gives to connections (ip_local_port_range), which would take it before a
// server that starts slowly does.
func freePort(t *testing.T) int {
	t.Helper()
	const first, count = 20_000, 10_000
	for range count {
		port := first + (os.Getpid()+int(lastPort.Add(1)))%count
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// programs is the folder of what is compiled for all tests.
var programs string

// buildAgent compiles the agent once for all tests.
var buildAgent = sync.OnceValues(func() (string, error) {
	path := filepath.Join(programs, "attest-agent")
	cmd := exec.Command("go", "build", "-o", path, "../attest-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "keylimetest")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// device is a machine with a TPM of its own, in which the test plays the kernel: it writes
// the measurement lists, and extends PCR 10 for each entry.
type device struct {
	t             *testing.T
	dir           string
	tpm           *tpmtest.Emulator
	binary, ascii string
	listen        string // where the agent can be polled
}

func newDevice(t *testing.T) *device {
	t.Helper()
	if testing.Short() {
		t.Skip("starts agents, and Keylime; not with -short")
	}
	d := &device{t: t, dir: t.TempDir(), tpm: tpmtest.Start(t), listen: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	d.tpm.Share()
	d.binary, d.ascii = filepath.Join(d.dir, "binary_runtime_measurements"), filepath.Join(d.dir, "ascii_runtime_measurements")
	for _, path := range []string{d.binary, d.ascii} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.measure("boot_aggregate", digest("boot_aggregate"))
	return d
}

// digest is that of the file at path in the release that policy allows.
func digest(path string) []byte {
	sum := sha256.Sum256([]byte("content of " + path))
	if path == "boot_aggregate" { // nobody has extended PCR 0 to 9
		sum = sha256.Sum256(make([]byte, 10*sha256.Size))
	}
	return sum[:]
}

// run has the kernel measure files.
func (d *device) run(paths ...string) {
	d.t.Helper()
	for _, path := range paths {
		d.measure(path, digest(path))
	}
}

// measure appends an ima-ng entry to both lists (ima_fs.c of Linux), and extends PCR 10.
func (d *device) measure(path string, digest []byte) {
	d.t.Helper()
	le := binary.LittleEndian
	field := append([]byte("sha256:\x00"), digest...)
	data := append(le.AppendUint32(nil, uint32(len(field))), field...)
	data = append(le.AppendUint32(data, uint32(len(path)+1)), path+"\x00"...)
	sum := sha1.Sum(data)
	entry := append(le.AppendUint32(nil, 10), sum[:]...)
	entry = append(le.AppendUint32(entry, 6), "ima-ng"...)
	entry = append(le.AppendUint32(entry, uint32(len(data))), data...)
	appendFile(d.t, d.binary, entry)
	appendFile(d.t, d.ascii, fmt.Appendf(nil, "10 %x ima-ng sha256:%x %s\n", sum, digest, path))
	dev, err := tpm.Open(d.tpm.Address)
	if err != nil {
		d.t.Fatal(err)
	}
	defer dev.Close()
	tpmtest.Extend(d.t, dev, 10, func(h crypto.Hash) []byte { s := h.New(); s.Write(data); return s.Sum(nil) })
}

func appendFile(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// agent is a call of our agent on the device.
func (d *device) agent(verb string, flags ...string) *exec.Cmd {
	d.t.Helper()
	path, err := buildAgent()
	if err != nil {
		d.t.Fatal(err)
	}
	return exec.Command(path, append([]string{verb, "--config", os.DevNull, "--user", "", "--ak", "rsassa", "--tpm", d.tpm.Address,
		"--state-dir", filepath.Join(d.dir, "state"), "--ima-list", d.binary, "--firmware-log", filepath.Join(d.dir, "none"),
		"--retry-max", "2s"}, flags...)...)
}

// id is what the agent enrolled as.
func (d *device) id() string {
	d.t.Helper()
	var state struct{ ID string }
	b, err := os.ReadFile(filepath.Join(d.dir, "state", "state.json"))
	if err == nil {
		err = json.Unmarshal(b, &state)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return state.ID
}

// keylime is Keylime's registrar and verifier, running, and what its tenant needs to know.
type keylime struct {
	t                   *testing.T
	bin, dir            string
	registrar, verifier *program
	ports               map[string]int
	loop                *tenantLoop // from the first call of the tenant on
}

// startKeylime starts a registrar and a verifier, with a CA that they make, databases and
// ports of their own. mode is "push" or "pull". The tenant trusts the makers of the devices' TPMs.
func startKeylime(t *testing.T, mode string, devices ...*device) *keylime {
	t.Helper()
	k := &keylime{t: t, bin: filepath.Join(installed(t, "python"), "bin"), dir: t.TempDir(), ports: map[string]int{}}
	store := filepath.Join(k.dir, "tpm_cert_store")
	if err := os.Mkdir(store, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, d := range devices {
		for name, text := range map[string][]byte{"root": d.tpm.RootCA, "issuer": d.tpm.Issuer} {
			if err := os.WriteFile(filepath.Join(store, fmt.Sprintf("%s%d.pem", name, i)), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{"registrar", "registrar_tls", "verifier"} {
		k.ports[name] = freePort(t)
	}
	k.configure(mode)
	k.verifier = k.launch("verifier")
	k.verifier.awaitPort(k.ports["verifier"])
	k.registrar = k.launch("registrar") // uses the CA that the verifier made
	k.registrar.awaitPort(k.ports["registrar_tls"])
	return k
}

func (p *program) awaitPort(port int) {
	p.t.Helper()
	until(p.t, fmt.Sprintf("%s to listen", p.name), func() bool {
		select {
		case <-p.done:
			p.t.Fatalf("%s ended:\n%s", p.name, p.text())
		default:
		}
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (k *keylime) launch(component string) *program {
	return launch(k.t, "keylime_"+component, k.command("keylime_"+component))
}

func (k *keylime) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(k.bin, name), args...)
	cmd.Dir = k.dir
	cmd.Env = append(os.Environ(), "KEYLIME_DIR="+k.dir, "PYTHONUNBUFFERED=1")
	for _, c := range []string{"verifier", "registrar", "tenant", "ca", "logging"} {
		cmd.Env = append(cmd.Env, "KEYLIME_"+strings.ToUpper(c)+"_CONFIG="+k.path(c+".conf"))
	}
	return cmd
}

func (k *keylime) path(name string) string { return filepath.Join(k.dir, name) }

// status is what the verifier has of a device.
type status struct {
	Operational  string `json:"operational_state"`
	Attestation  string `json:"attestation_status"`
	Count        int    `json:"attestation_count"`
	LastEvent    string `json:"last_event_id"`
	HasRuntime   int    `json:"has_runtime_policy"`
	Severity     *int   `json:"severity_level"`
	LastReceived int64  `json:"last_received_quote"`
}

// status asks the verifier, with the certificate of the tenant.
func (k *keylime) status(id string) status {
	k.t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{k.clientPair()}}} // on this machine, in this test
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Get(fmt.Sprintf("https://127.0.0.1:%d/v2.6/agents/%s", k.ports["verifier"], id))
	if err != nil {
		k.t.Fatal(err)
	}
	defer res.Body.Close()
	var a struct {
		Status  string
		Results json.RawMessage
	}
	if err := json.NewDecoder(res.Body).Decode(&a); err != nil {
		k.t.Fatal(err)
	}
	var raw struct {
		status
		Operational any `json:"operational_state"`
	}
	if err := json.Unmarshal(a.Results, &raw); err != nil {
		k.t.Fatalf("%s: %s: %v", a.Status, a.Results, err)
	}
	raw.status.Operational = fmt.Sprint(raw.Operational)
	return raw.status
}

// flags are the agent's for this Keylime.
func (k *keylime) flags() []string {
	return []string{"--registrar-url", fmt.Sprintf("https://127.0.0.1:%d", k.ports["registrar_tls"]), "--ca", k.path("cv_ca/cacert.crt")}
}

// policy writes a runtime policy that allows these files and no other, as attest allowlist does.
func (k *keylime) policy(paths ...string) string {
	k.t.Helper()
	list := appraise.Allowlist{Digests: map[string][]string{}}
	for _, p := range append([]string{"boot_aggregate"}, paths...) {
		list.Digests[p] = []string{fmt.Sprintf("%x", digest(p))}
	}
	var text bytes.Buffer
	if err := list.WriteRuntimePolicy(&text, time.Time{}); err != nil {
		k.t.Fatal(err)
	}
	path := k.path("policy.json")
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		k.t.Fatal(err)
	}
	return path
}

func (k *keylime) verifierURL() string {
	return fmt.Sprintf("https://127.0.0.1:%d", k.ports["verifier"])
}
