package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"time"
)

// Status is a verdict in one word. The words are appraise's; the store knows these.
type Status string

const (
	Trusted    Status = "trusted"
	Untrusted  Status = "untrusted"
	Broken     Status = "broken"     // the evidence was not authentic
	Unverified Status = "unverified" // enrolled, or without a policy
	// Overdue is never stored: it is what any status but untrusted and broken becomes when
	// its due time has passed, computed by whoever asks.
	Overdue Status = "overdue"
)

var statusRE = regexp.MustCompile(`^[a-z][a-z_-]{0,31}$`)

// Verdict is what a device is known to be.
type Verdict struct {
	Status   Status
	Codes    string          // of the reasons, sorted, separated by spaces
	Detail   json.RawMessage // of the reasons; {} if there is nothing to say
	Fitted   string          // the release that everything fitted
	Since    time.Time       // of the status
	Attested time.Time       // last attestation that was judged
	Due      time.Time       // the next one must have been judged by then; zero for never
	Total    int64           // attestations judged
	Event    int64           // that this verdict was made by
}

// The first parameter of every statement with these is the time of the question.
const (
	sqlStatus  = `CASE WHEN a.due > 0 AND a.due < $1 AND a.status NOT IN ('untrusted', 'broken') THEN 'overdue' ELSE a.status END`
	sqlVerdict = sqlStatus + `, a.codes, a.fitted, a.since, a.attested, a.due, a.total, a.event`
)

type verdictRow struct {
	Verdict
	detail               string
	since, attested, due int64
}

func (v *verdictRow) dest() []any {
	return []any{&v.Status, &v.Codes, &v.Fitted, &v.since, &v.attested, &v.due, &v.Total, &v.Event}
}

func (v *verdictRow) verdict() Verdict {
	v.Since, v.Attested, v.Due = fromMicros(v.since), fromMicros(v.attested), fromMicros(v.due)
	if v.Status == Overdue {
		v.Since = v.Due
	}
	if v.detail != "" {
		v.Detail = json.RawMessage(v.detail)
	}
	return v.Verdict
}

// Counters are what a TPM signs with each quote (TPMS_CLOCK_INFO). They are ordered as
// they stand here: a reset sets the restart count to zero, and may set the clock back. The
// first two are compared by their difference, modulo 2^32: for some keys a TPM adds a number
// of its own to them (TPM 2.0 part 1, 36.7), so that they may wrap around at any boot.
type Counters struct {
	Reset   uint32
	Restart uint32
	Clock   uint64 // milliseconds
}

// Pending is an attestation that was negotiated and not judged yet.
type Pending struct {
	Index   int64 // /attestations/Index
	Expires time.Time
	Body    []byte // nonce and whatever else the caller needs to judge
}

// State is all that is needed to judge the next attestation of a device.
type State struct {
	Device   string
	AK       Key
	Attest   bool // false: attestations are refused
	Group    string
	Policies []PolicyRef // revisions allowed: policies as assigned, newest version first

	Counters *Counters // of the last quote accepted, or nil
	Evidence []byte    // from the last Result
	Appraise []byte    // from the last Result
	Verdict  Verdict   // as it is at the time of the question

	Pending   *Pending // nil if there is none; it may have expired
	LastIndex int64    // of the last attestation that was judged, -1 before

	rev, epoch int64
	stored     Status // without overdue
	noticed    int64
	since      int64
}

const sqlState = `SELECT d.ak, d.ak_public, d.attest, d.grp, e.epoch, a.rev, a.status, a.noticed, a.since, a.reset_count, a.restart_count, a.clock,
	a.evidence_state, a.appraisal_state, a.last_index, COALESCE(a.pending_index, -1), a.pending_expires, a.pending_body, ` + sqlVerdict + `, a.detail
	FROM device d JOIN attestation a ON a.device = d.id CROSS JOIN policy_epoch e WHERE d.id = $2 AND d.state = 'active'`

