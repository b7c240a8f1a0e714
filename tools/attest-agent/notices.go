package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/notice"
	"github.com/meta-attest/meta-attest/tools/internal/payload"
)

const (
	// pollTimeout is more than a verifier lets a device wait for a notice.
	pollTimeout = 100 * time.Second
	maxPoll     = 1 << 20 // bytes of an answer
	maxNotices  = 256     // that wait for act; the verifier keeps the others
	noticeName  = ".json" // after the number
)

// notices asks the verifier for notices of other devices, and puts those that are authentic
// into a folder for "attest-agent act". It does so beside the attestations, with a
// connection of its own.
type notices struct {
	client *client
	certs  []*x509.Certificate
	dir    string
	say    func(string, ...any)
	most   time.Duration // between two attempts

	session atomic.Pointer[noticeSession]

	mu        sync.Mutex // of the file named temporary
	temporary string
}

// noticeSession is who asks, and the token that the attestations opened.
type noticeSession struct{ id, token string }

// newNotices is nil where nobody is to be believed.
func newNotices(a *agent) (*notices, error) {
	if a.config.get("notice_ca") == "" || a.config.verifier == nil {
		return nil, nil
	}
	certs, err := readNoticeCA(a.config)
	if err != nil {
		return nil, err
	}
	c, err := newClient(a.config)
	if err != nil {
		return nil, err
	}
	c.http.Timeout = pollTimeout
	n := &notices{client: c, certs: certs, dir: a.config.get("notices_dir"), temporary: ".new", say: a.say, most: a.config.retryMax}
	return n, n.makeFolder(os.Geteuid(), os.Getegid())
}

func readNoticeCA(c *Config) ([]*x509.Certificate, error) {
	if c.get("notice_ca") == "" {
		return nil, nil
	}
	f, err := os.Open(c.get("notice_ca"))
	if err != nil {
		return nil, fmt.Errorf("read notice_ca: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCA))
	if err != nil {
		return nil, fmt.Errorf("read notice_ca: %w", err)
	}
	certs, err := notice.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("read notice_ca: %s: %w", f.Name(), err)
	}
	return certs, nil
}

// makeFolder makes the folder, as root for the user that the agent becomes. It may be
// called on nil.
func (n *notices) makeFolder(uid, gid int) error {
	if n == nil {
		return nil
	}
	if err := payload.MakeFolder(n.dir, uid, gid); err != nil {
		return fmt.Errorf("notices_dir: %w", err)
	}
	return nil
}

// use tells who asks from now on. It may be called by another goroutine, and on nil.
func (n *notices) use(id, token string) {
	if n != nil && token != "" {
		n.session.Store(&noticeSession{id, token})
	}
}

// run asks until ctx ends.
func (n *notices) run(ctx context.Context) {
	after, failures, said := int64(0), 0, ""
	var refused *noticeSession
	for {
		wait := time.Second
		if s := n.session.Load(); s != nil && s != refused {
			next, err := n.ask(ctx, s, after)
			switch {
			case ctx.Err() != nil:
				return
			case err == nil:
				failures, said = 0, ""
				if next > after {
					wait = 0 // there may be more
				}
			case statusOf(err) == http.StatusUnauthorized:
				refused = s // the next attestation opens another session
			default:
				wait = n.backOff(failures, err)
				failures++
				if text := printable(err.Error(), maxShown); text != said {
					n.say("no notices, trying again in %s: %s", wait.Round(time.Second), text)
					said = text
				}
			}
			after = max(after, next)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// backOff is like [agent.backOff].
func (n *notices) backOff(failures int, err error) time.Duration {
	d := n.most
	if failures < 20 && statusOf(err) != http.StatusNotFound {
		d = min(d, time.Second<<failures)
	}
	d = d/2 + rand.N(d/2+1)
	var s *statusError
	if errors.As(err, &s) && s.after > d {
		d = s.after + rand.N(s.after/10+1)
	}
	return d
}

// ask waits for notices after a number, and returns that of the last one it has kept.
func (n *notices) ask(ctx context.Context, s *noticeSession, after int64) (int64, error) {
	c := *n.client
	c.token = s.token
	res, err := c.do(ctx, request{what: "ask for notices", method: http.MethodGet, base: c.verifier,
		path:    "/v3.0/agents/" + s.id + "/notices?after=" + strconv.FormatInt(after, 10),
		content: typeJSON, want: http.StatusOK, bearer: true})
	if err != nil {
		return after, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxPoll+1))
	if err != nil {
		return after, fmt.Errorf("ask for notices: %w", err)
	}
	if len(text) > maxPoll {
		return after, fmt.Errorf("ask for notices: more than %d bytes", maxPoll)
	}
	var answer struct {
		Notices []json.RawMessage `json:"notices"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return after, fmt.Errorf("ask for notices: %w", err)
	}
	for _, envelope := range answer.Notices {
		e, _, err := notice.Open(envelope, n.certs)
		if err != nil {
			return after, err
		}
		if e.Seq() <= after {
			return after, fmt.Errorf("ask for notices: number %d after %d", e.Seq(), after)
		}
		if err := n.keep(e.Sequence+noticeName, envelope); err != nil {
			return after, err
		}
		n.say("notice %d: %s is %s", e.Seq(), e.Subject, e.Data.Status)
		after = e.Seq()
	}
	return after, nil
}

// keep puts a notice into the folder, whole or not at all. It need not outlive the boot:
// the verifier has it.
func (n *notices) keep(name string, b []byte) error {
	names, err := os.ReadDir(n.dir)
	if err != nil {
		return fmt.Errorf("keep notice: %w", err)
	}
	// None makes room for another: act would take the later one, and never hear of the first.
	if len(names) >= maxNotices {
		return errors.New("keep notice: nobody takes them: see attest-agent act")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	tmp := filepath.Join(n.dir, n.temporary)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("keep notice: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(n.dir, name)); err != nil {
		return fmt.Errorf("keep notice: %w", err)
	}
	return nil
}
