package server

import (
	"context"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	crand "crypto/rand"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// Pull is how agents are reached that wait to be polled (Keylime's pull model, API 2.1 to
// 2.6). The zero value: none is polled.
type Pull struct {
	// Certificate is what this verifier shows to agents, which have its issuer as their
	// trusted_client_ca; nil: no device can be polled.
	Certificate func() *tls.Certificate
	// Networks are those that agents may be in. Empty: all but the loopback device, link-local
	// addresses (where clouds keep their metadata), multicast and the unspecified address.
	Networks []netip.Prefix
	Parallel int // polls at a time, of this replica
	// RevocationKey signs what polled agents are told of others, as Keylime does: with RSA-PSS,
	// which package keys does not make. Nil: they are told nothing.
	RevocationKey *rsa.PrivateKey
}

const (
	pollTime = 50 * time.Second // for one poll, at most
	// After pollLease another replica polls: that is more than a poll and its writing take,
	// and so little that nothing is overdue because one was killed.
	pollLease = 75 * time.Second
	pollPause = time.Second     // between looking for devices whose turn it is
	maxPause  = 5 * time.Minute // between tries to reach an agent, unless the interval is longer
)

// pullSettings are those of a device that is to be polled, if it can be. contact is
// "IP:PORT", or "" for the address that the device registers with.
func (s *Server) pullSettings(contact string, share []byte) (store.PullSettings, error) {
	if s.Pull.Certificate == nil {
		return store.PullSettings{}, fail(http.StatusConflict, "pull", "this verifier polls no agents: set cert and key of [pull] in its configuration")
	}
	if contact != "" {
		if _, err := s.mayContact(contact); err != nil {
			return store.PullSettings{}, fail(http.StatusBadRequest, "contact", "%v", err)
		}
	}
	return store.PullSettings{Contact: contact, Share: share}, nil
}

// mayContact parses an address and says whether agents may be there. A name is refused, as
// it could stand for another address later.
func (s *Server) mayContact(contact string) (netip.AddrPort, error) {
	to, err := netip.ParseAddrPort(contact)
	if err != nil || to.Port() == 0 || to.Addr().Zone() != "" {
		return to, fmt.Errorf("contact %.60q is not IP:PORT", contact)
	}
	a := to.Addr().Unmap()
	if len(s.Pull.Networks) > 0 {
		if !slices.ContainsFunc(s.Pull.Networks, func(n netip.Prefix) bool { return n.Contains(a) }) {
			return to, fmt.Errorf("contact %s is in none of the networks of [pull]", to)
		}
	} else if !a.IsGlobalUnicast() {
		return to, fmt.Errorf("contact %s is no address of a device on a network: name its network in [pull] networks if it is meant", to)
	}
	return netip.AddrPortFrom(a, to.Port()), nil
}

// pollAll polls devices whose turn it is until ctx ends.
func (s *Server) pollAll(ctx context.Context) {
	places := make(chan struct{}, s.Pull.Parallel)
	var polls sync.WaitGroup
	defer polls.Wait()
	for ctx.Err() == nil {
		// Only this loop takes places, so that what is free now stays free.
		free := cap(places) - len(places)
		var claims []store.PullClaim
		if free > 0 {
			var err error
			if claims, err = s.Store.ClaimPulls(ctx, free, pollLease, s.Now()); err != nil && ctx.Err() == nil {
				s.Log.Error("claim polls", "error", err)
			}
		}
		for _, c := range claims {
			places <- struct{}{}
			polls.Go(func() {
				defer func() { <-places }()
				s.poll(ctx, c)
			})
		}
		if free > 0 && len(claims) == free {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollPause):
		}
	}
}

