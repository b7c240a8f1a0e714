package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/notice"
)

const (
	schemaActions = "attest.agent-actions/v1"
	actionsFile   = "actions.json"
	maxRemembered = 1024        // devices that are bad at a time
	maxHeld       = maxKept / 2 // bytes of their notices: the file has to be read again
	watchEvery    = time.Second // between two looks into the folder, with --watch
	// failedPause is before an error ends a process of systemd's: the path unit starts the
	// next at once, as the notices are still there.
	failedPause = 10 * time.Second
)

var (
	errNoNoticeCA = errors.New("no notice_ca is set")
	errActions    = errors.New("actions failed")
)

// actions is what runs local programs on notices. It is a process of its own, as root,
// because the agent is not; what the agent writes is a stranger's to it.
type actions struct {
	config *Config
	certs  []*x509.Certificate
	// revocation signs Keylime's notices; nil: none is believed.
	revocation *x509.Certificate
	folder     *folder
	state      *actionsState
	in         *invocation
	failed     int             // programs
	stuck      map[string]bool // names that cannot be taken away
	limit      time.Duration   // of one program
}

// actionsState is what was done. A notice counts once, whoever brings it again.
type actionsState struct {
	Schema string `json:"schema"`
	Source string `json:"source,omitempty"` // the fleet that the numbers are of
	Device string `json:"device,omitempty"` // this one
	Seq    int64  `json:"seq"`              // of the last notice
	BootID string `json:"boot_id,omitempty"`
	// Bad are the notices that hold, of devices by their names. What programs did may be
	// gone with the boot, so each boot they run once more.
	Bad     map[string]json.RawMessage `json:"bad,omitempty"`
	Running json.RawMessage            `json:"running,omitempty"` // that was not done when power went
	// Revocations are the digests of Keylime's notices that were acted upon, the last ones.
	Revocations []string `json:"revocations,omitempty"`
}

func runAct(ctx context.Context, in *invocation) error {
	err := act(ctx, in)
	if err != nil && !errors.Is(err, errActions) && os.Getenv("INVOCATION_ID") != "" {
		pause(ctx, failedPause)
	}
	return err
}

