package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrUntrusted means that the device is not trusted at this moment. Answer 403.
var ErrUntrusted = errors.New("device is not trusted")

const (
	MaxSecrets    = 256         // that are not deleted, of all devices
	MaxSecretBody = 1<<20 + 256 // bytes, encrypted
)

// SecretRef names a revision of a secret.
type SecretRef struct {
	Name     string
	Revision int64 // 1 or more; never used again, even by a name that was deleted
}

// Secret is what devices get while they are trusted. The store has it encrypted only.
type Secret struct {
	SecretRef
	Run     string // the file that a device executes, or ""
	Size    int64  // in bytes, before it was encrypted
	Created time.Time
	Body    []byte // encrypted; only [Store.SecretsOf] and [Store.SecretBodies] fill it
	Grant          // only [Store.Secrets] fills it
}

// Grant says who gets a secret.
type Grant struct {
	Devices []string
	Groups  []string
}

// PutSecret stores the next revision of a secret in the place of the one before. The body
// is made by seal when the revision is known, perhaps twice.
func (s *Store) PutSecret(ctx context.Context, name, run string, size int64, seal func(SecretRef) ([]byte, error), actor string, now time.Time) (SecretRef, error) {
	if err := errors.Join(CheckID(name), text("run", run, MaxText)); err != nil {
		return SecretRef{}, fmt.Errorf("put secret: %w", err)
	}
	var ref SecretRef
	err := s.write(ctx, "", func(t *tx) error {
		var count int64
		if err := t.get([]any{&count}, `SELECT count(*) FROM secret WHERE body IS NOT NULL AND name <> $1`, name); err != nil {
			return err
		}
		if count >= MaxSecrets {
			return fmt.Errorf("%d secrets: %w", count, ErrTooMany)
		}
		ref = SecretRef{Name: name}
		err := t.change([]any{&ref.Revision}, `INSERT INTO secret (name, revision, run, size, created) VALUES ($1, 1, $2, $3, $4)
			ON CONFLICT (name) DO UPDATE SET revision = secret.revision + 1, run = excluded.run, size = excluded.size, created = excluded.created
			RETURNING revision`, name, run, size, micros(now))
		if err != nil {
			return err
		}
		body, err := seal(ref)
		if err == nil && len(body) == 0 {
			err = errors.New("an empty body")
		}
		if err := errors.Join(err, sized("secret", body)); err != nil {
			return err
		}
		if _, err := t.exec(`UPDATE secret SET body = $2 WHERE name = $1`, name, body); err != nil {
			return err
		}
		return t.event(Event{At: now, Kind: "secret-put", Actor: actor,
			Detail: detail(map[string]any{"name": name, "revision": ref.Revision, "size": size, "run": run})})
	})
	if err != nil {
		return SecretRef{}, fmt.Errorf("put secret %s: %w", name, err)
	}
	return ref, nil
}

func sized(name string, body []byte) error { return size(name, body, MaxSecretBody) }

// lockSecret waits for releases of the secret that are under way.
func (t *tx) lockSecret(name string) error {
	return t.get([]any{new(int64)}, `SELECT revision FROM secret WHERE name = $1 AND body IS NOT NULL`+t.s.lockUpdate, name)
}

// AssignSecret adds devices and groups to those that get a secret, and takes others away.
// A device has to be known, a group not.
func (s *Store) AssignSecret(ctx context.Context, name string, add, remove Grant, actor string, now time.Time) error {
	for _, g := range slices.Concat(add.Groups, remove.Groups) {
		if g == "" {
			return fmt.Errorf("assign secret %.40q: a group without a name", name)
		}
		if err := text("group", g, MaxText); err != nil {
			return fmt.Errorf("assign secret %.40q: %w", name, invalid(err))
		}
	}
	err := s.write(ctx, "", func(t *tx) error {
		if err := t.lockSecret(name); err != nil {
			return err
		}
		if err := t.grant(name, add); err != nil {
			return err
		}
		for _, d := range remove.Devices {
			if _, err := t.exec(`DELETE FROM secret_device WHERE device = $1 AND secret = $2`, d, name); err != nil {
				return err
			}
		}
		for _, g := range remove.Groups {
			if _, err := t.exec(`DELETE FROM secret_group WHERE grp = $1 AND secret = $2`, g, name); err != nil {
				return err
			}
		}
		return t.event(Event{At: now, Kind: "secret-assigned", Actor: actor, Detail: detail(map[string]any{"name": name,
			"devices": add.Devices, "groups": add.Groups, "not_devices": remove.Devices, "not_groups": remove.Groups})})
	})
	if err != nil {
		return fmt.Errorf("assign secret %.40q: %w", name, err)
	}
	return nil
}

