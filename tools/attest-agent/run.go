package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

const (
	// minWait and maxWait bound what the verifier may ask for between two attestations.
	minWait = time.Second
	maxWait = 24 * time.Hour
	// defaultWait is for a verifier that says nothing.
	defaultWait = time.Minute
	// wakeEvery is how often a wait looks at the clock that runs on in suspend.
	wakeEvery = 5 * time.Second
	// garbage is how much of it there may be, in per cent of what is used: memory is dearer
	// on a device than time. With Go's own 100 a list of 10 000 entries takes 5 MB more.
	garbage = 25
)

func runAgent(ctx context.Context, in *invocation) error {
	debug.SetGCPercent(garbage)
	fs := newFlags("run", "Attests until it is stopped, as often as the verifier asks for it, and prints each change of the verdict.")
	cf := addConfigFlags(fs)
	once := fs.Bool("once", false, "attest once; the exit code is 3 unless the verdict is trusted")
	a, err := openAgent(fs, cf, in)
	if err != nil {
		return err
	}
	defer a.close()
	if a.notify, err = newNotifier(); err != nil {
		return err
	}
	defer a.notify.close()
	if *once && a.config.verifier == nil {
		return errNoVerifier
	}
	if a.identity != nil && !*once {
		if a.listener, err = openListener(a); err != nil {
			return err
		}
		defer a.listener.net.Close()
	}
	if a.notices, err = newNotices(a); err != nil {
		return err
	}
	if err := a.becomeUser(); err != nil {
		return err
	}
	if a.secrets.payloads, err = openPayloads(a); err != nil {
		return err
	}
	if *once {
		return errors.Join(a.once(ctx), a.secrets.close())
	}
	return errors.Join(a.run(ctx), a.secrets.close())
}

// once attests once and turns the verdict into an exit code.
func (a *agent) once(ctx context.Context) error {
	meta, err := a.attempt(ctx)
	if err != nil {
		a.failed(err, 0)
		return errors.Join(err, a.folder.save(a.state))
	}
	if err := a.succeeded(meta, next(meta)); err != nil {
		return err
	}
	return untrusted(a.state.Verdict)
}

// untrusted is the error of a verdict that is not good, as an exit code has it.
func untrusted(v *evidence.Verdict) error {
	if v != nil && v.State == trusted {
		return nil
	}
	return &exitCode{exitUntrusted, errors.New(describe(v))}
}

// run attests until ctx ends. No error of verifier, network or TPM ends it, except one that
// a new process with root's rights could mend.
func (a *agent) run(ctx context.Context) error {
	a.notify.send("READY=1\nSTATUS=starting")
	lost := make(chan error, 1)
	if a.listener != nil {
		var stop func()
		ctx, stop = context.WithCancel(ctx)
		defer stop()
		go func() { lost <- a.listener.serve(ctx); stop() }()
	}
	if a.notices != nil {
		go a.notices.run(ctx)
	}
	for {
		a.notify.alive()
		meta, err := a.attempt(ctx)
		if ctx.Err() != nil {
			break
		}
		var wait time.Duration
		if err != nil {
			if needsRoot(err) {
				return err
			}
			wait = a.backOff(err)
			a.failed(err, wait)
			err = errors.Join(a.secrets.refused(err), a.folder.save(a.state))
		} else {
			wait = next(meta)
			a.notices.use(a.state.ID, a.client.token)
			err = errors.Join(a.succeeded(meta, wait), a.secrets.follow(ctx, meta))
		}
		if err != nil {
			return err // a full or broken disk: the service manager tries again
		}
		if !a.wait(ctx, wait) {
			break
		}
	}
	a.notify.send("STOPPING=1")
	select {
	case err := <-lost:
		return err // the service manager opens the port again
	default:
		return nil
	}
}

// attempt is one attestation, with all that has to be done before it can be.
func (a *agent) attempt(ctx context.Context) (*evidence.Meta, error) {
	if err := a.ready(ctx); err != nil {
		return nil, err
	}
	if a.config.verifier == nil {
		return nil, a.device.probe()
	}
	meta, err := a.round(ctx)
	var device *tpmError
	switch {
	case err == nil:
	case statusOf(err) == http.StatusUnauthorized && a.client.token != "":
		// The session is over: another proof opens the next.
		a.client.token = ""
		meta, err = a.round(ctx)
	case isNotEnrolled(err):
		// The verifier lost, or was told to forget, this device. Who is refused for good
		// (403) hears so from the registrar.
		a.client.token = ""
		if err := a.secrets.refused(err); err != nil {
			return nil, err
		}
		if err := a.enrolAndSay(ctx); err != nil {
			return nil, err
		}
		meta, err = a.round(ctx)
	case errors.As(err, &device):
		if again := a.device.reopen(); again != nil {
			return nil, errors.Join(err, again)
		}
		meta, err = a.round(ctx)
	}
	if status := statusOf(err); status == http.StatusUnauthorized || status == http.StatusForbidden {
		a.client.token = ""
	}
	return meta, err
}

