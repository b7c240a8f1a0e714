package main

import (
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/config"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

// FuzzCeremony: a text is refused, or it is a ceremony that can be held.
func FuzzCeremony(f *testing.F) {
	f.Add(exampleCeremony)
	f.Add("[ca]\nname = \"root\"\nsubject = \"CN=Root\"\nkey = \"P-256\"\ndays = 1\n[[leaf]]\nname = \"ima\"\nrole = [\"ima\"]\n")
	f.Add("[ca]\nname = 1\n[leaf]\nrole = [[]]\n")
	f.Fuzz(func(t *testing.T, text string) {
		var c keys.Ceremony
		if config.Decode("ceremony.toml", text, &c) != nil || c.Check() != nil {
			return
		}
		leaves, err := c.Find(nil)
		if err != nil && len(c.Leaf) > 0 {
			t.Fatal(err)
		}
		for _, s := range append(leaves, c.CA) {
			if s.Name == "" || s.Days < 1 {
				t.Fatalf("%+v", s)
			}
			if _, err := c.Find([]string{s.Name}); (err == nil) == (s.Name == c.CA.Name) {
				t.Fatalf("find %q: %v", s.Name, err)
			}
		}
	})
}

// TestExampleCeremony: the text that a newcomer starts from is good.
func TestExampleCeremony(t *testing.T) {
	var c keys.Ceremony
	if err := config.Decode("keys_ceremony.toml", exampleCeremony, &c); err != nil {
		t.Fatal(err)
	}
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
}
