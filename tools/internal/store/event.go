package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

// Event is a change of a verdict or an act of an operator. Events are only ever added, and
// each one's hash covers the one before.
type Event struct {
	Seq      int64 // 1, 2, 3 ... without gaps
	At       time.Time
	Kind     string // verdict, overdue, device-*, policy-*, secret-*, token-*, or the caller's, see Note
	Device   string // may be empty
	Actor    string // who did it; empty if it was no operator
	Status   Status // the verdict that came of it; empty if none did
	Detail   string // JSON
	Evidence []byte // SHA-256 of the evidence that was kept, see [Store.Evidence]
	Hash     []byte // SHA-256
}

// Head is the end of the chain of events. Whoever remembers one, outside of the database,
// will notice if the history before it is cut off or written anew.
type Head struct {
	Seq  int64
	Hash []byte
}

// draft is an event that has no place in the chain yet.
type draft struct {
	Event
	notices []Notice
}

// event adds an event to the transaction.
func (t *tx) event(e Event) error {
	_, err := t.eventWith(e, nil)
	return err
}

func (t *tx) eventWith(e Event, notices []Notice) (*draft, error) {
	if err := errors.Join(text("actor", e.Actor, MaxText), text("kind", e.Kind, MaxText), text("detail", e.Detail, MaxDetail)); err != nil {
		return nil, err
	}
	for _, n := range notices {
		if err := n.check(); err != nil {
			return nil, err
		}
	}
	d := &draft{Event: e, notices: notices}
	t.events = append(t.events, d)
	return d, nil
}

// detail encodes what it is given by this package: it cannot fail.
func detail(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// flush gives the events of a transaction their places. It comes last, because nobody else
// can write an event from here to the commit.
func (t *tx) flush() error {
	if len(t.events) == 0 {
		return nil
	}
	head := Head{Hash: make([]byte, sha256.Size)}
	const get = `SELECT seq, hash FROM chain WHERE one = 1`
	err := t.get([]any{&head.Seq, &head.Hash}, get+t.s.lockUpdate)
	if errors.Is(err, ErrNotFound) {
		if _, err := t.exec(`INSERT INTO chain (one, seq, hash) VALUES (1, 0, $1) ON CONFLICT DO NOTHING`, head.Hash); err != nil {
			return fmt.Errorf("begin chain of events: %w", err)
		}
		err = t.get([]any{&head.Seq, &head.Hash}, get+t.s.lockUpdate)
	}
	if err != nil {
		return fmt.Errorf("read head of events: %w", err)
	}
	for _, e := range t.events {
		e.Seq = head.Seq + 1
		e.Hash = e.sum(head.Hash)
		if err := t.insert(e); err != nil {
			return fmt.Errorf("write event: %w", err)
		}
		head = Head{Seq: e.Seq, Hash: e.Hash}
	}
	if _, err := t.exec(`UPDATE chain SET seq = $1, hash = $2 WHERE one = 1`, head.Seq, head.Hash); err != nil {
		return fmt.Errorf("write head of events: %w", err)
	}
	return nil
}

func (t *tx) insert(e *draft) error {
	if _, err := t.exec(`INSERT INTO event (seq, at, kind, device, actor, status, detail, evidence, hash)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`, e.Seq, micros(e.At), e.Kind, e.Device, e.Actor, string(e.Status), e.Detail,
		null(e.Evidence), e.Hash); err != nil {
		return err
	}
	if e.Status != "" {
		if _, err := t.exec(`UPDATE attestation SET event = $2 WHERE device = $1`, e.Device, e.Seq); err != nil {
			return err
		}
	}
	if len(e.notices) == 0 {
		return nil
	}
	told, err := t.alarm(e)
	if err != nil || !told {
		return err
	}
	for _, n := range e.notices {
		if n.Target == TargetGroup {
			continue
		}
		if err := t.enqueue(n, e.Seq, e.At); err != nil {
			return err
		}
	}
	return nil
}

// sum is the hash of an event that stands after one of hash prev: of prev and the fields,
// each with its length before it.
func (e *Event) sum(prev []byte) []byte {
	h := sha256.New()
	for _, field := range [][]byte{
		[]byte("meta-attest event 1"), prev,
		binary.BigEndian.AppendUint64(nil, uint64(e.Seq)), binary.BigEndian.AppendUint64(nil, uint64(micros(e.At))),
		[]byte(e.Kind), []byte(e.Device), []byte(e.Actor), []byte(e.Status), []byte(e.Detail), e.Evidence,
	} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(field))))
		h.Write(field)
	}
	return h.Sum(nil)
}

const sqlEvent = `SELECT seq, at, kind, device, actor, status, detail, evidence, hash FROM event `

func scanEvent(r scanner) (e Event, err error) {
	var at int64
	err = r.Scan(&e.Seq, &at, &e.Kind, &e.Device, &e.Actor, &e.Status, &e.Detail, &e.Evidence, &e.Hash)
	e.At = fromMicros(at)
	return e, err
}

