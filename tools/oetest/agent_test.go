package oetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// agentLines are for local.conf: an image that reports to a verifier.
func agentLines(repo string) string {
	return threeLines(filepath.Join(repo, "keys-debug")) + set("ATTEST_ALLOW_DEBUG_KEYS", "1") + set("INIT_MANAGER", "systemd") + set("IMAGE_FSTYPES", "tar.gz") +
		set("ATTEST_VERIFIER_URL", "https://attest.example.com:8881") + set("ATTEST_VERIFIER_CA", filepath.Join(repo, "keys-debug/root.crt"))
}

// agentFiles are those of the agent's packages that have to be in the image, with their modes.
var agentFiles = map[string]os.FileMode{
	"/usr/bin/attest-agent":                        0o755,
	"/usr/lib/systemd/system/attest-agent.service": 0o644,
	"/etc/attest":                         os.ModeDir | 0o755,
	"/etc/attest/agent.d":                 os.ModeDir | 0o755,
	"/etc/attest/agent.toml":              0o644,
	"/etc/attest/verifier-ca.crt":         0o644,
	"/etc/attest/image-ca.crt":            0o644,
	"/usr/share/attest/image.attest.json": 0o644,
}

// agentToml is its configuration.
const agentToml = `verifier_url = "https://attest.example.com:8881"
ca = "/etc/attest/verifier-ca.crt"
manifest_ca = "/etc/attest/image-ca.crt"
manifest = "/usr/share/attest/image.attest.json"
`

// TestAgent builds an image where a verifier is named, and has the agent in it check it.
func TestAgent(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		b := newBuild(t, release)
		b.configure(t, agentLines(b.repo))
		// The lab's image has an agent to be started, and neither systemd nor any other init's script.
		if out := b.bitbake(t, "lab-image").out; !strings.Contains(out, "nobody starts attest-agent in this image") {
			t.Errorf("no warning of an agent that nobody starts:\n%s", out)
		}
		group := regexp.MustCompile(`(?m)^RDEPENDS:packagegroup-attest=".* attest-agent attest-agent-conf .*"$`)
		if out := b.bitbake(t, "-e", "packagegroup-attest").out; !group.MatchString(out) {
			t.Errorf("packagegroup-attest does not name the agent")
		}
		tree := open(t, b.image("lab-image", ".tar.gz"))
		checkAgentFiles(t, tree)
		t.Log(command(t, attest(t), "verify", tree, "--all", "--ca", tree+"/etc/attest/image-ca.crt", "--manifest", b.image("lab-image", ".attest.json")))
		if out, code := agentVerify(t, tree); code != 0 {
			t.Errorf("attest-agent verify: exit code %d:\n%s", code, out)
		}
		for _, name := range []string{"etc/hostname", "usr/bin/implant"} {
			if err := os.WriteFile(filepath.Join(tree, name), []byte("x\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		out, code := agentVerify(t, tree)
		if code != 4 || !strings.Contains(out, "etc/hostname: changed: ") || !strings.Contains(out, "usr/bin/implant: added: ") {
			t.Errorf("exit code %d, want 4 and both files:\n%s", code, out)
		}
	})
}

// checkAgentFiles looks for what packages and their scripts put into a tree.
func checkAgentFiles(t *testing.T, tree string) {
	t.Helper()
	for path, mode := range agentFiles {
		info, err := os.Stat(tree + path)
		if err != nil {
			t.Error(err)
			continue
		}
		if owner := info.Sys().(*syscall.Stat_t); info.Mode() != mode || owner.Uid != 0 || owner.Gid != 0 {
			t.Errorf("%s: %v of %d:%d, want %v of 0:0", path, info.Mode(), owner.Uid, owner.Gid, mode)
		}
	}
	text, err := os.ReadFile(tree + "/etc/attest/agent.toml")
	if err != nil || string(text) != agentToml {
		t.Errorf("agent.toml: %v\n%s", err, text)
	}
	unit, err := os.Readlink(tree + "/etc/systemd/system/multi-user.target.wants/attest-agent.service")
	if err != nil || unit != "/usr/lib/systemd/system/attest-agent.service" {
		t.Errorf("the unit is not enabled: %q %v", unit, err)
	}
	for file, line := range map[string]string{"passwd": `(?m)^attest:[!x*]+:\d{3}:\d{3}::/var/lib/attest-agent:/sbin/nologin$`, "group": `(?m)^attest:[!x*]+:\d{3}:$`} {
		text, err := os.ReadFile(tree + "/etc/" + file)
		if err != nil || !regexp.MustCompile(line).Match(text) {
			t.Errorf("/etc/%s has no user attest: %v\n%s", file, err, text)
		}
	}
}

// agentVerify runs the agent of a tree on it, with the settings that it has in the image.
func agentVerify(t *testing.T, tree string) (out string, code int) {
	t.Helper()
	c := exec.CommandContext(t.Context(), tree+"/usr/bin/attest-agent", "verify", "--all", "--root", tree, "--config", tree+"/etc/attest/agent.toml",
		"--manifest", tree+"/usr/share/attest/image.attest.json", "--manifest-ca", tree+"/etc/attest/image-ca.crt")
	text, err := c.CombinedOutput()
	if c.ProcessState == nil {
		t.Fatal(err)
	}
	t.Logf("attest-agent verify: exit code %d\n%s", c.ProcessState.ExitCode(), text)
	return string(text), c.ProcessState.ExitCode()
}
