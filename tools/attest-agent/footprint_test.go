package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/tpm"
)

// releaseFlags are what the layer's recipe builds with: inlining costs half a megabyte, and
// functions that begin at multiples of 32 bytes cost 180 kilobytes on amd64.
func releaseFlags(arch string) []string {
	align := ""
	if arch == "amd64" {
		align = " -funcalign=1"
	}
	return []string{"build", "-gcflags=all=-l", "-trimpath", "-ldflags", "-s -w" + align}
}

// maxProgram is the size of the program that flash is planned for, in bytes.
const maxProgram = 7_000_000

// TestSize: the largest build, which is amd64's, stays below the limit.
func TestSize(t *testing.T) {
	info, err := os.Stat(build(t, t.TempDir(), "amd64"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", info.Size())
	if info.Size() > maxProgram {
		t.Errorf("%d bytes, %d at most", info.Size(), maxProgram)
	}
}

// BenchmarkFootprint prints the size of the agent for each architecture and the memory of
// one that sends a list of 10 000 entries:
//
//	go test -run '^$' -bench Footprint -benchtime 1x ./tools/attest-agent
func BenchmarkFootprint(b *testing.B) {
	dir := b.TempDir()
	for _, arch := range []string{"amd64", "arm64", "arm", "riscv64"} {
		b.Run(arch, func(b *testing.B) {
			for b.Loop() {
				path := build(b, dir, arch)
				info, err := os.Stat(path)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(info.Size()), "bytes")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

func build(t testing.TB, dir, arch string) string {
	t.Helper()
	path := filepath.Join(dir, "attest-agent-"+arch)
	cmd := exec.Command("go", append(releaseFlags(arch), "-o", path, ".")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOARM=7")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build for %s: %v\n%s", arch, err, out)
	}
	return path
}

// TestMemory sends a list of 10 000 entries with signatures, and asks the kernel how much
// memory that took.
func TestMemory(t *testing.T) {
	v := newVerifier(t)
	m := newMachine(t, v)
	m.kernel(func(dev *tpm.TPM) {
		for i := range 10_000 {
			m.measure(dev, fmt.Sprintf("/usr/lib/%s/%d", strings.Repeat("long/", 12), i), content("x"))
		}
	})
	m.call(0, "enrol")
	program := build(t, t.TempDir(), runtime.GOARCH)
	p := m.startProgram(program, append([]string{"run"}, m.settings()...))
	p.expect("verdict: unverified")
	checkMemory(t, p)
	p.kill(m)
	// The same where it is polled for the whole list, by two at a time.
	c := newCaller(t, freeAddress(t))
	p = m.startProgram(program, append(append([]string{"run"}, m.settings()...), "--verifier-url", "", "--listen", c.listen, "--listen-ca", c.ca))
	p.expect("enrolled ")
	c.wait()
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for range 3 {
				c.quote(m.savedAK(), evidence.State{}, evidence.QuoteRequest{PCRs: []int{10}})
			}
		})
	}
	all.Wait()
	checkMemory(t, p)
}

// checkMemory asks the kernel how much memory the agent ever had.
func checkMemory(t *testing.T, p *process) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var kib int
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d KiB resident at most", kib)
	if kib > 16<<10 {
		t.Errorf("%d KiB resident, 16384 at most", kib)
	}
}
