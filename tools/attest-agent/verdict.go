package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// trusted is the one state of a verdict that is good.
const trusted = "trusted"

// maxReasons bounds how many reasons are kept and printed.
const maxReasons = 16

// describe is a verdict in one line.
func describe(v *evidence.Verdict) string {
	if v == nil || v.State == "" {
		return "the verifier gave no verdict, as Keylime's never does"
	}
	text := v.State
	for i, r := range v.Reasons {
		if i == maxReasons {
			return fmt.Sprintf("%s; and %d more", text, len(v.Reasons)-i)
		}
		text += "; " + strings.Join(parts(r), ": ")
	}
	return text
}

func parts(r evidence.Reason) []string {
	p := []string{r.Code}
	for _, more := range []string{r.Path, r.Detail} {
		if more != "" {
			p = append(p, more)
		}
	}
	return p
}

// bounded is v with nothing in it that a terminal would obey, and not too much of it.
func bounded(v *evidence.Verdict) *evidence.Verdict {
	if v == nil {
		return nil
	}
	b := &evidence.Verdict{State: printable(v.State, 40)}
	for i, r := range v.Reasons {
		if i == maxReasons {
			break
		}
		b.Reasons = append(b.Reasons, evidence.Reason{Code: printable(r.Code, 60), Path: printable(r.Path, 300), Detail: printable(r.Detail, 300)})
	}
	return b
}

// succeeded notes that evidence was taken, and prints what is new. m is nil where nothing was
// sent, as the device is only polled.
func (a *agent) succeeded(m *evidence.Meta, wait time.Duration) error {
	s, now := a.state, time.Now().UTC().Truncate(time.Second)
	failed := s.Failure != ""
	if failed {
		a.say("attesting again, failed attempts since %s: %d", s.FailureSince.Format(time.RFC3339), s.Failures)
	}
	s.Failure, s.Failures, s.FailureSince = "", 0, time.Time{}
	if m == nil {
		a.notify.send("STATUS=answering at " + a.config.get("listen"))
		if !failed && s.Next.IsZero() {
			return nil // no write each minute
		}
		s.Next = time.Time{}
		return a.folder.save(s)
	}
	verdict := bounded(m.Verdict)
	old, is := describe(s.Verdict), describe(verdict)
	if s.Verdict == nil || verdict == nil || s.Verdict.State != verdict.State || s.Since.IsZero() {
		s.Since = now
	}
	if s.Verdict == nil || old != is {
		a.say("verdict: %s", is)
	}
	s.Verdict, s.Attested, s.Next = verdict, now, now.Add(wait)
	a.notify.send("STATUS=" + is)
	return a.folder.save(s)
}

// failed notes that an attempt failed, and prints that when it is news. Nothing waits, and
// who called prints the error, when wait is zero.
func (a *agent) failed(err error, wait time.Duration) {
	s, now := a.state, time.Now().UTC().Truncate(time.Second)
	text := printable(err.Error(), maxShown)
	if s.Failures == 0 {
		s.FailureSince = now
	}
	if text != s.Failure && wait > 0 {
		a.say("attestation failed, trying again in %s: %s", wait.Round(time.Second), text)
		if hint := hintFor(err); hint != "" {
			a.say("hint: %s", hint)
		}
	}
	s.Failure, s.Next = text, now.Add(wait)
	s.Failures++
	a.notify.send("STATUS=failing: " + text)
}

// say prints a line; a journal adds the time.
func (a *agent) say(format string, args ...any) {
	fmt.Fprintf(a.in.stdout, format+"\n", args...)
}
