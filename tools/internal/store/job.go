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
	sqlClaim = `UPDATE job SET attempts = attempts + 1, next_at = $4 WHERE id IN (` + sqlClaimable
	// The lock of PostgreSQL stands between the two.
	sqlClaimable = `SELECT id FROM job WHERE dead = 0 AND next_at <= $1 AND (CAST($3 AS TEXT) = '' OR target = $3 OR substr(target, 1, length($3) + 1) = $3 || ':')
	ORDER BY next_at LIMIT $2`
	sqlClaimed = `) RETURNING ` + sqlJob
	sqlJob     = `id, target, event, payload, attempts, error, created, next_at`
)

func scanJob(r scanner) (j Job, err error) {
	var created, next int64
	err = r.Scan(&j.ID, &j.Target, &j.Event, &j.Payload, &j.Attempts, &j.Error, &created, &next)
	j.Created, j.NextAt = fromMicros(created), fromMicros(next)
	return j, err
}

func (n *Notice) check() error {
	return errors.Join(text("target", n.Target, MaxText), size("payload", n.Payload, MaxState))
}

func (t *tx) enqueue(n Notice, event int64, now time.Time) error {
	if err := n.check(); err != nil {
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
// that is neither [Store.Done] nor [Store.Retry] by then is given out again. They are those
// for a target and for those below it, which are called "TARGET:..."; for all if it is empty.
func (s *Store) Jobs(ctx context.Context, target string, limit int, lease time.Duration, now time.Time) (jobs []Job, err error) {
	err = s.write(ctx, "\xff", func(t *tx) (err error) {
		jobs, err = listIn(t, scanJob, sqlClaim+t.s.lockSkip+sqlClaimed, micros(now), limit, target, micros(now.Add(lease)))
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
	return s.settle(ctx, nil, `DELETE FROM job WHERE id = $1 AND attempts = $2 AND dead = 0`, j.ID, j.Attempts)
}

// Retry says that a job failed and when to try again; a zero time makes it a dead letter.
func (s *Store) Retry(ctx context.Context, j Job, reason string, at time.Time) error {
	if err := text("reason", reason, MaxText); err != nil {
		return fmt.Errorf("retry notice: %w", err)
	}
	return s.settle(ctx, nil, `UPDATE job SET error = $3, next_at = $4, dead = $5 WHERE id = $1 AND attempts = $2 AND dead = 0`,
		j.ID, j.Attempts, reason, micros(at), truth(at.IsZero()))
}

// Split replaces a job by others, about the same event, in one transaction. A job that is in
// other hands by now is an [ErrConflict].
func (s *Store) Split(ctx context.Context, j Job, into []Notice, now time.Time) error {
	return s.settle(ctx, func(t *tx) error {
		for _, n := range into {
			if err := t.enqueue(n, j.Event, now); err != nil {
				return err
			}
		}
		return nil
	}, `DELETE FROM job WHERE id = $1 AND attempts = $2 AND dead = 0`, j.ID, j.Attempts)
}

// Revive gives a dead letter another life. One that is not dead is an [ErrConflict].
func (s *Store) Revive(ctx context.Context, id, actor string, now time.Time) error {
	return s.settle(ctx, func(t *tx) error {
		return t.event(Event{At: now, Kind: "notice-retry", Actor: actor, Detail: detail(map[string]any{"id": id})})
	}, `UPDATE job SET dead = 0, attempts = 0, next_at = $2 WHERE id = $1 AND dead = 1`, id, micros(now))
}

// Drop deletes a job, dead or not. One that is not there is an [ErrConflict].
func (s *Store) Drop(ctx context.Context, id, actor string, now time.Time) error {
	return s.settle(ctx, func(t *tx) error {
		return t.event(Event{At: now, Kind: "notice-drop", Actor: actor, Detail: detail(map[string]any{"id": id})})
	}, `DELETE FROM job WHERE id = $1`, id)
}

// settle changes one job by q, and does more in the same transaction, if there is more.
func (s *Store) settle(ctx context.Context, more func(*tx) error, q string, args ...any) error {
	err := s.write(ctx, "", func(t *tx) error {
		n, err := t.exec(q, args...)
		if err == nil && n == 0 {
			err = ErrConflict
		}
		if err != nil || more == nil {
			return err
		}
		return more(t)
	})
	if err != nil {
		return fmt.Errorf("settle notice: %w", err)
	}
	return nil
}

// PruneJobs forgets at most limit jobs that were made before a time and have had no try since:
// dead letters, and those for a target that nobody delivers to any more.
func (s *Store) PruneJobs(ctx context.Context, before time.Time, limit int) (n int64, err error) {
	err = s.write(ctx, "\xff", func(t *tx) (err error) {
		n, err = t.exec(`DELETE FROM job WHERE id IN (SELECT id FROM job WHERE created < $1 AND next_at < $1 ORDER BY created LIMIT $2)`, micros(before), limit)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("prune notices: %w", err)
	}
	return n, nil
}

// DeadLetters lists at most limit jobs that were given up, oldest first.
func (s *Store) DeadLetters(ctx context.Context, limit int) ([]Job, error) {
	all, err := list(ctx, s.reads, scanJob, `SELECT `+sqlJob+` FROM job WHERE dead = 1 ORDER BY created, id LIMIT $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	return all, nil
}

// Queue lists at most limit jobs that are not given up, those whose turn is next first.
func (s *Store) Queue(ctx context.Context, limit int) ([]Job, error) {
	all, err := list(ctx, s.reads, scanJob, `SELECT `+sqlJob+` FROM job WHERE dead = 0 ORDER BY next_at, id LIMIT $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("list notices: %w", err)
	}
	return all, nil
}

// CountJobs counts those that wait and those that were given up.
func (s *Store) CountJobs(ctx context.Context) (waiting, dead int64, err error) {
	err = s.reads.QueryRowContext(ctx, `SELECT COALESCE(SUM(1 - dead), 0), COALESCE(SUM(dead), 0) FROM job`).Scan(&waiting, &dead)
	if err != nil {
		return 0, 0, fmt.Errorf("count notices: %w", err)
	}
	return waiting, dead, nil
}