// State returns the state of an active device, with its verdict as it is at now.
func (s *Store) State(ctx context.Context, device string, now time.Time) (*State, error) {
	if CheckID(device) != nil {
		return nil, fmt.Errorf("device %.40q: %w", device, ErrNotFound)
	}
	st := &State{Device: device}
	v, p := verdictRow{}, Pending{}
	var attest, expires, reset, restart, clock int64
	err := s.asked[sqlState].QueryRowContext(s.lasting(ctx), micros(now), device).Scan(append([]any{&st.AK.SPKI, &st.AK.Public, &attest, &st.Group, &st.epoch,
		&st.rev, &st.stored, &st.noticed, &st.since, &reset, &restart, &clock, &st.Evidence, &st.Appraise, &st.LastIndex,
		&p.Index, &expires, &p.Body}, append(v.dest(), &v.detail)...)...)
	if err != nil {
		return nil, fmt.Errorf("read state of device %s: %w", device, none(err))
	}
	st.Attest, st.Verdict = attest == 1, v.verdict()
	if reset >= 0 {
		st.Counters = &Counters{Reset: uint32(reset), Restart: uint32(restart), Clock: uint64(clock)}
	}
	if p.Index >= 0 {
		p.Expires = fromMicros(expires)
		st.Pending = &p
	}
	rows, err := s.asked[sqlAllowed].QueryContext(s.lasting(ctx), device)
	st.Policies, err = collect(rows, err, scanRef)
	if err != nil {
		return nil, fmt.Errorf("read policies of device %s: %w", device, err)
	}
	return st, nil
}

// startAttestation makes the row of a device that has none, and its first due time.
func (t *tx) startAttestation(device string, due, now time.Time) error {
	_, err := t.exec(`INSERT INTO attestation (device, rev, reset_count, restart_count, clock, status, codes, detail, fitted,
		since, attested, due, noticed, total, event, next_index, last_index, pending_expires)
		VALUES ($1, 0, -1, -1, -1, 'unverified', '', '{}', '', $2, 0, $3, 0, 0, 0, 0, -1, 0)
		ON CONFLICT (device) DO UPDATE SET due = excluded.due, rev = attestation.rev + 1`, device, micros(now), micros(due))
	return err
}

const sqlNegotiate = `UPDATE attestation SET pending_index = next_index, next_index = next_index + 1, pending_expires = $2, pending_body = $3
	WHERE device = $1 AND EXISTS (SELECT 1 FROM device WHERE id = $1 AND state = 'active' AND attest = 1) RETURNING pending_index`

// Negotiate notes that an attestation is under way and returns its index: 0, 1, 2 ... of
// this device. It replaces one that was not finished. A device that may not attest is an
// [ErrNotFound].
func (s *Store) Negotiate(ctx context.Context, device string, body []byte, expires time.Time) (index int64, err error) {
	if err := errors.Join(CheckID(device), size("negotiated attestation", body, MaxState)); err != nil {
		return 0, err
	}
	err = s.write(ctx, device, func(t *tx) error {
		return t.change([]any{&index}, sqlNegotiate, device, micros(expires), body)
	})
	if err != nil {
		return 0, fmt.Errorf("negotiate attestation of device %s: %w", device, err)
	}
	return index, nil
}

// Result is what came of an attestation.
type Result struct {
	Status Status
	Codes  string
	Detail json.RawMessage
	Fitted string

	At  time.Time
	Due time.Time // of the next; must not be zero for a trusted device

	// Counters of the quote, nil if the quote was not authentic: then those that are
	// stored stay, and Status may not be trusted.
	Counters *Counters
	// Evidence and Appraise replace those of the state, nil too.
	Evidence []byte
	Appraise []byte

	Index int64 // of the negotiated attestation that ends with this, -1 if there was none

	// Record writes an event even if the verdict is the old one.
	Record bool
	// Raw is the evidence to keep with the event, if there is one.
	Raw []byte
	// Notices are queued together with the event, if there is one.
	Notices []Notice
}

