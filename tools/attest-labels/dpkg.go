package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/labellist"
)

// dpkg executes dpkg-deb twice for each package that it installs (src/main/unpack.c):
//
//	dpkg-deb --control DEB DIR     to have maintainer scripts, which it runs from DIR;
//	dpkg-deb --fsys-tarfile DEB    for a tar on standard output. It writes each file under its
//	                               name with .dpkg-new behind it, reads to the end of the pipe,
//	                               waits for dpkg-deb to exit, and renames only then.
//
// If either fails it takes back what it has done.

// newSuffix is what dpkg writes files with.
const newSuffix = ".dpkg-new"

// distrib finds the program that ours stands before.
func distrib(name string) (string, error) {
	file, err := exec.LookPath(name + ".distrib")
	if err != nil {
		return "", fmt.Errorf("find %s.distrib: %w: dpkg-divert --rename --add /usr/bin/%s puts it there", name, err, name)
	}
	return file, nil
}

func dpkgDeb(args []string) error {
	file, err := distrib("dpkg-deb")
	if err != nil {
		return err
	}
	byDpkg, err := calledByDpkg()
	switch {
	case err != nil:
		return err
	case byDpkg && len(args) == 3 && args[0] == "--control":
		return dpkgControl(file, args)
	case byDpkg && len(args) == 2 && args[0] == "--fsys-tarfile":
		return dpkgFiles(file, args)
	case byDpkg && unpacks(args):
		return fmt.Errorf("dpkg calls dpkg-deb in a way that is not known, %q: what it unpacks would have no labels", args)
	}
	return unix.Exec(file, append([]string{"dpkg-deb"}, args...), os.Environ())
}

// unpacks says whether what dpkg installs comes of a call.
func unpacks(args []string) bool {
	return slices.Contains(args, "--control") || slices.Contains(args, "--fsys-tarfile")
}

// calledByDpkg tells dpkg, which unpacks a package, from anybody else, who looks at one.
func calledByDpkg() (bool, error) {
	if os.Getenv("DPKG_ADMINDIR") == "" {
		return false, nil
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", os.Getppid()))
	return string(name) == "dpkg\n", err
}

// dpkgControl has the control files unpacked and labels the maintainer scripts.
func dpkgControl(file string, args []string) error {
	c := exec.Command(file, args...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Run(); err != nil {
		return err
	}
	return labelScripts(args[2])
}

// labelScripts labels the maintainer scripts in a folder of control files.
func labelScripts(dir string) error {
	p, err := openUnpacked(dir)
	if err != nil || p == nil {
		return err
	}
	defer p.control.close()
	targets, err := p.control.scriptTargets("", p.scripts)
	if err != nil {
		return err
	}
	return p.control.label(targets)
}

// unpacked is the folder of the control files of a package that is being installed.
type unpacked struct {
	control        *tree
	scripts, files map[string]labellist.Entry
}

// openUnpacked reads the list in a folder of control files; nil if there may be none.
func openUnpacked(dir string) (*unpacked, error) {
	text, err := readFile(filepath.Join(dir, labellist.ControlFile), labellist.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		if optional() {
			return nil, nil
		}
		return nil, errUnsigned
	}
	if err != nil {
		return nil, err
	}
	t, err := loadTrust(keysDir)
	if err != nil {
		return nil, err
	}
	entries, err := t.open(text)
	if err != nil {
		return nil, err
	}
	control, err := openTree(dir, t)
	if err != nil {
		return nil, err
	}
	p := &unpacked{control: control}
	p.scripts, p.files = split(entries)
	return p, nil
}

// dpkgFiles passes the tar on, and labels what dpkg made of it before dpkg goes on.
func dpkgFiles(file string, args []string) error {
	admin := os.Getenv("DPKG_ADMINDIR")
	dir := filepath.Join(admin, "tmp.ci")
	p, err := openUnpacked(dir)
	if err != nil {
		return err
	}
	if p == nil {
		return unix.Exec(file, append([]string{"dpkg-deb"}, args...), os.Environ())
	}
	defer p.control.close()
	names, err := unpack(file, args, os.Stdout)
	if err != nil {
		return err
	}
	if err := drain(os.Stdout); err != nil {
		return err
	}
	d, err := readDiversions(admin, dir)
	if err != nil {
		return err
	}
	return p.labelNew(names, d)
}

// unpack runs the real program, and passes the tar that it writes.
func unpack(file string, args []string, w io.Writer) ([]string, error) {
	c := exec.Command(file, args...)
	c.Stderr = os.Stderr
	pipe, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	names, err := pass(pipe, w)
	if err != nil {
		c.Process.Kill() // it would wait for a reader
	}
	return names, cmp.Or(err, c.Wait())
}

// pass copies a tar and returns the names of its regular files.
func pass(r io.Reader, w io.Writer) ([]string, error) {
	var names []string
	in := io.TeeReader(r, w)
	archive := tar.NewReader(in)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read tar: %w", err)
		}
		if h.Typeflag == tar.TypeReg {
			names = append(names, path.Clean(h.Name))
		}
	}
	_, err := io.Copy(io.Discard, in)
	return names, err
}

