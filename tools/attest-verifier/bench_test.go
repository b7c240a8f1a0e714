package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence/evidencetest"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// BenchmarkFleet is the steady state of a fleet: devices with a policy of 100 000 files that
// attest at once, each on a TLS connection of its own that it keeps, with nothing new in
// their lists. The server is a process of its own: server-cpu-µs/op is all that it spends on
// an attestation, its two requests, TLS, JSON, the database and its log included, and the
// clients' work excluded.
func BenchmarkFleet(b *testing.B) {
	for _, devices := range []int{1, 64} {
		b.Run(fmt.Sprint(devices), func(b *testing.B) { benchmarkFleet(b, devices) })
	}
}

func benchmarkFleet(b *testing.B, n int) {
	dir := b.TempDir()
	path := build(b, dir)
	conf, err := os.OpenFile(filepath.Join(dir, "v.toml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	fmt.Fprint(conf, "[limits]\nrequests_device = 1000000\n")
	if err := conf.Close(); err != nil {
		b.Fatal(err)
	}
	fleet := enrolled(b, filepath.Join(dir, "attest.db"), n)
	p := start(b, path)
	verifiers := make([]*evidencetest.Verifier, n)
	for i, d := range fleet {
		verifiers[i] = &evidencetest.Verifier{URL: p.url["verifier"], Client: &http.Client{Transport: &http.Transport{TLSClientConfig: clientTLS(b, dir)}}}
		if err := d.Session(verifiers[i]); err != nil {
			b.Fatal(err)
		}
		if v, err := d.Attest(verifiers[i]); err != nil || v.State != "trusted" {
			b.Fatalf("first attestation: %+v, %v", v, err)
		}
	}
	var next atomic.Int64
	b.ResetTimer()
	before := processCPU(b, p.cmd.Process.Pid)
	done := make(chan struct{}, n)
	for i := range n {
		go func() {
			defer func() { done <- struct{}{} }()
			for next.Add(1) <= int64(b.N) {
				if v, err := fleet[i].Attest(verifiers[i]); err != nil || v.State != "trusted" {
					b.Errorf("attestation: %+v, %v", v, err)
					return
				}
			}
		}()
	}
	for range n {
		<-done
	}
	b.StopTimer()
	used := processCPU(b, p.cmd.Process.Pid) - before
	b.ReportMetric(float64(used.Microseconds())/float64(b.N), "server-cpu-µs/op")
	b.ReportMetric(float64(memoryOf(b, p.cmd.Process.Pid))/1024, "server-MiB")
}

// enrolled puts n devices and their policy into the database, as registrar and operator
// would.
func enrolled(b *testing.B, url string, n int) []*evidencetest.Device {
	b.Helper()
	s, err := store.Open(b.Context(), url)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	now := time.Now()
	body := policyOf(b, 100_000)
	if _, err := s.PutPolicy(b.Context(), "image", 1, "runtime", body, "bench", now); err != nil {
		b.Fatal(err)
	}
	epoch, err := s.PolicyEpoch(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	active := store.PolicyChange{Epoch: epoch, Activate: &store.ActivePolicy{Name: "image", Versions: []int64{1}}}
	if err := s.ChangePolicies(b.Context(), active, "bench", now); err != nil {
		b.Fatal(err)
	}
	var fleet []*evidencetest.Device
	for i := range n {
		d := evidencetest.New(b, fmt.Sprint("device-", i))
		d.BootTime = now
		for j := range 50 {
			d.Run(file(j), digest(j))
		}
		area, spki := d.AK()
		answer := sha256.Sum256([]byte(d.ID))
		a := store.Attempt{Device: d.ID, Identity: store.Identity{EK: store.Key{SPKI: []byte(d.ID)}, AK: store.Key{SPKI: spki, Public: area}}, Answer: answer, Expires: now.Add(time.Hour)}
		if err := s.Register(b.Context(), a, now); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Activate(b.Context(), store.Activation{Device: d.ID, Answer: answer, Policies: []string{"image"}, Attest: true, Due: now.Add(time.Hour)}, now); err != nil {
			b.Fatal(err)
		}
		fleet = append(fleet, d)
	}
	return fleet
}

func file(i int) string { return fmt.Sprintf("/usr/lib/file-%d", i) }

func digest(i int) []byte {
	sum := sha256.Sum256([]byte(file(i)))
	return sum[:]
}

// policyOf is a runtime policy of n files.
func policyOf(b *testing.B, n int) []byte {
	b.Helper()
	digests := map[string][]string{}
	for i := range n {
		digests[file(i)] = []string{fmt.Sprintf("%x", digest(i))}
	}
	body, err := json.Marshal(map[string]any{"meta": map[string]any{"version": 1, "generator": 3, "timestamp": "2026-11-22 00:00:00"}, "release": 0, "digests": digests,
		"excludes": []string{}, "keyrings": map[string]any{}, "ima": map[string]any{"ignored_keyrings": []string{}, "log_hash_alg": "sha1", "dm_policy": nil},
		"ima-buf": map[string]any{}, "verification-keys": ""})
	if err != nil {
		b.Fatal(err)
	}
	return body
}

// processCPU is what a process has used, in ticks of 10 ms.
func processCPU(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndex(string(stat), ")")+1:]))
	ticks := 0
	for _, f := range fields[11:13] { // utime and stime
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// memoryOf is the resident set of a process in KiB.
func memoryOf(b *testing.B, pid int) int {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(status))
	n, err := strconv.Atoi(fields[slices.Index(fields, "VmRSS:")+1])
	if err != nil {
		b.Fatal(err)
	}
	return n
}