// poll has one device attest, and writes down what came of it.
func (s *Server) poll(ctx context.Context, claim store.PullClaim) {
	limited, cancel := context.WithTimeout(ctx, pollTime)
	defer cancel()
	began := time.Now()
	r, err := s.pollOnce(limited, claim)
	if err != nil {
		if r.Next.IsZero() { // it was not judged
			s.metrics.attestation("unreachable", time.Since(began))
			r.Next = s.Now().Add(s.pollAgain(claim.Failures))
		}
		level := s.Log.Info
		if claim.Failures == 0 {
			level = s.Log.Warn
		}
		level("poll failed", "device", claim.Device, "failures", claim.Failures+1, "error", err)
		r.Error = cut(strings.ToValidUTF8(strings.ReplaceAll(err.Error(), "\x00", ""), ""))
	}
	if ctx.Err() != nil {
		r.Next = s.Now() // the server is stopped: that was no fault of the agent's
	}
	settle, done := context.WithTimeout(context.WithoutCancel(ctx), sendTime)
	defer done()
	err = s.Store.EndClaim(settle, claim, r, s.Now())
	if errors.Is(err, store.ErrConflict) {
		return // new settings, or another replica has it since the lease ran out
	}
	if err != nil {
		s.Log.Error("end poll", "device", claim.Device, "error", err)
	}
}

// pollAgain is when an agent is tried again that did not answer so many times before.
func (s *Server) pollAgain(failures int64) time.Duration {
	d := min(s.Interval/4<<min(failures, 8), max(s.Interval, maxPause))
	return d + jitter(d/10)
}

// pollOnce polls, and hands over the share of a payload's key after a good verdict.
func (s *Server) pollOnce(ctx context.Context, claim store.PullClaim) (r store.PullResult, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.metrics.panics.Add(1)
			s.Log.Error("panic while polling", "device", claim.Device, "panic", fmt.Sprintf("%.200v", p), "stack", string(debug.Stack()))
			err = errors.New("the verifier failed while polling; its log says more")
		}
	}()
	agent, err := s.contactOf(claim)
	if err != nil {
		return r, err
	}
	defer agent.close()
	if agent.version == "" {
		if err := agent.negotiate(ctx); err != nil {
			return r, err
		}
	}
	p := &polled{}
	for range 2 { // once more, with all entries, after a boot
		if p, err = s.attestPolled(ctx, agent, claim.Device); err != nil {
			return r, err // and without a version, as that may be why
		}
		if !p.again {
			break
		}
	}
	r.Version = agent.version
	r.Next = s.Now().Add(s.Interval*9/10 + rand.N(s.Interval/5+1))
	if claim.Share == nil || p.again || p.status != store.Trusted {
		return r, nil
	}
	if err := s.handOver(ctx, agent, claim, p.key); err != nil {
		return r, fmt.Errorf("hand over share of payload key: %w", err)
	}
	r.Handed = true
	return r, nil
}

// handOver gives an agent its share. What was true when it was asked may not be any more: it
// is looked at again, and nothing leaves before the release is an event.
func (s *Server) handOver(ctx context.Context, agent *pullAgent, claim store.PullClaim, key string) error {
	if err := s.Store.ReleaseShare(ctx, claim, s.Now()); err != nil {
		return err
	}
	if err := agent.handOver(ctx, key, claim.Share); err != nil {
		return err
	}
	s.Log.Info("share of payload key handed over", "device", claim.Device)
	return nil
}

// polled is what came of one quote.
type polled struct {
	status store.Status
	key    string // the agent's transport key, in PEM; the quote binds it
	again  bool
}

// attestPolled does with an agent that is polled what negotiate and attest do with one that
// calls: a fresh nonce, evidence, a verdict, in the same state.
func (s *Server) attestPolled(ctx context.Context, agent *pullAgent, device string) (*polled, error) {
	now := s.Now()
	st, err := s.Store.State(ctx, device, now)
	if err != nil {
		return nil, err
	}
	p, q, err := s.askPolled(ctx, st, now)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	index, err := s.Store.Negotiate(ctx, device, body, p.Asked.Expires)
	if err != nil {
		return nil, err
	}
	answer, err := agent.quote(ctx, *q, s.bodies)
	if err != nil {
		return nil, err
	}
	var collected *evidence.Collected
	if p.Asked, collected, err = answer.Collected(p.Asked); err != nil {
		return nil, err
	}
	began := time.Now()
	for try := 0; ; try++ {
		done, err := s.decidePolled(ctx, device, index, p, collected, answer.Key)
		if !errors.Is(err, store.ErrConflict) || try == maxRetries {
			if err == nil {
				s.metrics.attestation(string(done.status), time.Since(began))
			}
			return done, err
		}
	}
}

