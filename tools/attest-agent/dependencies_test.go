package main

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// TestDependencies compares the packages of other projects in the agent with the committed
// list, so that a new one is seen in review.
func TestDependencies(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-tags", "nethttpomithttp2,nopull", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(string(out))
	slices.Sort(got)
	file, err := os.ReadFile("dependencies.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(string(file))
	for _, p := range got {
		if !slices.Contains(want, p) {
			t.Errorf("%s is new in the agent: is it worth its size? then add it to dependencies.txt", p)
		}
	}
	for _, p := range want {
		if !slices.Contains(got, p) {
			t.Errorf("%s is not in the agent any more: take it out of dependencies.txt", p)
		}
	}
	for _, never := range []string{"sigstore", "cobra", "progressbar", "sqlite", "pgx", "database/sql"} {
		if strings.Contains(string(out), never) {
			t.Errorf("%s is in the agent", never)
		}
	}
}
