package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"attest-verifier": func() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

// TestScripts runs testdata/script/*.txt.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script"})
}

// TestSettingsAreDescribed: the manual of config show has all of them.
func TestSettingsAreDescribed(t *testing.T) {
	for _, f := range fields(defaultSettings()) {
		if f.help == "" {
			t.Errorf("%s: nothing says what it is", f.key)
		}
	}
}
