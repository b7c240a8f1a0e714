package storetest

import (
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// StartPostgres runs a PostgreSQL of its own from the programs of the distribution, in a
// temporary directory and on a unix socket, until the test ends. It returns a function
// that makes an empty database in it and returns its URL. Without the programs the test is
// skipped.
func StartPostgres(t testing.TB) func(testing.TB) string {
	bin := postgresBin(t)
	dir, err := os.MkdirTemp("", "pg") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cred := unprivileged(t, dir)
	run := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Pdeathsig: syscall.SIGQUIT}
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := run("initdb", "-D", data, "-U", "attest", "-A", "trust", "--no-sync", "-E", "UTF8").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	log, err := os.Create(filepath.Join(dir, "log")) // a pipe would be waited for as long as any child lives
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	server := run("postgres", "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "max_connections=200")
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGQUIT)
		select {
		case <-ended:
		case <-time.After(time.Minute):
			_ = server.Process.Kill()
			t.Error("PostgreSQL did not end when it was told to")
		}
		if said, err := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("PostgreSQL said: %v\n%s", err, said)
		}
	})
	admin := fmt.Sprintf("postgres://attest@/postgres?host=%s", dir)
	waitPostgres(t, bin, dir, ended)
	var count atomic.Int64
	return func(t testing.TB) string {
		name := "t" + strconv.FormatInt(count.Add(1), 10)
		db, err := sql.Open("pgx", admin)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		if _, err := db.Exec("CREATE DATABASE " + name); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("postgres://attest@/%s?host=%s", name, dir)
	}
}

func waitPostgres(t testing.TB, bin, dir string, ended chan error) {
	for {
		if exec.Command(filepath.Join(bin, "pg_isready"), "-h", dir, "-U", "attest", "-t", "1").Run() == nil {
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("PostgreSQL ended: %v", err)
		default:
		}
	}
}

func postgresBin(t testing.TB) string {
	var places []string
	if path, err := exec.LookPath("initdb"); err == nil {
		places = append(places, filepath.Dir(path))
	}
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, found...)
	}
	i := slices.IndexFunc(places, func(dir string) bool {
		for _, name := range []string{"initdb", "postgres", "pg_isready"} {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.IsDir() {
				return false
			}
		}
		return true
	})
	if i < 0 {
		t.Skip("PostgreSQL is not installed (initdb, postgres, pg_isready): its half of the contract is not tested")
	}
	return places[i]
}

// unprivileged gives dir to a user that is not root: PostgreSQL refuses to run as root.
func unprivileged(t testing.TB, dir string) *syscall.Credential {
	if os.Getuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			t.Fatal(err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	t.Skip("PostgreSQL will not run as root, and there is neither a user postgres nor nobody")
	return nil
}

// open opens a migrated database until the test ends.
func open(t testing.TB, url string) *store.Store {
	t.Helper()
	if _, _, err := store.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	return reopen(t, url)
}

func reopen(t testing.TB, url string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
