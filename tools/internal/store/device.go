package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Key is a public key of a TPM.
type Key struct {
	SPKI   []byte // SubjectPublicKeyInfo, DER: what must be unique, whatever the area's attributes
	Public []byte // TPM2B_PUBLIC, as the device sent it
}

// Identity is what a device says about itself when it registers. The first two fields are
// the identity; the others may change with each registration.
type Identity struct {
	EK      Key
	AK      Key
	EKCerts []byte // DER certificates, leaf first, one after the other; may be empty
	TLSCert []byte // DER, of an agent that is polled (Keylime's mtls_cert)
	IP      string // of an agent that is polled
	Port    int
}

func (i *Identity) check() error {
	for name, key := range map[string]Key{"EK": i.EK, "AK": i.AK} {
		if len(key.SPKI) == 0 {
			return errors.New(name + ": no key")
		}
		if err := errors.Join(size(name, key.SPKI, MaxKey), size(name, key.Public, MaxKey)); err != nil {
			return err
		}
	}
	if i.Port < 0 || i.Port > 65535 {
		return fmt.Errorf("port %d: not a port", i.Port)
	}
	return errors.Join(size("EK certificates", i.EKCerts, MaxCerts), size("TLS certificate", i.TLSCert, MaxCerts), text("ip", i.IP, MaxText))
}

// DeviceState is how far a device has come.
type DeviceState string

const (
	Expected DeviceState = "expected" // an operator named it, no TPM has answered yet
	Active   DeviceState = "active"   // a TPM proved that it holds EK and AK
)

// Device is an enrolled or expected device, with its verdict at the time of the question.
type Device struct {
	ID string
	Identity
	State     DeviceState
	Attest    bool // attestations are accepted
	RegCount  int64
	Group     string
	Labels    map[string]string
	Policies  []string // in the order of preference; only [Store.Device] fills it
	Created   time.Time
	Activated time.Time
	Verdict   Verdict
}

const (
	sqlDevice = `SELECT d.id, d.ek, d.ek_public, d.ek_certs, d.ak, d.ak_public, d.tls_cert, d.ip, d.port,
	d.state, d.attest, d.regcount, d.grp, d.labels, d.created, d.activated, ` + sqlVerdict + `, a.detail
	FROM device d JOIN attestation a ON a.device = d.id WHERE d.id = $2`

	// Without what may be large.
	sqlDevices = `SELECT d.id, d.ek, d.ek_public, NULL, d.ak, d.ak_public, NULL, d.ip, d.port,
	d.state, d.attest, d.regcount, d.grp, d.labels, d.created, d.activated, ` + sqlVerdict + `, ''
	FROM device d JOIN attestation a ON a.device = d.id WHERE d.id > $2
	AND ($3 = '' OR d.grp = $3) AND ($4 = '' OR d.state = $4) AND ($5 = '' OR ` + sqlStatus + ` = $5)
	ORDER BY d.id LIMIT $6`
)

func scanDevice(r scanner) (d Device, err error) {
	var labels string
	var created, activated int64
	v := verdictRow{}
	var attest int64
	err = r.Scan(append([]any{&d.ID, &d.EK.SPKI, &d.EK.Public, &d.EKCerts, &d.AK.SPKI, &d.AK.Public, &d.TLSCert, &d.IP, &d.Port,
		&d.State, &attest, &d.RegCount, &d.Group, &labels, &created, &activated}, append(v.dest(), &v.detail)...)...)
	if err != nil {
		return Device{}, err
	}
	if err := json.Unmarshal([]byte(labels), &d.Labels); err != nil {
		return Device{}, fmt.Errorf("labels of device: %w", err)
	}
	d.Attest, d.Created, d.Activated, d.Verdict = attest == 1, fromMicros(created), fromMicros(activated), v.verdict()
	return d, nil
}

// Device returns the device with its verdict as it is at now.
func (s *Store) Device(ctx context.Context, id string, now time.Time) (Device, error) {
	if CheckID(id) != nil {
		return Device{}, fmt.Errorf("device %.40q: %w", id, ErrNotFound)
	}
	d, err := scanDevice(s.reads.QueryRowContext(ctx, sqlDevice, micros(now), id))
	if err != nil {
		return Device{}, fmt.Errorf("read device %s: %w", id, none(err))
	}
	d.Policies, err = list(ctx, s.reads, func(r scanner) (name string, err error) { return name, r.Scan(&name) },
		`SELECT policy FROM device_policy WHERE device = $1 ORDER BY ord`, id)
	if err != nil {
		return Device{}, fmt.Errorf("read policies of device %s: %w", id, err)
	}
	return d, nil
}

