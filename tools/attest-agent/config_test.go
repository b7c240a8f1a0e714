package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConfig: drop-ins over the file, variables over both, flags over all; and each says
// where it came from.
func TestConfig(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.toml")
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	show := func(args ...string) (string, error) {
		var out strings.Builder
		err := runConfig(context.Background(), &invocation{append([]string{"show", "--origin", "--config", file}, args...), &out, &out})
		return out.String(), err
	}
	write("agent.toml", "verifier_url = \"https://one:8881\"\nca = \"/ca\"\nid = \"file\"\n")
	write("agent.d/10.toml", "verifier_url = \"https://two:8881\"\nak = \"rsassa\"\n")
	write("agent.d/20.toml", "ak = \"rsapss\"\n")
	t.Setenv("ATTEST_AGENT_ID", "variable")
	t.Setenv("ATTEST_AGENT_USER", "variable")
	got, err := show("--user", "7")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`verifier_url = "https://two:8881"  # ` + dir + "/agent.d/10.toml",
		`ca = "/ca"  # ` + file,
		`ak = "rsapss"  # ` + dir + "/agent.d/20.toml",
		`id = "variable"  # $ATTEST_AGENT_ID`,
		`user = "7"  # --user`,
		`tpm = "/dev/tpmrm0"  # default`,
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("%q is missing in:\n%s", want, got)
		}
	}
	for name, tt := range map[string]struct{ file, env, want string }{
		"unknown key":   {"ca = \"/ca\"\nverifer_url = \"x\"\n", "", "agent.toml:2: unknown key \"verifer_url\""},
		"other type":    {"id = 7\n", "", "agent.toml:1: id: incompatible types"},
		"plain http":    {"verifier_url = \"http://host\"\n", "", "is not https://"},
		"no time":       {"retry_max = \"soon\"\n", "", "is no time"},
		"id of a path":  {"id = \"../x\"\n", "", "id: agent id has"},
		"variable name": {"", "ATTEST_AGENT_VERIFER_URL", "$ATTEST_AGENT_VERIFER_URL: unknown setting"},
	} {
		t.Run(name, func(t *testing.T) {
			os.Unsetenv("ATTEST_AGENT_ID")
			write("agent.toml", tt.file)
			os.RemoveAll(filepath.Join(dir, "agent.d"))
			if tt.env != "" {
				t.Setenv(tt.env, "x")
			}
			if out, err := show(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q\n%s", err, tt.want, out)
			}
		})
	}
}

// TestRegistrarDefault is the verifier's host, at the registrar's port.
func TestRegistrarDefault(t *testing.T) {
	for url, want := range map[string]string{
		"https://host:8881": "https://host:8891", "https://host": "https://host:8891", "https://[::1]:1/x": "https://[::1]:8891/x",
	} {
		fs := newFlags("run", "")
		cf := addConfigFlags(fs)
		if err := fs.parse(&invocation{args: []string{"--verifier-url", url}}); err != nil {
			t.Fatal(err)
		}
		c, err := cf.load(nil)
		if err != nil || c.registrar.String() != want {
			t.Errorf("%s: %v, %v, want %s", url, c.registrar, err, want)
		}
	}
}
