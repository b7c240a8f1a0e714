package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/payload"
)

const (
	payloadTime   = time.Minute // for what a payload has executed
	maxPayloadOut = 16 << 10    // bytes of it that are logged
)

var errErased = errors.New("the payloads are being erased")

// payloads are the files that a verifier or a tenant gave to this device. They are in memory
// only, and only from a good verdict to the next bad one.
type payloads struct {
	agent  *agent
	path   string
	mu     sync.Mutex
	folder *payload.Folder // nil where there can be none, for the reason err
	err    error

	// What is executed holds mu, and must not hold up who erases.
	erasing atomic.Int32
	stop    atomic.Pointer[context.CancelFunc]
}

// makeSecretsFolder makes the folder for payloads as root, for the user that the agent
// becomes. Where that fails, openPayloads finds out.
func (a *agent) makeSecretsFolder(uid, gid int) {
	_ = payload.MakeFolder(a.config.get("secrets_dir"), uid, gid)
}

// openPayloads opens the folder, and erases what another process of the agent left there:
// nobody has trusted this one yet. A device whose folder cannot be used attests, and is
// given nothing.
func openPayloads(a *agent) (*payloads, error) {
	p := &payloads{agent: a, path: a.config.get("secrets_dir")}
	if p.err = payload.MakeFolder(p.path, syscall.Geteuid(), syscall.Getegid()); p.err == nil {
		p.folder, p.err = payload.OpenFolder(p.path)
	}
	return p, p.eraseAll()
}

// close erases all, and takes nothing any more.
func (p *payloads) close() error {
	defer p.lockToErase()()
	if p.folder == nil {
		return nil
	}
	f := p.folder
	p.folder, p.err = nil, errErased
	return errors.Join(f.EraseAll(), f.Close())
}

// lockToErase ends what is executed and locks; what it returns unlocks.
func (p *payloads) lockToErase() (unlock func()) {
	p.erasing.Add(1)
	if stop := p.stop.Load(); stop != nil {
		(*stop)()
	}
	p.mu.Lock()
	p.erasing.Add(-1)
	return p.mu.Unlock
}

// keep writes a payload, and runs what it has to be run if the image allows that.
func (p *payloads) keep(ctx context.Context, one *payload.Payload) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.folder == nil {
		return fmt.Errorf("secrets_dir: %w", p.err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	p.stop.Store(&stop)
	if p.erasing.Load() > 0 {
		return errErased
	}
	if err := p.folder.Put(one); err != nil {
		return err
	}
	p.agent.say("payload %s is in %s", one.Name, p.folder.Path(one.Name))
	switch {
	case one.Run == "":
	case p.agent.config.get("secrets_execute") == "":
		p.agent.say("%s of payload %s is not run: secrets_execute is not set", printable(one.Run, maxShown), one.Name)
	default:
		if err := p.execute(ctx, one); err != nil {
			p.agent.say("%s of payload %s: %s", printable(one.Run, maxShown), one.Name, printable(err.Error(), maxShown))
		}
	}
	return nil
}

func (p *payloads) erase(name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.folder == nil {
		return nil
	}
	return p.folder.Erase(name)
}

func (p *payloads) eraseAll() error {
	defer p.lockToErase()()
	if p.folder == nil {
		return nil
	}
	return p.folder.EraseAll()
}

// execute runs a file of a payload as the agent's user until its time is up; then it and
// what it started is killed.
func (p *payloads) execute(ctx context.Context, one *payload.Payload) error {
	limited, cancel := context.WithTimeout(ctx, payloadTime)
	defer cancel()
	dir := p.folder.Path(one.Name)
	c := exec.CommandContext(limited, filepath.Join(dir, one.Run))
	out := &boundedBuffer{most: maxPayloadOut}
	c.Dir, c.Env, c.Stdout, c.Stderr = dir, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, out, out
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 2 * time.Second
	err := c.Run()
	lines := 0
	for line := range strings.Lines(out.String()) {
		if lines++; lines > maxActionLines {
			p.agent.say("%s of payload %s says more", printable(one.Run, maxShown), one.Name)
			break
		}
		p.agent.say("%s of payload %s says: %s", printable(one.Run, maxShown), one.Name, printable(strings.TrimRight(line, "\n"), maxShown))
	}
	switch {
	case errors.Is(limited.Err(), context.DeadlineExceeded):
		return fmt.Errorf("killed after %s", payloadTime)
	case ctx.Err() != nil:
		return errErased
	case err != nil && !errors.Is(err, exec.ErrWaitDelay): // that is a daemon it left behind, with our pipe
		return err
	}
	return nil
}

// secrets looks at where secrets would lie. Without such a place a device is given none.
func (e *examination) secrets() {
	const check = "secrets"
	dir := e.config.get("secrets_dir")
	if !payload.InMemory(dir) {
		e.note(check, "name a folder on a tmpfs in secrets_dir, if this device is to be given secrets", "%s is not in memory", dir)
		return
	}
	e.ok(check, "%s is in memory", dir)
}