// Notice is a job to be queued, see [Store.Jobs].
type Notice struct {
	Target  string
	Payload []byte
}

func (r *Result) check() error {
	switch {
	case !statusRE.MatchString(string(r.Status)) || r.Status == Overdue:
		return fmt.Errorf("status %.40q: cannot be stored", r.Status)
	case r.Status == Trusted && r.Due.IsZero():
		return errors.New("trusted, and never due again")
	case r.Status == Trusted && r.Counters == nil:
		return errors.New("trusted, without a quote")
	case r.Counters != nil && r.Counters.Clock > math.MaxInt64:
		return errors.New("clock of the TPM: out of range")
	case !json.Valid(r.Detail):
		return errors.New("detail: not JSON")
	}
	return errors.Join(text("codes", r.Codes, MaxText), text("detail", string(r.Detail), MaxDetail), text("release", r.Fitted, MaxText),
		size("state of evidence", r.Evidence, MaxState), size("state of appraisal", r.Appraise, MaxState), size("evidence", r.Raw, MaxBody))
}

const (
	sqlEpoch  = `SELECT epoch FROM policy_epoch WHERE one = 1`
	sqlAttest = `UPDATE attestation SET rev = rev + 1, reset_count = $3, restart_count = $4, clock = $5, evidence_state = $6, appraisal_state = $7,
	status = $8, codes = $9, detail = $10, fitted = $11, since = $12, attested = $13, due = $14, total = total + 1,
	last_index = COALESCE(pending_index, last_index), pending_index = NULL, pending_body = NULL
	WHERE device = $1 AND rev = $2
	AND (CAST($15 AS BIGINT) = 0 OR reset_count = -1 OR ($3 - reset_count + 4294967296) % 4294967296 BETWEEN 1 AND 2147483647
		OR reset_count = $3 AND (($4 - restart_count + 4294967296) % 4294967296 BETWEEN 1 AND 2147483647 OR restart_count = $4 AND clock < $5))
	AND (CAST($16 AS BIGINT) = -1 OR pending_index = $16 AND pending_expires >= $13)
	AND EXISTS (SELECT 1 FROM device WHERE id = $1 AND ak = $17 AND attest = 1 AND state = 'active')`
)

