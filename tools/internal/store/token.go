package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Token lets an operator in. The token itself is not stored, only its SHA-256.
type Token struct {
	Name    string
	Role    string // the caller's word
	Created time.Time
	Expires time.Time // zero for never
}

// PutToken adds a token. The name of another is an [ErrExists].
func (s *Store) PutToken(ctx context.Context, k Token, hash [32]byte, actor string) error {
	if err := errors.Join(CheckID(k.Name), text("role", k.Role, MaxText)); err != nil {
		return fmt.Errorf("add token: %w", err)
	}
	err := s.write(ctx, "", func(t *tx) error {
		n, err := t.exec(`INSERT INTO token (name, role, hash, created, expires) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`,
			k.Name, k.Role, hash[:], micros(k.Created), micros(k.Expires))
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrExists
		}
		return t.event(Event{At: k.Created, Kind: "token-added", Actor: actor, Detail: detail(map[string]any{"name": k.Name, "role": k.Role})})
	})
	if err != nil {
		return fmt.Errorf("add token %s: %w", k.Name, err)
	}
	return nil
}

const sqlToken = `SELECT name, role, created, expires FROM token `

func scanToken(r scanner) (k Token, err error) {
	var created, expires int64
	err = r.Scan(&k.Name, &k.Role, &created, &expires)
	k.Created, k.Expires = fromMicros(created), fromMicros(expires)
	return k, err
}

// Token returns the token with this SHA-256, if it has not expired.
func (s *Store) Token(ctx context.Context, hash [32]byte, now time.Time) (Token, error) {
	k, err := scanToken(s.reads.QueryRowContext(ctx, sqlToken+`WHERE hash = $1 AND (expires = 0 OR expires > $2)`, hash[:], micros(now)))
	if err != nil {
		return Token{}, fmt.Errorf("look up token: %w", none(err))
	}
	return k, nil
}

// Tokens lists all tokens.
func (s *Store) Tokens(ctx context.Context) ([]Token, error) {
	all, err := list(ctx, s.reads, scanToken, sqlToken+`ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	return all, nil
}

// DeleteToken forgets a token.
func (s *Store) DeleteToken(ctx context.Context, name, actor string, now time.Time) error {
	err := s.write(ctx, "", func(t *tx) error {
		n, err := t.exec(`DELETE FROM token WHERE name = $1`, name)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrNotFound
		}
		return t.event(Event{At: now, Kind: "token-deleted", Actor: actor, Detail: detail(map[string]any{"name": name})})
	})
	if err != nil {
		return fmt.Errorf("delete token %.40q: %w", name, err)
	}
	return nil
}
