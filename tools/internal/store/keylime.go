package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// TenantAgent is a device that a tenant of Keylime added to the verifier, with what it said
// of it.
type TenantAgent struct {
	Device   string
	Runtime  string          // name of the runtime policy, "" for none
	MBPolicy string          // name of the measured boot policy, "" for none
	TPM      string          // tpm_policy of Keylime, JSON; "" for none
	Settings json.RawMessage // what is given back and means nothing here
	Created  time.Time
}

// TenantPolicy is a policy that a tenant puts: of its bodies just these become active. A
// body that is older than the newest that was ever active is an [ErrDowngrade], unless
// Derived says that it follows from another policy.
type TenantPolicy struct {
	Name    string
	Kind    string
	Bodies  [][]byte
	New     bool // one that is there already is an [ErrExists]
	Derived bool
}

// TenantMB is a measured boot policy that a tenant puts.
type TenantMB struct {
	Name string
	Body []byte
	New  bool // one that is there already is an [ErrExists]; else there has to be one
}

// TenantChange is one act of a tenant, or that of an operator on a policy which tenants use.
// All of it happens or nothing.
type TenantChange struct {
	Tenant   bool          // a tenant's: a device that an operator stopped is an [ErrStopped]
	Epoch    int64         // of the policies when it was made up: see [Store.PolicyEpoch]; another one is an [ErrConflict]
	Activate *ActivePolicy // an operator's: what is derived of it is in Policies
	Policies []TenantPolicy
	MB       *TenantMB
	Agent    *TenantAgent  // nil: of no device. One that was added already is an [ErrExists]
	Assign   []string      // the policies of Agent's device
	Pull     *PullSettings // nil: the device is not polled
	Due      time.Time     // of its first attestation
}

// PolicyEpoch is a number that changes whenever other policies are in use.
func (s *Store) PolicyEpoch(ctx context.Context) (epoch int64, err error) {
	if err := s.reads.QueryRowContext(ctx, sqlEpoch).Scan(&epoch); err != nil {
		return 0, fmt.Errorf("read epoch of policies: %w", none(err))
	}
	return epoch, nil
}

// ChangeByTenant does what c says.
func (s *Store) ChangeByTenant(ctx context.Context, c TenantChange, actor string, now time.Time) error {
	bodies, mb, err := s.packed(c)
	if err != nil {
		return fmt.Errorf("change policies: %w", invalid(err))
	}
	err = s.write(ctx, "", func(t *tx) error {
		n, err := t.exec(`UPDATE policy_epoch SET epoch = epoch + 1 WHERE one = 1 AND epoch = $1`, c.Epoch)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrConflict
		}
		t.epoch = nil
		if c.Activate != nil {
			if err := t.activate(*c.Activate, actor, now); err != nil {
				return fmt.Errorf("activate policy %.40q: %w", c.Activate.Name, err)
			}
		}
		for i, p := range c.Policies {
			if err := t.putTenantPolicy(p, bodies[i], actor, now); err != nil {
				return fmt.Errorf("policy %s: %w", p.Name, err)
			}
		}
		if c.MB != nil {
			if err := t.putMB(c.MB, mb, actor, now); err != nil {
				return fmt.Errorf("measured boot policy %s: %w", c.MB.Name, err)
			}
		}
		if c.Agent == nil {
			return nil
		}
		return t.addTenantAgent(c, actor, now)
	})
	if err != nil {
		return fmt.Errorf("change policies: %w", err)
	}
	return nil
}

func (s *Store) packed(c TenantChange) (bodies [][]*blob, mb *blob, err error) {
	for _, p := range c.Policies {
		var all []*blob
		for _, b := range p.Bodies {
			if err := errors.Join(CheckID(p.Name), text("kind", p.Kind, MaxText), size("policy", b, MaxBody)); err != nil || len(b) == 0 {
				return nil, nil, errors.Join(err, fmt.Errorf("policy %.40q of %d bytes", p.Name, len(b)))
			}
			all = append(all, s.pack(b))
		}
		bodies = append(bodies, all)
	}
	if c.MB != nil {
		if err := errors.Join(CheckID(c.MB.Name), size("measured boot policy", c.MB.Body, MaxState)); err != nil || len(c.MB.Body) == 0 {
			return nil, nil, errors.Join(err, fmt.Errorf("measured boot policy %.40q of %d bytes", c.MB.Name, len(c.MB.Body)))
		}
		mb = s.pack(c.MB.Body)
	}
	if a := c.Agent; a != nil {
		_, bad := checkAssigned(a.Device, "", nil, c.Assign)
		if c.Pull != nil {
			bad = errors.Join(bad, c.Pull.check())
		}
		err = errors.Join(bad, text("tpm_policy", a.TPM, MaxDetail), text("settings", string(a.Settings), MaxDetail))
	}
	return bodies, mb, err
}