func (t *tx) grant(name string, to Grant) error {
	for _, d := range to.Devices {
		if err := t.get([]any{new(int64)}, `SELECT 1 FROM device WHERE id = $1`, d); err != nil {
			return fmt.Errorf("device %.40q: %w", d, err)
		}
		if _, err := t.exec(`INSERT INTO secret_device (device, secret) VALUES ($1, $2) ON CONFLICT DO NOTHING`, d, name); err != nil {
			return err
		}
	}
	for _, g := range to.Groups {
		if _, err := t.exec(`INSERT INTO secret_group (grp, secret) VALUES ($1, $2) ON CONFLICT DO NOTHING`, g, name); err != nil {
			return err
		}
	}
	return nil
}

// DeleteSecret forgets a secret and who got it. Devices erase it when they attest next.
func (s *Store) DeleteSecret(ctx context.Context, name, actor string, now time.Time) error {
	err := s.write(ctx, "", func(t *tx) error {
		if err := t.lockSecret(name); err != nil {
			return err
		}
		for _, q := range []string{`UPDATE secret SET body = NULL, run = '', size = 0 WHERE name = $1`,
			`DELETE FROM secret_device WHERE secret = $1`, `DELETE FROM secret_group WHERE secret = $1`} {
			if _, err := t.exec(q, name); err != nil {
				return err
			}
		}
		return t.event(Event{At: now, Kind: "secret-deleted", Actor: actor, Detail: detail(map[string]any{"name": name})})
	})
	if err != nil {
		return fmt.Errorf("delete secret %.40q: %w", name, err)
	}
	return nil
}

func scanSecret(r scanner) (v Secret, err error) {
	var created int64
	err = r.Scan(&v.Name, &v.Revision, &v.Run, &v.Size, &created, &v.Body)
	v.Created = fromMicros(created)
	return v, err
}

// Secrets lists all secrets by name, or one, with who gets them and without bodies.
func (s *Store) Secrets(ctx context.Context, name string) ([]Secret, error) {
	all, err := list(ctx, s.reads, scanSecret, `SELECT name, revision, run, size, created, NULL FROM secret
		WHERE body IS NOT NULL AND ($1 = '' OR name = $1) ORDER BY name`, name)
	if err != nil {
		return nil, fmt.Errorf("list secrets: %w", err)
	}
	for i := range all {
		for q, to := range map[string]*[]string{
			`SELECT device FROM secret_device WHERE secret = $1 ORDER BY 1`: &all[i].Devices,
			`SELECT grp FROM secret_group WHERE secret = $1 ORDER BY 1`:     &all[i].Groups,
		} {
			*to, err = list(ctx, s.reads, func(r scanner) (v string, err error) { return v, r.Scan(&v) }, q, all[i].Name)
			if err != nil {
				return nil, fmt.Errorf("list secrets: %w", err)
			}
		}
	}
	return all, nil
}

// What a device gets, by itself or by its group; $1 is the device.
const sqlGranted = ` FROM secret s WHERE s.body IS NOT NULL AND s.name IN (
	SELECT secret FROM secret_device WHERE device = $1
	UNION SELECT x.secret FROM device d JOIN secret_group x ON x.grp = d.grp WHERE d.id = $1)`

const sqlSecretRefs = `SELECT s.name, s.revision` + sqlGranted + ` ORDER BY s.name`

// SecretRefs are the names and revisions of what a device gets, by name.
func (s *Store) SecretRefs(ctx context.Context, device string) ([]SecretRef, error) {
	all, err := list(ctx, s.reads, func(r scanner) (v SecretRef, err error) { return v, r.Scan(&v.Name, &v.Revision) },
		sqlSecretRefs, device)
	if err != nil {
		return nil, fmt.Errorf("list secrets of device %s: %w", device, err)
	}
	return all, nil
}

