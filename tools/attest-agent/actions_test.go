package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestIsolatePeer runs the example in a network of its own, with nftables and without. That
// traffic stops is what boottest shows.
func TestIsolatePeer(t *testing.T) {
	if out, err := exec.Command("unshare", "--net", "true").CombinedOutput(); err != nil {
		t.Skipf("a network of its own needs root: %v: %s", err, out)
	}
	script, err := filepath.Abs("actions/isolate-peer")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for _, name := range []string{"sh", "ip"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("%s is not installed", name)
		}
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ name, path, show, held string }{
		{"nftables", os.Getenv("PATH") + ":/usr/sbin:/sbin", "nft list table inet attest", "elements = { 192.0.2.7 }"},
		{"routes", bin, "ip -4 route show; ip -6 route show", "blackhole 192.0.2.7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "nftables" {
				if out, err := exec.Command("unshare", "--net", "nft", "add", "table", "inet", "x").CombinedOutput(); err != nil {
					t.Skipf("no nftables here: %v: %s", err, out)
				}
			}
			var lines strings.Builder
			step := func(status, address, self string) {
				fmt.Fprintf(&lines, "ATTEST_SELF=%s ATTEST_DEVICE=x ATTEST_STATUS=%s ATTEST_LABEL_ADDRESS='%s' %s || echo refused\n%s 2>&1\necho ---\n", self, status, address, script, c.show)
			}
			step("untrusted", "192.0.2.7", "false")
			step("broken", "192.0.2.7", "false") // twice is as once
			step("trusted", "192.0.2.7", "false")
			step("trusted", "192.0.2.7", "false")
			step("overdue", "192.0.2.7", "false")
			step("untrusted", "192.0.2.7", "true")
			step("untrusted", "", "false")
			step("untrusted", "192.0.2.7; reboot", "false")
			cmd := exec.Command("unshare", "--net", "sh", "-c", "ip link set lo up\n"+lines.String())
			cmd.Env = []string{"PATH=" + c.path}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			steps := strings.Split(string(out), "---\n")
			for i, held := range []bool{true, true, false, false, false, false, false, false} {
				if got := strings.Contains(steps[i], c.held); got != held {
					t.Errorf("step %d: dropped %t, want %t:\n%s", i, got, held, steps[i])
				}
			}
			if !strings.Contains(steps[7], "refused") || !strings.Contains(steps[6], `no label "address"`) {
				t.Errorf("odd addresses: %s%s", steps[6], steps[7])
			}
		})
	}
}