// Attest writes the result of judging st, as [Store.State] returned it: counters, states
// and verdict in one transaction, and an event if the verdict changed, if the device had
// been noticed to be overdue, or on demand; it returns the event or nil. It refuses with
//   - [ErrReplay] if the quote is not newer than the last one, by the TPM's own counters;
//   - [ErrPending] if r.Index is not under way any more;
//   - [ErrConflict] if the device or any policy changed since st was read;
//   - [ErrNotFound] if the device is gone.
func (s *Store) Attest(ctx context.Context, st *State, r Result) (*Event, error) {
	if len(r.Detail) == 0 {
		r.Detail = json.RawMessage("{}")
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("result of device %s: %w", st.Device, err)
	}
	missed := st.noticed > 0 && st.noticed == micros(st.Verdict.Due)
	since := st.since
	if r.Status != st.stored || missed {
		since = micros(r.At)
	}
	var raw *blob
	if r.Record || missed || r.Status != st.stored || r.Codes != st.Verdict.Codes {
		raw = s.pack(r.Raw)
	}
	counters := []int64{-1, -1, -1}
	if c := cmpCounters(r.Counters, st.Counters); c != nil {
		counters = []int64{int64(c.Reset), int64(c.Restart), int64(c.Clock)}
	}
	args := []any{st.Device, st.rev, counters[0], counters[1], counters[2], null(r.Evidence), null(r.Appraise),
		string(r.Status), r.Codes, string(r.Detail), r.Fitted, since, micros(r.At), micros(r.Due),
		truth(r.Counters != nil), r.Index, st.AK.SPKI}
	var e *draft
	err := s.write(ctx, st.Device, func(t *tx) error {
		e = nil
		if err := t.sameEpoch(st.epoch); err != nil {
			return err
		}
		n, err := t.exec(sqlAttest, args...)
		if err != nil {
			return err
		}
		if n == 0 {
			return t.whyNot(st, r)
		}
		if raw == nil {
			return nil
		}
		if err := t.keep(raw, r.Status == Trusted, r.At); err != nil {
			return err
		}
		e, err = t.eventWith(Event{At: r.At, Kind: "verdict", Device: st.Device, Status: r.Status, Detail: string(r.Detail),
			Evidence: raw.digest}, r.Notices)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("write result of device %s: %w", st.Device, err)
	}
	if e == nil {
		return nil, nil
	}
	return &e.Event, nil
}

// cmpCounters are the counters to be stored: those of the quote, else those that are.
func cmpCounters(quoted, stored *Counters) *Counters {
	if quoted != nil {
		return quoted
	}
	return stored
}

// sameEpoch fails if a policy changed since epoch. Until the transaction ends none can.
func (t *tx) sameEpoch(epoch int64) error {
	if t.epoch == nil {
		var e int64
		if err := t.get([]any{&e}, sqlEpoch+t.s.lockShare); err != nil {
			return err
		}
		t.epoch = &e
	}
	if *t.epoch != epoch {
		return ErrConflict
	}
	return nil
}

// whyNot says why a result changed no row.
func (t *tx) whyNot(st *State, r Result) error {
	var reset, restart, clock, pending, expires, attest int64
	var ak []byte
	err := t.get([]any{&reset, &restart, &clock, &pending, &expires, &attest, &ak},
		`SELECT a.reset_count, a.restart_count, a.clock, COALESCE(a.pending_index, -1), a.pending_expires, d.attest, d.ak
		FROM attestation a JOIN device d ON d.id = a.device WHERE a.device = $1`, st.Device)
	if err != nil {
		return err
	}
	if q := r.Counters; q != nil && bytes.Equal(ak, st.AK.SPKI) {
		if !newer(*q, reset, restart, clock) {
			return ErrReplay
		}
	}
	if r.Index != -1 && (pending != r.Index || expires < micros(r.At)) {
		return ErrPending
	}
	return ErrConflict
}

func newer(q Counters, reset, restart, clock int64) bool {
	switch resets, restarts := int32(q.Reset-uint32(reset)), int32(q.Restart-uint32(restart)); {
	case reset < 0:
		return true
	case resets != 0:
		return resets > 0
	case restarts != 0:
		return restarts > 0
	}
	return int64(q.Clock) > clock
}

// SweepOverdue writes an event for each device, at most limit of them, that became overdue
// and for which none was written yet, and queues notices. Several verifiers may sweep at
// once. Whether a device is overdue does not depend on it.
func (s *Store) SweepOverdue(ctx context.Context, now time.Time, limit int, notices []Notice) ([]Event, error) {
	var found []*draft
	// The last of its batch: it locks what nobody waits for, and waits for nothing.
	err := s.write(ctx, "\xff", func(t *tx) error {
		found = nil
		type row struct {
			device string
			due    int64
		}
		rows, err := listIn(t, func(r scanner) (v row, err error) { return v, r.Scan(&v.device, &v.due) },
			sqlOverdue+t.s.lockSkip, micros(now), limit)
		if err != nil {
			return err
		}
		for _, r := range rows {
			// A judgement under way has to know of it: what others were told is for it to take back.
			if _, err := t.exec(`UPDATE attestation SET noticed = due, rev = rev + 1 WHERE device = $1`, r.device); err != nil {
				return err
			}
			e, err := t.eventWith(Event{At: now, Kind: "overdue", Device: r.device,
				Detail: detail(map[string]any{"due": fromMicros(r.due)})}, notices)
			if err != nil {
				return err
			}
			found = append(found, e)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sweep overdue devices: %w", err)
	}
	events := make([]Event, len(found))
	for i, e := range found {
		events[i] = e.Event
	}
	return events, nil
}

const sqlOverdue = `SELECT device, due FROM attestation WHERE noticed < due AND due < $1 ORDER BY due LIMIT $2`
