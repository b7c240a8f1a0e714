package findexpr

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// names are the regular files of the tree that find and this package are asked about.
var names = []string{
	"init", ".hidden", "a*b", "a[b", "back\\slash", "with space", "ü",
	"bin/sh", "bin/.profile", "etc/fstab", "etc/init.d/rcS", "etc/ssl/certs/a.pem",
	"lib/libc.so.6", "lib/modules/6.1/a.ko", "lib/modules/6.1/modules.dep",
	"usr/bin/bin/sh", "usr/lib/libx.so", "usr/lib/libx.so.1", "usr/share/var/x",
	"var/lib/dpkg/status", "var/log/x.log", "var/x",
}

// tree makes the files, and a link that find does not follow.
func tree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range names {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/lib", filepath.Join(root, "lib64")); err != nil {
		t.Fatal(err)
	}
	return root
}

// ask runs find in root as the class of meta-integrity does, and keeps the regular files.
func ask(t *testing.T, root, text string) []string {
	t.Helper()
	c := exec.Command("sh", "-c", "find "+text)
	c.Dir, c.Env = root, append(os.Environ(), "LC_ALL=C.UTF-8")
	out, _ := c.Output() // fails when a starting point is missing, and prints the rest
	found := []string{}
	for line := range strings.Lines(string(out)) {
		name := filepath.Clean(strings.TrimSuffix(line, "\n"))
		if st, err := os.Lstat(filepath.Join(root, name)); err == nil && st.Mode()&fs.ModeType == 0 {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func matches(e *Expr) []string {
	found := []string{}
	for _, name := range names {
		if e.Match(name) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}

func compare(t *testing.T, root, text string) {
	t.Helper()
	e, err := Parse(text)
	if err != nil {
		t.Errorf("find %s: %v", text, err)
		return
	}
	if diff := cmp.Diff(ask(t, root, text), matches(e)); diff != "" {
		t.Errorf("find %s: find (-) and we (+) differ:\n%s", text, diff)
	}
}

// TestLikeFind compares with find: first what images of meta-integrity's users say.
func TestLikeFind(t *testing.T) {
	if _, err := exec.LookPath("find"); err != nil {
		t.Skip("find is not installed")
	}
	root := tree(t)
	for _, text := range []string{
		". -type f", "", ".", "-maxdepth 0 -false", ". -maxdepth 0 -false", "usr sbin bin lib -type f",
		`. -type f -a ! \( -path './etc/*' -o -path './var/*' -o -path './usr/dbspace/*' \)`,
		`. -type f -a \( -path './etc/*' -o -path './var/*' -o -path './usr/dbspace/*' \)`,
		"./ -type f", "./usr/ -type f", "usr// -path 'usr//lib/*'", "usr -path './usr/*'", "./usr -path './usr/*'",
		"./init", "init bin", "lib64 -type f", ". -type d", ". -type l", ". -type f,d", ". -name sh", ". -name '*.so'",
		". -name '*.so*' -path '*/lib/*'", `. -name "*.ko" -o -name 'modules.*'`, ". -path ./var -prune -o -type f -print",
		`. \( -path ./var -o -path ./etc \) -prune -o -type f -print`, ". -name '.*' -prune -o -print", ". -depth -path ./var -prune -o -print",
		". -maxdepth 1 -type f", ". -mindepth 3", ". -maxdepth 2 -mindepth 2", "usr -maxdepth 1", ". -name '[!a-l]*'", ". -name '[]ab]*'", ". -name 'a[b'",
		`. -name 'a\*b'`, `. -name 'back\\slash'`, ". -name 'with space'", `. -name with\ space`, ". -name '?'", ". -iname 'LIBC*'", ". -ipath './ETC/*'",
		". -wholename './etc/*'", ". -iwholename './ETC/*'", ". ! -name x -not -name sh", ". -print -o -print", ". ! -print", ". -xdev -mount -true", ". -name '[^.]*'", ". -name '[a-]*'", ". -path './*/x'", ". -path './?ar/x'",
		". -name ''", ". -type f -and -name x -or -name sh",
	} {
		compare(t, root, text)
	}
}

// TestRandomLikeFind compares expressions that nobody would write.
func TestRandomLikeFind(t *testing.T) {
	if _, err := exec.LookPath("find"); err != nil {
		t.Skip("find is not installed")
	}
	root := tree(t)
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	var expr func(depth int) string
	expr = func(depth int) string {
		if depth == 0 {
			return pick("-type f", "-type d", "-name 'lib*'", "-name sh", "-name '.*'", "-path './usr/*'", "-path './var'", "-path '*/lib/*'",
				"-path 'usr/*'", "-true", "-false", "-prune", "-print", "-name '[a-m]*'", "-maxdepth 2", "-mindepth 2", "-depth -true")
		}
		a, b := expr(depth-1), expr(depth-1)
		return pick(`\( `+a+` \)`, `! \( `+a+` \)`, a+" "+b, a+" -a "+b, a+" -o "+b, `\( `+a+" -o "+b+` \) `+b, "! "+a)
	}
	for range 300 {
		compare(t, root, pick(".", "", "./", "usr", "./usr var", "usr/ bin", "init lib", ". usr")+" "+expr(r.IntN(4)))
	}
}

func TestRefused(t *testing.T) {
	for text, want := range map[string]string{
		". -type f -uid 0":              `"-uid" cannot be translated`,
		". -perm /111":                  `"-perm" cannot be translated`,
		". -type f -exec rm {} +":       `"-exec" cannot be translated`,
		". -type f -print0":             `"-print0" cannot be translated`,
		". -name *.so":                  `'*' outside of quotes`,
		". -name \"$(id)\"":             `'$' in double quotes`,
		". -type f | cat":               `'|' outside of quotes`,
		". ( -name x )":                 `'(' outside of quotes`,
		"/usr -type f":                  `"/usr" does not lie in the image`,
		"usr/../.. -type f":             `does not lie in the image`,
		"'' -type f":                    `does not lie in the image`,
		". -type":                       `"-type" needs an argument`,
		". -type x":                     `-type "x" is unknown`,
		". -type ff":                    `-type "ff" is unknown`,
		". -type ''":                    `-type "" is unknown`,
		". -name 'a":                    `no closing '`,
		". -name a\\":                   `backslash at the end`,
		`. -name 'a\'`:                  `backslash at the end`,
		`. \( -name x`:                  `no closing )`,
		`. -name x \)`:                  `")" is not expected here`,
		`. \( \)`:                       `")" cannot be translated`,
		". -name x -o":                  `the expression ends too early`,
		". -maxdepth x":                 `not a number`,
		". -type f usr":                 `"usr" cannot be translated`,
		". -name '[[:alpha:]]'":         `"[:" is not supported`,
		". -name '[b-a]'":               `is empty`,
		". , -name x":                   `","`,
		strings.Repeat("! ", 101) + ".": `more than 100`,
		strings.Repeat("x", maxText+1):  `longer than`,
	} {
		e, err := Parse(text)
		if err == nil || !strings.Contains(err.Error(), want) || e != nil {
			t.Errorf("%.40s: got %v, %v, want %s", text, e, err, want)
		}
	}
}

// TestDepthOfBSD is the default of meta-integrity, which GNU find refuses.
func TestDepthOfBSD(t *testing.T) {
	for text, want := range map[string][]string{
		". -depth 0 -false": {},
		". -depth 1":        {".hidden", "a*b", "a[b", "back\\slash", "init", "with space", "ü"},
	} {
		e, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, matches(e)); diff != "" {
			t.Errorf("%s:\n%s", text, diff)
		}
	}
}

// FuzzParse: text that is taken answers for every path, the same each time; a start is
// never left.
func FuzzParse(f *testing.F) {
	for _, text := range []string{". -type f", `usr ! \( -path './a*' -o -name "[!x]" \) -prune -o -print`, ". -maxdepth 1 -depth", "'a'\\ b"} {
		f.Add(text, "usr/bin/sh")
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		e, err := Parse(text)
		if err != nil {
			if e != nil {
				t.Fatal("an expression and an error")
			}
			return
		}
		if !fs.ValidPath(name) || name == "." {
			return
		}
		if again, _ := Parse(text); again.Match(name) != e.Match(name) || e.String() != text {
			t.Fatal("not the same twice")
		}
	})
}