// Filter chooses devices; an empty field chooses all.
type Filter struct {
	Group  string
	Status Status
	State  DeviceState
}

// Devices returns at most limit devices in the order of their ids, those after the given
// id, with their verdicts as they are at now but without certificates and details.
func (s *Store) Devices(ctx context.Context, f Filter, after string, limit int, now time.Time) ([]Device, error) {
	all, err := list(ctx, s.reads, scanDevice, sqlDevices, micros(now), after, f.Group, string(f.State), string(f.Status), limit)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return all, nil
}

// CountDevices returns how many active devices have which status at now.
func (s *Store) CountDevices(ctx context.Context, now time.Time) (map[Status]int64, error) {
	counts := map[Status]int64{}
	_, err := list(ctx, s.reads, func(r scanner) (struct{}, error) {
		var status Status
		var n int64
		err := r.Scan(&status, &n)
		counts[status] = n
		return struct{}{}, err
	}, `SELECT `+sqlStatus+`, count(*) FROM attestation a JOIN device d ON d.id = a.device WHERE d.state = 'active' GROUP BY 1`, micros(now))
	if err != nil {
		return nil, fmt.Errorf("count devices: %w", err)
	}
	return counts, nil
}

// AddDevice says that a device is expected, before it registers. If its EK is given, only
// the TPM with that EK can become this device. A device that is there already is an
// [ErrExists].
func (s *Store) AddDevice(ctx context.Context, d Device, actor string, now time.Time) error {
	labels, err := checkAssigned(d.ID, d.Group, d.Labels, d.Policies)
	if err != nil {
		return fmt.Errorf("add device: %w", err)
	}
	if err := errors.Join(size("EK", d.EK.SPKI, MaxKey), size("EK", d.EK.Public, MaxKey)); err != nil {
		return fmt.Errorf("add device %s: %w", d.ID, err)
	}
	err = s.write(ctx, d.ID, func(t *tx) error {
		n, err := t.exec(`INSERT INTO device (id, ek, ek_public, ip, port, state, attest, regcount, grp, labels, created, activated)
			VALUES ($1, $2, $3, '', 0, 'expected', $4, 0, $5, $6, $7, 0) ON CONFLICT (id) DO NOTHING`,
			d.ID, null(d.EK.SPKI), null(d.EK.Public), truth(d.Attest), d.Group, labels, micros(now))
		if err != nil {
			return s.identity(err)
		}
		if n == 0 {
			return ErrExists
		}
		if err := t.startAttestation(d.ID, time.Time{}, now); err != nil {
			return err
		}
		if err := t.assign(d.ID, d.Policies); err != nil {
			return err
		}
		return t.event(Event{At: now, Kind: "device-added", Device: d.ID, Actor: actor, Status: Unverified,
			Detail: detail(map[string]any{"group": d.Group, "policies": d.Policies, "ek_pinned": d.EK.SPKI != nil})})
	})
	if err != nil {
		return fmt.Errorf("add device %s: %w", d.ID, err)
	}
	return nil
}

// Change is what an operator may change of a device; nil leaves a field as it is.
type Change struct {
	Group    *string            `json:"group,omitempty"`
	Labels   *map[string]string `json:"labels,omitempty"`
	Attest   *bool              `json:"attest,omitempty"`
	Policies *[]string          `json:"policies,omitempty"`
	Tenant   bool               `json:"-"` // a tenant says so, and cannot undo what an operator said: see [ErrStopped]
}

// Values of device.attest. Who does not know the last takes it for the first.
const (
	stoppedByOperator = 0
	attests           = 1
	stoppedByTenant   = 2
)

// attestAfter is what device.attest becomes where somebody says that a device may attest, or
// that it may not.
func attestAfter(was int64, may, tenant bool) (int64, error) {
	switch {
	case !tenant:
		return truth(may), nil
	case was == stoppedByOperator && may:
		return was, ErrStopped
	case was == stoppedByOperator:
		return was, nil
	case may:
		return attests, nil
	}
	return stoppedByTenant, nil
}