// askPolled chooses what to ask for. The quote is of the one bank that the agent signs with.
func (s *Server) askPolled(ctx context.Context, st *store.State, now time.Time) (*pending, *evidence.QuoteRequest, error) {
	ak, err := s.aks.parse(st.AK.Public)
	if err != nil {
		return nil, nil, err
	}
	ref, err := s.refs.of(ctx, st.Policies)
	if err != nil {
		s.Log.Error("compile policy", "device", st.Device, "error", err)
	}
	log := evidence.Request{Class: evidence.ClassLog, Type: evidence.TypeIMA, Parameters: evidence.Parameters{Format: evidence.FormatText}}
	can := &evidence.Capabilities{Supported: []evidence.Supported{{Class: log.Class, Type: log.Type}, {Class: evidence.ClassCertification, Type: evidence.TypeQuote,
		Capabilities: evidence.Capability{AvailablePC: map[string][]int{ak.Hash(): {evidence.KeyPCR}}}}}}
	var pcrs []int
	for _, of := range ref.selection(can) {
		pcrs = append(pcrs, of...)
	}
	q := &evidence.QuoteRequest{Nonce: crand.Text(), WithKey: true, PCRs: slices.Compact(slices.Sorted(slices.Values(pcrs)))}
	p := &pending{Terms: ref.terms(), Asked: evidence.Requests{Stage: "awaiting_evidence", Received: now.UTC(), Expires: now.Add(s.ChallengeLifetime).UTC()}}
	asked := &p.Asked
	asked.Requested = []evidence.Request{{Class: evidence.ClassCertification, Type: evidence.TypeQuote, Parameters: evidence.Parameters{
		Challenge: []byte(q.Nonce), Scheme: ak.Scheme(), Hash: ak.Hash(), Selected: map[string][]int{ak.Hash(): q.WithKeyPCR()}}}}
	if q.Offset, err = s.offset(ctx, st, asked.Expected(ak, p.Terms), can, ref); err != nil {
		return nil, nil, err
	}
	log.Parameters.Offset = &q.Offset
	asked.Requested = append(asked.Requested, log)
	var boot []byte // what was appraised of it, where its list goes on
	if q.Offset > 0 {
		boot = st.Appraise
	}
	if ref.wantsFirmware(boot) {
		asked.Requested = append(asked.Requested, evidence.Request{Class: evidence.ClassLog, Type: evidence.TypeFirmware,
			Parameters: evidence.Parameters{Offset: new(int), Format: evidence.FormatBinary}})
	}
	return p, q, nil
}

// decidePolled judges an answer and stores what came of it, which uses the nonce up.
func (s *Server) decidePolled(ctx context.Context, device string, index int64, p *pending, collected *evidence.Collected, key string) (*polled, error) {
	c := &call{Request: new(http.Request).WithContext(ctx), now: s.Now()}
	st, err := s.Store.State(ctx, device, c.now)
	if err != nil {
		return nil, err
	}
	if st.Pending == nil || st.Pending.Index != index || !st.Pending.Expires.After(c.now) {
		return nil, store.ErrPending
	}
	k, err := decodeState[known](st.Evidence)
	if err != nil {
		return nil, err
	}
	if p.Asked.Whole() {
		leave, err := s.enterReplay(ctx)
		if err != nil {
			return nil, err
		}
		defer leave()
	}
	b := bundleOf(c, st, p, collected, k)
	j := s.weigh(ctx, st, b)
	if j.claims != nil {
		if err := j.claims.CheckShareKey(key); err != nil {
			j = refused(judgement{evidence: b.Known, appraise: st.Appraise}, err)
		}
	}
	out := &outcome{status: j.status}
	if j.whole {
		_, err := s.askWhole(c, st, out, j)
		return &polled{status: out.status, again: true}, err
	}
	if err := s.keep(c, st, b, k, j, out); err != nil {
		return nil, err
	}
	return &polled{status: j.status, key: key}, nil
}
