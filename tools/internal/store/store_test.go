package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/store/storetest"
)

func TestMain(m *testing.M) {
	storetest.Writer()
	os.Exit(m.Run())
}

func newSQLite(t testing.TB) string { return filepath.Join(t.TempDir(), "verifier.db") }

func TestSQLite(t *testing.T) {
	t.Parallel()
	storetest.Run(t, newSQLite)
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	storetest.Run(t, storetest.StartPostgres(t))
}
