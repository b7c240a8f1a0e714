package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFingerprint: libarchive gives a file the time that the archive has, and ext4 the number of
// the inode that was deleted before.
func TestFingerprint(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.control")
	print := func(content string) fingerprint {
		t.Helper()
		write(t, file, content)
		if err := os.Chtimes(file, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		f, err := newFingerprint(file)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	first := print("a")
	time.Sleep(20 * time.Millisecond) // a kernel's clock for files has steps of up to 10 ms
	if first == print("a") {
		t.Error("a file that was written anew is the same")
	}
}

// TestKilledWhileHeld: opkg is not ended because a process of its own was.
func TestKilledWhileHeld(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{Sys: &unix.SysProcAttr{Ptrace: true}})
	if err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if err := wait(p.Pid, &status); err != nil || !status.Stopped() {
		t.Fatalf("status %x, %v", status, err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := release(p.Pid); err != nil {
		t.Errorf("release: %v", err)
	}
	if err := wait(p.Pid, &status); !errors.Is(err, unix.ECHILD) {
		t.Errorf("is still to be waited for: %v", err)
	}
}

// TestRun traces shells, which do what opkg does and might do.
func TestRun(t *testing.T) {
	for _, c := range []struct {
		name, script string
		failed       bool
		code         int
		err          string
	}{
		{"nothing started", "exit 7", false, 7, ""},
		{"a program", "/bin/true && exit 7", false, 7, ""},
		{"programs in turn, and one that goes on", "/bin/true; sleep 1 & /bin/true; (exit 3); exit $?", false, 3, ""},
		{"another program in its place", "exec /bin/sh -c '/bin/true && exit 5'", false, 5, ""},
		{"signal that it handles", "trap 'exit 9' TERM; kill -TERM $$; exit 1", false, 9, ""},
		{"signal that it sends itself", "kill -KILL $$; exit 1", false, 0, "opkg was ended by killed"},
		{"stopped", "kill -STOP $$; exit 4", false, 4, ""},
		{"a trap of its own", "trap 'exit 9' TRAP; kill -TRAP $$; exit 6", false, 6, ""},
		{"nothing may run", "/bin/true; exit $?", true, 128 + int(unix.SIGKILL), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			runtime.LockOSThread() // and never unlocked: the thread ends with the test
			s := &supervisor{tmp: t.TempDir(), scripted: map[string]bool{}}
			var err error
			if s.before, err = fingerprints(); err != nil {
				t.Fatal(err)
			}
			if c.failed {
				s.fail([]error{errNotAuthentic})
			}
			code, err := s.run("/bin/sh", []string{"sh", "-c", c.script})
			if code != c.code || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
				t.Errorf("exit code %d, %v; want %d, %q", code, err, c.code, c.err)
			}
		})
	}
}

// TestUnpackedUnsigned: what is about to be installed is found, named, and told of once.
func TestUnpackedUnsigned(t *testing.T) {
	t.Setenv("ATTEST_LABELS", "")
	s := &supervisor{tmp: t.TempDir(), scripted: map[string]bool{}}
	write(t, filepath.Join(s.tmp, "opkg-1/x-2/control"), "Package: hello\n")
	if errs := s.labelUnpacked(); len(errs) != 1 || !errors.Is(errs[0], errUnsigned) || !strings.HasPrefix(errs[0].Error(), "hello: ") {
		t.Errorf("%v", errs)
	}
	if errs := s.labelUnpacked(); errs != nil {
		t.Errorf("again: %v", errs)
	}
}
