package server

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// known is what is kept of a device from one attestation to the next.
type known struct {
	State evidence.State `json:"state"`
	Boot  time.Time      `json:"boot"`            // as the agent said with that attestation
	Whole bool           `json:"whole,omitempty"` // ask for the list from its beginning
	// Challenge is of the attestation that made the device trusted: what asks for secrets names it.
	Challenge []byte `json:"challenge,omitempty"`
}

// pending is an attestation that was negotiated.
type pending struct {
	Asked evidence.Requests `json:"asked"`
	Terms evidence.Terms    `json:"terms,omitzero"`
	Whole bool              `json:"whole,omitempty"` // not for answering: the next one is to ask for all
}

func decodeState[T any](b []byte) (v T, err error) {
	if len(b) == 0 {
		return v, nil
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("read stored state: %w", err)
	}
	return v, nil
}

// negotiate says what is to be proven, and how: POST attestations.
func (s *Server) negotiate(c *call) error {
	if err := c.version("3"); err != nil {
		return err
	}
	m, err := evidence.Decode[evidence.Capabilities](c.Body)
	if err != nil {
		return err
	}
	st, err := s.Store.State(c.Context(), c.who.device, c.now)
	if err != nil {
		return err
	}
	if !st.Attest {
		return fail(http.StatusForbidden, "agent_attestations_disabled", "attestations of this device are switched off")
	}
	p, err := s.ask(c, st, &m.Data.Attributes)
	if err != nil {
		return err
	}
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	index, err := s.Store.Negotiate(c.Context(), st.Device, body, p.Asked.Expires)
	if err != nil {
		return err
	}
	c.w.Header().Set("Location", fmt.Sprintf("/v3.0/agents/%s/attestations/%d", st.Device, index))
	return c.push(http.StatusCreated, evidence.NewDocument(strconv.FormatInt(index, 10), p.Asked))
}

// ask chooses what to ask a device for.
func (s *Server) ask(c *call, st *store.State, can *evidence.Capabilities) (*pending, error) {
	ak, err := s.aks.parse(st.AK.Public)
	if err != nil {
		return nil, err
	}
	ref, err := s.refs.of(c.Context(), st.Policies)
	if err != nil {
		s.Log.Error("compile policy", "device", st.Device, "error", err)
	}
	p := &pending{Terms: ref.terms(), Asked: evidence.Requests{Stage: "awaiting_evidence", System: can.System, Received: c.now.UTC(), Expires: c.now.Add(s.ChallengeLifetime).UTC()}}
	asked := &p.Asked
	asked.Requested = []evidence.Request{{Class: evidence.ClassCertification, Type: evidence.TypeQuote, Parameters: evidence.Parameters{
		Challenge: evidence.NewNonce(), Scheme: ak.Scheme(), Hash: ak.Hash(), Selected: selectionOf(ref, can), Key: keyOf(ak, can),
	}}}
	var boot []byte // what was appraised of it, where its list goes on
	if list := can.IMA(); list != nil {
		offset, err := offsetOf(st, asked.Expected(ak, p.Terms), can, ref)
		if err != nil {
			return nil, err
		}
		if offset > 0 {
			boot = st.Appraise
		}
		format := evidence.FormatText
		if slices.Contains(list.Formats, evidence.FormatBinary) {
			format = evidence.FormatBinary
		}
		asked.Requested = append(asked.Requested, evidence.Request{Class: evidence.ClassLog, Type: evidence.TypeIMA,
			Parameters: evidence.Parameters{Offset: &offset, Format: format}})
	}
	if ref.wantsFirmware(boot) && can.Firmware() != nil {
		asked.Requested = append(asked.Requested, evidence.Request{Class: evidence.ClassLog, Type: evidence.TypeFirmware,
			Parameters: evidence.Parameters{Offset: new(int), Format: evidence.FormatBinary}})
	}
	return p, nil
}

// bootDrift is by how much two tellings of the time of one boot may differ.
const bootDrift = 30 * time.Second

// offsetOf is the first entry to send: 0 where nothing that is known can be gone on from.
func offsetOf(st *store.State, want evidence.Expected, can *evidence.Capabilities, ref *reference) (int, error) {
	k, err := decodeState[known](st.Evidence)
	if err != nil {
		return 0, err
	}
	if st.Pending != nil {
		p, err := decodeState[pending](st.Pending.Body)
		if err != nil {
			return 0, err
		}
		k.Whole = k.Whole || p.Whole
	}
	boot := k.Boot.Sub(can.System.BootTime).Abs()
	list := can.IMA()
	if k.Whole || boot > bootDrift || list.Partial != nil && !*list.Partial || !ref.continues(st.Appraise) {
		return 0, nil
	}
	want.IMA = true
	return k.State.Offset(want), nil
}

