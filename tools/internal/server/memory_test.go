package server

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// BenchmarkDevices is what a device costs that attests and goes on attesting: memory of the
// server between two attestations, and bytes of the database. Policies are shared, and
// counted elsewhere.
func BenchmarkDevices(b *testing.B) {
	for b.Loop() {
		url := newSQLite(b)
		w := newWorldOn(b, url)
		w.trustedSoft("first")
		size := func() int64 {
			info, err := os.Stat(url)
			if err != nil {
				b.Fatal(err)
			}
			return info.Size()
		}
		before, file := heap(), size()
		const n = 2000
		for i := range n {
			d := w.soft(fmt.Sprint("device-", i))
			w.assign(d.ID, "image")
			w.judge(d, store.Trusted, "")
		}
		w.log.b = bytes.Buffer{}
		b.ReportMetric(float64(heap()-before)/n, "B/device")
		b.ReportMetric(float64(size()-file)/n, "database-B/device")
	}
}
