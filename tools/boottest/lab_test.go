// Package boottest has the kernel judge what attest signs: it boots real userlands under
// QEMU and compares what Linux accepts and refuses with what it should, case by case.
package boottest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/boottest/vm"
	"github.com/meta-attest/meta-attest/tools/internal/cpio"
)

// TestMain looks for programs where Debian puts those of the administrator, too.
func TestMain(m *testing.M) {
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	os.Exit(m.Run())
}

// lab is what all boots of a test share.
type lab struct {
	dir    string   // of the test; bin, keys and trees are in it
	repo   string   // this repository
	kernel string   // what scripts/kernel made
	wrap   []string // before a command that writes labels: nothing as root, else pseudo
}

// openLab finds the kernel and what starts it. What is missing on this machine skips the
// test, and is named.
func openLab(t *testing.T) *lab {
	t.Helper()
	if testing.Short() {
		t.Skip("boots machines; not with -short")
	}
	need(t, "qemu-system-x86_64", "swtpm", "swtpm_setup")
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(filepath.Join(repo, "scripts/kernel"), "--cached").Output()
	if err != nil {
		t.Skip("no kernel in the cache; scripts/kernel builds one in 6 to 25 minutes")
	}
	// go test repeats a result from its cache while all that the test looked at is as it was. It
	// does not see what other programs read, so look at it here.
	for _, dir := range []string{"keys-debug", "recipes", "scripts", "tools"} {
		err := filepath.WalkDir(filepath.Join(repo, dir), func(path string, _ os.DirEntry, err error) error {
			if err == nil {
				_, err = os.Stat(path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return &lab{dir: t.TempDir(), repo: repo, kernel: strings.TrimSpace(string(out))}
}

func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

// prepare builds the programs and makes the keys.
func (l *lab) prepare(t *testing.T) {
	t.Helper()
	need(t, "mke2fs", "sfdisk", "mkfs.erofs", "mksquashfs", "getfattr", "openssl", "dpkg", "apt-get")
	l.wrapped(t)
	l.build(t, "1", "./tools/attest")
	l.build(t, "0", "./tools/attest-init")
	l.build(t, "0", "./tools/boottest/guest")
	l.makeKeys(t)
}

// wrapped finds what writes labels.
func (l *lab) wrapped(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		libs, _ := filepath.Glob("/usr/lib/*/pseudo/libpseudo.so")
		if len(libs) == 0 {
			t.Skip("labels need root or pseudo: apt-get install pseudo")
		}
		l.wrap = []string{"env", "PSEUDO_PREFIX=/usr", "PSEUDO_BINDIR=/usr/bin", "PSEUDO_LIBDIR=" + filepath.Dir(libs[0]),
			"PSEUDO_LOCALSTATEDIR=" + filepath.Join(l.dir, "pseudo"), "pseudo"}
	}
}

// build compiles one of our programs into bin.
func (l *lab) build(t *testing.T, cgo, pkg string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(l.dir, "bin", filepath.Base(pkg)), pkg)
	c.Dir, c.Env = l.repo, append(os.Environ(), "CGO_ENABLED="+cgo)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
}

// script runs a text of sh in the folder of the lab. It stops at the first error.
func (l *lab) script(t *testing.T, wrap []string, text string) {
	t.Helper()
	args := append(append([]string{}, wrap...), "sh", "-eu", "-c", text)
	c := exec.CommandContext(t.Context(), args[0], args[1:]...)
	c.Dir = l.dir
	c.Env = append(os.Environ(), "PATH="+filepath.Join(l.dir, "bin")+":"+os.Getenv("PATH"),
		"REPO="+l.repo, "KERNEL="+l.kernel, "LC_ALL=C")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
}

// packages unpacks packages of the distribution into a folder. They are downloaded once.
func (l *lab) packages(t *testing.T, root string, names ...string) {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	release, err := exec.Command("sh", "-c", `. /etc/os-release && echo "$ID-$VERSION_ID"`).Output()
	if err != nil {
		t.Fatal(err)
	}
	cache = filepath.Join(cache, "meta-attest", "packages", strings.TrimSpace(string(release)))
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	find := func(name string) string {
		files, _ := filepath.Glob(filepath.Join(cache, name+"_*.deb"))
		return slices.Max(append(files, ""))
	}
	missing := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return find(name) != "" })
	if len(missing) > 0 {
		c := exec.CommandContext(t.Context(), "apt-get", append([]string{"download", "-qq"}, missing...)...)
		c.Dir = cache
		if out, err := c.CombinedOutput(); err != nil {
			t.Skipf("packages %v are neither in %s nor to be had: %v\n%s", missing, cache, err, out)
		}
	}
	var unpack strings.Builder
	fmt.Fprintf(&unpack, "mkdir -p '%s'\n", root)
	for _, name := range names {
		fmt.Fprintf(&unpack, "dpkg -x '%s' '%s'\n", find(name), root)
	}
	l.script(t, l.wrap, unpack.String())
}

// libraries lists a package and the libraries that it needs.
func libraries(t *testing.T, name string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests",
		"--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances", name).Output()
	if err != nil {
		t.Fatalf("apt-cache depends %s: %v", name, err)
	}
	list := []string{name}
	for line := range strings.Lines(string(out)) {
		dep := strings.TrimSpace(line)
		if line[0] != ' ' && (strings.HasPrefix(dep, "lib") || dep == "zlib1g") {
			list = append(list, dep)
		}
	}
	return list
}