// act handles what is there, and what comes if it is told to watch.
func act(ctx context.Context, in *invocation) error {
	fs := newFlags("act", "Runs the programs of the folder \"actions\" on notices that the agent received, as root. Each gets the CloudEvent on standard input.")
	cf := addConfigFlags(fs)
	watch := fs.Bool("watch", false, "go on until stopped, where no service manager looks at the folder notices_dir")
	if err := fs.parse(in); err != nil {
		return err
	}
	c, err := cf.load(os.Environ())
	if err != nil {
		return err
	}
	if c.get("notice_ca") == "" && c.get("revocation_cert") == "" {
		return errNoNoticeCA
	}
	a, err := openActions(c, in)
	if err != nil {
		return err
	}
	defer a.folder.close()
	if err := a.resume(ctx); err != nil {
		return err
	}
	for {
		n, err := a.scan(ctx)
		if err != nil {
			return err
		}
		if ctx.Err() != nil || !*watch && n == 0 {
			break
		}
		if n > 0 {
			continue
		}
		pause(ctx, watchEvery)
	}
	if len(a.stuck) > 0 {
		pause(ctx, watchEvery) // the path unit starts this again at once
	}
	if a.failed > 0 {
		return fmt.Errorf("%d %w", a.failed, errActions)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func openActions(c *Config, in *invocation) (*actions, error) {
	certs, err := readNoticeCA(c)
	if err != nil {
		return nil, err
	}
	revocation, err := readRevocationCert(c)
	if err != nil {
		return nil, err
	}
	f, err := openFolder(c.get("actions_state"))
	if err != nil {
		return nil, err
	}
	a := &actions{config: c, certs: certs, revocation: revocation, folder: f, in: in, stuck: map[string]bool{}, limit: actionTime, state: &actionsState{Schema: schemaActions}}
	b, err := f.read(actionsFile)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		f.close()
		return nil, fmt.Errorf("read what was done: %w", err)
	default:
		// Without its numbers every old notice would count again.
		if err := json.Unmarshal(b, a.state); err != nil || a.state.Schema != schemaActions {
			f.close()
			return nil, fmt.Errorf("read what was done: %s is not of schema %s", filepath.Join(f.path, actionsFile), schemaActions)
		}
	}
	return a, nil
}

// save notes what was done. A disk that is full must not keep the device from acting: what
// could not be noted counts once more when it comes again.
func (a *actions) save() {
	b, err := json.Marshal(a.state)
	if err == nil {
		err = a.folder.write(actionsFile, append(b, '\n'))
	}
	if err != nil {
		a.failed++
		a.say("what was done cannot be noted: %s", printable(err.Error(), maxShown))
	}
}

func (a *actions) say(format string, args ...any) { fmt.Fprintf(a.in.stdout, format+"\n", args...) }

// resume finishes what was interrupted, and does again what a boot undid.
func (a *actions) resume(ctx context.Context) error {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	boot := strings.TrimSpace(string(b))
	again := boot != a.state.BootID && a.state.BootID != ""
	var held []json.RawMessage
	if again {
		for _, envelope := range a.state.Bad {
			held = append(held, envelope)
		}
	}
	if a.state.Running != nil {
		held = append(held, a.state.Running)
	}
	var events []*notice.Event
	for _, envelope := range held {
		e, err := a.open(envelope)
		if err != nil {
			a.say("notice that was kept: refused: %s", printable(err.Error(), maxShown))
			continue
		}
		events = append(events, e)
	}
	slices.SortFunc(events, func(x, y *notice.Event) int { return cmp.Compare(x.Seq(), y.Seq()) })
	events = slices.CompactFunc(events, func(x, y *notice.Event) bool { return x.Seq() == y.Seq() })
	for _, e := range events {
		payload, err := e.Marshal()
		if err != nil {
			return err
		}
		a.say("notice %d: %s is %s: once more, %s", e.Seq(), e.Subject, e.Data.Status, map[bool]string{true: "after a boot", false: "it was interrupted"}[again])
		a.run(ctx, e, payload, again)
	}
	if ctx.Err() != nil {
		return nil
	}
	a.state.Running, a.state.BootID = nil, boot
	a.save()
	return nil
}

// open verifies a notice that was kept: the verifier's, or Keylime's.
func (a *actions) open(kept []byte) (*notice.Event, error) {
	e, _, err := notice.Open(kept, a.certs)
	if err == nil || a.revocation == nil || errors.Is(err, notice.ErrNotAuthentic) {
		return e, err
	}
	return openRevocation(kept, a.revocation)
}

// scan handles what is in the folder, in the order of the numbers, and takes it away.
func (a *actions) scan(ctx context.Context) (handled int, err error) {
	dir, err := openPlainFolder(a.config.get("notices_dir"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open notices_dir: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(4 * maxNotices) // a folder of another's has no end
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read notices_dir: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		if ctx.Err() != nil {
			return handled, nil
		}
		if !strings.HasSuffix(name, noticeName) || strings.HasPrefix(name, ".") {
			continue
		}
		if a.stuck[name] {
			continue
		}
		a.take(ctx, dir, name)
		if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			a.say("notice %s: stays where it is: %s", printable(name, 60), err)
			a.stuck[name] = true
			continue
		}
		handled++
	}
	return handled, nil
}

// take handles one file. What is refused is said: others may be good.
func (a *actions) take(ctx context.Context, dir *os.File, name string) {
	b, err := readPlainFile(dir, name, notice.MaxSize)
	switch {
	case err != nil:
	case strings.HasPrefix(name, revocationPrefix):
		err = a.takeRevocation(ctx, b)
	default:
		err = a.takeNotice(ctx, b)
	}
	if err != nil {
		a.say("notice %s: refused: %s", printable(name, 60), printable(err.Error(), maxShown))
	}
}

// takeNotice acts on a notice of the verifier's, or says why not.
func (a *actions) takeNotice(ctx context.Context, b []byte) error {
	e, payload, err := notice.Open(b, a.certs)
	if err != nil {
		return err
	}
	s := a.state
	switch {
	case s.Source != "" && s.Source != e.Source:
		return fmt.Errorf("it is of the fleet %s, this device belongs to %s; where it was moved on purpose, remove %s",
			e.Source, s.Source, filepath.Join(a.folder.path, actionsFile))
	case e.Seq() <= s.Seq:
		return fmt.Errorf("it is not newer than %d, the last one", s.Seq)
	}
	s.Source, s.Seq = e.Source, e.Seq()
	a.remember(e, b)
	a.say("notice %d: %s is %s", e.Seq(), e.Subject, e.Data.Status)
	a.finish(ctx, e, payload, b)
	return nil
}

// finish runs the programs. Where it is stopped in the middle the next process does it again.
func (a *actions) finish(ctx context.Context, e *notice.Event, payload, kept []byte) {
	a.state.Running = kept
	a.save()
	a.run(ctx, e, payload, false)
	if ctx.Err() == nil {
		a.state.Running = nil
		a.save()
	}
}

// remember keeps what holds after a boot, too.
func (a *actions) remember(e *notice.Event, envelope []byte) {
	s := a.state
	delete(s.Bad, e.Subject)
	if !notice.Bad(e.Data.Status) {
		return
	}
	if s.Bad == nil {
		s.Bad = map[string]json.RawMessage{}
	}
	size := len(envelope)
	for _, b := range s.Bad {
		size += len(b)
	}
	if len(s.Bad) >= maxRemembered || size > maxHeld {
		a.say("%d devices are bad already: %s will not be remembered over a boot", len(s.Bad), e.Subject)
		return
	}
	s.Bad[e.Subject] = envelope
}

// self is the id of this device: that of the configuration, or the first that the agent
// enrolled with. It does not change with what the agent says later.
func (a *actions) self() string {
	if id := a.config.get("id"); id != "" {
		return id
	}
	if a.state.Device != "" {
		return a.state.Device
	}
	id, err := enrolledID(a.config.get("state_dir"))
	if err != nil {
		a.say("which device this is cannot be told, set id: %s", printable(err.Error(), maxShown))
	}
	a.state.Device = id
	return id
}

// enrolledID is the id that the agent says it enrolled with.
func enrolledID(path string) (string, error) {
	dir, err := openPlainFolder(path)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	b, err := readPlainFile(dir, stateFile, maxKept)
	if err != nil {
		return "", err
	}
	var s State
	if json.Unmarshal(b, &s) != nil || s.Schema != schemaState || s.ID == "" {
		return "", fmt.Errorf("%s has no id", filepath.Join(path, stateFile))
	}
	return s.ID, nil
}
