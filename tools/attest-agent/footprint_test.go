package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/tpm"
)

// variants are the builds of the layer's recipe, by their tags: what it ships, and what it
// ships with PACKAGECONFIG "pull". HTTP/2 costs half a megabyte, for one request a minute.
var variants = map[string]struct {
	tags string
	most int64 // bytes of the program that flash is planned for
}{
	"push": {"nethttpomithttp2,nopull", 7 << 20},
	"pull": {"nethttpomithttp2", 15 << 19},
}

// architectures are those that devices have, 32 bits included.
var architectures = []string{"amd64", "arm64", "arm", "riscv64"}

// TestSize: every build is there for every architecture, and as small as was promised.
func TestSize(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, v := range variants {
		for _, arch := range architectures {
			info, err := os.Stat(build(t, dir, arch, name))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s %s: %d bytes, %d at most", arch, name, info.Size(), v.most)
			if info.Size() > v.most {
				t.Errorf("%s %s: %d bytes, %d at most", arch, name, info.Size(), v.most)
			}
		}
	}
}

// BenchmarkFootprint prints the size of the agent for each architecture:
//
//	go test -run '^$' -bench Footprint -benchtime 1x ./tools/attest-agent
func BenchmarkFootprint(b *testing.B) {
	dir := b.TempDir()
	for name := range variants {
		for _, arch := range architectures {
			b.Run(arch+"/"+name, func(b *testing.B) {
				for b.Loop() {
					info, err := os.Stat(build(b, dir, arch, name))
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(float64(info.Size()), "bytes")
					b.ReportMetric(0, "ns/op")
				}
			})
		}
	}
}

// build builds as the recipe does. Inlining costs half a megabyte. Functions that begin at
// multiples of 32 bytes cost 180 kilobytes on amd64, where the listener has no room for them.
func build(t testing.TB, dir, arch, variant string) string {
	t.Helper()
	path := filepath.Join(dir, "attest-agent-"+arch+"-"+variant)
	link := "-s -w"
	if arch == "amd64" {
		link += " -funcalign=1"
	}
	cmd := exec.Command("go", "build", "-tags", variants[variant].tags, "-gcflags=all=-l", "-trimpath", "-ldflags", link, "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOARM=7")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build for %s: %v\n%s", arch, err, out)
	}
	return path
}

// TestVet: both builds are sound, with their tests.
func TestVet(t *testing.T) {
	t.Parallel()
	for name, v := range variants {
		if out, err := exec.Command("go", "vet", "-tags", v.tags, ".").CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestWithoutPull: the build that cannot be polled says so to whoever asks for it.
func TestWithoutPull(t *testing.T) {
	t.Parallel()
	program := build(t, t.TempDir(), runtime.GOARCH, "push")
	for _, args := range [][]string{
		{"run", "--listen", "192.0.2.1:9002"}, {"enrol", "--contact", "192.0.2.1:9002"}, {"doctor", "--listen-ca", "ca.crt"}, {"act", "--revocation-cert", "ca.crt"},
	} {
		cmd := exec.Command(program, append(args, "--state-dir", t.TempDir(), "--tpm", "unix:none")...)
		out, _ := cmd.CombinedOutput()
		name := strings.ReplaceAll(strings.TrimLeft(args[1], "-"), "-", "_")
		for _, want := range []string{"error: " + args[1] + ": " + name + ": this agent was built without the pull model", `hint: build it with PACKAGECONFIG:append:pn-attest-agent = " pull"`} {
			if !strings.Contains(string(out), want) || cmd.ProcessState.ExitCode() != exitError {
				t.Errorf("%s: exit code %d, want %q in:\n%s", args, cmd.ProcessState.ExitCode(), want, out)
			}
		}
	}
}

// longList is a machine with a list of 10 000 entries.
func longList(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t, newVerifier(t))
	m.kernel(func(dev *tpm.TPM) {
		for i := range 10_000 {
			m.measure(dev, fmt.Sprintf("/usr/lib/%s/%d", strings.Repeat("long/", 12), i), content("x"))
		}
	})
	return m
}

// TestMemory sends a list of 10 000 entries, and asks the kernel how much memory that took.
func TestMemory(t *testing.T) {
	t.Parallel()
	m := longList(t)
	p := m.startProgram(build(t, t.TempDir(), runtime.GOARCH, "push"), append([]string{"run"}, m.settings()...))
	p.expect("verdict: unverified")
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
