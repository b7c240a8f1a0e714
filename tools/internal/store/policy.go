package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// PolicyRef names one revision of a policy. The body is addressed by its digest, so that
// one compiled copy serves all devices and all names that have it.
type PolicyRef struct {
	Name    string
	Version int64  // 1 or more
	Digest  []byte // SHA-256 of the body
	Kind    string // what the body is: the caller's word
}

// Policy is a revision in a list.
type Policy struct {
	PolicyRef
	Active  bool
	Size    int64
	Created time.Time
}

const sqlAllowed = `SELECT r.name, r.version, r.digest, r.kind FROM device_policy p JOIN policy_revision r ON r.name = p.policy
	WHERE p.device = $1 AND r.active = 1 ORDER BY p.ord, r.version DESC`

func scanRef(r scanner) (p PolicyRef, err error) {
	return p, r.Scan(&p.Name, &p.Version, &p.Digest, &p.Kind)
}

// PutPolicy stores a revision, which is never changed afterwards and is not active before
// [Store.ActivatePolicy]. Version 0 stands for the next one. The same body again is no
// error and returns the revision that is there; a version that has another body already
// is an [ErrExists].
func (s *Store) PutPolicy(ctx context.Context, name string, version int64, kind string, body []byte, actor string, now time.Time) (PolicyRef, error) {
	if err := errors.Join(CheckID(name), text("kind", kind, MaxText), size("policy", body, MaxBody)); err != nil {
		return PolicyRef{}, fmt.Errorf("put policy: %w", err)
	}
	if len(body) == 0 || version < 0 {
		return PolicyRef{}, fmt.Errorf("put policy %s: an empty body or a negative version", name)
	}
	b := s.pack(body)
	var ref PolicyRef
	err := s.write(ctx, "", func(t *tx) error {
		ref = PolicyRef{Name: name, Version: version, Digest: b.digest, Kind: kind}
		return t.putPolicy(&ref, b, actor, now)
	})
	if err != nil {
		return PolicyRef{}, fmt.Errorf("put policy %s version %d: %w", name, version, err)
	}
	return ref, nil
}