// putTenantPolicy puts the bodies and makes just them active.
func (t *tx) putTenantPolicy(p TenantPolicy, bodies []*blob, actor string, now time.Time) error {
	var highest, newest int64
	err := t.get([]any{&highest}, `SELECT highest FROM policy WHERE name = $1`+t.s.lockUpdate, p.Name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err := t.get([]any{&newest}, `SELECT COALESCE(max(version), 0) FROM policy_revision WHERE name = $1`, p.Name); err != nil {
		return err
	}
	if newest > 0 && p.New {
		return ErrExists
	}
	before, err := t.active(p.Name)
	if err != nil {
		return err
	}
	var versions []int64
	for _, b := range bodies {
		ref := PolicyRef{Name: p.Name, Digest: b.digest, Kind: p.Kind}
		there := t.get([]any{new(int64)}, `SELECT version FROM policy_revision WHERE name = $1 AND digest = $2`, p.Name, b.digest)
		if errors.Is(there, ErrNotFound) {
			newest = max(newest, highest) + 1 // a name that was deleted keeps its mark
			ref.Version = newest
		} else if there != nil {
			return there
		}
		if err := t.putPolicy(&ref, b, actor, now); err != nil {
			return err
		}
		versions = append(versions, ref.Version)
	}
	slices.Sort(versions)
	older := isDowngrade(highest, before, versions)
	if older && !p.Derived {
		return fmt.Errorf("from %d to %d: %w", highest, versions, ErrDowngrade)
	}
	if err := t.setActive(p.Name, highest, versions); err != nil {
		return err
	}
	return t.event(Event{At: now, Kind: "policy-activated", Actor: actor,
		Detail: detail(map[string]any{"name": p.Name, "versions": versions, "before": before, "highest": highest})})
}

// active are the versions of a policy that devices may have now.
func (t *tx) active(name string) ([]int64, error) {
	return listIn(t, func(r scanner) (v int64, err error) { return v, r.Scan(&v) },
		`SELECT version FROM policy_revision WHERE name = $1 AND active = 1`, name)
}

func (t *tx) putMB(m *TenantMB, b *blob, actor string, now time.Time) error {
	q := `UPDATE keylime_mbpolicy SET digest = $2, size = $3, body = $4, created = $5 WHERE name = $1`
	missing := ErrNotFound
	if m.New {
		q = `INSERT INTO keylime_mbpolicy (name, digest, size, body, created) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`
		missing = ErrExists
	}
	n, err := t.exec(q, m.Name, b.digest, b.size, b.body, micros(now))
	if err != nil {
		return err
	}
	if n == 0 {
		return missing
	}
	return t.event(Event{At: now, Kind: "mbpolicy-put", Actor: actor,
		Detail: detail(map[string]any{"name": m.Name, "digest": fmt.Sprintf("%x", b.digest)})})
}

func (t *tx) addTenantAgent(c TenantChange, actor string, now time.Time) error {
	a := c.Agent
	var state string
	var attest int64
	if err := t.get([]any{&state, &attest}, `SELECT state, attest FROM device WHERE id = $1`+t.s.lockUpdate, a.Device); err != nil {
		return err
	}
	if state != string(Active) {
		return ErrNotFound
	}
	if _, err := attestAfter(attest, true, c.Tenant); err != nil {
		return err
	}
	var policies int64
	if err := t.get([]any{&policies}, `SELECT count(*) FROM device_policy WHERE device = $1`, a.Device); err != nil {
		return err
	}
	if policies > 0 { // an operator's, from a moment ago
		return ErrExists
	}
	var mb any
	if a.MBPolicy != "" {
		mb = a.MBPolicy
		if err := t.get([]any{new(string)}, `SELECT name FROM keylime_mbpolicy WHERE name = $1`, a.MBPolicy); err != nil {
			return fmt.Errorf("measured boot policy %s: %w", a.MBPolicy, err)
		}
	}
	n, err := t.exec(`INSERT INTO keylime_agent (device, runtime, mbpolicy, tpm_policy, settings, created)
		VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`, a.Device, a.Runtime, mb, a.TPM, string(a.Settings), micros(now))
	if err != nil {
		return err
	}
	if n == 0 {
		return ErrExists
	}
	if _, err := t.exec(`UPDATE device SET attest = 1 WHERE id = $1`, a.Device); err != nil {
		return err
	}
	if _, err := t.exec(`UPDATE attestation SET rev = rev + 1, due = CASE WHEN due < $2 THEN $2 ELSE due END WHERE device = $1`,
		a.Device, micros(c.Due)); err != nil {
		return err
	}
	if err := t.assign(a.Device, c.Assign); err != nil {
		return err
	}
	if c.Pull != nil {
		if err := t.setPull(a.Device, *c.Pull, actor, now); err != nil {
			return err
		}
	}
	return t.event(Event{At: now, Kind: "device-changed", Device: a.Device, Actor: actor, Detail: detail(map[string]any{
		"attest": true, "policies": c.Assign, "runtime_policy": a.Runtime, "mb_policy": a.MBPolicy, "tpm_policy": a.TPM})})
}

// RemoveFromVerifier ends the attestation of a device and takes its policies from it; it
// stays enrolled. Policies of kind that were its alone are forgotten, and the measured boot
// policy that has its name. A device that is not enrolled is an [ErrNotFound]. What a tenant
// removes a tenant may add again.
func (s *Store) RemoveFromVerifier(ctx context.Context, id, kind string, tenant bool, actor string, now time.Time) error {
	if CheckID(id) != nil {
		return fmt.Errorf("remove device %.40q: %w", id, ErrNotFound)
	}
	err := s.write(ctx, id, func(t *tx) error {
		var attest int64
		if err := t.get([]any{&attest}, `SELECT attest FROM device WHERE id = $1 AND state = 'active'`+s.lockUpdate, id); err != nil {
			return err
		}
		attest, err := attestAfter(attest, false, tenant)
		if err != nil {
			return err
		}
		if _, err := t.exec(`UPDATE device SET attest = $2 WHERE id = $1`, id, attest); err != nil {
			return err
		}
		names, err := listIn(t, func(r scanner) (name string, err error) { return name, r.Scan(&name) },
			`SELECT policy FROM device_policy WHERE device = $1`, id)
		if err != nil {
			return err
		}
		if _, err := t.exec(`UPDATE attestation SET rev = rev + 1 WHERE device = $1`, id); err != nil {
			return err
		}
		if _, err := t.exec(`DELETE FROM keylime_agent WHERE device = $1`, id); err != nil {
			return err
		}
		if err := t.assign(id, nil); err != nil {
			return err
		}
		if _, err := t.endPull(id, actor, now); err != nil {
			return err
		}
		for _, name := range append(names, id) {
			if err := t.forgetPolicy(name, kind); err != nil {
				return err
			}
		}
		if _, err := t.exec(`DELETE FROM keylime_mbpolicy WHERE name = $1
			AND NOT EXISTS (SELECT 1 FROM keylime_agent a WHERE a.mbpolicy = $1)`, id); err != nil {
			return err
		}
		return t.event(Event{At: now, Kind: "device-changed", Device: id, Actor: actor, Detail: detail(map[string]any{"attest": false, "policies": []string{}})})
	})
	if err != nil {
		return fmt.Errorf("remove device %s: %w", id, err)
	}
	return nil
}

// forgetPolicy deletes the revisions of kind of a policy that nobody is assigned to.
func (t *tx) forgetPolicy(name, kind string) error {
	// Who assigns it meanwhile is waited for, and then seen: see putTenantPolicy.
	err := t.get([]any{new(int64)}, `SELECT highest FROM policy WHERE name = $1`+t.s.lockUpdate, name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := t.exec(`DELETE FROM policy_revision WHERE name = $1 AND kind = $2
		AND NOT EXISTS (SELECT 1 FROM device_policy p WHERE p.policy = $1)
		AND NOT EXISTS (SELECT 1 FROM keylime_agent a WHERE a.runtime = $1)`, name, kind); err != nil {
		return err
	}
	_, err = t.exec(`DELETE FROM policy_body WHERE NOT EXISTS (SELECT 1 FROM policy_revision r WHERE r.digest = policy_body.digest)`)
	return err
}

const sqlTenantAgent = `SELECT device, runtime, COALESCE(mbpolicy, ''), tpm_policy, settings, created FROM keylime_agent `

func scanTenantAgent(r scanner) (a TenantAgent, err error) {
	var settings string
	var created int64
	err = r.Scan(&a.Device, &a.Runtime, &a.MBPolicy, &a.TPM, &settings, &created)
	a.Settings, a.Created = json.RawMessage(settings), fromMicros(created)
	return a, err
}

// TenantAgent returns what a tenant said of a device.
func (s *Store) TenantAgent(ctx context.Context, id string) (TenantAgent, error) {
	a, err := scanTenantAgent(s.reads.QueryRowContext(ctx, sqlTenantAgent+`WHERE device = $1`, id))
	if err != nil {
		return TenantAgent{}, fmt.Errorf("read device %.40q of a tenant: %w", id, none(err))
	}
	return a, nil
}

// VerifierDevices returns at most limit ids, those after the given one, of devices that are
// judged: that a tenant added, or that may attest and have a policy.
func (s *Store) VerifierDevices(ctx context.Context, after string, limit int) ([]string, error) {
	all, err := list(ctx, s.reads, func(r scanner) (id string, err error) { return id, r.Scan(&id) },
		`SELECT d.id FROM device d WHERE d.state = 'active' AND d.id > $1 AND (EXISTS (SELECT 1 FROM keylime_agent k WHERE k.device = d.id)
		OR d.attest = 1 AND EXISTS (SELECT 1 FROM device_policy p WHERE p.device = d.id)) ORDER BY d.id LIMIT $2`, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list devices of the verifier: %w", err)
	}
	return all, nil
}

// TenantUses returns one device of each different set of policies that tenants made with
// this runtime policy or this measured boot policy.
func (s *Store) TenantUses(ctx context.Context, runtime, mb string) ([]TenantAgent, error) {
	all, err := list(ctx, s.reads, scanTenantAgent, sqlTenantAgent+`WHERE device IN (SELECT min(device) FROM keylime_agent
		WHERE $1 <> '' AND runtime = $1 OR $2 <> '' AND mbpolicy = $2 GROUP BY runtime, mbpolicy, tpm_policy) ORDER BY device`, runtime, mb)
	if err != nil {
		return nil, fmt.Errorf("list uses of policies: %w", err)
	}
	return all, nil
}

// MBPolicies lists the names of measured boot policies.
func (s *Store) MBPolicies(ctx context.Context) ([]string, error) {
	all, err := list(ctx, s.reads, func(r scanner) (name string, err error) { return name, r.Scan(&name) },
		`SELECT name FROM keylime_mbpolicy ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("list measured boot policies: %w", err)
	}
	return all, nil
}

// MBPolicy returns a measured boot policy as it was put.
func (s *Store) MBPolicy(ctx context.Context, name string) ([]byte, error) {
	var b blob
	err := s.reads.QueryRowContext(ctx, `SELECT digest, size, body FROM keylime_mbpolicy WHERE name = $1`, name).Scan(&b.digest, &b.size, &b.body)
	if err != nil {
		return nil, fmt.Errorf("read measured boot policy %.40q: %w", name, none(err))
	}
	body, err := s.unpack(b)
	if err != nil {
		return nil, fmt.Errorf("read measured boot policy %.40q: %w", name, err)
	}
	return body, nil
}

// DeleteMBPolicy forgets a measured boot policy; one that a device has is an [ErrInUse].
func (s *Store) DeleteMBPolicy(ctx context.Context, name, actor string, now time.Time) error {
	err := s.write(ctx, "", func(t *tx) error {
		if _, err := t.exec(`UPDATE policy_epoch SET epoch = epoch + 1 WHERE one = 1`); err != nil {
			return err
		}
		t.epoch = nil
		var device string
		err := t.get([]any{&device}, `SELECT device FROM keylime_agent WHERE mbpolicy = $1 LIMIT 1`, name)
		if err == nil {
			return fmt.Errorf("by device %s: %w", device, ErrInUse)
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		n, err := t.exec(`DELETE FROM keylime_mbpolicy WHERE name = $1`, name)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrNotFound
		}
		return t.event(Event{At: now, Kind: "mbpolicy-deleted", Actor: actor, Detail: detail(map[string]any{"name": name})})
	})
	if err != nil {
		return fmt.Errorf("delete measured boot policy %.40q: %w", name, err)
	}
	return nil
}
