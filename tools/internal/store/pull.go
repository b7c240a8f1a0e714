package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

// ShareSize is the size of a share of a payload's key, in bytes.
const ShareSize = 32

// PullSettings say how a device is polled.
type PullSettings struct {
	// Contact is where the agent listens, "IP:PORT" or "[IP]:PORT"; "" is the address that
	// it registered with. Names are refused: what they stand for may change after a check.
	Contact string
	// Version is that of the agent's API, such as "2.2"; "" is to be asked of the agent.
	Version string
	// Share is Keylime's V, the verifier's half of the key of a payload, [ShareSize] bytes or
	// nil. It is kept until the agent has it, and no function but [Store.ClaimPulls] returns it.
	Share []byte
}

func (p *PullSettings) check() error {
	if p.Contact != "" {
		if a, err := netip.ParseAddrPort(p.Contact); err != nil || a.Port() == 0 || a.Addr().Zone() != "" {
			return fmt.Errorf("contact %.60q is not IP:PORT", p.Contact)
		}
	}
	if p.Share != nil && len(p.Share) != ShareSize {
		return fmt.Errorf("share of the payload's key has %d bytes, not %d", len(p.Share), ShareSize)
	}
	return text("version", p.Version, 8)
}

// Pull is how a device is polled, and what came of it last.
type Pull struct {
	Device   string
	Contact  string // as it was set; "" is that of Identity
	Version  string
	Waiting  bool      // a share is to be handed over
	Handed   time.Time // when one was, zero for never
	Next     time.Time
	Failures int64  // in a row, since the agent answered last
	Error    string // of the last of them
}

// PullClaim is a device whose turn it is, in the hands of one poller.
type PullClaim struct {
	Pull
	Share   []byte
	TLSCert []byte // DER: what the agent registered with
	IP      string // likewise
	Port    int

	claim int64
}

// PullResult is what came of a poll.
type PullResult struct {
	Next    time.Time
	Version string
	Error   string // "" if the agent answered
	Handed  bool   // the agent took the share
}

// SetPull makes device one that is polled, or changes how, and has it polled at once. A
// share replaces the one before; nil leaves it as it is.
func (s *Store) SetPull(ctx context.Context, device string, p PullSettings, actor string, now time.Time) error {
	if err := errors.Join(CheckID(device), p.check()); err != nil {
		return fmt.Errorf("poll device: %w", err)
	}
	if err := s.write(ctx, device, func(t *tx) error { return t.setPull(device, p, actor, now) }); err != nil {
		return fmt.Errorf("poll device %s: %w", device, err)
	}
	return nil
}

// setPull is [Store.SetPull] within a transaction; p was checked.
func (t *tx) setPull(device string, p PullSettings, actor string, now time.Time) error {
	if err := t.get([]any{new(string)}, `SELECT id FROM device WHERE id = $1`, device); err != nil {
		return err
	}
	// It begins anywhere, so that no claim of a row that was deleted is one of the new row.
	_, err := t.exec(`INSERT INTO pull (device, contact, version, share, handed, next_at, claim, failures, error)
		VALUES ($1, $2, $3, $4, 0, $5, $6, 0, '')
		ON CONFLICT (device) DO UPDATE SET contact = excluded.contact, version = excluded.version, share = COALESCE(excluded.share, pull.share),
		handed = CASE WHEN excluded.share IS NULL THEN pull.handed ELSE 0 END, next_at = excluded.next_at, claim = pull.claim + 1, failures = 0, error = ''`,
		device, p.Contact, p.Version, null(p.Share), micros(now), rand.Int64N(1<<62))
	if err != nil {
		return err
	}
	return t.event(Event{At: now, Kind: "device-polled", Device: device, Actor: actor,
		Detail: detail(map[string]any{"contact": p.Contact, "share": p.Share != nil})})
}

