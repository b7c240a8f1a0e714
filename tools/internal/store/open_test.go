package store_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/store/storetest"
)

func TestSQLiteFile(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"plain.db", "with space.db", "what?.db", "a#b%20c&d=e.db", "ünïcode.db", "?_pragma=synchronous(0)"} {
		path := filepath.Join(dir, name)
		for _, url := range []string{path, "sqlite://" + path} {
			if _, _, err := store.Migrate(t.Context(), url); err != nil {
				t.Fatal(err)
			}
			s, err := store.Open(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Ping(t.Context()); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %04o", name, info.Mode().Perm())
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 6 {
		t.Errorf("files: %v", entries)
	}
}

func TestSQLiteRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "verifier.db")
	open := func() error {
		s, err := store.Open(t.Context(), path)
		if err == nil {
			err = errors.Join(errors.New("opened"), s.Close())
		}
		return err
	}
	if err := open(); !errors.Is(err, store.ErrSchema) {
		t.Errorf("no file: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open made a file: %v", err)
	}
	if _, _, err := store.Migrate(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := open(); err == nil || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("world-readable: %v", err)
	}
	if _, _, err := store.Migrate(t.Context(), path); err == nil {
		t.Error("a world-readable database was migrated")
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("not a database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(); err == nil || strings.Contains(err.Error(), "opened") {
		t.Errorf("not a database: %v", err)
	}
	for _, url := range []string{"mysql://root@localhost/x", "sqlite://relative/path", "http://x"} {
		if _, err := store.Open(t.Context(), url); err == nil || !strings.Contains(err.Error(), "postgres://") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// No error says the password that is part of a URL, however wrong the URL is.
func TestPasswordNotInErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // somebody who is not PostgreSQL
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	const canary = "canary-4711"
	for _, url := range []string{
		"postgres://attest:" + canary + "@" + l.Addr().String() + "/x?sslmode=disable",
		"postgres://attest:" + canary + "@" + l.Addr().String() + "/x?sslmode=nonsense",
		"postgres://attest:" + canary + "@host:port/x",
		"postgres://attest:" + canary + "%zz@host/x",
		"postgres://attest:a b" + canary + "@host/x",
		"postgres://attest@host/x?password=" + canary + "&sslmode=7",
		"postgresql://[::1:" + canary + "@",
		"postgress://attest:" + canary + "@host/x",
	} {
		_, openErr := store.Open(t.Context(), url)
		_, _, migrateErr := store.Migrate(t.Context(), url)
		for _, err := range []error{openErr, migrateErr} {
			if err == nil || strings.Contains(err.Error(), canary) {
				t.Errorf("%v", err)
			}
		}
	}
}

// A database that acknowledges before it has written is refused.
func TestPostgresNotDurable(t *testing.T) {
	url := storetest.StartPostgres(t)(t)
	if _, _, err := store.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), url+"&synchronous_commit=off"); err == nil || !strings.Contains(err.Error(), "synchronous_commit") {
		t.Errorf("synchronous_commit off: %v", err)
	}
}

// A write that fails leaves no event, also when it had changed no row.
func TestFailedWriteLeavesNoEvent(t *testing.T) {
	path := newSQLite(t)
	if _, _, err := store.Migrate(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	refused := errors.New("refused")
	if err := store.NoteAndFail(t.Context(), s, store.Event{Kind: "x", Detail: "{}"}, refused); !errors.Is(err, refused) {
		t.Error(err)
	}
	if head, err := s.VerifyChain(t.Context(), store.Head{}); err != nil || head.Seq != 0 {
		t.Errorf("%+v, %v", head, err)
	}
}
