package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxBatch is how many writes may share a transaction. Nobody waits for a batch to fill:
// it holds what came while the one before was being committed.
const maxBatch = 256

const commitTimeout = 30 * time.Second

// op is one write that waits for its turn.
type op struct {
	ctx  context.Context
	key  string // the row it locks; a batch locks rows in the order of keys
	do   func(*tx) error
	err  error
	done chan struct{}
}

// write runs do in a transaction, together with the writes of others, and returns when it
// is durable. do may run twice, the first time for nothing. If it fails, nothing of it
// stays. Once begun it ends, even when ctx does not last.
func (s *Store) write(ctx context.Context, key string, do func(*tx) error) error {
	o := &op{ctx: ctx, key: key, do: do, done: make(chan struct{})}
	select {
	case <-s.stop:
		return ErrClosed
	default:
	}
	select {
	case s.queue <- o:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stop:
		return ErrClosed
	}
	select {
	case <-o.done:
		return o.err
	case <-s.stopped:
	}
	select {
	case <-o.done:
		return o.err
	default:
		return ErrClosed
	}
}

func (s *Store) writeLoop() {
	for {
		select {
		case <-s.stop:
			return
		case o := <-s.queue:
			s.run(s.gather(o))
		}
	}
}

// gather adds to first what else is waiting.
func (s *Store) gather(first *op) []*op {
	batch := []*op{first}
	for len(batch) < maxBatch {
		select {
		case o := <-s.queue:
			batch = append(batch, o)
			continue
		default:
		}
		break
	}
	slices.SortStableFunc(batch, func(a, b *op) int { return cmp.Compare(a.key, b.key) })
	return batch
}

// errSpoiled means that a transaction was given up for the sake of one of its writes.
var errSpoiled = errors.New("another write of the transaction failed")

// maxTurns is how often a write is tried that lost a deadlock against another verifier.
const maxTurns = 5

func (s *Store) run(batch []*op) {
	err := s.commit(batch)
	if errors.Is(err, errSpoiled) && len(batch) > 1 {
		for _, o := range batch {
			s.run([]*op{o})
		}
		return
	}
	for turn := 1; turn < maxTurns && errors.Is(err, errSpoiled) && s.deadlock(err); turn++ {
		err = s.commit(batch)
	}
	for _, o := range batch {
		close(o.done)
	}
}

// commit runs a batch in one transaction and sets the error of each write.
func (s *Store) commit(batch []*op) error {
	timed, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	ctx := s.lasting(timed)
	fail := func(err error) error {
		for _, o := range batch {
			if o.err == nil {
				o.err = err
			}
		}
		return err
	}
	sqltx, err := s.writes.BeginTx(ctx, nil)
	if err != nil {
		return fail(fmt.Errorf("begin transaction: %w", err))
	}
	defer func() { _ = sqltx.Rollback() }() // after Commit it does nothing
	t := &tx{s: s, tx: sqltx, ctx: ctx}
	for _, o := range batch {
		t.dirty, t.failed = false, false
		events := len(t.events)
		if o.err = o.ctx.Err(); o.err == nil {
			o.err = o.do(t)
		}
		if o.err == nil {
			continue
		}
		if t.dirty || t.failed {
			return errors.Join(errSpoiled, o.err)
		}
		t.events = t.events[:events]
	}
	if err := t.flush(); err != nil {
		return errors.Join(errSpoiled, fail(err))
	}
	if err := sqltx.Commit(); err != nil {
		return fail(fmt.Errorf("commit transaction: %w", err))
	}
	return nil
}

// tx is the transaction that a write runs in.
type tx struct {
	s      *Store
	tx     *sql.Tx
	ctx    context.Context // of the batch, not of one caller
	dirty  bool            // the current write changed something
	failed bool            // a statement of the current write failed
	events []*draft
	epoch  *int64 // of policies, once it was read
}

// exec returns how many rows q changed.
func (t *tx) exec(q string, args ...any) (int64, error) {
	var r sql.Result
	var err error
	if p := t.s.prepared[q]; p != nil {
		r, err = t.tx.StmtContext(t.ctx, p).ExecContext(t.ctx, args...)
	} else {
		r, err = t.tx.ExecContext(t.ctx, q, args...)
	}
	if err != nil {
		t.failed = true
		return 0, err
	}
	n, err := r.RowsAffected()
	if err != nil {
		t.failed = true
		return 0, err
	}
	t.dirty = t.dirty || n > 0
	return n, nil
}

// get reads the only row of a SELECT into dest, or returns [ErrNotFound].
func (t *tx) get(dest []any, q string, args ...any) error {
	var row *sql.Row
	if p := t.s.prepared[q]; p != nil {
		row = t.tx.StmtContext(t.ctx, p).QueryRowContext(t.ctx, args...)
	} else {
		row = t.tx.QueryRowContext(t.ctx, q, args...)
	}
	err := none(row.Scan(dest...))
	if err != nil && !errors.Is(err, ErrNotFound) {
		t.failed = true
	}
	return err
}

// change is get for a statement that writes, with RETURNING.
func (t *tx) change(dest []any, q string, args ...any) error {
	err := t.get(dest, q, args...)
	t.dirty = t.dirty || err == nil
	return err
}

// querier is a database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, q string, args ...any) (*sql.Rows, error)
}

// scanner is a row: sql.Row or sql.Rows.
type scanner interface{ Scan(dest ...any) error }

// column scans a row of one column.
func column[T any](r scanner) (v T, err error) {
	err = r.Scan(&v)
	return v, err
}

// list reads all rows of q.
func list[T any](ctx context.Context, db querier, scan func(scanner) (T, error), q string, args ...any) ([]T, error) {
	rows, err := db.QueryContext(ctx, q, args...)
	return collect(rows, err, scan)
}

// collect reads all rows of a query, unless it failed.
func collect[T any](rows *sql.Rows, err error, scan func(scanner) (T, error)) (all []T, failed error) {
	if err != nil {
		return nil, err
	}
	defer func() { failed = errors.Join(failed, rows.Close()) }()
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

// listIn is list in a transaction.
func listIn[T any](t *tx, scan func(scanner) (T, error), q string, args ...any) ([]T, error) {
	all, err := list(t.ctx, t.tx, scan, q, args...)
	t.failed = t.failed || err != nil
	return all, err
}