// machine is one boot.
type machine struct {
	kernel    string       // "" for the lab's
	append    string       // for the kernel's command line
	initramfs []cpio.Entry // beside attest-init and the folder etc/keys; nil for none at all
	images    []string
	cases     []testCase // what the guest tries; nil if it must not come to that
}

// testCase is a row of the report.
type testCase = vm.Case

// boot starts a machine, and returns its console once it has ended.
func (l *lab) boot(t *testing.T, m machine) (console string) {
	t.Helper()
	if m.kernel == "" {
		m.kernel = filepath.Join(l.kernel, "bzImage")
	}
	v := vm.Machine{Repo: l.repo, Kernel: m.kernel, Append: m.append, Cases: m.cases}
	if m.initramfs != nil {
		v.Initramfs = l.initramfs(t, m.initramfs)
	}
	for _, image := range m.images {
		v.Images = append(v.Images, filepath.Join(l.dir, image))
	}
	return v.Boot(t)
}

// initramfs packs attest-init and more.
func (l *lab) initramfs(t *testing.T, more []cpio.Entry) string {
	t.Helper()
	init := l.file(t, "init", "bin/attest-init")
	init.Mode = cpio.Regular | 0o755
	var b bytes.Buffer
	if err := cpio.Write(&b, append([]cpio.Entry{init,
		{Name: "etc", Mode: cpio.Dir | 0o755},
		{Name: "etc/keys", Mode: cpio.Dir | 0o755},
	}, more...)); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "initramfs")
	if err := os.WriteFile(archive, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return archive
}

// has wants the console to have a line with each text.
func has(t *testing.T, console string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		seen := "nothing like it"
		for line := range strings.Lines(console) {
			if strings.Contains(line, text) {
				seen = strings.TrimSpace(line)
			}
		}
		if seen == "nothing like it" {
			t.Errorf("no %q on the console:\n%s", text, console)
		}
		t.Logf("console: %s | %s", text, seen)
	}
}

// file is an entry of an initramfs with the content of a file of the lab.
func (l *lab) file(t *testing.T, name, from string) cpio.Entry {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(l.dir, from))
	if err != nil {
		t.Fatal(err)
	}
	return cpio.Entry{Name: name, Mode: cpio.Regular | 0o644, Data: data}
}
