package server

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/notice"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// Notices say who is told when the verdict of a device turns bad, or good again. The zero
// value: nobody.
type Notices struct {
	Source string // URI of the fleet; empty: one of the hash of the first event

	// Key and its certificate sign what the other devices of the group get; nil: they get
	// nothing.
	Key  crypto.Signer
	Cert *x509.Certificate

	Webhooks []Webhook
}

// sender delivers the jobs for a target and for those below it, see [store.Store.Jobs].
type sender struct {
	target   string
	parallel int
	// send delivers one job. An error that is no [undelivered] is tried again.
	send func(context.Context, store.Job) error
}

// errSettled is what a sender returns that has settled its job itself, as
// [store.Store.Split] does.
var errSettled = errors.New("settled already")

// undelivered is why a job failed, and what the receiver asked for.
type undelivered struct {
	reason string
	after  time.Duration
	never  bool // it is not wanted, now or later
}

func (u *undelivered) Error() string { return u.reason }

// addSenders makes what [Server.Run] delivers with. Jobs are made for all targets.
func (s *Server) addSenders() error {
	if n := s.Notices; n.Key != nil {
		if n.Cert == nil {
			return errors.New("new server: the key of notices has no certificate")
		}
		if err := notice.CheckKey(n.Cert); err != nil {
			return fmt.Errorf("new server: %w", err)
		}
		s.told = append(s.told, store.Notice{Target: store.TargetGroup})
	}
	for _, w := range s.Notices.Webhooks {
		hook, err := newWebhook(s, w)
		if err != nil {
			return err
		}
		s.senders = append(s.senders, sender{"webhook:" + w.Name, 4, hook.send})
	}
	if s.Pull.RevocationKey != nil {
		s.senders = append(s.senders, sender{targetRevocation, 8, s.sendRevocation})
	}
	for _, x := range s.senders {
		s.told = append(s.told, store.Notice{Target: x.target})
	}
	return nil
}

// tell is who is told of a change. Of a good verdict nobody is who heard of no bad one
// before, but only the store knows that: another verifier may have called the device overdue
// since, or one whose clock is ahead.
func (s *Server) tell(was, is store.Status) []store.Notice {
	if is == store.Trusted || was != is && notice.Bad(string(is)) {
		return s.told
	}
	return nil
}

// fleet is the source of all notices.
func (s *Server) fleet(ctx context.Context) (string, error) {
	if s.Notices.Source != "" {
		return s.Notices.Source, nil
	}
	first, err := s.Store.Event(ctx, 1)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("urn:meta-attest:fleet:%x", first.Hash[:16]), nil
}

// maxNoticeText bounds a path or an advice in a notice, in bytes.
const maxNoticeText = 1 << 10

// notice makes the notice of an alarm.
func (s *Server) notice(ctx context.Context, a store.Alarm) (*notice.Event, error) {
	source, err := s.fleet(ctx)
	if err != nil {
		return nil, err
	}
	d := notice.Data{Device: a.Device, Group: a.Group, Labels: a.Labels, Status: string(a.Status)}
	var v appraise.Verdict
	if err := json.Unmarshal(a.Detail, &v); err != nil {
		return nil, fmt.Errorf("read event %d: %w", a.Seq, err)
	}
	if codes := strings.Fields(codesOf(v)); len(codes) > 0 {
		d.Codes = codes[:min(len(codes), 64)]
	}
	if len(v.Reasons) > 0 {
		r := v.Reasons[0]
		d.Reason = &notice.Reason{Code: string(r.Code), Path: cut(r.Path), Advice: cut(r.Advice)}
	}
	if a.Status == store.Overdue {
		d.Codes, d.Reason = []string{"overdue"}, &notice.Reason{Code: "overdue", Advice: "the device did not attest in time"}
	}
	return notice.New(source, a.Seq, a.Hash, a.At, d), nil
}

func cut(text string) string {
	if len(text) <= maxNoticeText {
		return text
	}
	return strings.ToValidUTF8(text[:maxNoticeText], "") + "..."
}

// noticeOf makes the notice that a job is about.
func (s *Server) noticeOf(ctx context.Context, j store.Job) (*notice.Event, error) {
	a, err := s.Store.Alarm(ctx, j.Event)
	if errors.Is(err, store.ErrNotFound) {
		return nil, &undelivered{reason: fmt.Sprintf("there is no alarm of event %d any more", j.Event), never: true}
	}
	if err != nil {
		return nil, err
	}
	return s.notice(ctx, a)
}

// schedule is when a notice is sent again: the example of Standard Webhooks 1.0. After the
// last time it is a dead letter.
var schedule = []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour}

const (
	sendTime  = 15 * time.Second // for one job
	sendLease = 40 * time.Second // after which another replica takes it: longer than sending and noting it take
	sendPause = time.Second      // between looking for jobs
	maxAfter  = 24 * time.Hour   // that a receiver may ask to wait for
)

