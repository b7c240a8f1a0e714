package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestReadableKey is CVE-2022-23952: what is secret and that every user may read is refused,
// with the command that mends it.
func TestReadableKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := build(t, dir)
	for _, secret := range []string{"tls/server.key", "attest.db"} {
		file := filepath.Join(dir, secret)
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s was made with mode %04o", secret, info.Mode().Perm())
		}
		if err := os.Chmod(file, 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), path, "--config", "v.toml", "serve")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "chmod") {
			t.Errorf("%s with mode 0644: %v\n%s", secret, err, out)
		}
		if err := os.Chmod(file, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
