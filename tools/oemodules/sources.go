package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// goarchs are those that OE-core's goarch.bbclass knows: what is imported may differ.
var goarchs = []string{"386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "ppc64", "ppc64le", "riscv64", "s390x"}

// goPackage is what go list says of a package. Module is nil in the standard library.
type goPackage struct {
	Dir    string
	Module *struct {
		Dir  string
		Main bool
	}
}

// listPackages lists what programs are made of with build tags, and so has the go command fill cache, an empty
// folder, with all that it needs. Files come from the user's own module cache where it has them.
func listPackages(root, cache string, tags, programs []string) ([]goPackage, error) {
	own, err := exec.Command("go", "env", "GOMODCACHE", "GOPROXY").Output()
	if err != nil {
		return nil, fmt.Errorf("run go env: %w", err)
	}
	lines := strings.Split(string(own), "\n")
	env := append(os.Environ(), "GOOS=linux", "GOMODCACHE="+cache, "GOFLAGS=-mod=readonly -modcacherw -tags="+strings.Join(tags, ","), "GOWORK=off",
		"GOPROXY=file://"+filepath.ToSlash(lines[0])+"/cache/download,"+lines[1])
	var packages []goPackage
	for _, goarch := range goarchs {
		for _, cgo := range []string{"0", "1"} {
			cmd := exec.Command("go", append([]string{"list", "-deps", "-json=Dir,Module"}, programs...)...)
			cmd.Dir = root
			cmd.Env = append(env, "GOARCH="+goarch, "CGO_ENABLED="+cgo)
			var talk bytes.Buffer
			cmd.Stderr = &talk
			out, err := cmd.Output()
			if err != nil {
				return nil, fmt.Errorf("list packages for %s: %w: %s", goarch, err, talk.Bytes())
			}
			for dec := json.NewDecoder(bytes.NewReader(out)); ; {
				var p goPackage
				err := dec.Decode(&p)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					return nil, fmt.Errorf("read what go list prints: %w", err)
				}
				packages = append(packages, p)
			}
		}
	}
	return packages, nil
}

// source is a file that a Go module proxy serves.
type source struct {
	path    string
	module  string
	version string
	ext     string // .zip, or .mod where a go.mod is all that is needed
}

// findSources lists the files of a module cache's cache/download. BitBake takes the go.mod of
// a module out of its zip; where there is no zip, it is fetched alone.
func findSources(download string) ([]source, error) {
	var sources []source
	err := filepath.WalkDir(download, func(path string, d fs.DirEntry, err error) error {
		ext := filepath.Ext(path)
		if err != nil || ext != ".zip" && ext != ".mod" {
			return err
		}
		if ext == ".mod" {
			if _, err := os.Stat(strings.TrimSuffix(path, ext) + ".zip"); err == nil {
				return nil
			}
		}
		dir, file := filepath.Split(path)
		module, err := filepath.Rel(download, filepath.Dir(filepath.Clean(dir))) // without @v
		if err != nil {
			return err
		}
		sources = append(sources, source{path, unescape(filepath.ToSlash(module)), unescape(strings.TrimSuffix(file, ext)), ext})
		return nil
	})
	return sources, err
}

func sourcesInclude(sources []source) ([]byte, error) {
	var uris []string
	for _, s := range sources {
		data, err := os.ReadFile(s.path)
		if err != nil {
			return nil, err
		}
		only := ""
		if s.ext == ".mod" {
			only = "mod=1;"
		}
		uris = append(uris, fmt.Sprintf("gomod://%s;version=%s;%ssha256sum=%x", s.module, s.version, only, sha256.Sum256(data)))
	}
	return list("SRC_URI", uris), nil
}

// copySources writes sources to a DL_DIR, under the names that BitBake's fetcher looks for.
func copySources(sources []source, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, s := range sources {
		data, err := os.ReadFile(s.path)
		if err != nil {
			return err
		}
		name := filepath.Join(dir, strings.ReplaceAll(s.module, "/", ".")+"@"+s.version+s.ext)
		// Under a name of its own first: a build may be reading the folder.
		if err := os.WriteFile(name+".new", data, 0o644); err != nil {
			return err
		}
		if err := os.Rename(name+".new", name); err != nil {
			return err
		}
	}
	return nil
}

var escaped = regexp.MustCompile(`![a-z]`)

// unescape undoes what the go command does to capital letters of paths and versions: !x is X.
func unescape(s string) string {
	return escaped.ReplaceAllStringFunc(s, func(e string) string { return strings.ToUpper(e[1:]) })
}

// list writes an include that adds items to a variable, sorted.
func list(name string, items []string) []byte {
	slices.Sort(items)
	b := []byte(notice + name + " += \"\\\n")
	for _, item := range slices.Compact(items) {
		b = append(b, "    "+item+" \\\n"...)
	}
	return append(b, "\"\n"...)
}
