package rootfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/config"
)

func TestFirstRuleWins(t *testing.T) {
	for _, tc := range []struct {
		rules string
		path  string
		want  Action
	}{
		{"", "bin/sh", ActionSign},
		{"skip:/var/**", "var/log/x", ActionSkip},
		{"skip:/var/**", "usr/var/x", ActionSign},
		{"skip:/var/*", "var/log/x", ActionSign},
		{"skip:/var", "var/log/x", ActionSign},
		{"skip:/init/**", "init", ActionSign},
		{"skip:/init/**", "init/.hidden/x", ActionSkip},
		{"skip:/**", "a", ActionSkip},
		{"skip:/**", "a/b/c", ActionSkip},
		{"skip:/**/*.pyc", "usr/lib/a.pyc", ActionSkip},
		{"skip:/**/*.pyc", "a.pyc", ActionSkip},
		{"hash:/etc/{passwd,shadow}", "etc/shadow", ActionHash},
		{"hash:/etc/[a-f]*", "etc/group", ActionSign},
		{"sign:/var/lib/** skip:/var/** hash:/**", "var/lib/x", ActionSign},
		{"sign:/var/lib/** skip:/var/** hash:/**", "var/cache/x", ActionSkip},
		{"sign:/var/lib/** skip:/var/** hash:/**", "etc/x", ActionHash},
		{"skip:/a?b", "a\xffb", ActionSkip},
		{"skip:/a\xffb", "a\xffb", ActionSkip},
		{`skip:/a\*`, "a*", ActionSkip},
		{`skip:/a\*`, "ab", ActionSign},
	} {
		var rules Rules
		for text := range strings.FieldsSeq(tc.rules) {
			r, err := ParseRule(text)
			if err != nil {
				t.Fatal(err)
			}
			rules = append(rules, r)
		}
		if got := rules.Action(tc.path); got != tc.want {
			t.Errorf("%q, %q: got %s, want %s", tc.rules, tc.path, got, tc.want)
		}
	}
}

func TestParseRuleRefuses(t *testing.T) {
	for _, text := range []string{"", "skip", "skip:", "skip:/", "skip:var", "sing:/var", ":/var", "skip:/[", "skip:/{a", "Skip:/a"} {
		if r, err := ParseRule(text); err == nil {
			t.Errorf("%q is accepted as %+v", text, r)
		}
	}
}

// TestDropInsComeFirst: a drop-in overrules the file that it adds to, and a later
// drop-in an earlier one.
func TestDropInsComeFirst(t *testing.T) {
	dir := t.TempDir()
	rule := func(file, action string) {
		write(t, filepath.Join(dir, file), []byte("[[rule]]\npath = '/x'\naction = '"+action+"'\n"), 0o644)
	}
	for _, step := range []struct {
		file, action string
	}{{"a.toml", "hash"}, {"a.d/10.toml", "skip"}, {"a.d/20.toml", "sign"}} {
		rule(step.file, step.action)
		rules, err := ReadRules(filepath.Join(dir, "a.toml"))
		if err != nil {
			t.Fatal(err)
		}
		if got := rules.Action("x"); got != Action(step.action) {
			t.Errorf("with %s: got %s", step.file, got)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "a.d/30.toml"), []byte("rules = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRules(filepath.Join(dir, "a.toml")); err == nil || !strings.Contains(err.Error(), "30.toml:1: unknown key") {
		t.Errorf("got %v", err)
	}
}

func FuzzRules(f *testing.F) {
	f.Add("[[rule]]\npath = '/var/**'\naction = 'skip'\n", "var/log/x")
	f.Add("[[rule]]\npath = '/{a,b[c-d]}/?'\naction = 'hash'\n", "a/\xff")
	f.Fuzz(func(t *testing.T, text, path string) {
		var file rulesFile
		if config.Decode("f", text, &file) != nil || file.Rules.complete("f") != nil {
			return
		}
		switch file.Rules.Action(path) {
		case ActionSign, ActionHash, ActionSkip:
		default:
			t.Fatal("no action")
		}
	})
}

func FuzzPackages(f *testing.F) {
	f.Add([]byte("/.\n/bin\n/bin/bash\n"), "bash")
	f.Add([]byte("/sbin/init\t0100755\n//\n"), "busybox")
	f.Fuzz(func(t *testing.T, list []byte, pkg string) {
		p := Packages{}
		p.add(list, pkg, func(top string) string { return top })
		for path, got := range p {
			if path == "" || got != pkg || strings.ContainsAny(path, "\n\t") {
				t.Fatalf("%q has package %q", path, got)
			}
		}
	})
}

func TestPackages(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "var/lib/dpkg/info/bash.list"), []byte("/.\n/bin\n/bin/bash\n/usr/share/doc/bash\n"), 0o644)
	write(t, filepath.Join(root, "var/lib/dpkg/info/libc6:amd64.list"), []byte("/lib/x86_64-linux-gnu/libc.so.6\n"), 0o644)
	write(t, filepath.Join(root, "var/lib/opkg/info/busybox.list"), []byte("/sbin/init\t0100755\n"), 0o644)
	write(t, filepath.Join(root, "usr/bin/bash"), nil, 0o755)
	for from, to := range map[string]string{"bin": "usr/bin", "lib": "/usr/lib"} {
		if err := os.Symlink(to, filepath.Join(root, from)); err != nil {
			t.Fatal(err)
		}
	}
	p, err := openTree(t, root).ReadPackages()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"usr/bin/bash": "bash", "usr/lib/x86_64-linux-gnu/libc.so.6": "libc6", "sbin/init": "busybox", "bin/bash": "", "nothing": "",
	} {
		if p[path] != want {
			t.Errorf("%s: got %q, want %q", path, p[path], want)
		}
	}
}