func (t *tx) putPolicy(ref *PolicyRef, b *blob, actor string, now time.Time) error {
	if _, err := t.exec(`INSERT INTO policy (name, highest) VALUES ($1, 0) ON CONFLICT DO NOTHING`, ref.Name); err != nil {
		return err
	}
	if err := t.get([]any{new(int64)}, `SELECT highest FROM policy WHERE name = $1`+t.s.lockUpdate, ref.Name); err != nil {
		return err
	}
	var there PolicyRef
	err := t.get([]any{&there.Version, &there.Kind}, `SELECT version, kind FROM policy_revision WHERE name = $1 AND digest = $2`, ref.Name, ref.Digest)
	if err == nil {
		if ref.Kind != there.Kind || ref.Version != 0 && ref.Version != there.Version {
			return fmt.Errorf("the body is that of version %d: %w", there.Version, ErrExists)
		}
		ref.Version = there.Version
		return nil
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	if ref.Version == 0 {
		if err := t.get([]any{&ref.Version}, `SELECT COALESCE(max(version), 0) + 1 FROM policy_revision WHERE name = $1`, ref.Name); err != nil {
			return err
		}
	}
	if _, err := t.exec(`INSERT INTO policy_body (digest, size, body) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, b.digest, b.size, b.body); err != nil {
		return err
	}
	n, err := t.exec(`INSERT INTO policy_revision (name, version, digest, kind, active, created) VALUES ($1, $2, $3, $4, 0, $5)
		ON CONFLICT (name, version) DO NOTHING`, ref.Name, ref.Version, ref.Digest, ref.Kind, micros(now))
	if err != nil {
		return err
	}
	if n == 0 {
		return ErrExists
	}
	return t.event(Event{At: now, Kind: "policy-put", Actor: actor,
		Detail: detail(map[string]any{"name": ref.Name, "version": ref.Version, "digest": fmt.Sprintf("%x", ref.Digest), "kind": ref.Kind})})
}

// ActivatePolicy makes exactly these versions of a policy the ones that its devices may
// have, several during a roll-out, none to judge nobody by it. To go below the highest
// version that was ever active, or to allow an older one anew, is an [ErrDowngrade] unless
// downgrade says that it is meant; the event says so then. Judgements under way fail with
// [ErrConflict], and none by the old versions is written after this returns.
func (s *Store) ActivatePolicy(ctx context.Context, name string, versions []int64, downgrade bool, actor string, now time.Time) error {
	err := s.write(ctx, "", func(t *tx) error {
		if _, err := t.exec(`UPDATE policy_epoch SET epoch = epoch + 1 WHERE one = 1`); err != nil {
			return err
		}
		t.epoch = nil
		return t.activate(ActivePolicy{name, versions, downgrade}, actor, now)
	})
	if err != nil {
		return fmt.Errorf("activate policy %.40q: %w", name, err)
	}
	return nil
}

// ActivePolicy is what [Store.ActivatePolicy] does.
type ActivePolicy struct {
	Name      string
	Versions  []int64
	Downgrade bool
}

// activate is [Store.ActivatePolicy] within a transaction that changes the epoch.
func (t *tx) activate(a ActivePolicy, actor string, now time.Time) error {
	versions := slices.Compact(slices.Sorted(slices.Values(a.Versions)))
	var highest int64
	if err := t.get([]any{&highest}, `SELECT highest FROM policy WHERE name = $1`+t.s.lockUpdate, a.Name); err != nil {
		return err
	}
	active, err := t.active(a.Name)
	if err != nil {
		return err
	}
	older := isDowngrade(highest, active, versions)
	if older && !a.Downgrade {
		return fmt.Errorf("from %d to %d: %w", highest, versions, ErrDowngrade)
	}
	if err := t.setActive(a.Name, highest, versions); err != nil {
		return err
	}
	kind := "policy-activated"
	if older {
		kind = "policy-downgraded"
	}
	return t.event(Event{At: now, Kind: kind, Actor: actor,
		Detail: detail(map[string]any{"name": a.Name, "versions": versions, "before": active, "highest": highest})})
}

// isDowngrade expects versions in ascending order.
func isDowngrade(highest int64, active, versions []int64) bool {
	if len(versions) > 0 && versions[len(versions)-1] < highest {
		return true
	}
	return slices.ContainsFunc(versions, func(v int64) bool { return v < highest && !slices.Contains(active, v) })
}

func (t *tx) setActive(name string, highest int64, versions []int64) error {
	if _, err := t.exec(`UPDATE policy_revision SET active = 0 WHERE name = $1`, name); err != nil {
		return err
	}
	for _, v := range versions {
		n, err := t.exec(`UPDATE policy_revision SET active = 1 WHERE name = $1 AND version = $2`, name, v)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("version %d: %w", v, ErrNotFound)
		}
		highest = v // the last is the highest; with none the mark stays
	}
	_, err := t.exec(`UPDATE policy SET highest = $2 WHERE name = $1`, name, highest)
	return err
}

// DeletePolicy forgets all revisions of a policy. A policy that devices are assigned to is
// an [ErrInUse]. The name keeps the mark of its highest version.
func (s *Store) DeletePolicy(ctx context.Context, name, actor string, now time.Time) error {
	err := s.write(ctx, "", func(t *tx) error {
		if err := t.get([]any{new(int64)}, `SELECT highest FROM policy WHERE name = $1`+t.s.lockUpdate, name); err != nil {
			return err
		}
		var device string
		err := t.get([]any{&device}, `SELECT device FROM device_policy WHERE policy = $1
			UNION ALL SELECT device FROM keylime_agent WHERE runtime = $1 LIMIT 1`, name)
		if err == nil {
			return fmt.Errorf("by device %s: %w", device, ErrInUse)
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		n, err := t.exec(`DELETE FROM policy_revision WHERE name = $1`, name)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrNotFound
		}
		if _, err := t.exec(`DELETE FROM policy_body WHERE NOT EXISTS (SELECT 1 FROM policy_revision r WHERE r.digest = policy_body.digest)`); err != nil {
			return err
		}
		return t.event(Event{At: now, Kind: "policy-deleted", Actor: actor, Detail: detail(map[string]any{"name": name, "revisions": n})})
	})
	if err != nil {
		return fmt.Errorf("delete policy %.40q: %w", name, err)
	}
	return nil
}

// Policies lists the revisions of one policy, or of all if name is empty, without bodies.
func (s *Store) Policies(ctx context.Context, name string) ([]Policy, error) {
	if name != "" && CheckID(name) != nil {
		return nil, nil
	}
	all, err := list(ctx, s.reads, func(r scanner) (p Policy, err error) {
		var active, created int64
		err = r.Scan(&p.Name, &p.Version, &p.Digest, &p.Kind, &active, &created, &p.Size)
		p.Active, p.Created = active == 1, fromMicros(created)
		return p, err
	}, `SELECT r.name, r.version, r.digest, r.kind, r.active, r.created, b.size FROM policy_revision r
		JOIN policy_body b ON b.digest = r.digest WHERE $1 = '' OR r.name = $1 ORDER BY r.name, r.version`, name)
	if err != nil {
		return nil, fmt.Errorf("list policies: %w", err)
	}
	return all, nil
}

const sqlBody = `SELECT size, body FROM policy_body WHERE digest = $1`

// PolicyBody returns the body with this SHA-256.
func (s *Store) PolicyBody(ctx context.Context, sum []byte) ([]byte, error) {
	b := blob{digest: sum}
	if err := s.reads.QueryRowContext(ctx, sqlBody, sum).Scan(&b.size, &b.body); err != nil {
		return nil, fmt.Errorf("read policy %x: %w", sum, none(err))
	}
	body, err := s.unpack(b)
	if err != nil {
		return nil, fmt.Errorf("read policy %x: %w", sum, err)
	}
	return body, nil
}
