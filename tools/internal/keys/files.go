package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Files is a set of files of one folder that come to be together or not at all. No file is
// ever overwritten: a key that is lost cannot be made again.
type Files struct {
	dir   string
	files []file
}

type file struct {
	name    string
	mode    fs.FileMode
	content []byte
	keepAs  string // an existing file gets this name; "": there must be none
}

// NewFiles starts a set of files in dir, which Write creates if it is not there.
func NewFiles(dir string) *Files { return &Files{dir: dir} }

// Add adds a file that must not exist yet. Private keys have mode 0600.
func (f *Files) Add(name string, mode fs.FileMode, content []byte) {
	f.files = append(f.files, file{name: name, mode: mode, content: content})
}

// Replace adds a file whose predecessor stays under the name keepAs, which must be free.
func (f *Files) Replace(name, keepAs string, mode fs.FileMode, content []byte) {
	f.files = append(f.files, file{name, mode, content, keepAs})
}

// Paths returns the paths of the files, in the order in which they were added.
func (f *Files) Paths() []string {
	var paths []string
	for _, e := range f.files {
		paths = append(paths, filepath.Join(f.dir, e.name))
	}
	return paths
}

// Write writes the files under temporary names, flushes them to the disk and then gives
// them their names. After an error everything is as it was before. Where power fails in
// between, all files are there, some under temporary names; a replaced one never is
// without a complete file under its name.
func (f *Files) Write() (err error) {
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for _, step := range slices.Backward(undo) {
			err = errors.Join(err, step())
		}
	}()
	created, err := makeDir(f.dir)
	if err != nil {
		return err
	}
	if created {
		undo = append(undo, func() error { return os.Remove(f.dir) })
	}
	if err := f.checkFree(); err != nil {
		return err
	}
	temporary := make([]string, len(f.files))
	for i, e := range f.files {
		if temporary[i], err = e.writeTemporary(f.dir); err != nil {
			return err
		}
		undo = append(undo, func() error { return removeAny(temporary[i]) })
	}
	for i, e := range f.files {
		back, err := e.place(f.dir, temporary[i])
		if err != nil {
			return err
		}
		undo = append(undo, back)
	}
	if err := syncDir(f.dir); err != nil {
		return err
	}
	for _, t := range temporary {
		if err := removeAny(t); err != nil {
			return err
		}
	}
	return nil
}

// checkFree finds the files that stand in the way before anything is written. place would
// find them, too, but names one only.
func (f *Files) checkFree() error {
	var taken []error
	for _, e := range f.files {
		name := e.name
		if e.keepAs != "" {
			name = e.keepAs
		}
		path := filepath.Join(f.dir, name)
		if _, err := os.Lstat(path); err == nil {
			taken = append(taken, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist})
		} else if !errors.Is(err, fs.ErrNotExist) {
			taken = append(taken, err)
		}
	}
	return errors.Join(taken...)
}

func (e *file) writeTemporary(dir string) (path string, err error) {
	t, err := os.CreateTemp(dir, ".attest-*") // O_EXCL, mode 0600
	if err != nil {
		return "", err
	}
	_, errWrite := t.Write(e.content)
	errs := errors.Join(errWrite, t.Chmod(e.mode), t.Sync(), t.Close())
	if errs != nil {
		return "", errors.Join(fmt.Errorf("write %s: %w", e.name, errs), os.Remove(t.Name()))
	}
	return t.Name(), nil
}

// place gives a temporary file its name. link(2) does not replace, rename(2) does.
func (e *file) place(dir, temporary string) (undo func() error, err error) {
	path := filepath.Join(dir, e.name)
	if e.keepAs == "" {
		if err := os.Link(temporary, path); err != nil {
			return nil, err
		}
		return func() error { return os.Remove(path) }, nil
	}
	kept := filepath.Join(dir, e.keepAs)
	if err := os.Link(path, kept); err != nil {
		return nil, err
	}
	if err := os.Rename(temporary, path); err != nil {
		return nil, errors.Join(err, os.Remove(kept))
	}
	return func() error { return os.Rename(kept, path) }, nil
}

// makeDir creates dir for its owner alone, with its parents, if it is not there.
func makeDir(dir string) (created bool, err error) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, os.MkdirAll(dir, 0o700)
	case err != nil:
		return false, err
	case !info.IsDir():
		return false, fmt.Errorf("%s: not a folder", dir)
	default:
		return false, nil
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeAny removes a temporary file, which is gone if it was renamed.
func removeAny(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
