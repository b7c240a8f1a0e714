package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// outcome is what a device is told.
type outcome struct {
	index   int64
	status  store.Status
	verdict *evidence.Verdict
	system  evidence.SystemInfo
	again   bool // at once, with the list from its beginning
}

// judgeFunc is appraise.Appraise; a test puts one that panics here.
type judgeFunc func(*evidence.Claims, *appraise.Reference, appraise.State) (appraise.Verdict, appraise.State, error)

var appraised judgeFunc = appraise.Appraise

// maxRetries is how often evidence is judged anew because the state changed meanwhile.
const maxRetries = 4

// decide judges collected evidence and stores what came of it. The challenge is used up
// by that, whatever the verdict.
func (s *Server) decide(c *call, collected *evidence.Collected) (*outcome, error) {
	for try := 0; ; try++ {
		st, err := s.Store.State(c.Context(), c.who.device, c.now)
		if err != nil {
			return nil, err
		}
		p, err := c.asked(st)
		if err != nil {
			return nil, err
		}
		out, err := s.decideOnce(c, st, p, collected)
		if !errors.Is(err, store.ErrConflict) || try == maxRetries {
			return out, err
		}
	}
}

// asked is what the device answers to, if it does in time.
func (c *call) asked(st *store.State) (*pending, error) {
	i := c.PathValue("index")
	if st.Pending == nil || !st.Pending.Expires.After(c.now) || i != "latest" && i != fmt.Sprint(st.Pending.Index) {
		return nil, store.ErrPending
	}
	p, err := decodeState[pending](st.Pending.Body)
	if err != nil {
		return nil, err
	}
	if p.Whole {
		return nil, store.ErrPending
	}
	return &p, nil
}

func (s *Server) decideOnce(c *call, st *store.State, p *pending, collected *evidence.Collected) (*outcome, error) {
	k, err := decodeState[known](st.Evidence)
	if err != nil {
		return nil, err
	}
	if p.Asked.Whole() {
		leave, err := s.enterReplay(c.Context())
		if err != nil {
			return nil, err
		}
		defer leave()
	}
	b := bundleOf(c, st, p, collected, k)
	j := s.weigh(c.Context(), st, b)
	out := &outcome{index: st.Pending.Index, system: p.Asked.System, status: j.status}
	if j.whole {
		return s.askWhole(c, st, out, j)
	}
	return out, s.keep(c, st, b, k, j, out)
}

// bundleOf is all that a verdict depends on, as it is kept.
func bundleOf(c *call, st *store.State, p *pending, collected *evidence.Collected, k known) *evidence.Bundle {
	return &evidence.Bundle{Schema: evidence.SchemaBundle, Device: st.Device, At: c.now.UTC(), AK: st.AK.Public, Asked: p.Asked, Collected: *collected, Known: k.State,
		Terms: p.Terms, Policies: compared(st.Policies), Appraised: st.Appraise}
}

// compared names the policies of a device as its evidence keeps them.
func compared(refs []store.PolicyRef) (policies []evidence.ComparedPolicy) {
	for _, r := range refs {
		policies = append(policies, evidence.ComparedPolicy{Name: revision(r), Digest: r.Digest})
	}
	return policies
}