// UpdateDevice changes a device and writes an event. Judgements under way that began
// before it fail with [ErrConflict].
func (s *Store) UpdateDevice(ctx context.Context, id string, c Change, actor string, now time.Time) error {
	if CheckID(id) != nil {
		return fmt.Errorf("change device %.40q: %w", id, ErrNotFound)
	}
	err := s.write(ctx, id, func(t *tx) error {
		var group, labels string
		var attest int64
		if err := t.get([]any{&group, &labels, &attest}, `SELECT grp, labels, attest FROM device WHERE id = $1`+s.lockUpdate, id); err != nil {
			return err
		}
		if c.Group != nil {
			group = *c.Group
		}
		if c.Attest != nil {
			var err error
			if attest, err = attestAfter(attest, *c.Attest, c.Tenant); err != nil {
				return err
			}
		}
		var names []string
		if c.Policies != nil {
			names = *c.Policies
		}
		var changed map[string]string
		if c.Labels != nil {
			changed = *c.Labels
		}
		encoded, err := checkAssigned(id, group, changed, names)
		if err != nil {
			return err
		}
		if c.Labels != nil {
			labels = encoded
		}
		if _, err := t.exec(`UPDATE device SET grp = $2, labels = $3, attest = $4 WHERE id = $1`, id, group, labels, attest); err != nil {
			return err
		}
		if _, err := t.exec(`UPDATE attestation SET rev = rev + 1 WHERE device = $1`, id); err != nil {
			return err
		}
		if c.Policies != nil {
			if err := t.assign(id, names); err != nil {
				return err
			}
		}
		return t.event(Event{At: now, Kind: "device-changed", Device: id, Actor: actor, Detail: detail(c)})
	})
	if err != nil {
		return fmt.Errorf("change device %s: %w", id, err)
	}
	return nil
}

// DeleteDevice forgets a device, its sessions and its state. Its events stay.
func (s *Store) DeleteDevice(ctx context.Context, id, actor string, now time.Time) error {
	return s.deleteDevice(ctx, id, false, actor, now)
}

// ForgetDevice is DeleteDevice for a tenant: one that an operator stopped is an [ErrStopped].
func (s *Store) ForgetDevice(ctx context.Context, id, actor string, now time.Time) error {
	return s.deleteDevice(ctx, id, true, actor, now)
}

func (s *Store) deleteDevice(ctx context.Context, id string, tenant bool, actor string, now time.Time) error {
	if CheckID(id) != nil {
		return fmt.Errorf("delete device %.40q: %w", id, ErrNotFound)
	}
	err := s.write(ctx, id, func(t *tx) error {
		if tenant {
			var attest int64
			if err := t.get([]any{&attest}, `SELECT attest FROM device WHERE id = $1`+s.lockUpdate, id); err != nil {
				return err
			}
			if attest == stoppedByOperator {
				return ErrStopped
			}
		}
		n, err := t.exec(`DELETE FROM device WHERE id = $1`, id)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrNotFound
		}
		if _, err := t.exec(`DELETE FROM attempt WHERE device = $1`, id); err != nil {
			return err
		}
		return t.event(Event{At: now, Kind: "device-deleted", Device: id, Actor: actor, Detail: "{}"})
	})
	if err != nil {
		return fmt.Errorf("delete device %s: %w", id, err)
	}
	return nil
}

// assign replaces the policies of a device.
func (t *tx) assign(id string, names []string) error {
	if _, err := t.exec(`DELETE FROM device_policy WHERE device = $1`, id); err != nil {
		return err
	}
	for i, name := range names {
		n, err := t.exec(`INSERT INTO device_policy (device, ord, policy) SELECT $1, $2, name FROM policy WHERE name = $3`, id, i, name)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("policy %.40q: %w", name, ErrNotFound)
		}
	}
	return nil
}

// checkAssigned returns the labels as they are stored.
func checkAssigned(id, group string, labels map[string]string, policies []string) (string, error) {
	if labels == nil {
		labels = map[string]string{}
	}
	encoded, err := json.Marshal(labels)
	if err != nil {
		return "", fmt.Errorf("labels: %w", err)
	}
	err = errors.Join(CheckID(id), text("group", group, MaxText), text("labels", string(encoded), MaxText))
	for name, value := range labels {
		err = errors.Join(err, text("label", name+value, MaxText)) // JSON hides a NUL
	}
	if len(policies) > MaxPolicies {
		err = errors.Join(err, fmt.Errorf("%d policies, at most %d", len(policies), MaxPolicies))
	}
	seen := map[string]bool{}
	for _, name := range policies {
		if seen[name] {
			err = errors.Join(err, fmt.Errorf("policy %.40q is named twice", name))
		}
		seen[name] = true
	}
	return string(encoded), invalid(err)
}

// invalid makes an [ErrInvalid] of an error.
func invalid(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrInvalid, err)
}

// identity turns the breach of a UNIQUE on a key into [ErrIdentity].
func (s *Store) identity(err error) error {
	if s.unique(err) {
		return ErrIdentity
	}
	return err
}

// null stores nothing as NULL: an empty value would break a UNIQUE.
func null(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}
