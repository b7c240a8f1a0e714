package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// statusDocument is the answer of status --json, schema attest.agent-status/v1.
type statusDocument struct {
	Schema  string `json:"schema"`
	Trusted bool   `json:"trusted"`
	Overdue bool   `json:"overdue"` // the time of the next attestation has passed by more than a minute
	State   *State `json:"state"`
}

func runStatus(_ context.Context, in *invocation) error {
	fs := newFlags("status", "Prints what the verifier said last, since when, and when it is asked again. The exit code is 3\nunless that was \"trusted\" and the next attestation is not overdue.")
	cf := addConfigFlags(fs)
	asJSON := fs.Bool("json", false, "print one JSON document (schema attest.agent-status/v1)")
	if err := fs.parse(in); err != nil {
		return err
	}
	c, err := cf.load(os.Environ())
	if err != nil {
		return err
	}
	s, err := (&folder{path: c.get("state_dir")}).state()
	if err != nil {
		return err
	}
	now := time.Now()
	doc := statusDocument{Schema: "attest.agent-status/v1", State: s, Overdue: !s.Next.IsZero() && now.After(s.Next.Add(time.Minute))}
	doc.Trusted = s.Verdict != nil && s.Verdict.State == trusted && s.Failure == "" && !doc.Overdue
	if *asJSON {
		e := json.NewEncoder(in.stdout)
		e.SetIndent("", "  ")
		if err := e.Encode(doc); err != nil {
			return err
		}
	} else {
		printStatus(in, doc, now)
	}
	switch {
	case s.ID == "":
		return &exitCode{exitUntrusted, errNotEnrolled}
	case doc.Overdue:
		return &exitCode{exitUntrusted, fmt.Errorf("the next attestation is overdue since %s: is the agent running?", s.Next.Format(time.RFC3339))}
	case s.Failure != "":
		return &exitCode{exitUntrusted, fmt.Errorf("attestation fails since %s", s.FailureSince.Format(time.RFC3339))}
	}
	return untrusted(s.Verdict)
}

func printStatus(in *invocation, d statusDocument, now time.Time) {
	s := d.State
	line := func(name, format string, args ...any) {
		fmt.Fprintf(in.stdout, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	if s.ID == "" {
		line("device", "not enrolled")
		return
	}
	line("device", "%s", s.ID)
	line("registrar", "%s", s.Registrar)
	line("verdict", "%s", describe(s.Verdict))
	if !s.Since.IsZero() {
		line("since", "%s", s.Since.Format(time.RFC3339))
	}
	if !s.Attested.IsZero() {
		line("attested", "%s", s.Attested.Format(time.RFC3339))
	}
	if !s.Next.IsZero() {
		line("next", "%s (in %s)", s.Next.Format(time.RFC3339), max(0, s.Next.Sub(now)).Round(time.Second))
	}
	if s.Failure != "" {
		line("failing", "since %s, %d times: %s", s.FailureSince.Format(time.RFC3339), s.Failures, s.Failure)
	}
}
