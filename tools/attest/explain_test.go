package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/evidence/evidencetest"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/server"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// explainWorld is a verifier whose evidence is explained without it.
type explainWorld struct {
	*testing.T
	dir      string
	store    *store.Store
	verifier *evidencetest.Verifier
	token    string
	files    map[string]string // policies, by name and version
	ahead    time.Duration     // of the verifier's clock
	fleet    []string          // flags of attest fleet
}

func newExplainWorld(t *testing.T) *explainWorld {
	w := &explainWorld{T: t, dir: t.TempDir(), files: map[string]string{}}
	database := filepath.Join(w.dir, "attest.db")
	if _, _, err := store.Migrate(t.Context(), database); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.store, err = store.Open(t.Context(), database); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.store.Close() })
	s, err := server.New(server.Options{Store: w.store, Log: slog.New(slog.DiscardHandler), TOFU: true, AnyID: true, Now: func() time.Time { return time.Now().Add(w.ahead) },
		Limits: server.Limits{RequestsIP: 1_000_000, RequestsDevice: 1_000_000}})
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewTLSServer(s.Verifier())
	t.Cleanup(ts.Close)
	w.verifier = &evidencetest.Verifier{URL: ts.URL, Client: ts.Client()}
	ca, token := filepath.Join(w.dir, "ca.pem"), filepath.Join(w.dir, "token")
	if w.token, _, err = server.AddToken(t.Context(), w.store, "root", server.Admin, 0, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ts.Certificate().Raw})
	if err := errors.Join(os.WriteFile(ca, certificate, 0o600), os.WriteFile(token, []byte(w.token+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	w.fleet = []string{"--server", ts.URL, "--server-ca", ca, "--token-file", token}
	return w
}

// get asks the management API.
func (w *explainWorld) get(path string, to any) {
	w.Helper()
	text, _, err := w.verifier.Send("GET", "/api/v1"+path, w.token, nil, http.StatusOK)
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	if err != nil {
		w.Fatalf("%s: %v", path, err)
	}
}

func (w *explainWorld) do(method, path string, body any, want int) {
	w.Helper()
	if _, _, err := w.verifier.Send(method, "/api/v1"+path, w.token, body, want); err != nil {
		w.Fatalf("%s %s: %v", method, path, err)
	}
}

func contentOf(path string) []byte {
	sum := sha256.Sum256([]byte(path))
	return sum[:]
}

// policy activates a new version of a policy that allows these files, and keeps its text in
// a file whose name says nothing.
func (w *explainWorld) policy(name, rules string, paths ...string) {
	w.Helper()
	digests := map[string][]string{}
	for _, p := range paths {
		digests[p] = []string{fmt.Sprintf("%x", contentOf(p))}
	}
	n := len(w.files)
	doc := map[string]any{"schema": "attest.policy/v1", "rules": rules, "release": fmt.Sprintf("r%d", n), "runtime_policy": map[string]any{
		"meta": map[string]any{"version": 1, "generator": 3}, "release": 0, "digests": digests, "excludes": []string{}, "keyrings": map[string]any{},
		"ima": map[string]any{"ignored_keyrings": []string{}, "log_hash_alg": "sha1", "dm_policy": nil}, "ima-buf": map[string]any{}, "verification-keys": ""}}
	text, _, err := w.verifier.Send("POST", "/api/v1/policies/"+name+"?activate=true", w.token, doc, http.StatusCreated)
	if err != nil {
		w.Fatal(err)
	}
	var put struct{ Version int64 }
	if err := json.Unmarshal(text, &put); err != nil {
		w.Fatal(err)
	}
	if text, err = json.Marshal(doc); err != nil {
		w.Fatal(err)
	}
	file := filepath.Join(w.dir, fmt.Sprintf("%d.json", n))
	if err := os.WriteFile(file, text, 0o600); err != nil {
		w.Fatal(err)
	}
	w.files[fmt.Sprintf("%s@%d", name, put.Version)] = file
}

func (w *explainWorld) enrol(name string) *evidencetest.Device {
	w.Helper()
	d := evidencetest.New(w, name)
	area, spki := d.AK()
	answer, now := sha256.Sum256([]byte(name)), time.Now()
	identity := store.Identity{EK: store.Key{SPKI: []byte("EK of " + name)}, AK: store.Key{SPKI: spki, Public: area}}
	if err := w.store.Register(w.Context(), store.Attempt{Device: name, Identity: identity, Answer: answer, Expires: now.Add(time.Minute)}, now); err != nil {
		w.Fatal(err)
	}
	if _, err := w.store.Activate(w.Context(), store.Activation{Device: name, Answer: answer, Attest: true, Due: now.Add(time.Hour)}, now); err != nil {
		w.Fatal(err)
	}
	if err := d.Session(w.verifier); err != nil {
		w.Fatal(err)
	}
	return d
}

// kept is the stored verdict of a device, and the event that it came with.
type kept struct {
	Verdict struct {
		Status string          `json:"status"`
		Detail json.RawMessage `json:"detail"`
	} `json:"verdict"`
	Policies []string `json:"policies"`
	Event    *struct {
		Seq      int64  `json:"seq"`
		Evidence string `json:"evidence"`
	} `json:"event"`
}

// bundle downloads evidence into a file.
func (w *explainWorld) bundle(digest string) (file string, b *evidence.Bundle) {
	w.Helper()
	text, _, err := w.verifier.Send("GET", "/api/v1/evidence/"+digest, w.token, nil, http.StatusOK)
	if err != nil {
		w.Fatal(err)
	}
	if b, err = evidence.DecodeBody[evidence.Bundle](bytes.NewReader(text)); err != nil {
		w.Fatal(err)
	}
	file = filepath.Join(w.dir, "evidence.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		w.Fatal(err)
	}
	return file, b
}

// explain runs attest explain.
func (w *explainWorld) explain(file string, args ...string) (code int, e evidenceExplanation) {
	w.Helper()
	var stdout, stderr bytes.Buffer
	code = run(append([]string{"explain", file, "--json"}, args...), &stdout, &stderr)
	if err := json.Unmarshal(stdout.Bytes(), &e); err != nil {
		w.Fatalf("%v: %s%s", err, &stdout, &stderr)
	}
	return code, e
}

// same compares the verdict on the evidence of k with what explain makes of it.
func (w *explainWorld) same(k kept) (part bool) {
	w.Helper()
	file, b := w.bundle(k.Event.Evidence)
	var args []string
	for _, i := range rand.Perm(len(b.Policies)) {
		args = append(args, "--policy", w.files[b.Policies[i].Name])
	}
	code, e := w.explain(file, args...)
	got, err := json.Marshal(e.Verdict)
	if err != nil {
		w.Fatal(err)
	}
	if !bytes.Equal(got, k.Verdict.Detail) {
		w.Fatalf("event %d: the verifier stored\n%s\nand explain says\n%s", k.Event.Seq, k.Verdict.Detail, got)
	}
	want := exitNotAcceptable
	switch k.Verdict.Status {
	case "trusted":
		want = exitGood
	case "broken":
		want = exitNotAuthentic
	}
	if code != want {
		w.Fatalf("event %d is %s, and the exit code %d", k.Event.Seq, k.Verdict.Status, code)
	}
	return e.First > 0
}

// TestExplainIsTheVerdict: whatever a device did, offline every kept bundle comes to just
// the verdict that the verifier stored with it.
func TestExplainIsTheVerdict(t *testing.T) {
	w := newExplainWorld(t)
	good := []string{"/sbin/init", "/bin/sh", "/bin/ls", "/bin/cat"}
	w.policy("tools", `exclude = [{path = "/var/**"}]`, "/sbin/init", "/bin/ls", "/bin/new")
	w.policy("image", `required = ["/sbin/init"]`, good...)
	w.policy("image", `required = ["/sbin/init"]`, good...) // with another release's name
	d := w.enrol("gateway-17")
	rng := rand.New(rand.NewPCG(7, 11))
	type tally struct{ parts, wholes int }
	tallies, seen := map[string]tally{}, int64(0)
	for step := range 400 {
		d.Offset = nil
		tampered := false
		switch n := rng.IntN(20); {
		case n == 0:
			d.Reboot()
		case n == 1:
			d.Run("/bin/evil", contentOf("evil"))
		case n == 2:
			d.Run("/bin/new", contentOf("/bin/new"))
		case n == 3:
			w.do("PATCH", "/devices/gateway-17", map[string]any{"policies": [][]string{{}, {"image"}, {"tools", "image"}, {"image", "tools"}}[rng.IntN(4)]}, http.StatusOK)
		case n == 4:
			tampered = true
		case n == 5:
			d.Reboot()
			w.do("PATCH", "/devices/gateway-17", map[string]any{"policies": []string{"image"}}, http.StatusOK)
			// Unverified until init runs, then trusted by the evidence of a part.
		default:
			path := good[rng.IntN(len(good))]
			d.Run(path, contentOf(path))
		}
		location, asked, err := d.Negotiate(w.verifier)
		if err != nil {
			t.Fatal(err)
		}
		c := d.Collect(asked)
		if tampered {
			c.Collected[0].Data.Signature[20] ^= 1
		}
		if _, err := d.Submit(w.verifier, location, c); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		var k kept
		w.get("/devices/gateway-17/verdict", &k)
		if k.Event == nil || k.Event.Seq == seen || k.Event.Evidence == "" {
			continue
		}
		seen = k.Event.Seq
		n := tallies[k.Verdict.Status]
		if w.same(k) {
			n.parts++
		} else {
			n.wholes++
		}
		tallies[k.Verdict.Status] = n
	}
	t.Logf("%+v", tallies)
	for _, status := range []string{"trusted", "untrusted", "unverified"} {
		if n := tallies[status]; n.parts == 0 || n.wholes == 0 {
			t.Errorf("%s: %d parts and %d wholes were explained", status, n.parts, n.wholes)
		}
	}
	if tallies["broken"].wholes == 0 {
		t.Error("nothing that is not authentic was explained")
	}
}

// TestExplainOthers: with other releases than the verifier's, and of evidence of the schema
// that said nothing about what came before, a part of a list is never trusted.
func TestExplainOthers(t *testing.T) {
	w := newExplainWorld(t)
	w.policy("image", `required = ["/sbin/init"]`, "/sbin/init", "/bin/sh")
	w.policy("other", "", "/sbin/init", "/bin/sh")
	d := w.enrol("gateway-17")
	w.do("PATCH", "/devices/gateway-17", map[string]any{"policies": []string{"image"}}, http.StatusOK)
	var k kept
	for _, path := range []string{"/bin/sh", "/sbin/init"} {
		d.Run(path, contentOf(path))
		if _, err := d.Attest(w.verifier); err != nil {
			t.Fatal(err)
		}
		w.get("/devices/gateway-17/verdict", &k)
	}
	if k.Verdict.Status != "trusted" || !w.same(k) {
		t.Fatalf("%+v: the last evidence is to be of a part, and trusted", k)
	}
	file, b := w.bundle(k.Event.Evidence)
	needs := func(args ...string) {
		t.Helper()
		code, e := w.explain(file, args...)
		if code != exitNotAcceptable || e.Verdict.Status != appraise.Unverified || len(e.Verdict.Reasons) != 1 || e.Verdict.Reasons[0].Code != appraise.CodeNeedWhole {
			t.Errorf("%v: exit code %d, %+v", args, code, e.Verdict)
		}
	}
	needs("--policy", w.files["other@1"])
	needs("--policy", w.files["image@1"], "--policy", w.files["other@1"])
	b.Schema, b.Policies, b.Appraised = "attest.evidence/v1", nil, nil
	text, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(w.dir, "old.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	needs("--policy", w.files["image@1"])
}

// TestExplainTerms: what a policy takes of old kernels is not taken for another policy.
func TestExplainTerms(t *testing.T) {
	w := newExplainWorld(t)
	w.policy("old", "weak_digests = true\npadding = \"before-5.8\"", "/sbin/init")
	w.policy("new", "", "/sbin/init")
	d := w.enrol("gateway-17")
	w.do("PATCH", "/devices/gateway-17", map[string]any{"policies": []string{"old"}}, http.StatusOK)
	d.Run("/sbin/init", contentOf("/sbin/init"))
	padded := make([]byte, sha256.Size)
	for r := ima.NewListReader(d.List, ima.Form{Order: binary.LittleEndian, Hash: ima.SHA1}, 0); ; {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(append(append(padded, e.Digest...), make([]byte, sha256.Size-len(e.Digest))...))
		padded = sum[:]
	}
	d.PCRs["sha256"][10] = padded
	if _, err := d.Attest(w.verifier); err != nil {
		t.Fatal(err)
	}
	var k kept
	w.get("/devices/gateway-17/verdict", &k)
	if k.Verdict.Status != "trusted" || w.same(k) {
		t.Fatalf("%+v: the evidence is to be of the whole list, and trusted", k)
	}
	file, _ := w.bundle(k.Event.Evidence)
	code, e := w.explain(file, "--policy", w.files["new@1"])
	if code != exitNotAuthentic || e.Verdict.Status != appraise.Broken || e.Verdict.Reasons[0].Code != appraise.Code(evidence.CodeMismatch) {
		t.Errorf("exit code %d, %+v", code, e.Verdict)
	}
}

// TestFleetExplain: what an operator is told of a device that is not green, and what to do.
func TestFleetExplain(t *testing.T) {
	w := newExplainWorld(t)
	w.policy("image", `required = ["/sbin/init"]`, "/sbin/init")
	w.policy("tools", "", "/bin/ls")
	d := w.enrol("gateway-17")
	explain := func(code int, want ...string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if got := run(append([]string{"fleet", "explain", "gateway-17"}, w.fleet...), &stdout, &stderr); got != code {
			t.Errorf("exit code %d, want %d", got, code)
		}
		for _, line := range want {
			if !strings.Contains(stdout.String()+stderr.String(), line) {
				t.Errorf("no %q in\n%s%s", line, &stdout, &stderr)
			}
		}
	}
	attest := func(c func(*evidence.Collected)) {
		t.Helper()
		location, asked, err := d.Negotiate(w.verifier)
		if err != nil {
			t.Fatal(err)
		}
		collected := d.Collect(asked)
		if c != nil {
			c(&collected)
		}
		if _, err := d.Submit(w.verifier, location, collected); err != nil {
			t.Fatal(err)
		}
	}
	assign := func(policies ...string) {
		t.Helper()
		w.do("PATCH", "/devices/gateway-17", map[string]any{"policies": policies}, http.StatusOK)
	}
	later := func() {
		t.Helper()
		w.ahead += 24 * time.Hour
		if err := d.Session(w.verifier); err != nil {
			t.Fatal(err)
		}
	}
	explain(exitNotAcceptable, "gateway-17: unverified since ", "it has not attested yet, so nothing is known of what it runs: attest-agent doctor", "error: gateway-17: the device is not trusted: it is unverified")
	later()
	explain(exitNotAcceptable, "gateway-17: overdue since ", "and nothing came: look whether it is on", "it has not attested yet")
	attest(nil)
	explain(exitNotAcceptable, "gateway-17: unverified since ", "it has to attest again by ", "no_policy\n  -> no release is allowed for this device, so nothing was compared: attest fleet change DEVICE --policy NAME")
	assign("image")
	attest(nil)
	explain(exitNotAcceptable, "gateway-17: unverified", "nothing_measured\n  -> ", "required_missing  /sbin/init\n  -> ")
	d.Run("/sbin/init", contentOf("/sbin/init"))
	attest(nil)
	explain(exitGood, "gateway-17: trusted since ")
	later()
	explain(exitNotAcceptable, "gateway-17: overdue since ", "attest-agent doctor on the device\n\nthe last that is known:\ntrusted: everything fits image@1 r0")
	attest(nil)
	explain(exitGood, "gateway-17: trusted since ")
	attest(func(c *evidence.Collected) { c.Collected[0].Data.Signature[20] ^= 1 })
	explain(exitNotAuthentic, "gateway-17: broken since ", "compared with image@1", "\nbroken\n", "quote_signature\n  seen     ", "  -> another key than the enrolled one signed: attest-agent enrol if")
	later() // nothing makes it better
	explain(exitNotAuthentic, "gateway-17: broken since ")
	attest(nil)
	explain(exitGood)
	assign("image", "tools")
	attest(nil)
	explain(exitNotAcceptable, "gateway-17: unverified", "policy\n  seen     compile policy: required /sbin/init is not in release tools@1 r1", "-> its policies cannot be used together")
}
