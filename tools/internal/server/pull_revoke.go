package server

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/notice"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// targetRevocation is the target of one job for each alarm, which becomes one for each agent
// of the group that is polled: "revocation:DEVICE". Its payload is the last of them that has one.
const targetRevocation = "revocation"

// sendRevocation tells an agent that is polled of the bad verdict of another device of its
// group, as Keylime does. Its message has no word for a device that is good again.
func (s *Server) sendRevocation(ctx context.Context, j store.Job) error {
	a, err := s.Store.Alarm(ctx, j.Event)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil || !notice.Bad(string(a.Status)) {
		return err
	}
	// A verdict that turns to and fro must not fill the queue.
	if again, err := s.Store.BadAgain(ctx, a); err != nil || again {
		return err
	}
	device, one := strings.CutPrefix(j.Target, targetRevocation+":")
	if !one {
		return s.splitRevocation(ctx, j, a)
	}
	group, err := s.Store.Group(ctx, device)
	if errors.Is(err, store.ErrNotFound) || err == nil && group != a.Group {
		return nil
	}
	if err != nil {
		return err
	}
	p, err := s.Store.Pull(ctx, device)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	d, err := s.Store.Device(ctx, device, s.Now())
	if err != nil {
		return err
	}
	m, err := s.revocation(ctx, a)
	if err != nil {
		return err
	}
	agent, err := s.contactOf(store.PullClaim{Pull: p, TLSCert: d.TLSCert, IP: d.IP, Port: d.Port})
	if err != nil {
		return err
	}
	defer agent.close()
	if agent.version == "" {
		if err := agent.negotiate(ctx); err != nil {
			return err
		}
	}
	return agent.post(ctx, "notifications/revocation", m)
}

// splitRevocation makes a job for each agent that is polled, so that one that cannot be
// reached keeps no other waiting: for a number of them, and a job for the rest.
func (s *Server) splitRevocation(ctx context.Context, j store.Job, a store.Alarm) error {
	pulls, err := s.Store.Pulls(ctx, a.Group, string(j.Payload), batch)
	if err != nil {
		return err
	}
	var all []store.Notice
	for _, p := range pulls {
		if p.Device != a.Device {
			all = append(all, store.Notice{Target: targetRevocation + ":" + p.Device})
		}
	}
	if len(pulls) == batch {
		all = append(all, store.Notice{Target: targetRevocation, Payload: []byte(pulls[batch-1].Device)})
	}
	if err := s.Store.Split(ctx, j, all, s.Now()); err != nil {
		return err
	}
	return errSettled
}

// revocation is Keylime's notice of an alarm, signed.
func (s *Server) revocation(ctx context.Context, a store.Alarm) (*evidence.SignedRevocation, error) {
	e, err := s.notice(ctx, a)
	if err != nil {
		return nil, err
	}
	r := evidence.Revocation{Type: "revocation", ID: a.Device, Time: a.At.UTC().Format(time.ANSIC), Severity: "emergency", TPMPolicy: "{}", Meta: "{}"}
	if d, err := s.Store.Device(ctx, a.Device, s.Now()); err == nil {
		r.IP, r.Port = d.IP, d.Port
	} else if !errors.Is(err, store.ErrNotFound) { // deleted meanwhile: it is revoked all the same
		return nil, err
	}
	if reason := e.Data.Reason; reason != nil {
		r.EventID, r.Context = reason.Code, map[string]string{"path": reason.Path, "message": reason.Advice}
	}
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return evidence.SignRevocation(s.Pull.RevocationKey, text)
}
