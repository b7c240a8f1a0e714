package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// Session is a challenge to a device, and once it is answered, a bearer token.
type Session struct {
	ID        string // chosen by the caller, not to be guessed
	Device    string
	Challenge []byte
	Expires   time.Time
}

const (
	sqlNewSession = `INSERT INTO session (id, device, challenge, tried, created, expires)
	SELECT $1, id, $3, 0, $4, $5 FROM device WHERE id = $2 AND state = 'active' ON CONFLICT DO NOTHING`
	sqlEvictChallenge = `DELETE FROM session WHERE id IN (SELECT id FROM session WHERE device = $1 AND token IS NULL AND id <> $2
	ORDER BY created DESC, id LIMIT $3 OFFSET $4)`
)

// NewSession notes a challenge. Everybody may ask for one in the name of any device, so it
// touches no session that was proven; of those that were not, the device keeps the last
// [MaxChallenges]. A device that is not enrolled is an [ErrNotFound].
func (s *Store) NewSession(ctx context.Context, n Session, now time.Time) error {
	if err := errors.Join(CheckID(n.Device), CheckID(n.ID), size("challenge", n.Challenge, MaxKey)); err != nil {
		return fmt.Errorf("new session: %w", err)
	}
	err := s.write(ctx, n.Device, func(t *tx) error {
		changed, err := t.exec(sqlNewSession, n.ID, n.Device, n.Challenge, micros(now), micros(n.Expires))
		if err != nil {
			return err
		}
		if changed == 0 {
			return cmp.Or(t.get([]any{new(string)}, `SELECT id FROM device WHERE id = $1 AND state = 'active'`, n.Device), ErrExists)
		}
		_, err = t.exec(sqlEvictChallenge, n.Device, n.ID, 10*MaxChallenges, MaxChallenges-1)
		return err
	})
	if err != nil {
		return fmt.Errorf("new session of device %s: %w", n.Device, err)
	}
	return nil
}

const sqlTakeSession = `UPDATE session SET tried = 1 WHERE id = $1 AND tried = 0 AND token IS NULL AND expires > $2 RETURNING device, challenge, expires`

// TakeSession returns a session whose challenge is about to be answered. It does so once:
// of two calls one gets the session, the other an [ErrProof], as does one that comes late.
func (s *Store) TakeSession(ctx context.Context, id string, now time.Time) (Session, error) {
	if CheckID(id) != nil {
		return Session{}, fmt.Errorf("answer to a session: %w", ErrProof)
	}
	n := Session{ID: id}
	err := s.write(ctx, id, func(t *tx) error {
		var expires int64
		err := t.change([]any{&n.Device, &n.Challenge, &expires}, sqlTakeSession, id, micros(now))
		n.Expires = fromMicros(expires)
		if errors.Is(err, ErrNotFound) {
			return ErrProof
		}
		return err
	})
	if err != nil {
		return Session{}, fmt.Errorf("answer to a session: %w", err)
	}
	return n, nil
}

const sqlProveSession = `UPDATE session SET token = $2, expires = $3, created = $4 WHERE id = $1 AND tried = 1 AND token IS NULL RETURNING device`

// ProveSession gives a session that was taken, and whose answer was right, its token; of
// the device's tokens the last [MaxTokens] stay. Only the token's SHA-256 is stored: a
// token is random, so that a slower hash would protect nothing.
func (s *Store) ProveSession(ctx context.Context, id string, token [32]byte, expires, now time.Time) error {
	err := s.write(ctx, id, func(t *tx) error {
		var device string
		err := t.change([]any{&device}, sqlProveSession, id, token[:], micros(expires), micros(now))
		if errors.Is(err, ErrNotFound) {
			return ErrProof
		}
		if err != nil {
			return err
		}
		_, err = t.exec(`DELETE FROM session WHERE id IN (SELECT id FROM session WHERE device = $1 AND token IS NOT NULL AND id <> $2
			ORDER BY created DESC, id LIMIT $3 OFFSET $4)`, device, id, 10*MaxTokens, MaxTokens-1)
		return err
	})
	if err != nil {
		return fmt.Errorf("prove session: %w", err)
	}
	return nil
}

const sqlTokenDevice = `SELECT device FROM session WHERE token = $1 AND expires > $2`

// TokenDevice returns the device that the token with this SHA-256 was given to.
func (s *Store) TokenDevice(ctx context.Context, token [32]byte, now time.Time) (device string, err error) {
	if err := s.asked[sqlTokenDevice].QueryRowContext(s.lasting(ctx), token[:], micros(now)).Scan(&device); err != nil {
		return "", fmt.Errorf("look up session token: %w", none(err))
	}
	return device, nil
}
