package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// polledMachine is a machine that waits to be polled, with the wire of Keylime's agent. lie
// may change what it answers.
type polledMachine struct {
	*machine
	mu     sync.Mutex
	key    *rsa.PrivateKey
	pem    string
	asked  []string // method and path of each request
	share  []byte   // that it was given
	told   *evidence.SignedRevocation
	lie    func(*evidence.QuoteAnswer)
	full   bool             // it takes no share
	handle http.HandlerFunc // instead of all
}

func withPull(t *testing.T) func(*Options) {
	cert := newPKI(t).issue(t, pkix.Name{CommonName: "poller"}, time.Hour)
	return func(o *Options) {
		o.Pull = Pull{Certificate: func() *tls.Certificate { return &cert }, Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	}
}

// polled enrols a machine and has it polled.
func (w *world) polled(e *tpmtest.Emulator) *polledMachine {
	w.t.Helper()
	p := &polledMachine{machine: w.machine(e)}
	p.newKey()
	cert := w.pki.issue(w.t, pkix.Name{CommonName: p.id}, time.Hour)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert})
	if err != nil {
		w.t.Fatal(err)
	}
	agent := &http.Server{Handler: p}
	go agent.Serve(l)
	w.t.Cleanup(func() { agent.Close() })
	at := l.Addr().(*net.TCPAddr)
	text, ip := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})), "127.0.0.1"
	p.enrol(func(r *evidence.Registration) { r.TLSCert, r.IP, r.Port = &text, &ip, &at.Port })
	w.policy("image", "/sbin/init", "/bin/sh")
	w.api("PATCH", "/devices/"+p.id, map[string]any{"model": "pull", "policies": []string{"image"}}, http.StatusOK)
	return p
}

func (p *polledMachine) newKey() {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err == nil {
		p.key = key
		p.pem, err = evidence.FormatShareKey(&key.PublicKey)
	}
	if err != nil {
		p.w.t.Fatal(err)
	}
}

func (p *polledMachine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, r.Method+" "+r.URL.Path)
	if p.handle != nil {
		p.handle(w, r)
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /version":
		_ = json.NewEncoder(w).Encode(map[string]any{"code": 200, "status": "Success", "results": evidence.AgentVersions{Current: "2.2"}})
	case "GET /v2.2/quotes/integrity":
		_ = json.NewEncoder(w).Encode(map[string]any{"code": 200, "status": "Success", "results": p.answer(r.URL.RawQuery)})
	case "POST /v2.2/keys/vkey":
		m, err := evidence.DecodeBody[evidence.VShare](r.Body)
		if err == nil {
			p.share, err = evidence.OpenShare(p.key, m.Share)
		}
		if err != nil || p.full {
			http.Error(w, fmt.Sprint(err), http.StatusBadRequest)
		}
	case "POST /v2.2/notifications/revocation":
		var err error
		if p.told, err = evidence.DecodeBody[evidence.SignedRevocation](r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	default:
		http.NotFound(w, r)
	}
}

// answer does what an agent does for GET quotes/integrity.
func (p *polledMachine) answer(query string) evidence.QuoteAnswer {
	q, err := evidence.ParseQuoteRequest(query)
	if err != nil {
		panic(err)
	}
	if err := p.dev.SetPCR(evidence.KeyPCR, tpm2.TPMAlgSHA256, evidence.KeyDigest(crypto.SHA256, p.pem)); err != nil {
		panic(err)
	}
	d := p.quote(evidence.Parameters{Challenge: []byte(q.Nonce), Selected: map[string][]int{"sha256": q.WithKeyPCR()}})
	from := q.Offset
	if from > len(p.ends) {
		from = 0 // it has booted since
	}
	list := p.text(from)
	a := evidence.QuoteAnswer{Quote: evidence.NewQuote(d.Message, d.Signature, d.PCRs), Hash: "sha256", KeyAlg: "ecc", Scheme: "ecdsa",
		Key: p.pem, List: &list, Offset: &from}
	if p.lie != nil {
		p.lie(&a)
	}
	return a
}

// text is the measurement list as ascii_runtime_measurements has it.
func (p *polledMachine) text(from int) string {
	var b strings.Builder
	for i := from; i < len(p.ends); i++ {
		start := 0
		if i > 0 {
			start = p.ends[i-1]
		}
		const header, name, size, kind = 24, 4 + 6, 4, 4 + 8 // of entry: PCR and digest, template, its size, "sha256:" and a zero
		line := p.list[start:p.ends[i]]
		data := line[header+name+size:]
		fmt.Fprintf(&b, "10 %x ima-ng sha256:%x %s\n", line[4:24], data[kind:kind+32], data[kind+32+4:len(data)-1])
	}
	return b.String()
}

