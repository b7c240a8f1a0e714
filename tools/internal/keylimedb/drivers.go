//go:build !nodatabases

package keylimedb

// SQLite's is not for every architecture, and what builds images reads no database: the
// layer leaves both out.
import (
	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"
	_ "modernc.org/sqlite"             // driver "sqlite"
)