// enterReplay waits for one of the places in which whole lists are judged, so that a fleet
// that boots at once leaves the processors to those that go on. Who finds the queue full
// comes again later.
func (s *Server) enterReplay(ctx context.Context) (leave func(), err error) {
	select {
	case s.queue <- struct{}{}:
		defer func() { <-s.queue }()
	default:
		return nil, later(http.StatusServiceUnavailable, "busy", "too many devices attest a whole boot at once", 5*time.Second+rand.N(20*time.Second))
	}
	select {
	case s.replays <- struct{}{}:
		return func() { <-s.replays }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// judgement is what Verify and Appraise made of evidence.
type judgement struct {
	status   store.Status
	verdict  appraise.Verdict
	claims   *evidence.Claims // nil if the evidence is not authentic
	evidence evidence.State
	appraise []byte
	whole    bool // nothing was judged: the list is needed from its beginning
	gap      bool // what the evidence claims was not appraised
}

// weigh calls Verify and Appraise. Whatever they do, and be it to panic, the result is
// trusted only if both of them said so.
func (s *Server) weigh(ctx context.Context, st *store.State, b *evidence.Bundle) (j judgement) {
	defer func() {
		if p := recover(); p != nil {
			s.panicked(p, "panic while judging", "device", st.Device)
			j = unjudged(j, st, codeInternal, adviceInternal)
		}
	}()
	j.evidence, j.appraise = b.Known, st.Appraise
	ak, err := s.aks.parse(b.AK)
	if err != nil {
		return refused(j, err)
	}
	ref, unusable := s.refs.of(ctx, st.Policies)
	if unusable == nil && !b.Terms.Equal(ref.terms()) {
		j.whole, j.verdict = true, appraise.Unjudged(appraise.CodeNeedWhole, "the policy changed, and other PCRs or banks have to be asked for")
		return j
	}
	claims, next, err := b.VerifyWith(ak)
	if err != nil {
		return refused(j, err)
	}
	j.claims, j.evidence = claims, next
	if unusable != nil {
		s.Log.Error("compile policy", "device", st.Device, "error", unusable)
		j = unjudged(j, st, codePolicy, "its policies cannot be used together: attest fleet policy put NAME --dry-run says what is wrong with one, and it has to be put anew")
		j.verdict.Reasons[0].Seen = fmt.Sprintf("%.1000v", unusable)
		return j
	}
	var prev appraise.State
	if len(st.Appraise) > 0 {
		if err := prev.UnmarshalBinary(st.Appraise); err != nil {
			s.Log.Error("read stored state", "device", st.Device, "error", err)
			prev, b.Appraised = appraise.State{}, nil
		}
	}
	v, after, err := s.judge(claims, ref.compiled(), prev)
	if errors.Is(err, appraise.ErrNeedWhole) {
		j.whole, j.verdict = true, v
		return j
	}
	if err != nil {
		return unjudged(j, st, codeInternal, adviceInternal)
	}
	j.status, j.verdict = store.Status(v.Status), v
	if j.appraise, err = after.MarshalBinary(); err != nil {
		s.Log.Error("write state", "device", st.Device, "error", err)
		return unjudged(j, st, codeInternal, adviceInternal)
	}
	return j
}

// Codes of the server's own.
const (
	codeInternal appraise.Code = "internal" // a fault of the verifier
	codePolicy   appraise.Code = "policy"   // the policy cannot be compiled
)

const adviceInternal = "a fault of the verifier: its log says more; report it with the evidence of this event"

// unjudged is never green. The list is asked for from its beginning, as what was claimed
// of it was not appraised.
func unjudged(j judgement, st *store.State, code appraise.Code, why string) judgement {
	return judgement{status: store.Unverified, verdict: appraise.Unjudged(code, why), claims: j.claims, evidence: j.evidence, appraise: st.Appraise, gap: true}
}

// refused is the judgement of evidence that is not authentic.
func refused(j judgement, err error) judgement {
	j.verdict = appraise.Refused(err)
	j.status = store.Status(j.verdict.Status)
	j.whole = evidence.CodeOf(err) == evidence.CodeReboot // honest: it booted between the challenge and the quote, or before
	return j
}

// askWhole uses the challenge up and leaves a note to ask for everything. The verdict
// stays what it was, and becomes overdue if nothing follows.
func (s *Server) askWhole(c *call, st *store.State, out *outcome, j judgement) (*outcome, error) {
	note, err := json.Marshal(pending{Whole: true})
	if err != nil {
		return nil, err
	}
	if _, err := s.Store.Negotiate(c.Context(), st.Device, note, c.now.Add(s.ChallengeLifetime)); err != nil {
		return nil, err
	}
	out.again, out.status = true, st.Verdict.Status
	out.verdict = &evidence.Verdict{State: string(st.Verdict.Status), Reasons: told(j.verdict)}
	return out, nil
}

// keep stores a judgement, in one transaction with the counters of the quote.
func (s *Server) keep(c *call, st *store.State, b *evidence.Bundle, k known, j judgement, out *outcome) error {
	r := store.Result{Status: j.status, Codes: codesOf(j.verdict), Fitted: j.verdict.Release, At: c.now, Due: c.now.Add(s.due()),
		Appraise: j.appraise, Index: st.Pending.Index, Notices: s.tell(st.Verdict.Status, j.status)}
	if j.status != store.Trusted {
		r.Fitted = ""
	}
	var err error
	if err = s.record(c, st, b, j.verdict, &r); err != nil {
		return err
	}
	next := known{State: j.evidence, Boot: b.Asked.System.BootTime, Whole: j.claims == nil || j.gap}
	if j.claims != nil {
		clock := j.claims.Clock()
		r.Counters = &store.Counters{Reset: clock.ResetCount, Restart: clock.RestartCount, Clock: clock.Milliseconds}
	} else {
		next.Boot = k.Boot
	}
	if j.status == store.Trusted {
		next.Challenge = b.Asked.Challenge()
	}
	if r.Evidence, err = json.Marshal(next); err != nil {
		return err
	}
	event, err := s.Store.Attest(c.Context(), st, r)
	if err != nil {
		return err
	}
	if event != nil {
		s.Log.Info("verdict changed", "device", st.Device, "from", st.Verdict.Status, "to", j.status, "codes", r.Codes,
			"release", r.Fitted, "event", event.Seq)
	}
	out.verdict = &evidence.Verdict{State: string(j.status), Reasons: told(j.verdict)}
	return nil
}

// record adds the verdict, and the evidence where the verdict is another one than the last. Of
// a device whose verdict changes all the time it shortens both.
func (s *Server) record(c *call, st *store.State, b *evidence.Bundle, v appraise.Verdict, r *store.Result) (err error) {
	if r.Detail, err = detailOf(v, store.MaxDetail); err != nil || st.Verdict.Status == r.Status && st.Verdict.Codes == r.Codes {
		return err
	}
	if r.Raw, err = json.Marshal(b); err != nil {
		return err
	}
	if s.kept.spend(st.Device, len(r.Raw)+len(r.Detail), c.now) > 0 {
		s.Log.Warn("too much evidence of a device: not kept", "device", st.Device, "bytes", len(r.Raw))
		r.Raw = nil
		r.Detail, err = detailOf(v, shortDetail)
	}
	return err
}

// codesOf are the codes of the reasons, sorted, each once.
func codesOf(v appraise.Verdict) string {
	var codes []string
	for _, r := range v.Reasons {
		codes = append(codes, string(r.Code))
	}
	slices.Sort(codes)
	return strings.Join(slices.Compact(codes), " ")
}

// shortDetail is the length of a detail of which too many were stored already.
const shortDetail = 4 << 10

// detailOf is the verdict as JSON, with fewer reasons where it would be longer than bound.
func detailOf(v appraise.Verdict, bound int) (json.RawMessage, error) {
	for {
		b, err := json.Marshal(v)
		if err != nil || len(b) <= bound {
			return b, err
		}
		if len(v.Reasons) < 2 {
			if len(b) > store.MaxDetail {
				err = fmt.Errorf("verdict of %d bytes is too large", len(b))
			}
			return b, err
		}
		half := len(v.Reasons) / 2
		v.Omitted += len(v.Reasons) - half
		v.Reasons = v.Reasons[:half]
		v.Notes = v.Notes[:min(len(v.Notes), half)]
	}
}

const maxTold = 16 // reasons that a device is told

// told is what a device hears: which of its files, not what was expected instead.
func told(v appraise.Verdict) []evidence.Reason {
	var reasons []evidence.Reason
	for _, r := range v.Reasons[:min(len(v.Reasons), maxTold)] {
		reasons = append(reasons, evidence.Reason{Code: string(r.Code), Path: r.Path, Detail: r.Advice})
	}
	return reasons
}

// toldVerdict is what was told with a verdict that is stored.
func toldVerdict(status store.Status, detail json.RawMessage) *evidence.Verdict {
	var v appraise.Verdict
	if err := json.Unmarshal(detail, &v); err != nil {
		return &evidence.Verdict{State: string(status)}
	}
	return &evidence.Verdict{State: string(status), Reasons: told(v)}
}

// jsonOf is for what cannot fail to be JSON.
func jsonOf(v map[string]string) string {
	b, _ := json.Marshal(v) // strings always are
	return string(b)
}