// poll has the device's turn come, and polls it.
func (p *polledMachine) poll() store.Pull {
	p.w.t.Helper()
	ctx := p.w.t.Context()
	if now, err := p.w.store.Pull(ctx, p.id); err != nil {
		p.w.t.Fatal(err)
	} else if wait := now.Next.Sub(p.w.clock.Now()); wait > 0 {
		p.w.clock.pass(wait)
	}
	claims, err := p.w.store.ClaimPulls(ctx, 1, pollLease, p.w.clock.Now())
	if err != nil || len(claims) != 1 {
		p.w.t.Fatalf("claims %+v, %v", claims, err)
	}
	p.w.s.poll(ctx, claims[0])
	after, err := p.w.store.Pull(ctx, p.id)
	if err != nil {
		p.w.t.Fatal(err)
	}
	return after
}

// good polls and expects a verdict.
func (p *polledMachine) good(status store.Status, codes string) {
	p.w.t.Helper()
	if after := p.poll(); after.Error != "" {
		p.w.t.Fatalf("poll: %s", after.Error)
	}
	p.w.expect(p.id, status, codes)
}

func (p *polledMachine) count(request string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.asked {
		if a == request {
			n++
		}
	}
	return n
}

// A device that is polled gets the verdicts of one that calls, and the share of a payload's
// key only after a good one.
func TestPulled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPull(t))
	e := tpmtest.Start(t)
	p := w.polled(e)
	share := bytes.Repeat([]byte{7}, evidence.ShareSize)
	p.runFile("/sbin/init")
	p.runFile("/tmp/evil")
	if err := w.store.SetPull(t.Context(), p.id, store.PullSettings{Share: share}, "tenant", w.clock.Now()); err != nil {
		t.Fatal(err)
	}
	p.good(store.Untrusted, "unknown_file")
	if p.share != nil {
		t.Fatal("a device that is not trusted got the share")
	}
	w.checkEvidence(p.id)
	// It boots into the release: the entry that was asked for is beyond its list.
	p.reboot(e)
	p.runFile("/sbin/init")
	p.good(store.Trusted, "")
	if !bytes.Equal(p.share, share) {
		t.Errorf("share %x", p.share)
	}
	p.share = nil
	p.runFile("/bin/sh")
	p.good(store.Trusted, "")
	if p.share != nil {
		t.Error("the share was handed over twice")
	}
	// A boot with more entries than were known: only the TPM's counter tells.
	p.reboot(e)
	for range 5 {
		p.runFile("/sbin/init")
	}
	p.good(store.Trusted, "")
	if n := p.count("GET /version"); n != 1 {
		t.Errorf("the version was negotiated %d times", n)
	}
	// Gone, it is overdue, and nothing but an attestation makes that good.
	p.handle = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	for i := range int64(20) {
		if after := p.poll(); after.Failures != i+1 || after.Error == "" {
			t.Fatalf("failure %d: %+v", i+1, after)
		}
	}
	w.expect(p.id, store.Overdue, "")
	p.handle = nil
	p.good(store.Trusted, "")
	if v := w.api("GET", "/devices/"+p.id, nil, http.StatusOK); v["model"] != "pull" {
		t.Errorf("model %v", v["model"])
	}
	w.api("PATCH", "/devices/"+p.id, map[string]any{"model": "push"}, http.StatusOK)
	if _, err := w.store.Pull(t.Context(), p.id); err == nil {
		t.Error("it is still polled")
	}
}

// checkEvidence verifies what was kept of the last verdict, as somebody does who has nothing
// else.
func (w *world) checkEvidence(id string) {
	w.t.Helper()
	event := w.api("GET", "/devices/"+id+"/verdict", nil, http.StatusOK)["event"].(map[string]any)
	a := w.send("GET", fmt.Sprintf("%s/api/v1/evidence/%v", w.verifier, event["evidence"]), w.admin, nil)
	b, err := evidence.DecodeBody[evidence.Bundle](bytes.NewReader(a.body))
	if err != nil {
		w.t.Fatalf("%v: %.200s", err, a.body)
	}
	if claims, _, err := b.Verify(); err != nil || claims.Covered() < 3 {
		w.t.Errorf("evidence: %v", err)
	}
}

// reboot resets the TPM and begins a new list.
func (p *polledMachine) reboot(e *tpmtest.Emulator) {
	p.w.t.Helper()
	blob := p.ak.Blob()
	e.Reboot()
	p.dev = e.Open()
	var err error
	if p.ak, err = p.dev.LoadAK(blob); err != nil {
		p.w.t.Fatal(err)
	}
	p.list, p.ends = nil, nil
	p.measureAggregate()
}

