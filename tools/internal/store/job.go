package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"
)

// Job is a notice to be delivered. It survives restarts, is given to one worker at a time,
// and is delivered at least once.
type Job struct {
	ID       string
	Target   string
	Event    int64 // that it is about, 0 if none
	Payload  []byte
	Attempts int64 // that were begun, this one included
	Error    string
	Created  time.Time
	NextAt   time.Time // when it is given out again
}

const (
	sqlClaim = `UPDATE job SET attempts = attempts + 1, next_at = $3 WHERE id IN (` + sqlClaimable
	// The lock of PostgreSQL stands between the two.
	sqlClaimable = `SELECT id FROM job WHERE dead = 0 AND next_at <= $1 ORDER BY next_at LIMIT $2`
	sqlClaimed   = `) RETURNING ` + sqlJob
	sqlJob       = `id, target, event, payload, attempts, error, created, next_at`
)

func scanJob(r scanner) (j Job, err error) {
	var created, next int64
	err = r.Scan(&j.ID, &j.Target, &j.Event, &j.Payload, &j.Attempts, &j.Error, &created, &next)
	j.Created, j.NextAt = fromMicros(created), fromMicros(next)
	return j, err
}

func (t *tx) enqueue(n Notice, event int64, now time.Time) error {
	if err := errors.Join(text("target", n.Target, MaxText), size("payload", n.Payload, MaxState)); err != nil {
		return err
	}
	_, err := t.exec(`INSERT INTO job (id, target, event, payload, attempts, dead, error, created, next_at) VALUES ($1, $2, $3, $4, 0, 0, '', $5, $5)`,
		rand.Text(), n.Target, event, null(n.Payload), micros(now))
	return err
}

// Enqueue adds a job that belongs to no event.
func (s *Store) Enqueue(ctx context.Context, n Notice, now time.Time) error {
	if err := s.write(ctx, "", func(t *tx) error { return t.enqueue(n, 0, now) }); err != nil {
		return fmt.Errorf("queue notice: %w", err)
	}
	return nil
}

// Jobs gives out at most limit jobs whose time has come, for the length of a lease: a job
// that is neither [Store.Done] nor [Store.Retry] by then is given out again.
func (s *Store) Jobs(ctx context.Context, limit int, lease time.Duration, now time.Time) (jobs []Job, err error) {
	err = s.write(ctx, "\xff", func(t *tx) (err error) {
		jobs, err = listIn(t, scanJob, sqlClaim+t.s.lockSkip+sqlClaimed, micros(now), limit, micros(now.Add(lease)))
		t.dirty = t.dirty || len(jobs) > 0
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("claim notices: %w", err)
	}
	return jobs, nil
}

// Done says that a job was delivered. Attempts tells it from the same job in the hands of
// a later worker: then it is an [ErrConflict], and the other one decides.
func (s *Store) Done(ctx context.Context, j Job) error {
	return s.settle(ctx, `DELETE FROM job WHERE id = $1 AND attempts = $2 AND dead = 0`, j.ID, j.Attempts)
}

// Retry says that a job failed and when to try again; a zero time makes it a dead letter.
func (s *Store) Retry(ctx context.Context, j Job, reason string, at time.Time) error {
	if err := text("reason", reason, MaxText); err != nil {
		return fmt.Errorf("retry notice: %w", err)
	}
	return s.settle(ctx, `UPDATE job SET error = $3, next_at = $4, dead = $5 WHERE id = $1 AND attempts = $2 AND dead = 0`,
		j.ID, j.Attempts, reason, micros(at), truth(at.IsZero()))
}

// Revive gives a dead letter another life.
func (s *Store) Revive(ctx context.Context, id string, now time.Time) error {
	return s.settle(ctx, `UPDATE job SET dead = 0, attempts = 0, next_at = $2 WHERE id = $1 AND dead = 1`, id, micros(now))
}

func (s *Store) settle(ctx context.Context, q string, args ...any) error {
	err := s.write(ctx, "", func(t *tx) error {
		n, err := t.exec(q, args...)
		if err == nil && n == 0 {
			return ErrConflict
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("settle notice: %w", err)
	}
	return nil
}

// DeadLetters lists at most limit jobs that were given up, oldest first.
func (s *Store) DeadLetters(ctx context.Context, limit int) ([]Job, error) {
	all, err := list(ctx, s.reads, scanJob, `SELECT `+sqlJob+` FROM job WHERE dead = 1 ORDER BY created, id LIMIT $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	return all, nil
}