// deliver sends the jobs of one target until ctx ends.
func (s *Server) deliver(ctx context.Context, x sender) {
	for ctx.Err() == nil {
		n, err := s.deliverSome(ctx, x)
		if err != nil && ctx.Err() == nil {
			s.Log.Error("deliver notices", "target", x.target, "error", err)
		}
		if n == x.parallel {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(sendPause):
		}
	}
}

// deliverSome sends as many jobs at once as the target may get at once.
func (s *Server) deliverSome(ctx context.Context, x sender) (int, error) {
	jobs, err := s.Store.Jobs(ctx, x.target, x.parallel, sendLease, s.Now())
	if err != nil {
		return 0, err
	}
	errs := make([]error, len(jobs))
	var wait sync.WaitGroup
	for i, j := range jobs {
		wait.Go(func() { errs[i] = s.deliverOne(ctx, x, j) })
	}
	wait.Wait()
	return len(jobs), errors.Join(errs...)
}

func (s *Server) deliverOne(ctx context.Context, x sender, j store.Job) (err error) {
	limited, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	failed := s.send(limited, x, j)
	// What was found out is written down even when the server is being stopped.
	settle, done := context.WithTimeout(context.WithoutCancel(ctx), sendTime)
	defer done()
	switch {
	case errors.Is(failed, errSettled):
		s.metrics.sent(x.target, "split")
		return nil
	case failed == nil:
		s.metrics.sent(x.target, "delivered")
		err = s.Store.Done(settle, j)
	default:
		err = s.postpone(settle, x, j, failed, ctx.Err() != nil)
	}
	if errors.Is(err, store.ErrConflict) {
		return nil // another replica has it since the lease ran out, and decides
	}
	return err
}

// send never lets a panic out: a notice that cannot be sent must not keep the server down.
func (s *Server) send(ctx context.Context, x sender, j store.Job) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.metrics.panics.Add(1)
			s.Log.Error("panic while sending", "target", j.Target, "event", j.Event, "panic", fmt.Sprintf("%.200v", p), "stack", string(debug.Stack()))
			err = errors.New("the verifier failed while sending; its log says more")
		}
	}()
	return x.send(ctx, j)
}

// postpone says when a job that failed is tried again, or gives it up.
func (s *Server) postpone(ctx context.Context, x sender, j store.Job, failed error, stopping bool) error {
	var u *undelivered
	errors.As(failed, &u)
	at := time.Time{}
	switch {
	case stopping:
		at = s.Now() // it was not the receiver's fault
	case u != nil && u.never || j.Attempts > int64(len(schedule)):
	default:
		d := schedule[j.Attempts-1]
		d += jitter(d / 10)
		if u != nil {
			d = max(d, min(u.after, maxAfter))
		}
		at = s.Now().Add(d)
	}
	result, level := "failed", s.Log.Warn
	if at.IsZero() {
		result, level = "dead", s.Log.Error
	}
	s.metrics.sent(x.target, result)
	reason := cut(strings.ToValidUTF8(strings.ReplaceAll(failed.Error(), "\x00", ""), ""))
	level("notice not delivered", "target", j.Target, "event", j.Event, "attempt", j.Attempts, "result", result, "next", at, "error", reason)
	return s.Store.Retry(ctx, j, reason, at)
}

// noticeView is a notice that waits or was given up.
type noticeView struct {
	ID       string     `json:"id"`
	Target   string     `json:"target"`
	Event    int64      `json:"event,omitempty"`
	Attempts int64      `json:"attempts"`
	Error    string     `json:"error,omitempty"`
	Created  time.Time  `json:"created"`
	Next     *time.Time `json:"next,omitempty"` // when it is sent again
	Dead     bool       `json:"dead"`
}

// listNotices lists dead letters, or what is still under way.
func (s *Server) listNotices(c *call) error {
	limit, err := c.page()
	if err != nil {
		return err
	}
	list, dead := s.Store.Queue, false
	switch q := c.URL.Query().Get("dead"); q {
	case "", "false":
	case "true":
		list, dead = s.Store.DeadLetters, true
	default:
		return fail(http.StatusBadRequest, "dead", "dead is true or false")
	}
	jobs, err := list(c.Context(), limit)
	if err != nil {
		return err
	}
	views := make([]noticeView, 0, len(jobs))
	for _, j := range jobs {
		views = append(views, noticeView{j.ID, j.Target, j.Event, j.Attempts, j.Error, j.Created, moment(j.NextAt), dead})
	}
	return c.json(http.StatusOK, map[string]any{"notices": views})
}

// retryNotice gives a dead letter another life.
func (s *Server) retryNotice(c *call) error {
	return c.settled(s.Store.Revive(c.Context(), c.PathValue("notice"), c.who.name, c.now))
}

func (s *Server) dropNotice(c *call) error {
	return c.settled(s.Store.Drop(c.Context(), c.PathValue("notice"), c.who.name, c.now))
}

func (c *call) settled(err error) error {
	if errors.Is(err, store.ErrConflict) {
		return fail(http.StatusNotFound, "no_notice", "there is no such notice, or it was not given up")
	}
	if err == nil {
		c.w.WriteHeader(http.StatusNoContent)
	}
	return err
}
