package boottest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKernelCheck: scripts/kernel --check is attest kernel config, with its exit code.
func TestKernelCheck(t *testing.T) {
	dir := t.TempDir()
	script, err := filepath.Abs("../../scripts/kernel")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"good": "CONFIG_IMA=y\n", "bad": "CONFIG_EVM=y\n", "config": "CONFIG_IMA=y\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		fragment, want string
		code           int
	}{
		{"good", "", 0},
		{"bad", "CONFIG_EVM=y became n\n", 4},
		{"missing", "attest: error: open missing: no such file or directory\n", 1},
	} {
		check := exec.Command(script, "--check", c.fragment, "config")
		check.Dir = dir
		out, err := check.CombinedOutput()
		if code := check.ProcessState.ExitCode(); code != c.code || !strings.HasPrefix(string(out), c.want) {
			t.Errorf("%s: got exit %d, %v, %q; want %d, %q", c.fragment, code, err, out, c.code, c.want)
		}
	}
}

// TestQEMUEnds: whatever ends a boot, nothing of it stays.
func TestQEMUEnds(t *testing.T) {
	l := openLab(t)
	const halted = "-S" // the processor never starts
	for _, c := range []struct {
		name, limit string
		signal      syscall.Signal
		code        int
		says        string
	}{
		{"time is up", "2", 0, 124, "the guest still ran after 2 s"},
		{"terminated", "60", syscall.SIGTERM, 143, ""},
		{"interrupted", "60", syscall.SIGINT, 130, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tmp := t.TempDir()
			var stderr bytes.Buffer
			run := exec.CommandContext(t.Context(), filepath.Join(l.repo, "scripts/qemu"),
				"--kernel", filepath.Join(l.kernel, "bzImage"), "--time", c.limit, "--", halted)
			run.Env = append(os.Environ(), "TMPDIR="+tmp)
			run.Stderr = &stderr
			if err := run.Start(); err != nil {
				t.Fatal(err)
			}
			if c.signal != 0 {
				waitFor(t, func() bool { return len(processes(t, tmp)) >= 2 })
				if err := run.Process.Signal(c.signal); err != nil {
					t.Fatal(err)
				}
			}
			err := run.Wait()
			if code := run.ProcessState.ExitCode(); code != c.code || !strings.Contains(stderr.String(), c.says) {
				t.Errorf("exit %d, %v, want %d:\n%s", code, err, c.code, stderr.Bytes())
			}
			waitFor(t, func() bool { return len(processes(t, tmp)) == 0 })
			if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
				t.Errorf("left in the folder: %v, %v", left, err)
			}
		})
	}
}

// processes lists those that have a folder on their command line.
func processes(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, p := range all {
		text, err := os.ReadFile(p)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
		if bytes.Contains(text, []byte(dir)) {
			found = append(found, string(text))
		}
	}
	return found
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for range 1000 {
		if done() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("it does not happen")
}