// EndPull ends the polling of a device. One that is not polled is an [ErrNotFound].
func (s *Store) EndPull(ctx context.Context, device, actor string, now time.Time) error {
	err := s.write(ctx, device, func(t *tx) error {
		n, err := t.endPull(device, actor, now)
		if err == nil && n == 0 {
			return ErrNotFound
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("end polling of device %.40q: %w", device, err)
	}
	return nil
}

// endPull is [Store.EndPull] within a transaction; it returns 0 for one that is not polled.
func (t *tx) endPull(device, actor string, now time.Time) (int64, error) {
	n, err := t.exec(`DELETE FROM pull WHERE device = $1`, device)
	if err != nil || n == 0 {
		return 0, err
	}
	return n, t.event(Event{At: now, Kind: "device-not-polled", Device: device, Actor: actor, Detail: "{}"})
}

const sqlPull = `SELECT device, contact, version, CASE WHEN share IS NULL THEN 0 ELSE 1 END, handed, next_at, failures, error FROM pull `

func scanPull(r scanner) (p Pull, err error) {
	var waiting, handed, next int64
	err = r.Scan(&p.Device, &p.Contact, &p.Version, &waiting, &handed, &next, &p.Failures, &p.Error)
	p.Waiting, p.Handed, p.Next = waiting == 1, fromMicros(handed), fromMicros(next)
	return p, err
}

// Pull returns how a device is polled; one that is not is an [ErrNotFound].
func (s *Store) Pull(ctx context.Context, device string) (Pull, error) {
	p, err := scanPull(s.reads.QueryRowContext(ctx, sqlPull+`WHERE device = $1`, device))
	if err != nil {
		return Pull{}, fmt.Errorf("read polling of device %.40q: %w", device, none(err))
	}
	return p, nil
}

// Pulls lists at most limit devices of a group that are polled, those after the given id, in
// the order of their ids.
func (s *Store) Pulls(ctx context.Context, group, after string, limit int) ([]Pull, error) {
	all, err := list(ctx, s.reads, scanPull, sqlPull+`WHERE device > $2 AND device IN (SELECT id FROM device WHERE grp = $1)
		ORDER BY device LIMIT $3`, group, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list polled devices: %w", err)
	}
	return all, nil
}

const (
	sqlClaimPulls = `UPDATE pull SET claim = claim + 1, next_at = $3 WHERE device IN (` + sqlTurns
	// The lock of PostgreSQL stands between the two.
	sqlTurns = `SELECT device FROM pull p WHERE next_at <= $1
	AND EXISTS (SELECT 1 FROM device d WHERE d.id = p.device AND d.state = 'active' AND d.attest = 1) ORDER BY next_at LIMIT $2`
	sqlClaimedPulls = `) RETURNING device, contact, version, share, handed, next_at, failures, error, claim`
	sqlEndClaim     = `UPDATE pull SET next_at = $3, version = $4, error = $5, failures = CASE WHEN $5 = '' THEN 0 ELSE failures + 1 END,
	handed = CASE WHEN CAST($6 AS BIGINT) = 0 THEN handed ELSE $6 END,
	share = CASE WHEN CAST($6 AS BIGINT) = 0 THEN share ELSE NULL END
	WHERE device = $1 AND claim = $2`
)

// ClaimPulls gives out at most limit devices whose turn it is: those that are active and
// that may attest, for the length of a lease. One that no [Store.EndClaim] ends by then is
// given out again, so that a poller may die.
func (s *Store) ClaimPulls(ctx context.Context, limit int, lease time.Duration, now time.Time) (claims []PullClaim, err error) {
	err = s.write(ctx, "\xff", func(t *tx) (err error) {
		claims, err = listIn(t, scanClaim, sqlClaimPulls+s.lockSkip+sqlClaimedPulls, micros(now), limit, micros(now.Add(lease)))
		t.dirty = t.dirty || len(claims) > 0
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("claim polls: %w", err)
	}
	for i := range claims {
		c := &claims[i]
		err := s.reads.QueryRowContext(ctx, `SELECT tls_cert, ip, port FROM device WHERE id = $1`, c.Device).Scan(&c.TLSCert, &c.IP, &c.Port)
		if err != nil && !errors.Is(none(err), ErrNotFound) { // deleted meanwhile: there is nobody to reach
			return nil, fmt.Errorf("claim polls: read device %s: %w", c.Device, err)
		}
	}
	return claims, nil
}

func scanClaim(r scanner) (c PullClaim, err error) {
	var handed, next int64
	err = r.Scan(&c.Device, &c.Contact, &c.Version, &c.Share, &handed, &next, &c.Failures, &c.Error, &c.claim)
	c.Waiting, c.Handed, c.Next = c.Share != nil, fromMicros(handed), fromMicros(next)
	return c, err
}

// ReleaseShare writes the event that a device is given the share of c. Until it returned,
// nothing may be sent; it may come to be sent twice. It refuses with
//   - [ErrUntrusted] if the device is not trusted at now, overdue included;
//   - [ErrConflict] if somebody else has claimed the device since, its settings were changed,
//     or it is not polled or may not attest any more.
func (s *Store) ReleaseShare(ctx context.Context, c PullClaim, now time.Time) error {
	err := s.write(ctx, c.Device, func(t *tx) error {
		var status Status
		// Who changes the device changes this row with it.
		err := t.get([]any{&status}, `SELECT `+sqlStatus+` FROM attestation a WHERE a.device = $2`+s.lockUpdate, micros(now), c.Device)
		if err := gone(err); err != nil {
			return err
		}
		if status != Trusted {
			return ErrUntrusted
		}
		for _, q := range []string{`SELECT claim FROM pull WHERE device = $1 AND claim = $2 AND share IS NOT NULL` + s.lockShare,
			`SELECT CAST($2 AS BIGINT) FROM device WHERE id = $1 AND state = 'active' AND attest = 1`} {
			if err := gone(t.get([]any{new(int64)}, q, c.Device, c.claim)); err != nil {
				return err
			}
		}
		return t.event(Event{At: now, Kind: "share-released", Device: c.Device, Detail: "{}"})
	})
	if err != nil {
		return fmt.Errorf("release share to device %s: %w", c.Device, err)
	}
	return nil
}

// EndClaim says what came of a poll. If somebody else has claimed the device since, or its
// settings were changed, it is an [ErrConflict] and changes nothing. A share that was
// handed over is forgotten, and an event says so.
func (s *Store) EndClaim(ctx context.Context, c PullClaim, r PullResult, now time.Time) error {
	if err := errors.Join(text("error", r.Error, MaxText), text("version", r.Version, 8)); err != nil {
		return fmt.Errorf("end poll of device %s: %w", c.Device, err)
	}
	err := s.write(ctx, c.Device, func(t *tx) error {
		n, err := t.exec(sqlEndClaim, c.Device, c.claim, micros(r.Next), r.Version, r.Error, truth(r.Handed)*micros(now))
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrConflict
		}
		if !r.Handed {
			return nil
		}
		return t.event(Event{At: now, Kind: "share-handed-over", Device: c.Device, Detail: "{}"})
	})
	if err != nil {
		return fmt.Errorf("end poll of device %s: %w", c.Device, err)
	}
	return nil
}
