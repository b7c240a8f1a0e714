package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

type sample struct {
	Name string `toml:"name"`
	Rule []struct {
		Path string `toml:"path"`
	} `toml:"rule"`
}

func TestDecodeErrorsNameTheLine(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"name = 'x'\nnmae = 'y'\n", `f.toml:2: unknown key "nmae"`},
		{"[[rule]]\npath = '/'\n\n[[rule]]\n  \"pth\" = '/'\n", `f.toml:5: unknown key "rule.pth"`},
		{"[extra]\nx = 1\n", `f.toml:1: unknown key "extra"`},
		{"name = { a = 1 }\n", "f.toml:1: name: incompatible types: "},
		{"name = \n", "f.toml:1: "},
		{"name = 'x'\nname = 'y'\n", "f.toml:2: "},
		{"\nname = 3\n", "f.toml:2: name: incompatible types: TOML value has type int64"},
	} {
		var v sample
		err := Decode("f.toml", tc.text, &v)
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%q: got %v, want an error that starts with %q", tc.text, err, tc.want)
		}
	}
}

func TestReadFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "big.toml")
	if err := os.WriteFile(path, []byte(strings.Repeat("#\n", maxSize)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReadFile(path, &sample{}); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v", err)
	}
}

func TestFilesInOrder(t *testing.T) {
	dir := t.TempDir()
	main := filepath.Join(dir, "x.toml")
	if _, err := Files(main); err == nil {
		t.Error("a missing file was accepted")
	}
	drop := filepath.Join(dir, "x.d")
	if err := os.Mkdir(drop, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{main, filepath.Join(drop, "20-b.toml"), filepath.Join(drop, "10-a.toml"), filepath.Join(drop, "notes.txt")} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Files(main)
	want := []string{main, filepath.Join(drop, "10-a.toml"), filepath.Join(drop, "20-b.toml")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("[[rule]]\npath = '/var/**'\n")
	f.Add("a.b = 1\n[c.d]\n")
	f.Fuzz(func(t *testing.T, text string) {
		var v sample
		if err := Decode("f.toml", text, &v); err != nil && !strings.HasPrefix(err.Error(), "f.toml") {
			t.Fatalf("%v does not name the file", err)
		}
	})
}
