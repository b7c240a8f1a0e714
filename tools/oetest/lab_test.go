// Package oetest has BitBake build images with the layer, and looks at what came out. The
// builds are real: OE-core's classes of each release, on its checkouts; only native tools
// come from the host (scripts/oe-test).
package oetest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// releases are those of LAYERSERIES_COMPAT in meta-attest/conf/layer.conf.
var releases = []string{"scarthgap", "wrynose"}

// TestMain looks for programs where Debian puts those of the administrator, too.
func TestMain(m *testing.M) {
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	dir, err := os.MkdirTemp("", "oetest")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// eachRelease runs a test for each release whose checkouts are there, two at a time.
func eachRelease(t *testing.T, test func(t *testing.T, release string)) {
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			test(t, release)
		})
	}
}

// repository is the folder above tools.
func repository(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// checkouts returns the folder of openembedded-core and bitbake. Where it is not on this
// machine, and with -short, the test is skipped.
func checkouts(t *testing.T, release string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("runs BitBake; not with -short")
	}
	var stderr bytes.Buffer
	c := exec.Command(filepath.Join(repository(t), "scripts/oe-test"), "checkouts", "--cached", release)
	c.Stderr = &stderr
	out, err := c.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) && exit.ExitCode() == 3 {
		t.Skipf("no checkouts of %s; scripts/oe-test makes them: %s", release, &stderr)
	}
	if err != nil {
		t.Fatalf("scripts/oe-test checkouts: %v\n%s", err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// build is a folder in which bitbake runs.
type build struct {
	release string
	dir     string // BUILDDIR
	repo    string // this repository
	options []string
}

// newBuild makes an empty build. Options are those of "scripts/oe-test shell".
func newBuild(t *testing.T, release string, options ...string) *build {
	t.Helper()
	oe, repo := checkouts(t, release), repository(t)
	// go test repeats a result from its cache while all that the test looked at is as it was. It
	// does not see what other programs read, so look at it here.
	for _, dir := range []string{"classes", "keys-debug", "meta-attest", "policies", "recipes", "scripts", "tools"} {
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
	for _, file := range []string{"openembedded-core/.git/HEAD", "bitbake/.git/HEAD"} {
		os.Stat(filepath.Join(oe, file)) // a release as a tarball has none
	}
	b := &build{release: release, dir: filepath.Join(t.TempDir(), "build"), repo: repo, options: options}
	if err := os.MkdirAll(filepath.Join(b.dir, "conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.configure(t, "")
	return b
}

// configure writes local.conf.
func (b *build) configure(t *testing.T, lines string) {
	t.Helper()
	text := "require conf/lab.conf\n" + lines
	if err := os.WriteFile(filepath.Join(b.dir, "conf/local.conf"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// run is a command that ended.
type run struct {
	out  string // what it printed
	code int
}

// shell runs a command where bitbake works.
func (b *build) shell(t *testing.T, command ...string) run {
	t.Helper()
	args := append([]string{"shell"}, b.options...)
	args = append(append(args, b.release, b.dir, "--"), command...)
	c := exec.CommandContext(t.Context(), filepath.Join(b.repo, "scripts/oe-test"), args...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGTERM) }
	c.WaitDelay = 20 * time.Second
	start := time.Now()
	out, err := c.CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatalf("scripts/oe-test shell: %v\n%s", err, out)
	}
	t.Logf("%s: %s: exit code %d after %.1f s", b.release, strings.Join(command, " "), c.ProcessState.ExitCode(), time.Since(start).Seconds())
	return run{string(out), c.ProcessState.ExitCode()}
}

// bitbake has to succeed.
func (b *build) bitbake(t *testing.T, args ...string) run {
	t.Helper()
	r := b.shell(t, append([]string{"bitbake"}, args...)...)
	if r.code != 0 {
		t.Fatalf("bitbake %s: exit code %d\n%s", strings.Join(args, " "), r.code, r.out)
	}
	return r
}

var startedTask = regexp.MustCompile(`(?m)^NOTE: recipe (\S+)-[^-\s]+-r\d+: task (do_\w+): Started$`)

// tasks lists the tasks that ran, as "recipe:task".
func (r run) tasks() []string {
	var list []string
	for _, m := range startedTask.FindAllStringSubmatch(r.out, -1) {
		list = append(list, m[1]+":"+m[2])
	}
	slices.Sort(list)
	return list
}

// message is the first line of one, with the level.
var message = regexp.MustCompile(`^(NOTE|WARNING|ERROR|Summary|Parsing|Initialising)\b`)

// aftermath is what bitbake itself adds to an error of a task or a recipe.
var aftermath = regexp.MustCompile(`^ERROR: (Task \(|Logfile of failure|Parsing halted|\S+ do_\w+: Execut)`)

// errors lists the errors, each with all of its lines.
func (r run) errors() []string {
	var list []string
	inside := false
	for line := range strings.Lines(r.out) {
		switch {
		case strings.HasPrefix(line, "ERROR: ") && !aftermath.MatchString(line):
			list, inside = append(list, line), true
		case message.MatchString(line) || line == "\n":
			inside = false
		case inside:
			list[len(list)-1] += line
		}
	}
	return list
}

// deployed returns the path of a file beside the images.
func (b *build) deployed(name string) string {
	return filepath.Join(b.dir, "tmp/deploy/images/qemux86-64", name)
}

// image returns the path of an image by what its name ends with, such as ".ext4".
func (b *build) image(recipe, suffix string) string {
	return b.deployed(fmt.Sprintf("%s-qemux86-64.rootfs%s", recipe, suffix))
}

// need skips a test whose programs are not here.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

// command runs a program that has to succeed, and returns its standard output.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	return string(out)
}
