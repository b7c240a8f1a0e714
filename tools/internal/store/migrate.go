package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migration is one file of migrations/: NNNN_title.sql, numbered from 0001 without gaps.
type migration struct {
	name       string
	compatible int64 // the oldest schema version whose programs still work afterwards
	statements []string
}

func loadMigrations() ([]migration, error) {
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	var list []migration
	for i, name := range files {
		body, err := migrations.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read migration: %w", err)
		}
		m := migration{name: name}
		var number int
		if _, err := fmt.Sscanf(name, "migrations/%04d_", &number); err != nil || number != i+1 {
			return nil, fmt.Errorf("%s: its number should be %04d", name, i+1)
		}
		if _, err := fmt.Sscanf(string(body), "-- compatible: %d\n", &m.compatible); err != nil {
			return nil, fmt.Errorf("%s: first line should be -- compatible: N", name)
		}
		for _, s := range strings.Split(string(body), ";\n") {
			if s = strings.TrimSpace(s); s != "" {
				m.statements = append(m.statements, s)
			}
		}
		list = append(list, m)
	}
	return list, nil
}

// Migrate brings the database at url to the schema of this program and returns the
// version before and after; before is 0 if there was none. It makes the file of SQLite
// (mode 0600) but not the database of PostgreSQL. All of it happens in one transaction,
// and two that run at once do it once.
func Migrate(ctx context.Context, url string) (before, after int64, err error) {
	c, err := connect(url)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if c.path != "" {
		f, err := os.OpenFile(c.path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return 0, 0, fmt.Errorf("make database: %w", err)
		}
		if err := f.Close(); err != nil {
			return 0, 0, fmt.Errorf("make database: %w", err)
		}
	}
	if err := c.checkFile(); err != nil {
		return 0, 0, err
	}
	list, err := loadMigrations()
	if err != nil {
		return 0, 0, err
	}
	t, err := c.writes.BeginTx(ctx, nil)
	if err != nil {
		return 0, 0, fmt.Errorf("begin migration: %w", err)
	}
	defer func() { _ = t.Rollback() }() // after Commit it does nothing
	before, err = migrate(ctx, c, t, list)
	if err != nil {
		return 0, 0, err
	}
	if err := t.Commit(); err != nil {
		return 0, 0, fmt.Errorf("commit migration: %w", err)
	}
	return before, max(before, int64(len(list))), nil
}

func migrate(ctx context.Context, c conn, t *sql.Tx, list []migration) (int64, error) {
	for _, s := range []string{
		c.lockSchema,
		"CREATE TABLE IF NOT EXISTS schema_version (one BIGINT PRIMARY KEY CHECK (one = 1), version BIGINT NOT NULL, compatible BIGINT NOT NULL)",
		"INSERT INTO schema_version VALUES (1, 0, 0) ON CONFLICT DO NOTHING",
	} {
		if _, err := t.ExecContext(ctx, s); err != nil {
			return 0, fmt.Errorf("prepare migration: %w", err)
		}
	}
	var before, compatible int64
	if err := t.QueryRowContext(ctx, "SELECT version, compatible FROM schema_version").Scan(&before, &compatible); err != nil {
		return 0, fmt.Errorf("read schema version: %w", err)
	}
	if before >= int64(len(list)) {
		return before, fits(before, compatible, int64(len(list)))
	}
	for _, m := range list[before:] {
		for _, s := range m.statements {
			if _, err := t.ExecContext(ctx, c.schema.Replace(s)); err != nil {
				return 0, fmt.Errorf("%s: %w", m.name, err)
			}
		}
		if _, err := t.ExecContext(ctx, "UPDATE schema_version SET version = version + 1, compatible = $1", m.compatible); err != nil {
			return 0, fmt.Errorf("%s: write version: %w", m.name, err)
		}
	}
	return before, nil
}

// fits says whether a program of schema version ours may use a database. A newer database
// is fine if its migrations say so: during a roll-out old and new programs share it.
func fits(version, compatible, ours int64) error {
	if version < ours {
		return fmt.Errorf("%w: it has %d, this program needs %d: migrate it", ErrSchema, version, ours)
	}
	if compatible > ours {
		return fmt.Errorf("%w: it has %d, for programs of %d and later, this one is of %d: use a newer program", ErrSchema, version, compatible, ours)
	}
	return nil
}

// check says why a database cannot be used as it is.
func check(ctx context.Context, c conn) error {
	if err := c.checkFile(); err != nil {
		return err
	}
	if err := c.writes.PingContext(ctx); err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	var durable string
	if err := c.writes.QueryRowContext(ctx, c.durable).Scan(&durable); err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	if durable == "off" {
		return errors.New("open database: synchronous_commit is off: a verdict that was acknowledged could be lost")
	}
	list, err := loadMigrations()
	if err != nil {
		return err
	}
	var version, compatible int64
	if err := c.reads.QueryRowContext(ctx, "SELECT version, compatible FROM schema_version").Scan(&version, &compatible); err != nil {
		return fmt.Errorf("%w: it has none (%w): migrate it", ErrSchema, err)
	}
	return fits(version, compatible, int64(len(list)))
}