// drain returns once who reads the pipe has taken all that was written before. Zeros may follow
// a tar: one more than the pipe holds have been written only when the first of them was read,
// and dpkg reads these when it has written all files.
func drain(pipe *os.File) error {
	size, err := unix.FcntlInt(pipe.Fd(), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return fmt.Errorf("standard output is not the pipe of dpkg: %w", err)
	}
	_, err = pipe.Write(make([]byte, size+1))
	return err
}

// labelNew labels the new files of a package. One that dpkg left out (--path-exclude, or another
// package replaces it) is not there.
func (p *unpacked) labelNew(names []string, d diversions) error {
	root, err := openTree(cmp.Or(os.Getenv("DPKG_ROOT"), "/"), p.control.trust)
	if err != nil {
		return err
	}
	defer root.close()
	var targets []target
	for _, name := range names {
		e, ok := p.files[name]
		if !ok {
			return fmt.Errorf("%q: %w: the label list does not have it", name, errNotAuthentic)
		}
		if e.IMA == nil {
			continue // skipped by the rules of whoever signed
		}
		g := target{d.name(name) + newSuffix, e}
		f, err := root.open(g.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		f.Close()
		targets = append(targets, g)
	}
	return root.label(targets)
}

// diversions are the names that files of one package get instead of their own (dpkg-divert).
type diversions map[string]string

func (d diversions) name(path string) string { return cmp.Or(d[path], path) }

// maxDiversions bounds the file in bytes.
const maxDiversions = 16 << 20

// readDiversions reads those that do not belong to the package whose control files are in dir.
func readDiversions(admin, dir string) (diversions, error) {
	control, err := readFile(filepath.Join(dir, "control"), maxDiversions)
	if err != nil {
		return nil, err
	}
	text, err := readFile(filepath.Join(admin, "diversions"), maxDiversions)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseDiversions(text, packageName(control))
}

// parseDiversions reads three lines for each: from, to, and the package that has it, or ":".
func parseDiversions(text []byte, pkg string) (diversions, error) {
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(text) == 0 {
		return nil, nil
	}
	if len(lines)%3 != 0 {
		return nil, fmt.Errorf("read diversions: %d lines are not three for each", len(lines))
	}
	d := diversions{}
	for i := 0; i < len(lines); i += 3 {
		if lines[i+2] != pkg {
			d[strings.TrimPrefix(lines[i], "/")] = strings.TrimPrefix(lines[i+1], "/")
		}
	}
	return d, nil
}

// packageName finds the field Package of a control file.
func packageName(control []byte) string {
	s := bufio.NewScanner(bytes.NewReader(control))
	for s.Scan() {
		if name, value, _ := strings.Cut(s.Text(), ":"); strings.EqualFold(name, "Package") {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
