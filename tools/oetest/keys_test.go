package oetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// programs is a folder that TestMain makes and removes.
var programs string

// buildAttest compiles the program once for all tests.
var buildAttest = sync.OnceValue(func() error {
	out, err := exec.Command("go", "build", "-o", programs+"/", "../attest").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build attest: %w\n%s", err, out)
	}
	return nil
})

// attest returns the path of the program.
func attest(t *testing.T) string {
	t.Helper()
	if err := buildAttest(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(programs, "attest")
}

// makeKeys fills a folder as README says, with keys that no other folder has.
func makeKeys(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	ceremony := filepath.Join(t.TempDir(), "ceremony.toml")
	text := command(t, attest(t), "keys", "init", "--print-ceremony")
	if err := os.WriteFile(ceremony, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	command(t, attest(t), "keys", "init", "--ceremony", ceremony, "--out", dir)
	command(t, attest(t), "keys", "issue", "--ceremony", ceremony, "--out", dir)
}
