package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// TargetGroup are the devices of the group. No job is made for them: they ask for alarms.
const TargetGroup = "group"

// Alarm is an event that others are told of: the verdict of a device turned bad, or good
// again after that. What an operator may change or delete later is as it was then.
type Alarm struct {
	Seq    int64
	Hash   []byte
	At     time.Time
	Device string
	Group  string
	Labels map[string]string
	Status Status          // Overdue too
	Detail json.RawMessage // of the event
}

// alarm says whether anybody is told of an event: of a bad verdict always, of a good one
// only after a bad one, and not that a device is late which is bad already.
func (t *tx) alarm(e *draft) (bool, error) {
	q, status := `UPDATE attestation SET alarmed = 1 WHERE device = $1`, e.Status
	switch {
	case e.Kind == "overdue":
		q, status = q+` AND status NOT IN ('untrusted', 'broken')`, Overdue
	case e.Status == Trusted:
		q = `UPDATE attestation SET alarmed = 0 WHERE device = $1 AND alarmed = 1`
	}
	n, err := t.exec(q, e.Device)
	if err != nil || n == 0 {
		return false, err
	}
	_, err = t.exec(`INSERT INTO notice (seq, device, grp, labels, status)
		SELECT CAST($1 AS BIGINT), id, grp, labels, CAST($3 AS TEXT) FROM device WHERE id = $2`, e.Seq, e.Device, string(status))
	return true, err
}

const sqlAlarm = `SELECT n.seq, n.device, n.grp, n.labels, n.status, e.hash, e.at, e.detail FROM notice n JOIN event e ON e.seq = n.seq `

func scanAlarm(r scanner) (a Alarm, err error) {
	var at int64
	var labels, detail string
	if err := r.Scan(&a.Seq, &a.Device, &a.Group, &labels, &a.Status, &a.Hash, &at, &detail); err != nil {
		return a, err
	}
	a.At, a.Detail = fromMicros(at), json.RawMessage(detail)
	return a, json.Unmarshal([]byte(labels), &a.Labels)
}

// Alarm returns the alarm of one event, or [ErrNotFound].
func (s *Store) Alarm(ctx context.Context, seq int64) (Alarm, error) {
	a, err := scanAlarm(s.reads.QueryRowContext(ctx, sqlAlarm+`WHERE n.seq = $1`, seq))
	if err != nil {
		return Alarm{}, fmt.Errorf("read alarm %d: %w", seq, none(err))
	}
	return a, nil
}

// BadAgain says whether there is a later alarm of the device and its group that is bad too.
func (s *Store) BadAgain(ctx context.Context, a Alarm) (again bool, err error) {
	err = s.reads.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM notice WHERE device = $1 AND grp = $2 AND seq > $3 AND status <> 'trusted')`,
		a.Device, a.Group, a.Seq).Scan(&again)
	if err != nil {
		return false, fmt.Errorf("read later alarms of device %s: %w", a.Device, err)
	}
	return again, nil
}

const sqlAlarms = sqlAlarm + `WHERE n.grp = $1 AND n.seq > $2 AND NOT EXISTS
	(SELECT 1 FROM notice l WHERE l.device = n.device AND l.grp = n.grp AND l.seq > n.seq) ORDER BY n.seq LIMIT $3`

// Alarms returns at most limit alarms of a group after an event, oldest first: of each
// device the last one only, which is all that who comes late has to know.
func (s *Store) Alarms(ctx context.Context, group string, after int64, limit int) ([]Alarm, error) {
	all, err := list(ctx, s.reads, scanAlarm, sqlAlarms, group, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list alarms: %w", err)
	}
	return all, nil
}

// LastAlarm is the event of the newest alarm, 0 if there is none.
func (s *Store) LastAlarm(ctx context.Context) (seq int64, err error) {
	if err := s.reads.QueryRowContext(ctx, `SELECT COALESCE(MAX(seq), 0) FROM notice`).Scan(&seq); err != nil {
		return 0, fmt.Errorf("read last alarm: %w", err)
	}
	return seq, nil
}

// AlarmedGroups are those in which there was an alarm after one event, up to another.
func (s *Store) AlarmedGroups(ctx context.Context, after, upTo int64) ([]string, error) {
	all, err := list(ctx, s.reads, func(r scanner) (g string, err error) { return g, r.Scan(&g) },
		`SELECT DISTINCT grp FROM notice WHERE seq > $1 AND seq <= $2`, after, upTo)
	if err != nil {
		return nil, fmt.Errorf("list groups with alarms: %w", err)
	}
	return all, nil
}

// Group is the group of an active device.
func (s *Store) Group(ctx context.Context, device string) (group string, err error) {
	if err := s.reads.QueryRowContext(ctx, `SELECT grp FROM device WHERE id = $1 AND state = 'active'`, device).Scan(&group); err != nil {
		return "", fmt.Errorf("read group of device %.40q: %w", device, none(err))
	}
	return group, nil
}

// PruneAlarms forgets at most limit alarms that a later one of the same device replaced, which
// nobody asks for any more, and those before a time whose device is gone. As long as there is
// a job about one it stays.
func (s *Store) PruneAlarms(ctx context.Context, before time.Time, limit int) (n int64, err error) {
	err = s.write(ctx, "\xff", func(t *tx) (err error) {
		n, err = t.exec(`DELETE FROM notice WHERE seq IN (SELECT n.seq FROM notice n JOIN event e ON e.seq = n.seq
			WHERE (EXISTS (SELECT 1 FROM notice l WHERE l.device = n.device AND l.grp = n.grp AND l.seq > n.seq)
			OR e.at < $1 AND NOT EXISTS (SELECT 1 FROM device d WHERE d.id = n.device))
			AND NOT EXISTS (SELECT 1 FROM job j WHERE j.event = n.seq) ORDER BY n.seq LIMIT $2)`, micros(before), limit)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("prune alarms: %w", err)
	}
	return n, nil
}
