package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// opkg unpacks control files into a folder of its own, starts "/bin/sh -c DIR/preinst", unpacks
// control files once more, as info/PACKAGE.NAME, and then files under their names, and starts
// "/bin/sh -c info/PACKAGE.postinst". Nothing can be executed in between but by others; so what
// it unpacked has to be labelled each time it starts a process, before that runs. The kernel
// stops a traced process there: vfork() is an event (ptrace(2)), whatever the architecture.

// opkgInfo is where opkg keeps control files, as OE-core configures it.
const opkgInfo = "var/lib/opkg/info"

// supervisor runs opkg.
type supervisor struct {
	pid      int
	tmp      string                 // where opkg makes its folders
	before   map[string]fingerprint // of the control files of installed packages
	scripted map[string]bool        // folders whose scripts are labelled
	failed   []error                // what must not run, and why
}

// fingerprint changes when a file is written anew. The time of its last modification may not,
// since that comes out of the package, nor the inode's number, which is free again by then.
type fingerprint struct {
	ino   uint64
	ctime unix.Timespec
}

func newFingerprint(file string) (fingerprint, error) {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return fingerprint{}, &fs.PathError{Op: "stat", Path: file, Err: err}
	}
	return fingerprint{st.Ino, st.Ctim}, nil
}

func opkg(args []string) error {
	file, err := distrib("opkg")
	if err != nil {
		return err
	}
	if slices.ContainsFunc(args, offline) {
		return unix.Exec(file, append([]string{"opkg"}, args...), os.Environ())
	}
	tmp, err := os.MkdirTemp("", "attest-opkg-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	s := &supervisor{tmp: tmp, scripted: map[string]bool{}}
	if s.before, err = fingerprints(); err != nil {
		return err
	}
	// opkg decides about them: it finishes a package first. And it would end with us.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	runtime.LockOSThread() // ptrace knows a thread, not a process
	code, err := s.run(file, append([]string{"opkg", "--tmp-dir", tmp}, args...))
	if err != nil {
		return err
	}
	s.fail(s.labelInstalled())
	if err := errors.Join(s.failed...); err != nil {
		return err
	}
	if code != 0 {
		os.RemoveAll(tmp)
		os.Exit(code)
	}
	return nil
}

// offline says whether an argument has opkg work on another root, where nothing runs.
func offline(arg string) bool {
	name, _, _ := strings.Cut(arg, "=")
	return name == "--offline-root" || name == "--offline" || strings.HasPrefix(arg, "-o")
}

// run traces opkg to its end and returns its exit code.
func (s *supervisor) run(file string, argv []string) (int, error) {
	p, err := os.StartProcess(file, argv, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &unix.SysProcAttr{Ptrace: true},
	})
	if err != nil {
		return 0, err
	}
	s.pid = p.Pid
	var status unix.WaitStatus
	if err := wait(s.pid, &status); err != nil {
		return 0, fmt.Errorf("trace opkg: %w", err)
	}
	const options = unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(s.pid, options); err != nil {
		return 0, fmt.Errorf("trace opkg: %w", err)
	}
	for signal := 0; ; {
		// Whoever was killed is no longer there to go on; wait tells of it.
		if err := unix.PtraceCont(s.pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return 0, fmt.Errorf("trace opkg: %w", err)
		}
		if err := wait(s.pid, &status); err != nil {
			return 0, err
		}
		signal = 0
		switch {
		case status.Exited():
			return status.ExitStatus(), nil
		case status.Signaled():
			return 0, fmt.Errorf("opkg was ended by %v", status.Signal())
		case status.TrapCause() == unix.PTRACE_EVENT_FORK, status.TrapCause() == unix.PTRACE_EVENT_VFORK, status.TrapCause() == unix.PTRACE_EVENT_CLONE:
			if err := s.child(); err != nil {
				return 0, err
			}
		case status.StopSignal() != unix.SIGTRAP:
			signal = int(status.StopSignal())
		}
	}
}

func wait(pid int, status *unix.WaitStatus) error {
	for {
		_, err := unix.Wait4(pid, status, unix.WALL, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// child decides about a process that opkg has started, and that has not run yet: labels are
// set, or it is killed, which opkg takes for a script that failed.
func (s *supervisor) child() error {
	pid, err := unix.PtraceGetEventMsg(s.pid)
	if err != nil {
		return err
	}
	var status unix.WaitStatus
	if err := wait(int(pid), &status); err != nil {
		return err
	}
	if !status.Stopped() {
		return nil // somebody killed it, and wait has told opkg
	}
	s.fail(s.labelUnpacked())
	s.fail(s.labelInstalled())
	if len(s.failed) == 0 {
		return release(int(pid))
	}
	if err := unix.Kill(int(pid), unix.SIGKILL); err != nil {
		return err
	}
	return wait(int(pid), &status) // opkg hears of it only then
}

// release lets a process go that is held, or has been killed since.
func release(pid int) error {
	err := unix.PtraceDetach(pid)
	if errors.Is(err, unix.ESRCH) {
		var status unix.WaitStatus
		return wait(pid, &status)
	}
	return err
}

// fail keeps errors. A package without maintainer scripts is met twice at the same time, as
// unpacked and as installed.
func (s *supervisor) fail(errs []error) {
	for _, err := range errs {
		if !slices.ContainsFunc(s.failed, func(e error) bool { return e.Error() == err.Error() }) {
			s.failed = append(s.failed, err)
		}
	}
}

// labelUnpacked labels the maintainer scripts of packages that are about to be installed.
func (s *supervisor) labelUnpacked() (errs []error) {
	dirs, err := filepath.Glob(filepath.Join(s.tmp, "*", "*", "control"))
	if err != nil {
		return []error{err}
	}
	for _, dir := range dirs {
		dir = filepath.Dir(dir)
		if s.scripted[dir] {
			continue
		}
		s.scripted[dir] = true
		if err := labelScripts(dir); err != nil {
			name, _, _ := strings.Cut(filepath.Base(dir), "-")
			if control, readErr := readFile(filepath.Join(dir, "control"), maxDiversions); readErr == nil {
				name = packageName(control)
			}
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errs
}

// fingerprints are of the control files of installed packages.
func fingerprints() (map[string]fingerprint, error) {
	files, err := filepath.Glob(filepath.Join("/", opkgInfo, "*.control"))
	if err != nil {
		return nil, err
	}
	prints := map[string]fingerprint{}
	for _, file := range files {
		print, err := newFingerprint(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		prints[strings.TrimSuffix(filepath.Base(file), ".control")] = print
	}
	return prints, nil
}

// labelInstalled labels the packages that were unpacked since the last time.
func (s *supervisor) labelInstalled() (errs []error) {
	now, err := fingerprints()
	if err != nil {
		return []error{err}
	}
	for name, now := range now {
		if s.before[name] == now {
			continue
		}
		if err := labelPackage("/", database{opkgInfo, ""}, name); err != nil {
			if errors.Is(err, errUnsigned) && optional() {
				continue
			}
			errs = append(errs, err)
		}
	}
	s.before = now
	return errs
}
