package keylimedb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// maxTime bounds the reading of a database, whatever its schema makes of a query.
const maxTime = 10 * time.Minute

// maxFile bounds a database file, in bytes.
const maxFile = 8 << 30

// ErrNoTables means that a database has none of Keylime's tables.
var ErrNoTables = errors.New("no table of Keylime's registrar or verifier")

// ErrNoDrivers means that the program was built with the tag nodatabases.
var ErrNoDrivers = errors.New("this program was built without databases")

// Read reads the databases of a registrar and a verifier, each a path of an SQLite file or
// postgres://...; one that holds both is enough.
func Read(ctx context.Context, databases ...string) (*Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	s := newSnapshot()
	for _, at := range databases {
		if err := s.read(ctx, at); err != nil {
			if u, bad := url.Parse(at); bad == nil && u.User != nil {
				at = u.Redacted()
			}
			return nil, fmt.Errorf("read %s: %w", at, err)
		}
	}
	return s.done(), nil
}

func (s *Snapshot) read(ctx context.Context, at string) (err error) {
	d, err := open(ctx, at)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	found := false
	for _, t := range []struct {
		table string
		read  func(context.Context, *database) error
	}{{"registrarmain", s.registrar}, {"allowlists", s.runtimePolicies}, {"mbpolicies", s.mbPolicies}, {"verifiermain", s.verifier}} {
		there, err := d.has(ctx, t.table)
		if err != nil {
			return err
		}
		if !there {
			continue
		}
		found = true
		if err := t.read(ctx, d); err != nil {
			return fmt.Errorf("table %s: %w", t.table, err)
		}
	}
	if !found {
		return ErrNoTables
	}
	return nil
}

// database is one that is read only.
type database struct {
	*sql.DB
	postgres bool
}

func open(ctx context.Context, at string) (*database, error) {
	if !slices.Contains(sql.Drivers(), "sqlite") {
		return nil, ErrNoDrivers
	}
	if strings.HasPrefix(at, "postgres://") || strings.HasPrefix(at, "postgresql://") {
		db, err := sql.Open("pgx", at)
		if err != nil {
			return nil, errors.New("not a URL of PostgreSQL") // the error would show the password
		}
		db.SetMaxOpenConns(1)
		if _, err := db.ExecContext(ctx, "SET default_transaction_read_only = on"); err != nil {
			return nil, errors.Join(err, db.Close())
		}
		return &database{db, true}, nil
	}
	path, err := filepath.Abs(strings.TrimPrefix(at, "sqlite://"))
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%d bytes, or no regular file; at most %d are read", info.Size(), int64(maxFile))
	}
	u := url.URL{Scheme: "file", Path: path, RawQuery: url.Values{"mode": {"ro"},
		"_pragma": {"query_only(1)", "trusted_schema(0)", "cell_size_check(1)", "busy_timeout(10000)"}}.Encode()}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return &database{db, false}, nil
}

// has says whether there is a plain table of this name.
func (d *database) has(ctx context.Context, table string) (bool, error) {
	q := `SELECT count(*) FROM information_schema.tables WHERE table_name = $1 AND table_type = 'BASE TABLE' AND table_schema = ANY (current_schemas(false))`
	if !d.postgres {
		q = `SELECT count(*) FROM sqlite_master WHERE name = $1 AND type = 'table' AND sql LIKE 'CREATE TABLE %'`
	}
	var n int
	if err := d.QueryRowContext(ctx, q, table).Scan(&n); err != nil {
		return false, err
	}
	return n == 1, nil
}

// columns are those that a table has: releases of Keylime differ.
func (d *database) columns(ctx context.Context, table string) (map[string]bool, error) {
	q := `SELECT column_name FROM information_schema.columns WHERE table_name = $1 LIMIT 200`
	if !d.postgres {
		q = `SELECT name FROM pragma_table_info($1) LIMIT 200`
	}
	rows, err := d.QueryContext(ctx, q, table)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[string]bool{}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		all[name] = true
	}
	return all, rows.Err()
}

// each reads rows of columns, as texts; NULL and a column that is not there are "". No
// field is read that is larger than max; that of the row's first column is then passed to
// large, and the row is left out.
func (d *database) each(ctx context.Context, table string, limit, max int, columns []string, large func(string), row func(values []string) error) error {
	there, err := d.columns(ctx, table)
	if err != nil {
		return err
	}
	var texts, sizes []string
	for _, c := range columns {
		if !there[c] {
			texts = append(texts, "''")
			continue
		}
		texts = append(texts, fmt.Sprintf("CASE WHEN octet_length(CAST(%s AS TEXT)) > %d THEN '' ELSE COALESCE(CAST(%s AS TEXT), '') END", c, max, c))
		sizes = append(sizes, fmt.Sprintf("COALESCE(octet_length(CAST(%s AS TEXT)), 0) > %d", c, max))
	}
	if !there[columns[0]] {
		return fmt.Errorf("it has no column %s", columns[0])
	}
	rows, err := d.QueryContext(ctx, fmt.Sprintf("SELECT CASE WHEN %s THEN 1 ELSE 0 END, %s FROM %s ORDER BY %s LIMIT %d",
		strings.Join(sizes, " OR "), strings.Join(texts, ", "), table, columns[0], limit+1))
	if err != nil {
		return err
	}
	defer rows.Close()
	for n, bytes := 0, 0; rows.Next(); n++ {
		if n == limit {
			return fmt.Errorf("more than %d rows", limit)
		}
		var tooLarge int
		values := make([]string, len(columns))
		dest := []any{&tooLarge}
		for i := range values {
			dest = append(dest, &values[i])
		}
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		for _, v := range values {
			if bytes += len(v); bytes > MaxTotal {
				return fmt.Errorf("more than %d bytes", MaxTotal)
			}
		}
		if tooLarge != 0 {
			large(values[0])
			continue
		}
		if err := row(values); err != nil {
			return err
		}
	}
	return rows.Err()
}
