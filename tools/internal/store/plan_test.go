package store_test

import (
	"database/sql"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/store/storetest"
)

// What is done for each attestation costs the same with ten devices and with a million.
func TestPlanSQLite(t *testing.T) {
	url := newSQLite(t)
	scan := regexp.MustCompile(`^SCAN (\w+)`) // with an index or without: from end to end
	testPlan(t, url, "sqlite", url, "EXPLAIN QUERY PLAN ", func(line, _ string) string {
		if m := scan.FindStringSubmatch(line); m != nil {
			return m[1]
		}
		return ""
	})
}

func TestPlanPostgres(t *testing.T) {
	url := storetest.StartPostgres(t)(t)
	seq := regexp.MustCompile(`Seq Scan on (\w+)`)
	// Of an empty table the planner reads the index from end to end.
	index := regexp.MustCompile(`Index.* Scan.* on (device|attestation|event)\b`)
	testPlan(t, url, "pgx", url+"&enable_seqscan=off", "EXPLAIN ", func(line, next string) string {
		if m := seq.FindStringSubmatch(line); m != nil {
			return m[1]
		}
		if m := index.FindStringSubmatch(line); m != nil && !strings.Contains(next, "Index Cond:") {
			return m[1]
		}
		return ""
	})
}

func testPlan(t *testing.T, url, driver, dsn, explain string, full func(line, next string) string) {
	if _, _, err := store.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for n := range 300 {
		storetest.Enrol(t, s, fmt.Sprint("d", n))
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.Exec("ANALYZE"); err != nil {
		t.Fatal(err)
	}
	whole := func(q string, args ...any) (tables []string) {
		plan := append(planOf(t, db, explain+q, args...), "")
		for i, line := range plan[:len(plan)-1] {
			// policy_epoch has one row.
			if table := full(line, plan[i+1]); table != "" && table != "policy_epoch" && table != "e" {
				tables = append(tables, table)
			}
		}
		return tables
	}
	// The check can fail.
	for _, q := range []string{`SELECT id FROM device WHERE ip = $1`, `SELECT device FROM attestation WHERE codes = $1 ORDER BY device`} {
		if len(whole(q, "x")) == 0 {
			t.Errorf("a search without an index is not noticed: %s", q)
		}
	}
	for q, args := range store.Hot(s) {
		if tables := whole(q, args...); len(tables) > 0 {
			t.Errorf("%s\nreads all of %s", q, tables)
		}
	}
}

// planOf returns the last column of each row.
func planOf(t *testing.T, db *sql.DB, q string, args ...any) (lines []string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), q, args...)
	if err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		row, dest := make([]any, len(columns)), make([]any, len(columns))
		for i := range row {
			dest[i] = &row[i]
		}
		if err := rows.Scan(dest...); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprint(row[len(row)-1]))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return lines
}
