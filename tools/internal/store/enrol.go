package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"
)

// Attempt is an enrolment under way: a registration whose challenge was sent. It stands
// beside the enrolled record, which only an answered challenge may change.
type Attempt struct {
	Device string
	Identity
	// Peer keeps apart the attempts of different clients, for instance their addresses. An
	// answer counts only against the attempts of the same peer.
	Peer    string
	Answer  [32]byte // SHA-256 of the expected answer
	Expires time.Time
}

// Register notes an attempt. It is refused with [ErrIdentity] if the device is enrolled
// with another EK or AK, or if another device is enrolled with one of these; and with
// [ErrTooMany] at the bounds of this package. A device that is enrolled, or that an operator
// named, has room of its own: strangers can fill only that of strangers.
func (s *Store) Register(ctx context.Context, a Attempt, now time.Time) error {
	if err := errors.Join(CheckID(a.Device), a.check(), text("peer", a.Peer, MaxText)); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	// The first of its batch: it waits for the other registrations before it locks a device.
	err := s.write(ctx, "", func(t *tx) error {
		known, err := t.mayBe(a.Device, a.Identity)
		if err != nil {
			return err
		}
		if err := t.room(a, known, now); err != nil {
			return err
		}
		_, err = t.exec(`INSERT INTO attempt (id, device, peer, ek, ek_public, ek_certs, ak, ak_public, tls_cert, ip, port, answer, tries, created, expires)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 0, $13, $14)`,
			rand.Text(), a.Device, a.Peer, a.EK.SPKI, null(a.EK.Public), null(a.EKCerts), a.AK.SPKI, null(a.AK.Public), null(a.TLSCert),
			a.IP, a.Port, a.Answer[:], micros(now), micros(a.Expires))
		return err
	})
	if err != nil {
		return fmt.Errorf("register device %s: %w", a.Device, err)
	}
	return nil
}

// mayBe says whether a device of this identity could be enrolled under id, and whether it is
// there already. The constraints of the table have the last word; this spares a hopeless
// client the challenge.
func (t *tx) mayBe(id string, i Identity) (known bool, err error) {
	type row struct {
		id     string
		ek, ak []byte
	}
	rows, err := listIn(t, func(r scanner) (v row, err error) { return v, r.Scan(&v.id, &v.ek, &v.ak) },
		`SELECT id, ek, ak FROM device WHERE id = $1 OR ek = $2 OR ak = $3`, id, i.EK.SPKI, i.AK.SPKI)
	if err != nil {
		return false, err
	}
	for _, r := range rows {
		if r.id != id || r.ek != nil && !bytes.Equal(r.ek, i.EK.SPKI) || r.ak != nil && !bytes.Equal(r.ak, i.AK.SPKI) {
			return false, ErrIdentity
		}
	}
	return len(rows) > 0, nil
}

// room makes room for one more attempt, or says that there is none.
func (t *tx) room(a Attempt, known bool, now time.Time) error {
	if err := t.get([]any{new(any)}, t.s.lockAttempts); err != nil {
		return err
	}
	if _, err := t.exec(`DELETE FROM attempt WHERE id IN (SELECT id FROM attempt WHERE expires <= $1`+t.s.lockSkip+`)`, micros(now)); err != nil {
		return err
	}
	if _, err := t.exec(`DELETE FROM attempt WHERE id IN (SELECT id FROM attempt WHERE device = $1 AND peer = $2
		ORDER BY created DESC, id LIMIT $3 OFFSET $4)`, a.Device, a.Peer, MaxAttemptsDevice, MaxAttemptsPeer-1); err != nil {
		return err
	}
	var ofDevice, ofAll int64
	if err := t.get([]any{&ofDevice}, `SELECT count(*) FROM attempt WHERE device = $1`, a.Device); err != nil {
		return err
	}
	if err := t.get([]any{&ofAll}, `SELECT count(*) FROM attempt`); err != nil {
		return err
	}
	if ofDevice >= MaxAttemptsDevice || ofAll >= MaxAttempts && !known {
		return ErrTooMany
	}
	return nil
}

// Activation is the answer to the challenge of an attempt.
type Activation struct {
	Device string
	Peer   string
	Answer [32]byte // SHA-256 of what the device answered

	// For a device that no operator has named before:
	Group    string
	Policies []string
	Attest   bool
	// Due is when the first attestation must have come; zero for never.
	Due time.Time
}

