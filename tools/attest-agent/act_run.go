package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/notice"
)

const (
	actionTime     = 30 * time.Second // for one program
	maxActionOut   = 16 << 10         // bytes of it that are logged
	maxActionLines = 100
)

// run has each program of the folder act on a notice, in the order of their names. payload
// is the event as it was signed.
func (a *actions) run(ctx context.Context, e *notice.Event, payload []byte, boot bool) {
	dir := a.config.get("actions")
	programs, err := actionPrograms(dir)
	if err != nil {
		a.failed++
		a.say("actions: %s", printable(err.Error(), maxShown))
	}
	if err == nil && len(programs) == 0 {
		a.say("actions: no executable program is in %s: nothing was run", dir)
	}
	self := a.self() == e.Subject
	input := localEvent(payload, self, boot)
	env := actionEnv(e, self, boot)
	for _, p := range programs {
		if err := a.runOne(ctx, filepath.Join(dir, p), input, env); err != nil {
			a.failed++
			a.say("action %s: %s", p, printable(err.Error(), maxShown))
		}
	}
}

// localEvent adds to the event what only this device knows, as extensions.
func localEvent(payload []byte, self, boot bool) []byte {
	b := append([]byte{}, bytes.TrimSuffix(bytes.TrimSpace(payload), []byte("}"))...)
	return fmt.Appendf(b, `,"self":%t,"boot":%t}`+"\n", self, boot)
}

// actionEnv is the event once more, for shells without a reader of JSON. No value in it is
// executed by a shell that quotes it.
func actionEnv(e *notice.Event, self, boot bool) []string {
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C",
		"ATTEST_TYPE=" + e.Type, "ATTEST_DEVICE=" + e.Subject, "ATTEST_GROUP=" + e.Data.Group, "ATTEST_STATUS=" + e.Data.Status,
		"ATTEST_SEQUENCE=" + strconv.FormatInt(e.Seq(), 10), "ATTEST_SELF=" + strconv.FormatBool(self), "ATTEST_BOOT=" + strconv.FormatBool(boot)}
	for name, value := range e.Data.Labels {
		upper := strings.Map(func(r rune) rune {
			switch {
			case r >= 'a' && r <= 'z':
				return r - 'a' + 'A'
			case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
				return r
			}
			return '_'
		}, name)
		env = append(env, "ATTEST_LABEL_"+upper+"="+value)
	}
	return env
}

// runOne runs a program until its time is up; then it and what it started is killed.
func (a *actions) runOne(ctx context.Context, path string, input []byte, env []string) error {
	limited, cancel := context.WithTimeout(ctx, a.limit)
	defer cancel()
	c := exec.CommandContext(limited, path)
	out := &boundedBuffer{most: maxActionOut}
	c.Dir, c.Env, c.Stdin, c.Stdout, c.Stderr = "/", env, bytes.NewReader(input), out, out
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 2 * time.Second
	began := time.Now()
	err := c.Run()
	name := filepath.Base(path)
	lines := 0
	for line := range strings.Lines(out.String()) {
		if lines++; lines > maxActionLines {
			a.say("action %s says more", name)
			break
		}
		a.say("action %s says: %s", name, printable(strings.TrimRight(line, "\n"), maxShown))
	}
	switch {
	case limited.Err() != nil && ctx.Err() == nil:
		return fmt.Errorf("killed after %s", a.limit)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay): // that is a daemon it left behind, with our pipe
		return err
	}
	a.say("action %s: done in %s", name, time.Since(began).Round(time.Millisecond))
	return nil
}

// boundedBuffer keeps the begin of what is written. It embeds no buffer, which would offer
// io.Copy a way around the bound.
type boundedBuffer struct {
	kept []byte
	most int
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p[:min(len(p), b.most-len(b.kept))]...)
	return len(p), nil
}

func (b *boundedBuffer) String() string { return string(b.kept) }

// actionPrograms are the names of the programs of a folder. Only whoever runs them, which
// is root, may have written folder and programs: else there are none. Links are an error
// beside the programs.
func actionPrograms(dir string) ([]string, error) {
	info, err := os.Lstat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is no folder", dir)
	}
	if err := onlyOurs(dir, info); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var programs []string
	var links error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := os.Lstat(path)
		if err != nil {
			return nil, err
		}
		if info.Mode().Type() == os.ModeSymlink {
			links = errors.Join(links, fmt.Errorf("%s is a link and not run: copy the program", path))
		}
		if !info.Mode().IsRegular() || strings.HasPrefix(e.Name(), ".") || info.Mode().Perm()&0o111 == 0 {
			continue
		}
		if err := onlyOurs(path, info); err != nil {
			return nil, err
		}
		programs = append(programs, e.Name())
	}
	return programs, links
}

func onlyOurs(path string, info os.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: others may write it: nothing is run (chown root, chmod go-w)", path)
	}
	return nil
}

// openPlainFolder opens a folder of another user's. No step of the path may be a link that
// this user put there.
func openPlainFolder(path string) (*os.File, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// readPlainFile reads a file of another user's: no link, no device, no pipe, not too long.
func readPlainFile(dir *os.File, name string, most int64) ([]byte, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a plain file")
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("more than %d bytes", most)
	}
	return b, err
}
