package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Imported is a device whose EK and AK another registrar proved to belong together.
type Imported struct {
	Identity
	Device   string
	Source   string // where from, for the history
	Group    string
	Labels   map[string]string
	Policies []string
	Due      time.Time // of its first attestation; zero for never
	DryRun   bool      // write nothing, and say what would be
}

// Import enrols a device on an operator's word instead of an answered challenge. It gets an
// event "device-imported", and is unverified until it attests with its AK. One that is
// enrolled with just these keys stays as it is: added is false then. An id with other keys,
// or keys with another id, is an [ErrIdentity].
func (s *Store) Import(ctx context.Context, d Imported, actor string, now time.Time) (added bool, err error) {
	labels, err := checkAssigned(d.Device, d.Group, d.Labels, d.Policies)
	if err := errors.Join(err, invalid(errors.Join(d.check(), text("source", d.Source, MaxText)))); err != nil {
		return false, fmt.Errorf("import device %.40q: %w", d.Device, err)
	}
	err = s.write(ctx, "", func(t *tx) error {
		added, err = t.importDevice(d, labels, actor, now)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("import device %s: %w", d.Device, err)
	}
	return added, nil
}

func (t *tx) importDevice(d Imported, labels, actor string, now time.Time) (added bool, err error) {
	if _, err := t.mayBe(d.Device, d.Identity); err != nil {
		return false, err
	}
	var state string
	err = t.get([]any{&state}, `SELECT state FROM device WHERE id = $1`+t.s.lockUpdate, d.Device)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return false, err
	}
	if state == string(Active) || d.DryRun {
		return state != string(Active), nil
	}
	if _, err := t.exec(`INSERT INTO device
		(id, ek, ek_public, ek_certs, ak, ak_public, tls_cert, ip, port, state, attest, regcount, grp, labels, created, activated)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'active', 1, 1, $10, $11, $12, $12)
		ON CONFLICT (id) DO UPDATE SET ek = excluded.ek, ek_public = excluded.ek_public, ek_certs = excluded.ek_certs, ak = excluded.ak,
			ak_public = excluded.ak_public, tls_cert = excluded.tls_cert, ip = excluded.ip, port = excluded.port, state = 'active',
			activated = excluded.activated`,
		d.Device, d.EK.SPKI, null(d.EK.Public), null(d.EKCerts), d.AK.SPKI, null(d.AK.Public), null(d.TLSCert), d.IP, d.Port,
		d.Group, labels, micros(now)); err != nil {
		return false, t.s.identity(err)
	}
	if err := t.startAttestation(d.Device, d.Due, now); err != nil {
		return false, err
	}
	if state == "" { // an expected device has its policies
		if err := t.assign(d.Device, d.Policies); err != nil {
			return false, err
		}
	}
	return true, t.event(Event{At: now, Kind: "device-imported", Device: d.Device, Actor: actor, Status: Unverified,
		Detail: detail(map[string]any{"source": d.Source, "policies": d.Policies, "group": d.Group})})
}
