package rootfs

import (
	"bytes"
	"context"
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

// strangeTree makes one of each kind of file that a walk can meet, and returns the
// paths that have to be signed.
func strangeTree(t *testing.T, root string) []string {
	t.Helper()
	files := map[string]fs.FileMode{
		"plain": 0o644, "mode0": 0, "readonly": 0o444, "setuid": 0o755 | fs.ModeSetuid, "sticky": 0o644 | fs.ModeSticky,
		"new\nline": 0o644, "quote\"'`": 0o644, "back\\slash": 0o644, "trailing ": 0o644, " ": 0o644, "-k": 0o644,
		"\xff\xfenot-utf8": 0o644, "sub/dir/ünïcode": 0o644, "sub/#comment": 0o644, "sub/a=b": 0o644, "a.txt": 0o644, "a/x": 0o644,
	}
	for name, mode := range files {
		write(t, filepath.Join(root, name), []byte("content of "+name), mode)
	}
	write(t, filepath.Join(root, "empty"), nil, 0o644)
	sparse := filepath.Join(root, "sparse")
	write(t, sparse, nil, 0o644)
	for _, err := range []error{
		os.Truncate(sparse, 3<<20+5),
		os.Link(filepath.Join(root, "plain"), filepath.Join(root, "zz-link")),
		os.Link(filepath.Join(root, "plain"), filepath.Join(root, "sub/link")),
		os.Symlink("plain", filepath.Join(root, "symlink")),
		os.Symlink("/etc/passwd", filepath.Join(root, "outside")),
		os.Symlink("missing", filepath.Join(root, "dangling")),
		unix.Mkfifo(filepath.Join(root, "fifo"), 0o644),
		unix.Mknod(filepath.Join(root, "socket"), unix.S_IFSOCK|0o644, 0),
		os.Mkdir(filepath.Join(root, "empty-dir"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(filepath.Join(root, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Logf("no device node in the tree: %v", err)
	}
	return append(slices.Collect(maps.Keys(files)), "empty", "sparse")
}

func TestSignStrangeFiles(t *testing.T) {
	needLabels(t)
	root := t.TempDir()
	want := strangeTree(t, root)
	past := time.Unix(1e9, 12345)
	for _, name := range want {
		if err := os.Chtimes(filepath.Join(root, name), past, past); err != nil {
			t.Fatal(err)
		}
	}
	p := newPair(t, "P-256")
	layout, _ := ima.ParseTarget("x86_64")
	report, notes := sign(t, root, SignOptions{Signer: p.signer(t, ima.SHA256), EVM: p.signer(t, ima.SHA256), Layout: layout})
	if n := int64(len(want)); report.Signed != n || report.Files != n || report.Written != n || !report.Complete() {
		t.Errorf("want %d files: %+v", n, report)
	}
	if len(notes) != 1 || notes[0].Kind != NoteLinks || notes[0].Path != "plain" || !slices.Equal(notes[0].Other, []string{"sub/link", "zz-link"}) {
		t.Errorf("notes: %+v", notes)
	}
	for _, name := range want {
		st, err := os.Lstat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if !st.ModTime().Equal(past) {
			t.Errorf("%q: mtime is now %v", name, st.ModTime())
		}
	}
	if x, err := xattr.LList(filepath.Join(root, "symlink")); err != nil || len(x) > 0 {
		t.Errorf("symlink has %v, %v", x, err)
	}
	if _, findings := check(t, root, CheckOptions{Trust: p.trust(t), EVM: true, All: true, Layout: fixed(layout)}); len(findings) > 0 {
		t.Errorf("findings: %+v", findings)
	}
}

// labelsOf reads the labels of all files below root.
func labelsOf(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		for _, name := range []string{ima.XattrIMA, ima.XattrEVM} {
			value, err := xattr.LGet(path, name)
			if err == nil {
				all[path+" "+name] = hex.EncodeToString(value)
			} else if !errors.Is(err, xattr.ENOATTR) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestSignIsReproducibleAndIdempotent(t *testing.T) {
	needLabels(t)
	p, q := newPair(t, "P-256"), newPair(t, "RSA-2048")
	for _, tc := range []struct {
		name string
		p    pair
	}{{"P-256", p}, {"RSA-2048", q}} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			for i := range 300 {
				write(t, filepath.Join(root, fmt.Sprint(i%7), fmt.Sprint(i)), bytes.Repeat([]byte{byte(i)}, i*40), 0o644)
			}
			o := SignOptions{Signer: tc.p.signer(t, ima.SHA256), EVM: tc.p.signer(t, ima.SHA256), Jobs: 1}
			o.Layout, _ = ima.ParseTarget("arm")
			sign(t, root, o)
			first := labelsOf(t, root)
			if len(first) != 600 {
				t.Fatalf("%d labels", len(first))
			}
			report, _ := sign(t, root, o)
			if report.Written != 0 || report.Unchanged != 300 || report.Signed != 300 {
				t.Errorf("signed again: %+v", report)
			}
			o.Jobs, o.Force = 8, true
			if report, _ := sign(t, root, o); report.Written != 300 {
				t.Errorf("forced: %+v", report)
			}
			if again := labelsOf(t, root); !maps.Equal(first, again) {
				t.Error("other labels with 8 jobs than with 1")
			}
			o.Force = false
			other := newPair(t, "P-256")
			o.Signer, o.EVM = other.signer(t, ima.SHA256), other.signer(t, ima.SHA256)
			if report, _ := sign(t, root, o); report.Written != 300 {
				t.Errorf("with another key: %+v", report)
			}
			if _, findings := check(t, root, CheckOptions{Trust: other.trust(t), All: true, EVM: true, Layout: fixed(o.Layout)}); len(findings) > 0 {
				t.Errorf("findings: %v", findings[0])
			}
		})
	}
}

func TestRulesDecide(t *testing.T) {
	needLabels(t)
	root := t.TempDir()
	for _, name := range []string{"bin/sh", "etc/motd", "var/log/x", "var/lib/y"} {
		write(t, filepath.Join(root, name), []byte(name), 0o644)
	}
	p := newPair(t, "P-256")
	o := SignOptions{Signer: p.signer(t, ima.SHA256)}
	sign(t, root, o)
	for _, text := range []string{"sign:/var/lib/*", "skip:/var/**", "hash:/etc/**"} {
		r, err := ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		o.Rules = append(o.Rules, r)
	}
	report, notes := sign(t, root, o)
	if report.Files != 3 || report.Signed != 3 || report.Hashed != 1 || report.Skipped != 1 || report.Written != 1 {
		t.Errorf("%+v", report)
	}
	if len(notes) != 1 || notes[0].Kind != NoteStale || notes[0].Path != "var/log/x" {
		t.Errorf("notes: %+v", notes)
	}
	o.ClearSkipped = true
	if report, notes = sign(t, root, o); report.Cleared != 1 || len(notes) != 0 {
		t.Errorf("%+v, notes %+v", report, notes)
	}
	got := labelsOf(t, root)
	if len(got) != 3 || !strings.HasPrefix(got[filepath.Join(root, "etc/motd")+" security.ima"], "0404") {
		t.Errorf("labels: %v", got)
	}
}

// TestSigningWithoutEVM: a security.evm that this run cannot vouch for does not stay.
func TestSigningWithoutEVM(t *testing.T) {
	needLabels(t)
	root := t.TempDir()
	file := filepath.Join(root, "a")
	write(t, file, []byte("a"), 0o644)
	p := newPair(t, "P-256")
	layout, _ := ima.ParseTarget("x86_64")
	o := SignOptions{Signer: p.signer(t, ima.SHA256), EVM: p.signer(t, ima.SHA256), Layout: layout}
	sign(t, root, o)
	if err := os.Chmod(file, 0o755); err != nil {
		t.Fatal(err)
	}
	o.EVM = nil
	if report, _ := sign(t, root, o); report.Unchanged != 1 || report.Cleared != 1 || len(labelsOf(t, root)) != 1 {
		t.Errorf("%+v, %v", report, labelsOf(t, root))
	}
	if _, findings := check(t, root, CheckOptions{Trust: p.trust(t), All: true}); len(findings) > 0 {
		t.Errorf("%+v", findings)
	}
	// A dump cannot remove what is there.
	o.EVM = p.signer(t, ima.SHA256)
	sign(t, root, o)
	o.EVM, o.Dump = nil, io.Discard
	if report, notes := sign(t, root, o); report.Complete() || len(notes) != 1 || notes[0].Kind != NoteFailed {
		t.Errorf("%+v, %+v", report, notes)
	}
}

func TestLinksWithDifferentRules(t *testing.T) {
	needLabels(t)
	root := t.TempDir()
	write(t, filepath.Join(root, "bin/x"), []byte("x"), 0o755)
	os.Mkdir(filepath.Join(root, "var"), 0o755)
	for _, to := range []string{filepath.Join(root, "var/x"), filepath.Join(t.TempDir(), "outside")} {
		if err := os.Link(filepath.Join(root, "bin/x"), to); err != nil {
			t.Fatal(err)
		}
	}
	p := newPair(t, "P-256")
	rule, _ := ParseRule("skip:/var/**")
	report, notes := sign(t, root, SignOptions{Signer: p.signer(t, ima.SHA256), Rules: Rules{rule}})
	if report.Complete() || report.Failed != 1 {
		t.Errorf("%+v", report)
	}
	var kinds []NoteKind
	for _, n := range notes {
		kinds = append(kinds, n.Kind)
	}
	if !slices.Equal(kinds, []NoteKind{NoteFailed, NoteLinks, NoteOutside}) {
		t.Errorf("notes: %+v", notes)
	}
}

// TestInterrupted: what was begun is finished, the rest is untouched, and nothing is
// reported that did not happen.
func TestInterrupted(t *testing.T) {
	needLabels(t)
	root := t.TempDir()
	const files = 2000
	for i := range files {
		write(t, filepath.Join(root, fmt.Sprint(i)), []byte{byte(i), byte(i >> 8)}, 0o644)
	}
	p := newPair(t, "P-256")
	o := SignOptions{Signer: p.signer(t, ima.SHA256), Jobs: 2, Progress: new(Progress)}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for o.Progress.Files.Load() < 200 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	report, err := Sign(ctx, openTree(t, root), o)
	if !errors.Is(err, context.Canceled) {
		t.Skipf("the run was over before it was interrupted: %v", err)
	}
	if labels := int64(len(labelsOf(t, root))); labels < report.Signed || report.Complete() || report.Failed > 0 {
		t.Errorf("%d files have labels: %+v", labels, report)
	}
	if report, _ := sign(t, root, o); report.Signed != files {
		t.Errorf("the next run: %+v", report)
	}
	if _, findings := check(t, root, CheckOptions{Trust: p.trust(t), All: true}); len(findings) > 0 {
		t.Errorf("%+v", findings)
	}
}

// mount mounts a filesystem for the length of the test.
func mount(t *testing.T, kind, dir string) {
	t.Helper()
	if err := syscall.Mount("none", dir, kind, 0, ""); err != nil {
		t.Skipf("cannot mount %s: %v", kind, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestOtherMountsAreReported(t *testing.T) {
	needLabels(t)
	root := t.TempDir()
	write(t, filepath.Join(root, "a"), []byte("a"), 0o644)
	dir := filepath.Join(root, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mount(t, "tmpfs", dir)
	write(t, filepath.Join(dir, "hidden"), []byte("x"), 0o644)
	p := newPair(t, "P-256")
	report, notes := sign(t, root, SignOptions{Signer: p.signer(t, ima.SHA256)})
	if report.Signed != 1 || report.Complete() || len(notes) != 1 || notes[0].Kind != NoteOtherMount || notes[0].Path != "mnt" {
		t.Errorf("%+v, notes %+v", report, notes)
	}
	_, findings := check(t, root, CheckOptions{Trust: p.trust(t), All: true})
	if len(findings) != 1 || findings[0].Code != CodeOtherMount {
		t.Errorf("findings %+v", findings)
	}
}

func TestFilesystemWithoutAttributes(t *testing.T) {
	needLabels(t)
	root := t.TempDir()
	mount(t, "ramfs", root)
	write(t, filepath.Join(root, "a"), []byte("a"), 0o644)
	p := newPair(t, "P-256")
	_, err := Sign(t.Context(), openTree(t, root), SignOptions{Signer: p.signer(t, ima.SHA256), Jobs: 1, Progress: new(Progress)})
	if !errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

// TestFailingKeyEndsTheRun: an error that every further file would meet is told once.
func TestFailingKeyEndsTheRun(t *testing.T) {
	needLabels(t)
	root := t.TempDir()
	for i := range 2000 {
		write(t, filepath.Join(root, fmt.Sprintf("%04d", i)), nil, 0o644)
	}
	p := newPair(t, "P-256")
	var notes []Note
	broken := &keys.Key{Signer: failing{p.key, 100, new(atomic.Int64)}}
	signer := p.signer(t, ima.SHA256)
	signer.key = broken
	report, err := Sign(t.Context(), openTree(t, root), SignOptions{Signer: signer, Jobs: 2, Progress: new(Progress), Note: func(n Note) { notes = append(notes, n) }})
	if err == nil || !strings.Contains(err.Error(), "token removed") {
		t.Errorf("got %v", err)
	}
	if len(notes) != 1 || report.Complete() || report.Signed > 100 || len(labelsOf(t, root)) > 100 {
		t.Errorf("%+v, %d notes, %d labels", report, len(notes), len(labelsOf(t, root)))
	}
}

// failing is a key that stops working.
type failing struct {
	crypto.Signer
	after int64
	calls *atomic.Int64
}

func (f failing) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if f.calls.Add(1) > f.after {
		return nil, errors.New("token removed")
	}
	return f.Signer.Sign(rand, digest, opts)
}

// TestInterruptedCheckIsNotGood: a signal after the walk is over, while files are still
// being read, must not leave the last ones unread and the answer good.
func TestInterruptedCheckIsNotGood(t *testing.T) {
	needLabels(t)
	root := t.TempDir()
	for i := range 40 {
		write(t, filepath.Join(root, fmt.Sprint(i)), make([]byte, 4<<20), 0o644)
	}
	p := newPair(t, "P-256")
	sign(t, root, SignOptions{Signer: p.signer(t, ima.SHA256)})
	o := CheckOptions{Trust: p.trust(t), All: true, Jobs: 1, Progress: new(Progress)}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for o.Progress.Bytes.Load() < 100<<20 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	report, err := Check(ctx, openTree(t, root), o)
	if report.Files == 40 && err == nil {
		t.Skip("the run was over before it was interrupted")
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v", report, err)
	}
}

// TestOverlay: labelling one name of a file in a lower layer makes it a file of its own.
func TestOverlay(t *testing.T) {
	needLabels(t)
	lower, upper, work, root := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	write(t, filepath.Join(lower, "a"), []byte("a"), 0o755)
	if err := os.Link(filepath.Join(lower, "a"), filepath.Join(lower, "b")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,index=off", lower, upper, work)); err != nil {
		t.Skipf("cannot mount overlay: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(root, 0) })
	p := newPair(t, "P-256")
	o := SignOptions{Signer: p.signer(t, ima.SHA256)}
	if report, notes := sign(t, root, o); report.Complete() || len(notes) != 2 || notes[1].Kind != NoteFailed || notes[1].Path != "b" {
		t.Errorf("%+v, %+v", report, notes)
	}
	if report, _ := sign(t, root, o); !report.Complete() || report.Signed != 2 {
		t.Errorf("again: %+v", report)
	}
}

// TestChangedDuringTheRun: what the walk saw is what is signed, or the file is named.
func TestChangedDuringTheRun(t *testing.T) {
	needLabels(t)
	root := t.TempDir()
	write(t, filepath.Join(root, "a"), make([]byte, 64<<20), 0o644)
	write(t, filepath.Join(root, "b"), []byte("b"), 0o644)
	p := newPair(t, "P-256")
	layout, _ := ima.ParseTarget("x86_64")
	o := SignOptions{Signer: p.signer(t, ima.SHA256), EVM: p.signer(t, ima.SHA256), Layout: layout, Jobs: 1, Progress: new(Progress)}
	done := make(chan error)
	go func() {
		for o.Progress.Bytes.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		done <- os.Chmod(filepath.Join(root, "b"), 0o4755)
	}()
	var notes []Note
	o.Note = func(n Note) { notes = append(notes, n) }
	report, err := Sign(t.Context(), openTree(t, root), o)
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	_, findings := check(t, root, CheckOptions{Trust: p.trust(t), All: true, EVM: true, Layout: fixed(layout)})
	if report.Complete() && len(findings) > 0 || !report.Complete() && len(notes) == 0 {
		t.Errorf("%+v, notes %+v, findings %+v", report, notes, findings)
	}
}