// ready has a key loaded and enrolled.
func (a *agent) ready(ctx context.Context) error {
	if a.device.ak == nil {
		changed, err := a.device.openKey()
		if err != nil {
			return err
		}
		if changed {
			a.say("made attestation key %s", a.device.keyName())
		}
	}
	if !a.enrolled(ctx) {
		if err := a.enrolAndSay(ctx); err != nil {
			return errors.Join(err, a.device.probe()) // what failed may be the TPM
		}
	}
	if a.listener != nil {
		id := a.state.ID
		a.listener.id.Store(&id)
	}
	return nil
}

func (a *agent) enrolAndSay(ctx context.Context) error {
	if err := a.enrol(ctx); err != nil {
		return err
	}
	a.say("enrolled %s at %s", a.state.ID, a.config.registrar)
	return nil
}

// isNotEnrolled says whether the verifier does not know this device.
func isNotEnrolled(err error) bool { return statusOf(err) == http.StatusNotFound }

// round is one attestation within a session.
func (a *agent) round(ctx context.Context) (*evidence.Meta, error) {
	if a.client.token == "" {
		if err := a.client.session(ctx, a.state.ID, a.device); err != nil {
			return nil, err
		}
	}
	boot, err := a.bootTime()
	if err != nil {
		return nil, err
	}
	can, err := a.device.capabilities(boot)
	if err != nil {
		return nil, err
	}
	asked, path, err := a.client.negotiate(ctx, a.state.ID, can)
	if err != nil {
		return nil, err
	}
	a.notify.alive()
	a.secrets.challenge = asked.Challenge()
	ev, err := a.device.collect(*asked)
	if err != nil {
		return nil, err
	}
	return a.client.submit(ctx, path, ev)
}

// bootTime is when this boot began. It is told the same each time in one boot: a clock that
// was set must not look like a reboot.
func (a *agent) bootTime() (time.Time, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return time.Time{}, fmt.Errorf("read boot id: %w", err)
	}
	id := strings.TrimSpace(string(b))
	if id == a.state.BootID {
		return a.state.Boot, nil
	}
	up, err := uptime()
	if err != nil {
		return time.Time{}, err
	}
	a.state.BootID, a.state.Boot = id, time.Now().Add(-up).UTC().Truncate(time.Second)
	return a.state.Boot, a.folder.save(a.state)
}

// uptime is for how long the device has run, suspend included.
func uptime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// next is when to attest again: a little sooner than told, each time another.
func next(m *evidence.Meta) time.Duration {
	if m == nil || m.Next <= 0 { // nil: the device is polled and learns nothing
		return defaultWait
	}
	d := min(max(time.Duration(min(m.Next, int(maxWait/time.Second)))*time.Second, minWait), maxWait)
	return max(minWait, d-rand.N(d/20+1))
}

// backOff doubles with each failure in a row, up to the ceiling, half of it by chance: what
// failed together does not come back together. What the server asked for is the least.
func (a *agent) backOff(err error) time.Duration {
	d := a.config.retryMax
	if n := a.state.Failures; n < 20 {
		d = min(d, time.Second<<n)
	}
	d = d/2 + rand.N(d/2+1)
	var s *statusError
	if errors.As(err, &s) && s.after > d {
		d = s.after + rand.N(s.after/10+1)
	}
	return d
}

// woken tells that the listener had an error of the TPM's.
func (a *agent) woken() <-chan struct{} {
	if a.listener == nil {
		return nil
	}
	return a.listener.wake
}

// wait waits by the clock that runs on in suspend, and not by the one that people set. It
// is false when ctx ended.
func (a *agent) wait(ctx context.Context, d time.Duration) bool {
	start, err := uptime()
	if err != nil {
		return false
	}
	for now := start; now-start < d; {
		a.notify.alive()
		timer := time.NewTimer(min(wakeEvery, d-(now-start)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		case <-a.woken():
			timer.Stop()
			return true
		}
		if now, err = uptime(); err != nil {
			return false
		}
	}
	return true
}