// Note writes an event of the caller's, who chooses the kind: a login, a change of the
// configuration. It cannot change a verdict.
func (s *Store) Note(ctx context.Context, e Event) error {
	if e.Status != "" {
		return errors.New("write event: a note has no status")
	}
	if !json.Valid([]byte(e.Detail)) {
		return errors.New("write event: detail: not JSON")
	}
	if err := text("device", e.Device, MaxText); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	if err := s.write(ctx, "", func(t *tx) error { return t.event(e) }); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}

// Event returns one event.
func (s *Store) Event(ctx context.Context, seq int64) (Event, error) {
	e, err := scanEvent(s.reads.QueryRowContext(ctx, sqlEvent+`WHERE seq = $1`, seq))
	if err != nil {
		return Event{}, fmt.Errorf("read event %d: %w", seq, none(err))
	}
	return e, nil
}

const (
	sqlEventsOf = sqlEvent + `WHERE device = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3`
	sqlEvents   = sqlEvent + `WHERE seq < $1 ORDER BY seq DESC LIMIT $2`
)

// Events returns at most limit events, newest first, of one device or of all if device is
// empty. Those from the event before on are left out; 0 leaves out none.
func (s *Store) Events(ctx context.Context, device string, before int64, limit int) (all []Event, err error) {
	if before == 0 {
		before = math.MaxInt64
	}
	if device == "" {
		all, err = list(ctx, s.reads, scanEvent, sqlEvents, before, limit)
	} else if CheckID(device) == nil {
		all, err = list(ctx, s.reads, scanEvent, sqlEventsOf, device, before, limit)
	}
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	return all, nil
}

// Head returns the end of the chain.
func (s *Store) Head(ctx context.Context) (Head, error) {
	h := Head{Hash: make([]byte, sha256.Size)}
	err := none(s.reads.QueryRowContext(ctx, `SELECT seq, hash FROM chain WHERE one = 1`).Scan(&h.Seq, &h.Hash))
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Head{}, fmt.Errorf("read head of events: %w", err)
	}
	return h, nil
}

// VerifyChain reads all events after the remembered head, the zero value for all there
// are, and returns the head that it found. [ErrChain] means that an event was changed,
// taken away or added by something else than this package, or that the verdict of a
// device is not the one that its last event gave it; the error says which. What the chain
// does not cover: policies, keys, and evidence (each is addressed by its own hash).
func (s *Store) VerifyChain(ctx context.Context, from Head) (Head, error) {
	head, err := s.Head(ctx)
	if err != nil {
		return Head{}, err
	}
	at := from
	if at.Seq == 0 {
		at.Hash = make([]byte, sha256.Size)
	} else if e, err := s.Event(ctx, from.Seq); err != nil || !bytes.Equal(e.Hash, from.Hash) {
		return Head{}, fmt.Errorf("event %d is not the one remembered: %w", from.Seq, errors.Join(ErrChain, err))
	}
	for at.Seq < head.Seq {
		page, err := list(ctx, s.reads, scanEvent, sqlEvent+`WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT 1000`, at.Seq, head.Seq)
		if err != nil {
			return Head{}, fmt.Errorf("read events: %w", err)
		}
		if len(page) == 0 {
			return Head{}, fmt.Errorf("event %d is missing: %w", at.Seq+1, ErrChain)
		}
		for _, e := range page {
			if e.Seq != at.Seq+1 {
				return Head{}, fmt.Errorf("event %d is missing: %w", at.Seq+1, ErrChain)
			}
			if !bytes.Equal(e.sum(at.Hash), e.Hash) {
				return Head{}, fmt.Errorf("event %d: %w", e.Seq, ErrChain)
			}
			at = Head{Seq: e.Seq, Hash: e.Hash}
		}
	}
	if at.Seq != head.Seq || !bytes.Equal(at.Hash, head.Hash) {
		return Head{}, fmt.Errorf("head of events: %w", ErrChain)
	}
	return head, s.verifyVerdicts(ctx)
}

// verifyVerdicts compares each device's status with the last event that gave it one.
func (s *Store) verifyVerdicts(ctx context.Context) error {
	wrong, err := list(ctx, s.reads, column[string],
		`SELECT a.device FROM attestation a LEFT JOIN event e ON e.seq = a.event
		WHERE e.seq IS NULL OR e.device <> a.device OR e.status <> a.status
		OR EXISTS (SELECT 1 FROM event l WHERE l.device = a.device AND l.seq > a.event AND l.status <> '') LIMIT 1`)
	if err != nil {
		return fmt.Errorf("compare verdicts with events: %w", err)
	}
	if len(wrong) > 0 {
		return fmt.Errorf("verdict of device %s is not that of its last event: %w", wrong[0], ErrChain)
	}
	return nil
}
