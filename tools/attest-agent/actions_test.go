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
	if err == nil {
		_, err = os.Stat(script) // tells go test that the result depends on it
	}
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
			step("untrusted", "deadbeef", "false") // nft would look for a host of this name
			step("untrusted", "dead.beef.ca.fe", "false")
			step("untrusted", "::ffff:192.0.2.7", "false")
			cmd := exec.Command("unshare", "--net", "sh", "-c", "ip link set lo up\n"+lines.String())
			cmd.Env = []string{"PATH=" + c.path}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			steps := strings.Split(string(out), "---\n")
			for i, held := range []bool{true, true, false, false, false, false, false, false, false, false, true} {
				if got := strings.Contains(steps[i], c.held); got != held {
					t.Errorf("step %d: dropped %t, want %t:\n%s", i, got, held, steps[i])
				}
			}
			for i, want := range map[int]string{6: `no label "address"`, 7: "is no address\nrefused", 8: "is no address\nrefused", 9: "is no address\nrefused"} {
				if !strings.Contains(steps[i], want) {
					t.Errorf("step %d: %s, want %s in it", i, steps[i], want)
				}
			}
		})
	}
}

// TestRemoveKeys: no user of the device can see to it that keys stay.
func TestRemoveKeys(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("unshare", "--mount", "mount", "--bind", dir, "/home").CombinedOutput(); err != nil {
		t.Skipf("a /home of its own needs root: %v: %s", err, out)
	}
	text, err := os.ReadFile("actions/remove-ssh-keys")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a/.ssh/id_0/x", "a/.ssh/authorized_keys", "b b/.ssh/id_rsa", "b b/.ssh/authorized_keys2", "b b/.ssh/known_hosts",
		"here/etc/ssh/ssh_host_rsa_key", "here/root/.ssh/authorized_keys", "here/service/.ssh/authorized_keys", "here/etc/passwd"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("service:x:1:1::/home/here/service:/bin/sh\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// It acts below /home only, not on this machine.
	script := strings.NewReplacer("/etc/", "/home/here/etc/", "/root", "/home/here/root", "/var/", "/home/here/var/").Replace(string(text))
	act := func(self, status string) string {
		cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$0" /home && exec sh -s`, dir)
		cmd.Env, cmd.Stdin = append(os.Environ(), "ATTEST_SELF="+self, "ATTEST_STATUS="+status), strings.NewReader(script)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return string(out)
	}
	if out := act("false", "untrusted") + act("true", "trusted") + act("true", "overdue"); out != "" {
		t.Errorf("it acts: %s", out)
	}
	if out := act("true", "untrusted"); !strings.Contains(out, "6 files with SSH keys removed: this device is untrusted") {
		t.Error(out)
	}
	left, err := exec.Command("find", dir, "-name", "*key*", "-o", "-name", "id_*").Output()
	if err != nil || string(left) != filepath.Join(dir, "a/.ssh/id_0")+"\n" {
		t.Errorf("left: %s, %v", left, err)
	}
}

// TestLocalEvent: what another verifier writes behind its JSON is let pass, too.
func TestLocalEvent(t *testing.T) {
	for _, payload := range []string{`{"id":"1"}`, "{\"id\":\"1\"}\r\n\t "} {
		if got, want := string(localEvent([]byte(payload), true, false)), `{"id":"1","self":true,"boot":false}`+"\n"; got != want {
			t.Errorf("%q: %s", payload, got)
		}
	}
}