// What an agent, or somebody in its place, may try: none of it is trusted, and none of it
// gets the share of a payload's key.
func TestPulledLies(t *testing.T) {
	t.Parallel()
	e := tpmtest.Start(t)
	for _, c := range []struct {
		name   string
		do     func(p *polledMachine)
		failed string // of the poll; "": it is judged
		codes  string // of the verdict
	}{
		{"another transport key", func(p *polledMachine) {
			own := p.pem
			p.lie = func(a *evidence.QuoteAnswer) { p.newKey(); a.Key, p.pem = p.pem, own }
		}, "", "key"},
		{"no transport key", func(p *polledMachine) { p.lie = func(a *evidence.QuoteAnswer) { a.Key = "" } }, "", "key"},
		{"a replay", func(p *polledMachine) {
			var old *evidence.QuoteAnswer
			p.lie = func(a *evidence.QuoteAnswer) {
				if old == nil {
					old = new(*a)
				}
				*a = *old
			}
			p.good(store.Trusted, "")
		}, "", "nonce"},
		{"a list from where nobody asked", func(p *polledMachine) {
			p.lie = func(a *evidence.QuoteAnswer) { *a.Offset = 1 }
		}, "begins at entry 1, not at 0", ""},
		{"a list that was cut", func(p *polledMachine) {
			p.lie = func(a *evidence.QuoteAnswer) { *a.List = p.text(0)[:strings.Index(p.text(0), "\n")+1] }
		}, "", "ima_pcr_mismatch"},
		{"no list", func(p *polledMachine) { p.lie = func(a *evidence.QuoteAnswer) { a.List = nil } }, "", "nothing_measured required_missing"},
		{"no base64", func(p *polledMachine) { p.lie = func(a *evidence.QuoteAnswer) { a.Quote = "r:!:" } }, "read quote", ""},
		{"redirection", func(p *polledMachine) {
			p.handle = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "https://127.0.0.1:1/", http.StatusFound)
			}
		}, "the agent answered 302", ""},
		{"a refusal that talks", func(p *polledMachine) {
			p.handle = func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusBadRequest)
				fmt.Fprintf(w, `{"code": 400, "status": "no\nway\u001b[31m%s"}`, strings.Repeat("x", 2000))
			}
		}, "the agent answered 400: no?way?[31mxxx", ""},
		{"too much", func(p *polledMachine) {
			p.handle = func(w http.ResponseWriter, r *http.Request) {
				line := bytes.Repeat([]byte(" "), 1<<20)
				for range evidence.MaxSize>>20 + 1 {
					_, _ = w.Write(line)
				}
			}
		}, "it has more than", ""},
		{"a member twice", func(p *polledMachine) {
			p.handle = func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, `{"code":200,"status":"Success","results":{"supported_version":"2.2","Supported_Version":"2.1"}}`)
			}
		}, "is there twice", ""},
		{"no version in common", func(p *polledMachine) {
			p.handle = func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, `{"code":200,"status":"Success","results":{"supported_version":"1.0"}}`)
			}
		}, `speaks version "1.0"`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			e.Reboot()
			w := newWorld(t, withPull(t))
			p := w.polled(e)
			p.runFile("/sbin/init")
			c.do(p)
			before := w.api("GET", "/devices/"+p.id, nil, http.StatusOK)["verdict"].(map[string]any)["status"]
			if err := w.store.SetPull(t.Context(), p.id, store.PullSettings{Share: bytes.Repeat([]byte{7}, evidence.ShareSize)}, "tenant", w.clock.Now()); err != nil {
				t.Fatal(err)
			}
			after := p.poll()
			d, err := w.store.Device(t.Context(), p.id, w.clock.Now())
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(after.Error, c.failed) || (c.failed == "") != (after.Error == "") {
				t.Errorf("poll failed with %q, want %q", after.Error, c.failed)
			}
			if c.failed != "" && string(d.Verdict.Status) != before || c.failed == "" && (d.Verdict.Status == store.Trusted || d.Verdict.Codes != c.codes) {
				t.Errorf("verdict %s (%s), was %v", d.Verdict.Status, d.Verdict.Codes, before)
			}
			if p.share != nil || p.count("POST /v2.2/keys/vkey") > 0 || !after.Waiting {
				t.Error("the share left the verifier")
			}
		})
	}
}

// Who answers in the agent's place, with another certificate, hears nothing.
func TestPulledByAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPull(t))
	e := tpmtest.Start(t)
	p := w.polled(e)
	own := p.asked
	cert := w.pki.issue(t, pkix.Name{CommonName: p.id}, time.Hour)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	agent := &http.Server{Handler: p}
	go agent.Serve(l)
	t.Cleanup(func() { agent.Close() })
	w.api("PATCH", "/devices/"+p.id, map[string]any{"model": "pull", "contact": l.Addr().String()}, http.StatusOK)
	if after := p.poll(); !strings.Contains(after.Error, errOtherAgent.Error()) || !slices.Equal(p.asked, own) {
		t.Errorf("%+v, asked %v", after, p.asked)
	}
	w.expect(p.id, store.Unverified, "")
}

