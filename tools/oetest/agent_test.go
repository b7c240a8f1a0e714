package oetest

import (
	"debug/buildinfo"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// agentLines are for local.conf: an image that reports to a verifier.
func agentLines(repo string) string {
	return threeLines(filepath.Join(repo, "keys-debug")) + set("ATTEST_ALLOW_DEBUG_KEYS", "1") + set("INIT_MANAGER", "systemd") + set("IMAGE_FSTYPES", "tar.gz") +
		set("ATTEST_VERIFIER_URL", "https://attest.example.com:8881") + set("ATTEST_VERIFIER_CA", filepath.Join(repo, "keys-debug/root.crt"))
}

// more adds to them all that an agent can be told: notices, actions, secrets, and Keylime's way to poll.
func more(repo, action string) string {
	root := filepath.Join(repo, "keys-debug/root.crt")
	return set("ATTEST_REGISTRAR_URL", "https://registrar.example.com:8891") + set("ATTEST_NOTICE_CA", root) + set("ATTEST_ACTIONS", "isolate-peer "+action) +
		set("ATTEST_SECRETS_EXECUTE", "1") + set("ATTEST_LISTEN", "192.0.2.7:9002") + set("ATTEST_LISTEN_CA", root)
}

// agentFiles are those of the agent's packages that have to be in the image, with their modes.
var agentFiles = map[string]os.FileMode{
	"/usr/bin/attest-agent":                        0o755,
	"/usr/lib/systemd/system/attest-agent.service": 0o644,
	"/etc/attest":                         os.ModeDir | 0o755,
	"/etc/attest/actions.d":               os.ModeDir | 0o755,
	"/etc/attest/agent.d":                 os.ModeDir | 0o755,
	"/etc/attest/agent.toml":              0o644,
	"/etc/attest/verifier-ca.crt":         0o644,
	"/etc/attest/image-ca.crt":            0o644,
	"/usr/share/attest/image.attest.json": 0o644,
}

// moreFiles are there where ATTEST_ACTIONS and the others are set, and else none of them is.
var moreFiles = map[string]os.FileMode{
	"/etc/attest/notices.crt":                              0o644,
	"/etc/attest/listen-ca.crt":                            0o644,
	"/etc/attest/actions.d/isolate-peer":                   0o755,
	"/etc/attest/actions.d/stop-pump":                      0o755,
	"/usr/lib/systemd/system/attest-agent-actions.service": 0o644,
	"/usr/lib/systemd/system/attest-agent-actions.path":    0o644,
	"/usr/share/attest-agent/actions/isolate-peer":         0o755,
	"/usr/share/attest-agent/actions/remove-ssh-keys":      0o755,
}

// agentToml is its configuration, and moreToml what it is with moreFiles.
const (
	agentToml = `verifier_url = "https://attest.example.com:8881"
ca = "/etc/attest/verifier-ca.crt"
manifest_ca = "/etc/attest/image-ca.crt"
manifest = "/usr/share/attest/image.attest.json"
`
	moreToml = `verifier_url = "https://attest.example.com:8881"
registrar_url = "https://registrar.example.com:8891"
ca = "/etc/attest/verifier-ca.crt"
manifest_ca = "/etc/attest/image-ca.crt"
manifest = "/usr/share/attest/image.attest.json"
notice_ca = "/etc/attest/notices.crt"
secrets_execute = "1"
listen = "192.0.2.7:9002"
listen_ca = "/etc/attest/listen-ca.crt"
`
)

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
		checkAgentFiles(t, tree, agentFiles, agentToml, "nethttpomithttp2,nopull", "attest-agent.service")
		for path := range moreFiles {
			if _, err := os.Lstat(tree + path); err == nil {
				t.Errorf("%s is there, and nobody asked for it", path)
			}
		}
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
		t.Run("more", func(t *testing.T) { checkMore(t, b) })
		t.Run("private key", func(t *testing.T) {
			both := filepath.Join(t.TempDir(), "both.pem")
			command(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=both", "-keyout", both, "-out", both+".crt")
			command(t, "sh", "-c", "cat \"$0.crt\" >>\"$0\"", both)
			b.configure(t, agentLines(b.repo)+set("ATTEST_NOTICE_CA", both))
			r := b.shell(t, "bitbake", "-c", "install", "attest-agent-conf")
			if errs := r.errors(); r.code == 0 || len(errs) != 1 || !strings.Contains(errs[0], "ATTEST_NOTICE_CA: "+both+" has a private key, too") {
				t.Errorf("exit code %d, errors %q", r.code, errs)
			}
		})
	})
}

// checkMore builds the image again with all that an agent can be told.
func checkMore(t *testing.T, b *build) {
	action := filepath.Join(t.TempDir(), "stop-pump")
	if err := os.WriteFile(action, []byte("#!/bin/sh\necho stopped\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.configure(t, agentLines(b.repo)+more(b.repo, action))
	if out := b.bitbake(t, "lab-image").out; !strings.Contains(out, "nobody runs the actions of this image") {
		t.Errorf("no warning of actions that nobody runs:\n%s", out)
	}
	tree := open(t, b.image("lab-image", ".tar.gz"))
	files := maps.Clone(agentFiles)
	maps.Copy(files, moreFiles)
	checkAgentFiles(t, tree, files, moreToml, "nethttpomithttp2", "attest-agent.service", "attest-agent-actions.service", "attest-agent-actions.path")
	list := labels(t, tree)
	verify := []string{"ima_verify", "--key", filepath.Join(b.repo, "keys-debug/ima.der")}
	for _, name := range []string{"isolate-peer", "stop-pump"} {
		path := "/etc/attest/actions.d/" + name
		if kind := list[path].kind(); kind != "signed" {
			t.Errorf("%s: %s, want signed", path, kind)
		}
		verify = append(verify, tree+path)
	}
	command(t, "evmctl", verify...)
	// The agent itself reads what the recipe wrote.
	shown := command(t, tree+"/usr/bin/attest-agent", "config", "show", "--config", tree+"/etc/attest/agent.toml")
	for line := range strings.Lines(moreToml) {
		if !strings.Contains(shown, line) {
			t.Errorf("attest-agent config show has no %q:\n%s", line, shown)
		}
	}
}

// checkAgentFiles looks for what packages and their scripts put into a tree, and for the tags of the program.
func checkAgentFiles(t *testing.T, tree string, files map[string]os.FileMode, toml, tags string, units ...string) {
	t.Helper()
	for path, mode := range files {
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
	if err != nil || string(text) != toml {
		t.Errorf("agent.toml: %v\n%s", err, text)
	}
	built, err := buildinfo.ReadFile(tree + "/usr/bin/attest-agent")
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(built.Settings, func(s debug.BuildSetting) bool { return s.Key == "-tags" }); i < 0 || built.Settings[i].Value != tags {
		t.Errorf("attest-agent was built with %v, want the tags %s", built.Settings, tags)
	}
	for _, unit := range units {
		link, err := os.Readlink(tree + "/etc/systemd/system/multi-user.target.wants/" + unit)
		if err != nil || link != "/usr/lib/systemd/system/"+unit {
			t.Errorf("%s is not enabled: %q %v", unit, link, err)
		}
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
