package store_test

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/store/storetest"
)

// The steady poll of a fleet: negotiate, read the state, write the result, all of it
// durable. cpu-µs/op is what this process spends; PostgreSQL's own is not in it.
func BenchmarkAttestSQLite(b *testing.B) { benchmarkAttest(b, newSQLite(b)) }

func BenchmarkAttestPostgres(b *testing.B) { benchmarkAttest(b, storetest.StartPostgres(b)(b)) }

func benchmarkAttest(b *testing.B, url string) {
	if _, _, err := store.Migrate(b.Context(), url); err != nil {
		b.Fatal(err)
	}
	s, err := store.Open(b.Context(), url)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	const devices = 1000
	for n := range devices {
		storetest.Enrol(b, s, fmt.Sprint("d", n))
	}
	var next, clock atomic.Int64
	now := storetest.Start
	before := cpu(b)
	b.ResetTimer()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		id := fmt.Sprint("d", next.Add(1))
		for pb.Next() {
			index, err := s.Negotiate(b.Context(), id, make([]byte, 200), now.Add(time.Minute))
			if err != nil {
				b.Error(err)
				return
			}
			st, err := s.State(b.Context(), id, now)
			if err != nil {
				b.Error(err)
				return
			}
			_, err = s.Attest(b.Context(), st, store.Result{Status: store.Trusted, At: now, Due: now.Add(time.Minute), Index: index,
				Counters: &store.Counters{Reset: 1, Clock: uint64(clock.Add(1))}, Evidence: make([]byte, 300), Appraise: make([]byte, 300)})
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(cpu(b)-before)/float64(time.Microsecond)/float64(b.N), "cpu-µs/op")
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