// Where nobody has an agent is not looked for one, whoever names it.
func TestPullContact(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPull(t))
	s := w.s
	s.Pull.Networks = nil
	for _, bad := range []string{"127.0.0.1:9002", "[::1]:9002", "169.254.169.254:80", "[fe80::1]:9002", "0.0.0.0:9002", "[::]:9002", "224.0.0.1:9002",
		"255.255.255.255:9002", "[::ffff:127.0.0.1]:9002", "[::ffff:169.254.169.254]:80", "localhost:9002", "10.0.0.1", "10.0.0.1:0", "[fd00::1%eth0]:9002", "10.0.0.1:9002/x"} {
		if _, err := s.mayContact(bad); err == nil {
			t.Errorf("%s may be contacted", bad)
		}
	}
	for _, good := range []string{"10.0.0.1:9002", "192.0.2.1:9002", "[fd00::1]:9002", "[::ffff:10.0.0.1]:9002"} {
		if _, err := s.mayContact(good); err != nil {
			t.Error(err)
		}
	}
	s.Pull.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	if _, err := s.mayContact("192.0.2.1:9002"); err == nil {
		t.Error("an address outside of the networks may be contacted")
	}
	w.api("POST", "/devices", map[string]any{"ek_hash": strings.Repeat("a", 64), "model": "pull", "contact": "169.254.169.254:80"}, http.StatusBadRequest)
	w.api("POST", "/devices", map[string]any{"ek_hash": strings.Repeat("a", 64), "contact": "10.0.0.1:9002"}, http.StatusBadRequest)
	w.api("POST", "/devices", map[string]any{"ek_hash": strings.Repeat("a", 64), "model": "both"}, http.StatusBadRequest)
	s.Pull.Certificate = nil
	w.api("POST", "/devices", map[string]any{"ek_hash": strings.Repeat("a", 64), "model": "pull"}, http.StatusConflict)
	if _, err := w.store.Device(t.Context(), strings.Repeat("a", 64), w.clock.Now()); err == nil {
		t.Error("a refused request left a device")
	}
	if _, err := s.contactOf(store.PullClaim{}); err == nil {
		t.Error("a verifier without a certificate polls")
	}
}

// A zone may be any text, and means nothing to another machine.
func TestZone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.machine(tpmtest.Start(t))
	for _, ip := range []string{"fe80::1%\x00", "fe80::1%eth0\n\x1b[31m"} {
		m.enrol(func(r *evidence.Registration) { r.IP = &ip })
		if d, err := w.store.Device(t.Context(), m.id, w.clock.Now()); err != nil || d.IP != "" {
			t.Errorf("registered with %q: %q, %v", ip, d.IP, err)
		}
	}
}

// Of several verifiers one polls a device; when it dies another goes on.
func TestPullReplicas(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPull(t), func(o *Options) { o.Interval, o.Now = time.Hour, time.Now })
	p := w.polled(tpmtest.Start(t))
	p.runFile("/sbin/init")
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for range 3 {
		s, err := New(w.s.Options)
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() { s.Run(ctx) })
	}
	deadline := time.Now().Add(time.Minute)
	for {
		if got, err := w.store.Pull(t.Context(), p.id); err == nil && got.Next.After(time.Now().Add(30*time.Minute)) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody polled for a minute")
		}
		time.Sleep(50 * time.Millisecond)
	}
	cancel()
	running.Wait()
	if n := p.count("GET /v2.2/quotes/integrity"); n != 1 {
		t.Errorf("%d quotes", n)
	}
	w.expect(p.id, store.Trusted, "")
}

// A verifier that is killed while it polls leaves the device to another before it is overdue.
func TestPullKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPull(t))
	p := w.polled(tpmtest.Start(t))
	p.runFile("/sbin/init")
	p.good(store.Trusted, "")
	turn, err := w.store.Pull(t.Context(), p.id)
	if err != nil {
		t.Fatal(err)
	}
	w.clock.pass(turn.Next.Sub(w.clock.Now()))
	if claims, err := w.store.ClaimPulls(t.Context(), 1, pollLease, w.clock.Now()); err != nil || len(claims) != 1 {
		t.Fatalf("%+v, %v", claims, err)
	}
	w.clock.pass(pollLease)
	w.expect(p.id, store.Trusted, "")
	p.good(store.Trusted, "")
}
