// Package vm boots a kernel and images under QEMU (scripts/qemu) for tests, and compares what
// the guest reports, case by case, with what is expected. The guest is tools/boottest/guest.
package vm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Case is a row of the report: its name, what the guest does, which is a verb and its
// arguments, and what comes of it.
type Case [3]string

// Plan is what the guest reads, as /plan.
func Plan(cases []Case) string {
	var b strings.Builder
	for _, c := range cases {
		fmt.Fprintf(&b, "%s\t%s\n", c[0], strings.Join(strings.Fields(c[1]), "\t"))
	}
	return b.String()
}

// timeLimit, in seconds, is ten times what the longest plan takes on an idle machine.
const timeLimit = "300"

// Machine is one boot.
type Machine struct {
	Repo      string // this repository
	Kernel    string
	Append    string   // for the kernel's command line
	Initramfs string   // "" for none
	Images    []string // /dev/vda, the root, and more
	Cases     []Case   // what the guest tries; nil if it must not come to that
}

// Boot starts the machine, reports, and returns its console once it has ended.
func (m Machine) Boot(t *testing.T) (console string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "console")
	args := []string{"--kernel", m.Kernel, "--log", log, "--time", timeLimit, "--append", "quiet root=/dev/vda " + m.Append}
	if m.Initramfs != "" {
		args = append(args, "--initramfs", m.Initramfs)
	}
	for _, image := range m.Images {
		args = append(args, "--image", image)
	}
	c := exec.CommandContext(t.Context(), filepath.Join(m.Repo, "scripts/qemu"), args...)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) } // it ends QEMU and swtpm
	c.WaitDelay = 20 * time.Second
	var stderr bytes.Buffer
	c.Stderr = &stderr
	start := time.Now()
	out, err := c.Output()
	text, logErr := os.ReadFile(log)
	console = strings.ReplaceAll(string(text), "\r", "")
	if err := errors.Join(err, logErr); err != nil {
		t.Fatalf("scripts/qemu: %v\n%s%s", err, stderr.Bytes(), console)
	}
	t.Logf("booted and ended in %.1f s", time.Since(start).Seconds())
	report(t, m.Cases, string(out))
	if t.Failed() {
		t.Log("console:\n" + console)
	}
	return console
}

// report compares what the guest saw with what is expected, and prints the table.
func report(t *testing.T, cases []Case, results string) {
	t.Helper()
	seen := map[string]string{}
	for line := range strings.Lines(results) {
		name, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		seen[name] = text
	}
	if _, ended := seen["end"]; ended != (cases != nil) {
		t.Errorf("the guest ran to its end: %t, want %t", ended, cases != nil)
	}
	var b strings.Builder
	for _, c := range cases {
		name, do, want := c[0], c[1], c[2]
		got, ok := seen[name]
		if !ok {
			got = "nothing"
		}
		mark := ""
		if got != want {
			mark = "  <-- not as expected"
			t.Errorf("%s: %s: got %q, want %q", name, do, got, want)
		}
		fmt.Fprintf(&b, "%-58s | %-38s | %s%s\n", name, want, got, mark)
	}
	if len(cases) > 0 {
		t.Logf("%d cases\n%-58s | %-38s | %s\n%s", len(cases), "case", "expected", "seen", b.String())
	}
}
