package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Packages maps a path in the tree to the package that brought it.
type Packages map[string]string

// packageLists are the folders in which dpkg and opkg keep NAME.list, a path on a line.
var packageLists = []string{"var/lib/dpkg/info", "var/lib/opkg/info", "usr/lib/opkg/info"}

// Bounds of a list, which that of a kernel with all its modules stays far below.
const (
	maxPackageList = 16 << 20
	maxPackageName = 256
)

// ReadPackages reads the lists of the package manager in the tree, if it has any.
func (t *Tree) ReadPackages() (Packages, error) {
	p := Packages{}
	for _, dir := range packageLists {
		d, err := t.openInside(dir)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			return nil, err
		}
		names, err := readNames(int(d.Fd()))
		d.Close()
		if errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", dir, err)
		}
		for _, name := range names {
			list, ok := strings.CutSuffix(name, ".list")
			if !ok {
				continue
			}
			pkg, _, _ := strings.Cut(list, ":") // Multi-Arch packages: NAME:ARCH.list
			if err := p.readFile(t, path.Join(dir, name), pkg); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

func (p Packages) readFile(t *Tree, list, pkg string) error {
	if len(pkg) > maxPackageName || !utf8.ValidString(pkg) {
		return fmt.Errorf("%q: package name is not UTF-8 of at most %d bytes", list, maxPackageName)
	}
	f, err := t.openInside(list)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() > maxPackageList {
		return fmt.Errorf("%q: not a regular file of at most %d bytes", list, maxPackageList)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxPackageList))
	if err != nil {
		return fmt.Errorf("read %q: %w", list, err)
	}
	p.add(text, pkg, t.mergedDirs())
	return nil
}

// add adds the paths of one list; merged says what has become of a first component.
func (p Packages) add(list []byte, pkg string, merged func(string) string) {
	for line := range bytes.Lines(list) {
		// opkg puts mode and owner behind a tab.
		file, _, _ := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte("\t"))
		top, rest, nested := strings.Cut(strings.TrimPrefix(string(file), "/"), "/")
		switch {
		case top == "" || top == ".":
		case nested:
			p[merged(top)+"/"+rest] = pkg
		default:
			p[top] = pkg
		}
	}
}

// mergedDirs returns a function that follows /bin -> usr/bin and its like: package lists
// name files by the path in the package, a walk by the path where they are.
func (t *Tree) mergedDirs() func(top string) string {
	known := map[string]string{}
	return func(top string) string {
		to, ok := known[top]
		if !ok {
			to = top
			buf := make([]byte, unix.PathMax)
			if n, err := unix.Readlinkat(int(t.dir.Fd()), top, buf); err == nil {
				to = strings.Trim(path.Clean(string(buf[:n])), "/")
			}
			known[top] = to
		}
		return to
	}
}
