package server

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
	"github.com/meta-attest/meta-attest/tools/internal/release"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// manifestOf writes what attest sign would for an image with these files, signed by p.
func (p *pki) manifestOf(t testing.TB, paths ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image.attest.json")
	w, err := manifest.Create(name, manifest.Header{Name: "image"})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if err := w.Add(manifest.Entry{Path: path, Type: manifest.File, Mode: 0o755, Size: 1,
			Digests: manifest.Digests{SHA256: hex.EncodeToString(content("/" + path))}, Package: "package-of-" + path}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(p.key, p.ca); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestManifest: the seam between build and verifier. What the build signed is what a device
// may run; a manifest that somebody else signed is none.
func TestManifest(t *testing.T) {
	t.Parallel()
	builder := newPKI(t)
	w := newWorld(t, func(o *Options) { o.Releases = []*x509.Certificate{builder.ca} })
	m := w.machine(tpmtest.Start(t))
	m.runFile("/sbin/init")
	m.enrol()
	m.session()
	doc := map[string]any{"schema": release.Schema, "release": "scarthgap", "manifests": []string{builder.manifestOf(t, "bin/sh", "sbin/init")}}
	w.api("POST", "/policies/image?activate=true", doc, http.StatusCreated)
	w.assign(m.id, "image")
	m.expect(store.Trusted, "")
	m.run("/bin/sh", content("changed"))
	m.expect(store.Untrusted, "changed_file")
	x, _ := json.Marshal(w.api("GET", "/devices/"+m.id+"/verdict", nil, 200))
	for _, want := range []string{"image@1 scarthgap", "package-of-bin/sh", hex.EncodeToString(content("/bin/sh")), hex.EncodeToString(content("changed"))} {
		if !bytes.Contains(x, []byte(want)) {
			t.Errorf("no %s in %s", want, x)
		}
	}
	body := w.send("GET", w.verifier+"/api/v1/policies/image/versions/1", w.admin, nil)
	if again, _ := json.Marshal(doc); !bytes.Equal(body.body, again) {
		t.Error("the policy is not what was put")
	}
	doc["manifests"] = []string{newPKI(t).manifestOf(t, "bin/sh")}
	w.api("POST", "/policies/image", doc, http.StatusUnprocessableEntity)
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "attest-manifest-*.json"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestSharing: however many devices ask at a time, a policy is compiled once, and what is
// not used makes room.
func TestSharing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) { o.Limits.ReferenceMemory = 1 })
	for _, name := range []string{"a", "b"} {
		w.policy(name, "/sbin/init", "/bin/"+name)
	}
	refsOf := func(name string) []store.PolicyRef {
		all, err := w.store.Policies(t.Context(), name)
		if err != nil || len(all) != 1 {
			t.Fatalf("policy %s: %v, %v", name, all, err)
		}
		return []store.PolicyRef{all[0].PolicyRef}
	}
	var mu sync.Mutex
	var wait sync.WaitGroup
	got := map[*reference]int{}
	for range 32 {
		wait.Go(func() {
			ref, err := w.s.refs.of(t.Context(), refsOf("a"))
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			got[ref]++
		})
	}
	wait.Wait()
	if len(got) != 1 {
		t.Errorf("compiled %d times", len(got))
	}
	if _, err := w.s.refs.of(t.Context(), refsOf("b")); err != nil {
		t.Fatal(err)
	}
	if n, size := w.s.refs.usage(); n != 1 || size <= 1 {
		t.Errorf("%d references of %d bytes are held, over a bound of 1 byte", n, size)
	}
}

// TestQueue: whole lists wait for each other, and those of a boot storm come again later;
// who goes on waits for nobody.
func TestQueue(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) { o.Limits.Replays = 1 })
	m, fresh := w.enrolled(tpmtest.Start(t)), w.machine(tpmtest.Start(t))
	fresh.runFile("/sbin/init")
	fresh.enrol()
	fresh.session()
	w.assign(fresh.id, "image")
	w.s.replays <- struct{}{}
	for range cap(w.s.queue) {
		w.s.queue <- struct{}{}
	}
	location, asked := fresh.negotiate()
	collected := fresh.collect(asked)
	if a := fresh.submit(location, collected); a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" {
		t.Errorf("a whole list behind a full queue: %d %s", a.status, a.body)
	}
	m.expect(store.Trusted, "")
	<-w.s.replays
	for range cap(w.s.queue) {
		<-w.s.queue
	}
	// The challenge was not used up, nor the evidence judged.
	if a := fresh.submit(location, collected); a.status != http.StatusAccepted {
		t.Errorf("the same again: %d %s", a.status, a.body)
	}
	w.expect(fresh.id, store.Trusted, "")
}

// BenchmarkPoll is a steady attestation with nothing new, the TPM's and the client's share
// excluded by sending what was collected before to the handlers, without TLS.
func BenchmarkPoll(b *testing.B) {
	for _, files := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(files), func(b *testing.B) {
			w := newWorld(b)
			m := w.machine(tpmtest.Start(b))
			m.runFile("/sbin/init")
			m.enrol()
			m.session()
			paths := []string{"/sbin/init"}
			for i := range files {
				paths = append(paths, fmt.Sprintf("/usr/lib/file-%d", i))
			}
			w.policy("image", paths...)
			w.assign(m.id, "image")
			m.expect(store.Trusted, "")
			h := w.s.Verifier()
			var cpu time.Duration
			for b.Loop() {
				offer, err := json.Marshal(evidence.NewDocument("", m.capabilities()))
				if err != nil {
					b.Fatal(err)
				}
				began := cpuTime(b)
				a := m.direct(h, "POST", "/v3.0/agents/"+m.id+"/attestations", offer)
				cpu += cpuTime(b) - began
				d, err := evidence.Decode[evidence.Requests](bytes.NewReader(a.body))
				if err != nil {
					b.Fatal(err)
				}
				body, err := json.Marshal(evidence.NewDocument("", m.collect(d.Data.Attributes)))
				if err != nil {
					b.Fatal(err)
				}
				began = cpuTime(b)
				a = m.direct(h, "PATCH", a.header.Get("Location"), body)
				cpu += cpuTime(b) - began
				if a.status != http.StatusAccepted {
					b.Fatalf("%d %s", a.status, a.body)
				}
			}
			b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

// cpuTime is what this process has used, the database's threads included.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
