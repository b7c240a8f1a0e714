package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/tpm"
)

// releaseFlags are what the layer's recipe builds with: inlining costs half a megabyte and
// HTTP/2 another, and neither helps one request a minute.
var releaseFlags = []string{"build", "-tags", "nethttpomithttp2", "-gcflags=all=-l", "-trimpath", "-ldflags", "-s -w"}

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
	cmd := exec.Command("go", append(append([]string{}, releaseFlags...), "-o", path, ".")...)
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
	program := filepath.Join(t.TempDir(), "attest-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p := m.startProgram(program, append([]string{"run"}, m.settings()...))
	p.expect("verdict: unverified")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var kib int
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(m.list)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d KiB resident at most, for a list of %d KiB", kib, info.Size()/1024)
	if kib > 16<<10 {
		t.Errorf("%d KiB resident, 16384 at most", kib)
	}
}
