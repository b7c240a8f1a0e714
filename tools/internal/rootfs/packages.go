package rootfs

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Packages maps a path in the tree to the package that brought it.
type Packages map[string]string

// packageLists are the folders in which dpkg and opkg keep NAME.list, a path on a line.
var packageLists = []string{"var/lib/dpkg/info", "var/lib/opkg/info", "usr/lib/opkg/info"}

// maxPackageList bounds one list; that of a kernel with all modules has 0.5 MB.
const maxPackageList = 64 << 20

// ReadPackages reads the lists of the package manager in the tree, if it has any.
func (t *Tree) ReadPackages() (Packages, error) {
	p := Packages{}
	for _, dir := range packageLists {
		entries, err := os.ReadDir(path.Join(t.root, dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			name, ok := strings.CutSuffix(e.Name(), ".list")
			if !ok {
				continue
			}
			name, _, _ = strings.Cut(name, ":") // Multi-Arch packages: NAME:ARCH.list
			if err := p.read(t, path.Join(dir, e.Name()), name); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

func (p Packages) read(t *Tree, list, name string) error {
	f, err := t.open(list)
	if err != nil {
		return err
	}
	defer f.Close()
	merged := map[string]string{}
	lines := bufio.NewScanner(io.LimitReader(f, maxPackageList))
	for lines.Scan() {
		// opkg puts mode and owner behind a tab.
		file, _, _ := bytes.Cut(lines.Bytes(), []byte("\t"))
		if rel := strings.TrimPrefix(string(file), "/"); rel != "" && rel != "." {
			p[t.resolveMerged(merged, rel)] = name
		}
	}
	return lines.Err()
}

// resolveMerged follows /bin -> usr/bin and its like: package lists name files by the
// path in the package, a walk by the path where they are.
func (t *Tree) resolveMerged(known map[string]string, rel string) string {
	top, rest, nested := strings.Cut(rel, "/")
	if !nested {
		return rel
	}
	to, ok := known[top]
	if !ok {
		to = top
		buf := make([]byte, unix.PathMax)
		if n, err := unix.Readlinkat(int(t.dir.Fd()), top, buf); err == nil {
			to = strings.Trim(path.Clean(string(buf[:n])), "/")
		}
		known[top] = to
	}
	return to + "/" + rest
}
