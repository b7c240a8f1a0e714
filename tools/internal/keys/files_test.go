package keys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree is what a folder holds: mode and content of each file, by name.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = info.Mode().String()
		if info.Mode().IsRegular() {
			files[e.Name()] += " " + string(read(t, filepath.Join(dir, e.Name())))
		}
	}
	return files
}

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	f := NewFiles(dir)
	f.Add("ima.key", 0o600, []byte("key"))
	f.Add("ima.crt", 0o644, []byte("old"))
	if err := f.Write(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder has mode %v, %v", info.Mode(), err)
	}
	f = NewFiles(dir)
	f.Replace("ima.crt", "ima.crt.1", 0o644, []byte("new"))
	f.Add("ima.der", 0o644, []byte("der"))
	if err := f.Write(); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"ima.key": "-rw------- key", "ima.crt": "-rw-r--r-- new", "ima.crt.1": "-rw-r--r-- old", "ima.der": "-rw-r--r-- der"}
	if diff := cmp.Diff(want, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{filepath.Join(dir, "ima.crt"), filepath.Join(dir, "ima.der")}, f.Paths()); diff != "" {
		t.Error(diff)
	}
}

// TestFilesAllOrNothing: whatever stands in the way, and wherever, nothing changes.
func TestFilesAllOrNothing(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, dir string){
		"first is there":         func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "new.key"), []byte("mine")) },
		"last is there":          func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "new.der"), []byte("mine")) },
		"a link to nowhere":      func(t *testing.T, dir string) { os.Symlink("/nowhere", filepath.Join(dir, "new.der")) },
		"a folder has the name":  func(t *testing.T, dir string) { os.Mkdir(filepath.Join(dir, "new.der"), 0o700) },
		"old name is taken":      func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "old.crt.1"), []byte("older")) },
		"nothing to be replaced": func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "old.crt")) },
		"replaced file is a folder": func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, "old.crt"))
			os.Mkdir(filepath.Join(dir, "old.crt"), 0o700)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeFile(t, filepath.Join(dir, "old.crt"), []byte("old"))
			prepare(t, dir)
			before := tree(t, dir)
			f := NewFiles(dir)
			f.Add("new.key", 0o600, []byte("key"))
			f.Replace("old.crt", "old.crt.1", 0o644, []byte("new"))
			f.Add("new.der", 0o644, []byte("der"))
			if err := f.Write(); err == nil {
				t.Error("no error")
			} else if strings.Contains(err.Error(), ".attest-") && !strings.Contains(err.Error(), "new") && !strings.Contains(err.Error(), "old") {
				t.Errorf("error names no file: %v", err)
			}
			if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestFilesLateFailure: the last step fails after the others were made.
func TestFilesLateFailure(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "old.crt"), []byte("old"))
	before := tree(t, dir)
	f := NewFiles(dir)
	f.Add("new.key", 0o600, []byte("key"))
	f.Replace("old.crt", "old.crt.1", 0o644, []byte("new"))
	f.Add("absent/new.der", 0o644, []byte("der")) // checkFree sees no file there
	if err := f.Write(); err == nil {
		t.Error("no error")
	}
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
	// A folder that Write made goes, too.
	made := filepath.Join(t.TempDir(), "made")
	f = NewFiles(made)
	f.Add("absent/new.key", 0o600, nil)
	if err := f.Write(); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(made); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}
