// Package store remembers what a registrar and a verifier must not forget: devices and
// their keys, enrolments under way, sessions, the state of each device's attestation,
// policies, and the chain of events.
//
// There is one implementation for SQLite and for PostgreSQL; dialect.go holds all that
// differs. Every fact is in the database and none in memory, so any number of verifiers
// may share one PostgreSQL. What must be unique is so by constraint, what must not be
// replayed by compare-and-set, and no lock outlives a transaction.
//
// A write is durable when its function returns. Writes of many callers share one
// transaction, so that they share one fsync.
//
// The package has no clock: the caller says what time it is. It parses no evidence and
// judges nothing: states, details and bodies are bytes to it. No error of it holds a
// secret, a password of a URL, or a value of a row other than the name asked for.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

var (
	// ErrNotFound means that there is no such row, or that it has expired. Answer 404.
	ErrNotFound = errors.New("not found")
	// ErrExists means that the name is taken by something else. Answer 409.
	ErrExists = errors.New("exists already")
	// ErrIdentity means that the device id belongs to another TPM, or that the TPM belongs
	// to another device id. Answer 403; only deleting the device frees either.
	ErrIdentity = errors.New("device id and TPM do not belong together")
	// ErrProof means that the answer to a challenge was wrong, late, or one too many.
	// Answer 401 or 403; the client may begin anew.
	ErrProof = errors.New("proof of possession failed")
	// ErrTooMany means that a bound on unfinished enrolments is reached. Answer 429.
	ErrTooMany = errors.New("too many enrolments under way")
	// ErrReplay means that the quote is not newer than the last one that was accepted,
	// by the TPM's own counters. Answer 403.
	ErrReplay = errors.New("quote is not newer than the last one accepted")
	// ErrPending means that the attestation was never negotiated, has expired, or is
	// over. Answer 403.
	ErrPending = errors.New("no such attestation under way")
	// ErrConflict means that the state changed since it was read: another verifier, a new
	// policy, an operator. Read it again and judge again.
	ErrConflict = errors.New("state changed since it was read")
	// ErrDowngrade means that a policy would go back to an older version.
	ErrDowngrade = errors.New("policy would go back to an older version")
	// ErrInvalid means that a value of an operator's cannot be stored; the error says which. Answer 400.
	ErrInvalid = errors.New("not valid")
	// ErrInUse means that devices are still assigned to what was to be deleted.
	ErrInUse = errors.New("still in use")
	// ErrSchema means that the database was made by another version of this program.
	ErrSchema = errors.New("schema version of the database does not fit")
	// ErrStopped means that an operator stopped the device, which a tenant cannot undo. Answer 403.
	ErrStopped = errors.New("stopped by an operator")
	// ErrChain means that the history was changed after it was written.
	ErrChain = errors.New("chain of events is broken")
	// ErrClosed means that the store was closed.
	ErrClosed = errors.New("store is closed")
)

// Store is a database of the verifier. Its methods may be called from many goroutines.
type Store struct {
	dialect
	reads  *sql.DB
	writes *sql.DB // SQLite: exactly one connection

	enc *zstd.Encoder
	dec *zstd.Decoder

	queue   chan *op
	stop    chan struct{} // closed by Close
	once    sync.Once
	writers sync.WaitGroup
	stopped chan struct{} // closed when no writer is left

	prepared map[string]*sql.Stmt // of writes, by text: SQLite would parse them each time
	asked    map[string]*sql.Stmt // of reads, by text
}

// Open opens the database at url: "postgres://...", "sqlite:///path" or a path. It never
// makes one and never changes a schema, see [Migrate]; the error is then an [ErrSchema].
func Open(ctx context.Context, url string) (*Store, error) {
	c, err := connect(url)
	if err != nil {
		return nil, err
	}
	if err := check(ctx, c); err != nil {
		return nil, errors.Join(err, c.close())
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make compressor: %w", err), c.close())
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(MaxBody), zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make decompressor: %w", err), c.close())
	}
	s := &Store{
		dialect: c.dialect, reads: c.reads, writes: c.writes, enc: enc, dec: dec,
		queue: make(chan *op, maxBatch), stop: make(chan struct{}), stopped: make(chan struct{}),
		prepared: map[string]*sql.Stmt{}, asked: map[string]*sql.Stmt{},
	}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(err, c.close())
	}
	for range s.dialect.writers {
		s.writers.Go(s.writeLoop)
	}
	go func() { s.writers.Wait(); close(s.stopped) }()
	return s, nil
}

// prepare parses what every attestation needs.
func (s *Store) prepare(ctx context.Context) error {
	for _, q := range []string{sqlEpoch + s.lockShare, sqlAttest, sqlNegotiate, sqlTryAttempts,
		sqlNewSession, sqlEvictChallenge, sqlTakeSession, sqlProveSession} {
		p, err := s.writes.PrepareContext(ctx, q)
		if err != nil {
			return fmt.Errorf("prepare statement: %w", err)
		}
		s.prepared[q] = p
	}
	for _, q := range []string{sqlState, sqlAllowed, sqlTokenDevice} {
		p, err := s.reads.PrepareContext(ctx, q)
		if err != nil {
			return fmt.Errorf("prepare statement: %w", err)
		}
		s.asked[q] = p
	}
	return nil
}

// Close ends the store. Writes that were not begun fail with [ErrClosed].
func (s *Store) Close() error {
	s.once.Do(func() { close(s.stop) })
	<-s.stopped
	s.dec.Close()
	return errors.Join(s.enc.Close(), conn{reads: s.reads, writes: s.writes}.close())
}

// Ping says whether the database answers and can be written to.
func (s *Store) Ping(ctx context.Context) error {
	err := s.write(ctx, "", func(t *tx) error {
		return t.get([]any{new(int64)}, `SELECT one FROM policy_epoch WHERE one = 1`+s.lockUpdate)
	})
	if err != nil {
		return fmt.Errorf("ping database: %w", err)
	}
	return nil
}

// micros is how a time is stored; the zero time is 0.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

func truth(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// none turns the driver's word for an empty answer into ours.
func none(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}
