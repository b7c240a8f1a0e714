package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// dialect is all that differs between the two databases. The statements are the same:
// both know $1, ON CONFLICT, RETURNING and row values.
type dialect struct {
	writers int // goroutines that write

	// Appended to a SELECT. SQLite has one writer and needs none of them.
	lockShare, lockUpdate, lockSkip string

	lockSchema   string // run first by a migration
	lockAttempts string // run before attempts are counted
	schema       *strings.Replacer
	durable      string // answers "off" if a commit does not wait for the disk
	// A statement on a local file ends soon by itself. To be able to end it sooner costs
	// two goroutines each time, which is as much as the statement.
	local    bool
	unique   func(error) bool
	deadlock func(error) bool // worth another try
}

var postgres = dialect{
	writers:      4,
	lockShare:    " FOR SHARE",
	lockUpdate:   " FOR UPDATE",
	lockSkip:     " FOR UPDATE SKIP LOCKED",
	lockSchema:   "SELECT pg_advisory_xact_lock(4705211718)",
	lockAttempts: "SELECT pg_advisory_xact_lock(4705211719)",
	schema:       strings.NewReplacer(),
	durable:      "SHOW synchronous_commit",
	unique: func(err error) bool {
		var e *pgconn.PgError
		return errors.As(err, &e) && e.Code == "23505"
	},
	deadlock: func(err error) bool {
		var e *pgconn.PgError
		return errors.As(err, &e) && (e.Code == "40P01" || e.Code == "40001")
	},
}

var sqliteDialect = dialect{
	writers:      1,
	local:        true,
	lockSchema:   "SELECT 1", // BEGIN IMMEDIATE has locked it
	lockAttempts: "SELECT 1",
	schema: strings.NewReplacer(` COLLATE "C"`, "", " BYTEA", " BLOB", " BIGINT", " INTEGER",
		"\n)", "\n) STRICT"),
	durable: "SELECT CASE synchronous WHEN 2 THEN 'on' ELSE 'off' END FROM pragma_synchronous",
	unique: func(err error) bool {
		var e *sqlite.Error
		return errors.As(err, &e) && (e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
	},
	deadlock: func(error) bool { return false }, // it has one writer
}

// lasting is the context of a statement that reads a few rows by their key.
func (d dialect) lasting(ctx context.Context) context.Context {
	if d.local {
		return context.WithoutCancel(ctx)
	}
	return ctx
}

// conn is a database that nobody has looked into.
type conn struct {
	dialect
	reads, writes *sql.DB
	path          string // of SQLite
}

func (c conn) close() error {
	if c.reads == c.writes {
		return c.reads.Close()
	}
	return errors.Join(c.reads.Close(), c.writes.Close())
}

func connect(at string) (conn, error) {
	scheme, rest, ok := strings.Cut(at, "://")
	switch {
	case !ok:
		return openSQLite(at)
	case scheme == "sqlite" && strings.HasPrefix(rest, "/"):
		return openSQLite(rest)
	case scheme == "postgres" || scheme == "postgresql":
		return openPostgres(at)
	}
	return conn{}, errors.New("open database: want postgres://USER@HOST/NAME, sqlite:///PATH or a path")
}

func openPostgres(at string) (conn, error) {
	cfg, err := pgx.ParseConfig(at)
	if err != nil {
		// The driver's error quotes the URL, and its way to hide a password is a guess.
		return conn{}, errors.New("open database: the postgres:// URL cannot be parsed")
	}
	// A verifier that hangs in a transaction must not stop the others.
	for name, value := range map[string]string{"lock_timeout": "10s", "idle_in_transaction_session_timeout": "60s"} {
		if _, set := cfg.RuntimeParams[name]; !set {
			cfg.RuntimeParams[name] = value
		}
	}
	db := stdlib.OpenDB(*cfg)
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	return conn{dialect: postgres, reads: db, writes: db}, nil
}

func openSQLite(path string) (conn, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return conn{}, fmt.Errorf("open database: %w", err)
	}
	// FULL, not NORMAL: in WAL mode NORMAL survives the death of the process and loses the
	// last commits with the power. Writes share a commit, so the fsync is shared too.
	pragmas := []string{"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"}
	open := func(more url.Values, pragmas ...string) (*sql.DB, error) {
		q := url.Values{"mode": {"rw"}, "_pragma": pragmas}
		for k, v := range more {
			q[k] = v
		}
		db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}).String())
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		return db, nil
	}
	writes, err := open(url.Values{"_txlock": {"immediate"}}, pragmas...)
	if err != nil {
		return conn{}, err
	}
	writes.SetMaxOpenConns(1)
	reads, err := open(nil, append(pragmas, "query_only(1)")...)
	if err != nil {
		return conn{}, errors.Join(err, writes.Close())
	}
	reads.SetMaxOpenConns(8)
	reads.SetMaxIdleConns(8)
	return conn{dialect: sqliteDialect, reads: reads, writes: writes, path: abs}, nil
}

// checkFile refuses a database that is not there, or that every user of the machine may
// read: it holds keys' hashes and what devices run.
func (c conn) checkFile() error {
	if c.path == "" {
		return nil
	}
	info, err := os.Stat(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open %s: no such database: %w", c.path, ErrSchema)
	}
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return fmt.Errorf("open %s: mode %04o lets every user in: chmod 0600 it", c.path, info.Mode().Perm())
	}
	return nil
}
