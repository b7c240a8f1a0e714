package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/pkg/xattr"
)

// corpus is a tree to sign, made once and kept in the cache.
type corpus struct {
	name string
	make func(dir string) error
}

var corpora = []corpus{
	{"real", func(dir string) error { return copyReal(dir, 10000) }},
	{"small", func(dir string) error { return random(dir, 50000, 8<<10) }},
	{"large", large},
}

// tree returns the corpus's directory.
func (c corpus) tree() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "meta-attest", "bench", c.name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	fmt.Fprintf(os.Stderr, "making the corpus %s\n", c.name)
	unfinished := dir + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return "", err
	}
	if err := c.make(unfinished); err != nil {
		return "", err
	}
	return dir, os.Rename(unfinished, dir)
}

// errEnough ends the walk of copyReal.
var errEnough = errors.New("enough")

// copyReal copies files of this machine's /usr, as many of each folder as come first.
func copyReal(dir string, n int) error {
	var every int
	err := filepath.WalkDir("/usr", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if every++; every%5 != 0 {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil || len(content) > 64<<20 {
			return nil
		}
		to := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if n--; n < 0 {
			return errEnough
		}
		return os.WriteFile(to, content, 0o644)
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// perDir is how many files random puts into a folder.
const perDir = 100

// random makes n files of fewer than size bytes.
func random(dir string, n, size int) error {
	var seed [32]byte
	r := rand.NewChaCha8(seed)
	buf := make([]byte, size)
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprintf("%03d", i/perDir))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		content := buf[:int(r.Uint64()%uint64(size))]
		r.Read(content)
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("%02d", i%perDir)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// large makes four files of 512 MiB.
func large(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var seed [32]byte
	r := rand.NewChaCha8(seed)
	buf := make([]byte, 1<<20)
	for i := range 4 {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			return err
		}
		for range 512 {
			r.Read(buf)
			if _, err := f.Write(buf); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// strip removes the labels of a tree and reads its files once, so that each run finds
// the same: no labels, and the content in memory.
func strip(root string) (files []string, bytes int64, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if err := xattr.LRemove(path, "security.ima"); err != nil && !errors.Is(err, xattr.ENOATTR) {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files = append(files, path)
		bytes += info.Size()
		return nil
	})
	return files, bytes, err
}