const sqlTryAttempts = `UPDATE attempt SET tries = tries + 1 WHERE device = $1 AND peer = $2 AND tries <= $3 AND expires > $4`

// Activate enrols the device whose attempt expects the answer, and says whether that was
// its first time.
// The try is counted before the answer is looked at. A wrong answer is an [ErrProof] and
// changes nothing else. Of several devices that fight for an id the first answer wins, and
// the others get [ErrIdentity]. A device that was enrolled before keeps all but its
// certificates, its address and its count of registrations.
func (s *Store) Activate(ctx context.Context, a Activation, now time.Time) (first bool, err error) {
	if _, err := checkAssigned(a.Device, a.Group, nil, a.Policies); err != nil {
		return false, fmt.Errorf("activate: %w", err)
	}
	var refused error // committed all the same: the try counts
	err = s.write(ctx, a.Device, func(t *tx) error {
		refused = nil
		if _, err := t.exec(sqlTryAttempts, a.Device, a.Peer, MaxTries, micros(now)); err != nil {
			return err
		}
		var i Identity
		err := t.change([]any{&i.EK.SPKI, &i.EK.Public, &i.EKCerts, &i.AK.SPKI, &i.AK.Public, &i.TLSCert, &i.IP, &i.Port},
			`DELETE FROM attempt WHERE device = $1 AND peer = $2 AND answer = $3 AND expires > $4 AND tries <= $5
			RETURNING ek, ek_public, ek_certs, ak, ak_public, tls_cert, ip, port`, a.Device, a.Peer, a.Answer[:], micros(now), MaxTries)
		if errors.Is(err, ErrNotFound) {
			refused = ErrProof
			return nil
		}
		if err != nil {
			return err
		}
		_, err = t.mayBe(a.Device, i)
		if errors.Is(err, ErrIdentity) {
			refused = err
			return nil
		}
		if err != nil {
			return err
		}
		first, err = t.enrol(a, i, now)
		return err
	})
	if err = errors.Join(err, refused); err != nil {
		return false, fmt.Errorf("activate device %s: %w", a.Device, err)
	}
	return first, nil
}

// enrol writes a proven identity into the enrolled record.
func (t *tx) enrol(a Activation, i Identity, now time.Time) (first bool, err error) {
	err = t.get([]any{new(string)}, `SELECT state FROM device WHERE id = $1`, a.Device)
	unnamed := errors.Is(err, ErrNotFound)
	if err != nil && !unnamed {
		return false, err
	}
	var regcount int64
	err = t.change([]any{&regcount}, `INSERT INTO device
		(id, ek, ek_public, ek_certs, ak, ak_public, tls_cert, ip, port, state, attest, regcount, grp, labels, created, activated)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'active', $10, 1, $11, '{}', $12, $12)
		ON CONFLICT (id) DO UPDATE SET
			ek = excluded.ek, ek_public = COALESCE(device.ek_public, excluded.ek_public),
			ak = excluded.ak, ak_public = COALESCE(device.ak_public, excluded.ak_public),
			ek_certs = excluded.ek_certs, tls_cert = excluded.tls_cert, ip = excluded.ip, port = excluded.port,
			state = 'active', regcount = device.regcount + 1,
			activated = CASE device.state WHEN 'active' THEN device.activated ELSE excluded.activated END
		WHERE (device.ek IS NULL OR device.ek = excluded.ek) AND (device.ak IS NULL OR device.ak = excluded.ak)
		RETURNING regcount`,
		a.Device, i.EK.SPKI, null(i.EK.Public), null(i.EKCerts), i.AK.SPKI, null(i.AK.Public), null(i.TLSCert), i.IP, i.Port,
		truth(a.Attest), a.Group, micros(now))
	if errors.Is(err, ErrNotFound) {
		return false, ErrIdentity
	}
	if err != nil {
		return false, t.s.identity(err)
	}
	e := Event{At: now, Kind: "device-registered", Device: a.Device, Detail: detail(map[string]any{"regcount": regcount, "ip": i.IP})}
	if regcount > 1 {
		return false, t.event(e)
	}
	if err := t.startAttestation(a.Device, a.Due, now); err != nil {
		return false, err
	}
	if unnamed {
		if err := t.assign(a.Device, a.Policies); err != nil {
			return false, err
		}
	}
	e.Kind, e.Status = "device-enrolled", Unverified
	return true, t.event(e)
}
