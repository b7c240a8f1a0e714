package main

import (
	"os"
	"os/exec"
	"testing"
)

// TestArchitectures: the agent is built for what devices have, 32 bits included.
func TestArchitectures(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64", "arm", "riscv64"} {
		cmd := exec.Command("go", "build", "-gcflags=all=-l", "-trimpath", "-o", os.DevNull, ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOARM=7")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("go build for %s: %v\n%s", arch, err, out)
		}
	}
}