// SecretsOf returns what a device gets, by name, at most limit of those after a name. It
// releases nothing, see [Store.ReleaseSecrets].
func (s *Store) SecretsOf(ctx context.Context, device, after string, limit int) ([]Secret, error) {
	all, err := list(ctx, s.reads, scanSecret, `SELECT s.name, s.revision, s.run, s.size, s.created, s.body`+sqlGranted+
		` AND s.name > $2 ORDER BY s.name LIMIT $3`, device, after, limit)
	if err != nil {
		return nil, fmt.Errorf("read secrets of device %s: %w", device, err)
	}
	return all, nil
}

// ReleaseSecrets writes the event that a device whose state is st is given these revisions,
// to a key of this name. Until it returned, nothing may be sent. It refuses with
//   - [ErrUntrusted] if the device is not trusted at now, overdue included;
//   - [ErrConflict] if anything changed since st was read: the verdict, the device, a policy,
//     a revision, or who gets it.
func (s *Store) ReleaseSecrets(ctx context.Context, st *State, refs []SecretRef, key string, now time.Time) error {
	err := s.write(ctx, st.Device, func(t *tx) error {
		if err := t.sameEpoch(st.epoch); err != nil {
			return err
		}
		var status Status
		var rev int64
		// Who changes the device, its group included, changes this row with it.
		err := t.get([]any{&rev, &status}, `SELECT a.rev, `+sqlStatus+` FROM attestation a WHERE a.device = $2`+s.lockUpdate, micros(now), st.Device)
		if err != nil {
			return err
		}
		if rev != st.rev {
			return ErrConflict
		}
		if status != Trusted {
			return ErrUntrusted
		}
		err = t.get([]any{new(int64)}, `SELECT 1 FROM device WHERE id = $1 AND state = 'active' AND attest = 1 AND ak = $2`, st.Device, st.AK.SPKI)
		if err := gone(err); err != nil {
			return err
		}
		for _, r := range refs {
			err := t.get([]any{new(int64)}, `SELECT revision FROM secret WHERE name = $1`+s.lockShare, r.Name)
			if err == nil { // in a statement of its own, which sees what was committed while that one waited
				err = t.get([]any{new(int64)}, `SELECT s.revision`+sqlGranted+` AND s.name = $2 AND s.revision = $3`, st.Device, r.Name, r.Revision)
			}
			if err := gone(err); err != nil {
				return fmt.Errorf("secret %s: %w", r.Name, err)
			}
		}
		return t.event(Event{At: now, Kind: "secret-released", Device: st.Device, Detail: detail(map[string]any{"secrets": released(refs), "key": key})})
	})
	if err != nil {
		return fmt.Errorf("release secrets to device %s: %w", st.Device, err)
	}
	return nil
}

// gone is the error of a row that was there a moment ago.
func gone(err error) error {
	if errors.Is(err, ErrNotFound) {
		return ErrConflict
	}
	return err
}

func released(refs []SecretRef) []map[string]any {
	all := []map[string]any{}
	for _, r := range refs {
		all = append(all, map[string]any{"name": r.Name, "revision": r.Revision})
	}
	return all
}

// SecretBodies returns the secrets with their bodies, by name, at most limit of those after
// a name: for encrypting them anew.
func (s *Store) SecretBodies(ctx context.Context, after string, limit int) ([]Secret, error) {
	all, err := list(ctx, s.reads, scanSecret, `SELECT name, revision, run, size, created, body FROM secret
		WHERE body IS NOT NULL AND name > $1 ORDER BY name LIMIT $2`, after, limit)
	if err != nil {
		return nil, fmt.Errorf("read secrets: %w", err)
	}
	return all, nil
}

// ReplaceSecretBody puts a body in the place of the same revision's, encrypted to another
// key. A revision that is no more the newest is an [ErrConflict].
func (s *Store) ReplaceSecretBody(ctx context.Context, ref SecretRef, body []byte, actor string, now time.Time) error {
	if err := sized("secret", body); err != nil {
		return fmt.Errorf("replace secret %s: %w", ref.Name, err)
	}
	err := s.write(ctx, "", func(t *tx) error {
		n, err := t.exec(`UPDATE secret SET body = $3 WHERE name = $1 AND revision = $2 AND body IS NOT NULL`, ref.Name, ref.Revision, body)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrConflict
		}
		return t.event(Event{At: now, Kind: "secret-rekeyed", Actor: actor, Detail: detail(map[string]any{"name": ref.Name, "revision": ref.Revision})})
	})
	if err != nil {
		return fmt.Errorf("replace secret %s: %w", ref.Name, err)
	}
	return nil
}
