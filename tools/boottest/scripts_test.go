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

// TestKernelCheck: scripts/kernel --check names what Kconfig dropped.
func TestKernelCheck(t *testing.T) {
	const config = "CONFIG_IMA=y\nCONFIG_DUMMY=m\nCONFIG_PATH=\"/etc/x y\"\nCONFIG_IDX=10\n# CONFIG_OFF is not set\n"
	for _, c := range []struct {
		name, fragment, want string
		code                 int
	}{
		{"all there", "# comment\n\n" + config, "", 0},
		{"absent is off", "# CONFIG_UNKNOWN is not set\nCONFIG_EMPTY=\"\"\nCONFIG_OFF=n\n", "", 0},
		{"dropped", "CONFIG_IMA=y\nCONFIG_EVM=y\n", "CONFIG_EVM=y became n\n", 4},
		{"switched off", "CONFIG_OFF=y\n", "CONFIG_OFF=y became n\n", 4},
		{"switched on", "# CONFIG_IMA is not set\n", "CONFIG_IMA=n became y\n", 4},
		{"a module instead", "CONFIG_DUMMY=y\n", "CONFIG_DUMMY=y became m\n", 4},
		{"another number", "CONFIG_IDX=1\n", "CONFIG_IDX=1 became 10\n", 4},
		{"another string", "CONFIG_PATH=\"/etc/x z\"\n", "CONFIG_PATH=\"/etc/x z\" became \"/etc/x y\"\n", 4},
		{"the last line counts", "CONFIG_IMA=n\nCONFIG_IMA=y\n", "", 0},
		{"a prefix is another symbol", "CONFIG_IM=y\n", "CONFIG_IM=y became n\n", 4},
		{"not a fragment", "CONFIG_IMA=y\nIMA=y\n", "fragment:2: not a line of a fragment: IMA=y\n", 4},
		{"nothing", "", "no symbol in the fragment\n", 4},
		{"only comments", "# x\n", "no symbol in the fragment\n", 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			script, err := filepath.Abs("../../scripts/kernel")
			if err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{"fragment": c.fragment, "config": config} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			check := exec.Command(script, "--check", "fragment", "config")
			check.Dir = dir
			out, err := check.CombinedOutput()
			if code := check.ProcessState.ExitCode(); code != c.code || string(out) != c.want {
				t.Errorf("got exit %d, %v, %q; want %d, %q", code, err, out, c.code, c.want)
			}
		})
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
