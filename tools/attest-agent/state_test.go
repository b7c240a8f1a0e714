package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestStateFolderOfAnother: what a taken-over agent could lay into its folder for root to
// follow, when the next one starts.
func TestStateFolderOfAnother(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("to give files away needs root")
	}
	dir := t.TempDir()
	valuable := filepath.Join(dir, "shadow")
	if err := os.WriteFile(valuable, []byte("root:x"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openFolder(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	if err := f.write("ak.tpm", []byte("key")); err != nil {
		t.Fatal(err)
	}
	// protected_hardlinks (sysctl fs) is off where no systemd switches it on.
	link := filepath.Join(f.path, "."+stateFile+".tmp")
	if err := os.Link(valuable, link); err != nil {
		t.Fatal(err)
	}
	if err := f.give(65534, 65534); err == nil || !strings.Contains(err.Error(), "has another name") {
		t.Errorf("a second name of a file of root's: %v", err)
	}
	if err := f.save(&State{Schema: schemaState}); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(valuable); err != nil || string(b) != "root:x" || fileOwner(t, valuable) != 0 {
		t.Errorf("the file of root's: %q of %d, %v", b, fileOwner(t, valuable), err)
	}
	// What was written over is one of its own, and can be given.
	if err := f.give(65534, 65534); err != nil || fileOwner(t, filepath.Join(f.path, stateFile)) != 65534 {
		t.Error(err)
	}
}

func fileOwner(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Sys().(*syscall.Stat_t).Uid)
}
