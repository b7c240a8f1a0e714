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
	// A table is also scanned, as the planner says it, when it is walked in the order of an
	// index up to a LIMIT. policy_epoch has one row.
	full := regexp.MustCompile(`^SCAN (\w+)$`)
	testPlan(t, url, "sqlite", url, "EXPLAIN QUERY PLAN ", full)
}

func TestPlanPostgres(t *testing.T) {
	url := storetest.StartPostgres(t)(t)
	testPlan(t, url, "pgx", url+"&enable_seqscan=off&plan_cache_mode=force_generic_plan", "EXPLAIN ", regexp.MustCompile(`Seq Scan on (\w+)`))
}

func testPlan(t *testing.T, url, driver, dsn, explain string, full *regexp.Regexp) {
	if _, _, err := store.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	// The check can fail.
	if plan := strings.Join(planOf(t, db, explain+`SELECT id FROM device WHERE ip = $1`, "x"), "\n"); !full.MatchString(plan) {
		t.Errorf("a search without an index is not noticed: %s", plan)
	}
	for q, args := range store.Hot(s) {
		plan := planOf(t, db, explain+q, args...)
		for _, line := range plan {
			m := full.FindStringSubmatch(line)
			if m != nil && m[1] != "policy_epoch" && m[1] != "e" {
				t.Errorf("%s\nreads all of %s:\n%s", q, m[1], strings.Join(plan, "\n"))
			}
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
