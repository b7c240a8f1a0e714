package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"time"
)

// blob is bytes addressed by their SHA-256, compressed.
type blob struct {
	digest []byte // nil if there are no bytes
	size   int
	body   []byte
}

// pack compresses raw with zstd.
func (s *Store) pack(raw []byte) *blob {
	if len(raw) == 0 {
		return &blob{}
	}
	sum := sha256.Sum256(raw)
	return &blob{digest: sum[:], size: len(raw), body: s.enc.EncodeAll(raw, nil)}
}

// unpack gives back what was packed, or an error: never more than [MaxBody], and never
// bytes of another digest.
func (s *Store) unpack(b blob) ([]byte, error) {
	if b.size < 0 || b.size > MaxBody {
		return nil, fmt.Errorf("%d bytes, at most %d", b.size, MaxBody)
	}
	raw, err := s.dec.DecodeAll(b.body, make([]byte, 0, b.size))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if sum := sha256.Sum256(raw); !bytes.Equal(sum[:], b.digest) {
		return nil, fmt.Errorf("not the bytes that were stored: %w", ErrChain)
	}
	return raw, nil
}

// keep stores evidence. If it is there already it is as if it had come now.
func (t *tx) keep(b *blob, trusted bool, now time.Time) error {
	if b.digest == nil {
		return nil
	}
	_, err := t.exec(`INSERT INTO evidence (digest, size, body, trusted, created) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (digest) DO UPDATE SET created = excluded.created,
		trusted = CASE WHEN evidence.trusted < excluded.trusted THEN evidence.trusted ELSE excluded.trusted END`,
		b.digest, b.size, b.body, truth(trusted), micros(now))
	return err
}

// Evidence returns evidence by its SHA-256. It is an [ErrNotFound] once it was pruned.
func (s *Store) Evidence(ctx context.Context, sum []byte) ([]byte, error) {
	b := blob{digest: sum}
	err := s.reads.QueryRowContext(ctx, `SELECT size, body FROM evidence WHERE digest = $1`, sum).Scan(&b.size, &b.body)
	if err != nil {
		return nil, fmt.Errorf("read evidence %x: %w", sum, none(err))
	}
	raw, err := s.unpack(b)
	if err != nil {
		return nil, fmt.Errorf("read evidence %x: %w", sum, err)
	}
	return raw, nil
}

const sqlPrune = `DELETE FROM evidence WHERE digest IN (SELECT digest FROM evidence WHERE trusted = $1 AND created < $2 LIMIT $3`

// Prune forgets evidence of trusted devices that is older than trusted, and all other
// evidence that is older than others. Events keep the hashes. It deletes at most limit of
// each and returns how many; call it until that is 0. It also forgets expired sessions and
// enrolments.
func (s *Store) Prune(ctx context.Context, trusted, others, now time.Time, limit int) (n int64, err error) {
	err = s.write(ctx, "\xff", func(t *tx) error {
		n = 0
		for _, q := range []struct {
			sql  string
			args []any
		}{
			{sqlPrune + t.s.lockSkip + ")", []any{1, micros(trusted), limit}},
			{sqlPrune + t.s.lockSkip + ")", []any{0, micros(others), limit}},
			{`DELETE FROM session WHERE id IN (SELECT id FROM session WHERE expires <= $1 LIMIT $2` + t.s.lockSkip + ")", []any{micros(now), limit}},
			{`DELETE FROM attempt WHERE id IN (SELECT id FROM attempt WHERE expires <= $1 LIMIT $2` + t.s.lockSkip + ")", []any{micros(now), limit}},
		} {
			m, err := t.exec(q.sql, q.args...)
			if err != nil {
				return err
			}
			n += m
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("prune: %w", err)
	}
	return n, nil
}
