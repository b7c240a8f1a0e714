package keylimetest

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/server"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm"
)

// place is our registrar and verifier, which can be stopped and started again.
type place struct {
	*ours
	client  tls.Certificate // by which agents know the verifier that polls
	server  *tls.Certificate
	token   string
	options server.Options
	conf    *tls.Config
	end     func()
}

// startPlace starts our server for agents of Keylime.
func startPlace(t *testing.T) *place {
	t.Helper()
	p := &place{ours: &ours{keylime: &keylime{t: t, dir: t.TempDir(), ports: map[string]int{"registrar": 0, "verifier": 0}}}}
	ca, pair := p.issue()
	p.server = pair
	p.conf = server.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair, nil })
	var err error
	if p.client, err = tls.LoadX509KeyPair(p.path("cv_ca/client-cert.crt"), p.path("cv_ca/client-private.pem")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := store.Migrate(t.Context(), p.path("attest.db")); err != nil {
		t.Fatal(err)
	}
	p.options = server.Options{TOFU: true, TenantCA: []*x509.Certificate{ca}, Interval: 2 * time.Second, Grace: 5,
		Limits: server.Limits{RequestsIP: 100_000, RequestsDevice: 100_000}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Pull: server.Pull{Certificate: func() *tls.Certificate { return &p.client }, RevocationKey: p.client.PrivateKey.(*rsa.PrivateKey),
			Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}}
	p.start()
	t.Cleanup(func() { p.end() })
	if p.token, _, err = server.AddToken(t.Context(), p.store, "test", server.Admin, 0, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	return p
}

// start listens at the ports of the last start.
func (p *place) start() {
	p.t.Helper()
	st, err := store.Open(p.t.Context(), p.path("attest.db"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.store, p.options.Store = st, st
	s, err := server.New(p.options)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{}, 3)
	go func() { s.Run(ctx); ended <- struct{}{} }()
	var listeners []*server.Listener
	for name, h := range map[string]http.Handler{"registrar": s.Registrar(), "verifier": s.Verifier()} {
		l := &server.Listener{Address: fmt.Sprintf("127.0.0.1:%d", p.ports[name]), Handler: h, TLS: p.conf}
		if err := l.Open(p.t.Context(), s.Limits, s.Log); err != nil {
			p.t.Fatal(err)
		}
		p.ports[name] = int(netip.MustParseAddrPort(l.Address).Port())
		listeners = append(listeners, l)
		go func() { _ = l.Serve(); ended <- struct{}{} }()
	}
	p.end = func() {
		cancel()
		for _, l := range listeners {
			l.Close(ctx)
		}
		for range 3 {
			<-ended
		}
		_ = st.Close()
	}
}

// api calls the management API.
func (p *place) api(method, path string, body any, want int) []byte {
	p.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(p.t.Context(), method, p.verifierURL()+"/api/v1"+path, bytes.NewReader(text))
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+p.token)
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // on this machine, in this test
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != want {
		p.t.Fatalf("%s %s: %d, want %d: %s %v", method, path, res.StatusCode, want, got, err)
	}
	return got
}

// seen is a device as operators see it.
type seen struct {
	ID      string
	State   string
	Model   string
	Poll    server.PollView
	Verdict struct {
		Status       string
		Attestations int
		Detail       struct{ Reasons []struct{ Code, Path string } }
	}
}

func (p *place) device(id string) (d seen) {
	p.t.Helper()
	if err := json.Unmarshal(p.api("GET", "/devices/"+id, nil, http.StatusOK), &d); err != nil {
		p.t.Fatal(err)
	}
	return d
}

// awaitVerdict waits until a device has a verdict.
func (p *place) awaitVerdict(id, status string) seen {
	p.t.Helper()
	var d seen
	deadline := time.Now().Add(patience)
	for d = p.device(id); d.Verdict.Status != status; d = p.device(id) {
		if time.Now().After(deadline) {
			p.t.Fatalf("waited for the verdict %s: %+v", status, d)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return d
}

// awaitMore waits until a device has attested again.
func (p *place) awaitMore(id string) {
	p.t.Helper()
	before := p.device(id).Verdict.Attestations
	until(p.t, "another attestation", func() bool { return p.device(id).Verdict.Attestations > before })
}

// allow lets all devices with the policy "image" run these files.
func (p *place) allow(paths ...string) {
	p.t.Helper()
	body, err := os.ReadFile(p.runtime("allowed.json", paths...))
	if err != nil {
		p.t.Fatal(err)
	}
	p.api("POST", "/policies/image?activate=true", json.RawMessage(body), http.StatusCreated)
}

// rust is an agent of rust-keylime on a device.
type rust struct {
	*device
	home      string
	env       []string
	registrar string // HOST:PORT
	verifier  string
	record    *transcript // nil: none is kept
}

// newRust makes the settings of an agent that trusts p. If transcripts are to be written, what
// both say goes to testdata.
func newRust(t *testing.T, p *place, d *device, record string) *rust {
	t.Helper()
	a := &rust{device: d, home: filepath.Join(d.dir, "keylime"), registrar: fmt.Sprintf("127.0.0.1:%d", p.ports["registrar"]), verifier: fmt.Sprintf("127.0.0.1:%d", p.ports["verifier"])}
	if recording() && record != "" {
		a.record = &transcript{Keylime: "rust-keylime", ID: d.ekHash("rsa2048")}
		a.registrar = a.record.pass(t, *p.server, tls.Certificate{}, a.registrar)
		a.verifier = a.record.pass(t, *p.server, tls.Certificate{}, a.verifier)
		t.Cleanup(func() { a.record.write(t, record, 2) })
	}
	if err := os.Mkdir(a.home, 0o755); err != nil {
		t.Fatal(err)
	}
	// The pull agent mounts a tmpfs there, and leaves it mounted.
	t.Cleanup(func() { _ = syscall.Unmount(filepath.Join(a.home, "secure"), syscall.MNT_DETACH) })
	ca := p.path("cv_ca/cacert.crt")
	host, port, _ := net.SplitHostPort(d.listen)
	_, registrar, _ := net.SplitHostPort(a.registrar)
	settings := map[string]string{"uuid": "hash_ek", "ip": host, "contact_ip": host, "registrar_ip": "127.0.0.1", "keylime_dir": a.home,
		"registrar_tls_ca_cert": ca, "trusted_client_ca": ca, "verifier_url": "https://" + a.verifier, "verifier_tls_ca_cert": ca, "revocation_cert": p.path("cv_ca/client-cert.crt"),
		"run_as": "", "ima_ml_path": d.ascii, "measuredboot_ml_path": filepath.Join(d.dir, "none"), "payload_script": "autorun.sh"}
	text := "[agent]\n"
	for name, value := range settings {
		text += fmt.Sprintf("%s = %q\n", name, value)
	}
	text += fmt.Sprintf("port = %s\ncontact_port = %s\nregistrar_port = %s\nregistrar_tls_enabled = true\nenable_agent_mtls = true\n"+
		"attestation_interval_seconds = 2\nexponential_backoff_initial_delay = 500\nexponential_backoff_max_retries = 100\nexponential_backoff_max_delay = 1000\n",
		port, port, registrar)
	config := filepath.Join(d.dir, "agent.conf")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a.env = append(os.Environ(), "KEYLIME_AGENT_CONFIG="+config, "RUST_LOG=info,keylime=debug,keylime_agent=debug,keylime_push_model_agent=debug", fmt.Sprintf("TCTI=swtpm:host=127.0.0.1,port=%d", d.serveTCTI()))
	return a
}

// launch starts one of the agents.
func (a *rust) launch(name string, env ...string) *program {
	a.t.Helper()
	cmd := exec.Command(filepath.Join(installed(a.t, "rust"), name))
	cmd.Env, cmd.Dir = append(a.env, env...), a.home
	return launch(a.t, name, cmd)
}

// contact is where the running pull agent is to be polled.
func (a *rust) contact(p *place) string {
	a.t.Helper()
	if a.record == nil {
		return a.listen
	}
	own, err := tls.LoadX509KeyPair(filepath.Join(a.home, "server-cert.crt"), filepath.Join(a.home, "server-private.pem"))
	if err != nil {
		a.t.Fatal(err)
	}
	return a.record.pass(a.t, own, p.client, a.listen)
}

// launchPull starts the pull agent. To a registrar it speaks HTTP without TLS only, whatever
// registrar_tls_enabled says (0.2.9), and ours takes none: a forwarder stands between them,
// as stunnel would on a device.
func (a *rust) launchPull(p *place) *program {
	a.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { l.Close() })
	go accept(l, func(conn net.Conn) {
		to, err := tls.Dial("tcp", a.registrar, &tls.Config{RootCAs: p.pool(), ServerName: "127.0.0.1"})
		if err != nil {
			return
		}
		defer to.Close()
		go func() { _, _ = io.Copy(to, conn); _ = to.CloseWrite() }()
		_, _ = io.Copy(conn, to)
	})
	return a.launch("keylime_agent", fmt.Sprintf("KEYLIME_AGENT_REGISTRAR_PORT=%d", l.Addr().(*net.TCPAddr).Port))
}

// serveTCTI serves the device's TPM as the TSS wants it of swtpm: commands at a port, and at
// the next one control messages, of which the TSS sends the locality.
func (d *device) serveTCTI() int {
	d.t.Helper()
	for range 100 {
		data, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			d.t.Fatal(err)
		}
		port := data.Addr().(*net.TCPAddr).Port
		control, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		if err != nil {
			data.Close()
			continue
		}
		d.t.Cleanup(func() { data.Close(); control.Close() })
		go accept(data, d.relay)
		go accept(control, func(conn net.Conn) {
			var command struct {
				Code     uint32
				Locality uint8
			}
			if binary.Read(conn, binary.BigEndian, &command) == nil {
				_, _ = conn.Write(make([]byte, 4)) // success
			}
		})
		return port
	}
	d.t.Fatal("no two ports that follow each other are free")
	return 0
}

func accept(l net.Listener, serve func(net.Conn)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			serve(conn)
		}()
	}
}

func (d *device) relay(conn net.Conn) {
	tpm, err := net.Dial("unix", strings.TrimPrefix(d.tpm.Address, "unix:"))
	if err != nil {
		return
	}
	defer tpm.Close()
	go func() { _, _ = io.Copy(tpm, conn); tpm.Close() }()
	_, _ = io.Copy(conn, tpm)
}

// pool is the CA of the place.
func (p *place) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.options.TenantCA[0])
	return pool
}

// ekHash is what an agent calls itself with uuid = "hash_ek": the hash of the EK of a template.
func (d *device) ekHash(template string) string {
	d.t.Helper()
	dev, err := tpm.Open(d.tpm.Address)
	if err != nil {
		d.t.Fatal(err)
	}
	defer dev.Close()
	made, err := dev.EK(template)
	if err != nil {
		d.t.Fatal(err)
	}
	defer made.Close()
	ek, err := evidence.ParseEK(made.Public)
	if err != nil {
		d.t.Fatal(err)
	}
	id, err := ek.ID()
	if err != nil {
		d.t.Fatal(err)
	}
	return id
}