// selectionOf is what to quote. Keylime's agents of 2025 need the member sha1.
func selectionOf(ref *reference, can *evidence.Capabilities) map[string][]int {
	selected := map[string][]int{"sha1": {}}
	for bank, pcrs := range ref.selection(can) {
		selected[bank] = pcrs
	}
	return selected
}

// keyOf names the enrolled key, as the agent named it.
func keyOf(ak *evidence.AK, can *evidence.Capabilities) *evidence.Key {
	name := base64.StdEncoding.EncodeToString(ak.Name())
	keys := can.Quote().Keys
	for i := range keys {
		if keys[i].Name == name {
			return &keys[i]
		}
	}
	if len(keys) == 1 {
		return &keys[0]
	}
	return nil
}

// attest judges evidence: PATCH attestations/INDEX. A bad verdict is a 202 too: the
// question was answered.
func (s *Server) attest(c *call) error {
	if err := c.version("3"); err != nil {
		return err
	}
	leave, ok := s.busy.enter(c.who.device)
	if !ok {
		return later(http.StatusServiceUnavailable, "verification_in_progress", "an attestation of this device is being judged", time.Second)
	}
	defer leave()
	collected, err := s.collect(c)
	if err != nil {
		return err
	}
	began := time.Now()
	out, err := s.decide(c, collected)
	if err != nil {
		s.metrics.attestation("refused", time.Since(began))
		return err
	}
	s.metrics.attestation(string(out.status), time.Since(began))
	accepted := evidence.NewDocument(strconv.FormatInt(out.index, 10), evidence.Accepted{Stage: "evaluating_evidence", Evidence: []evidence.Item{}, System: out.system})
	accepted.Meta = &evidence.Meta{Next: s.next(out.again), Verdict: out.verdict, Again: out.again}
	if accepted.Meta.Secrets, err = s.secretsTag(c.Context(), c.who.device, out.status); err != nil {
		return err
	}
	return c.push(http.StatusAccepted, accepted)
}

// smallBody is what a steady attestation never exceeds. Larger ones are read by a few at a
// time, so that what a fleet sends after a power cut is not all in memory at once.
const smallBody = 256 << 10

// bodyTime is how long a large body may take.
const bodyTime = 90 * time.Second

func (s *Server) collect(c *call) (*evidence.Collected, error) {
	if c.ContentLength > evidence.MaxSize {
		return nil, fail(http.StatusRequestEntityTooLarge, "too_large", "more than %d bytes", evidence.MaxSize)
	}
	if c.ContentLength < 0 || c.ContentLength > smallBody {
		select {
		case s.bodies <- struct{}{}:
			defer func() { <-s.bodies }()
		default:
			return nil, later(http.StatusServiceUnavailable, "busy", "too many large attestations at once", 5*time.Second+rand.N(10*time.Second))
		}
		// A transport without deadlines (a test's) goes on with the server's own.
		_ = http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(bodyTime))
	}
	m, err := evidence.Decode[evidence.Collected](http.MaxBytesReader(c.w, c.Body, evidence.MaxSize))
	if err != nil {
		return nil, err
	}
	return &m.Data.Attributes, nil
}

// next is when the device is to come again: in an interval, a tenth sooner or later, so
// that devices that were started together do not stay together.
func (s *Server) next(again bool) int {
	if again {
		return 1
	}
	d := s.Interval*9/10 + rand.N(s.Interval/5+1)
	return max(1, int(d/time.Second))
}

// due is after which time a device is overdue.
func (s *Server) due() time.Duration { return time.Duration(s.Grace) * s.Interval }

// showAttestation answers GET attestations/INDEX in Keylime's words: of the last one only,
// as others are not kept.
func (s *Server) showAttestation(c *call) error {
	if err := c.version("3"); err != nil {
		return err
	}
	st, err := s.Store.State(c.Context(), c.PathValue("id"), c.now)
	if err != nil {
		return err
	}
	last := strconv.FormatInt(st.LastIndex, 10)
	if i := c.PathValue("index"); st.LastIndex < 0 || i != "latest" && i != last {
		return fmt.Errorf("attestation %.20q: %w", i, store.ErrNotFound)
	}
	evaluation := "fail"
	if st.Verdict.Status == store.Trusted {
		evaluation = "pass"
	}
	return c.push(http.StatusOK, map[string]any{
		"data": map[string]any{"type": "attestation", "id": last, "attributes": map[string]any{
			"stage": "verification_complete", "evaluation": evaluation, "verification_completed_at": st.Verdict.Attested.UTC()}},
		"meta": map[string]any{"verdict": toldVerdict(st.Verdict.Status, st.Verdict.Detail)},
	})
}
