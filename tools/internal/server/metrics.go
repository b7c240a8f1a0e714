package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// latencyBounds are the upper bounds of the histograms' buckets, in seconds.
var latencyBounds = []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10}

type histogram struct {
	buckets [13]int64 // by latencyBounds
	count   int64
	sum     float64
}

func (h *histogram) observe(d time.Duration) {
	s := d.Seconds()
	h.count++
	h.sum += s
	if i, _ := slices.BinarySearch(latencyBounds, s); i < len(h.buckets) {
		h.buckets[i]++
	}
}

type requestKey struct {
	listener, method, path string
	status                 int
}

// metrics are counted here and written in Prometheus's text format 0.0.4. Labels come from
// tables of this package, never from a client.
type metrics struct {
	panics atomic.Int64
	tofu   atomic.Int64

	mu           sync.Mutex
	requests     map[requestKey]int64
	latency      histogram
	attestations map[string]*histogram // by result
	notices      map[noticeKey]int64
}

func newMetrics() *metrics {
	return &metrics{requests: map[requestKey]int64{}, attestations: map[string]*histogram{}, notices: map[noticeKey]int64{}}
}

func (m *metrics) request(listener, method, path string, status int, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests[requestKey{listener, method, path, status}]++
	m.latency.observe(took)
}

func (m *metrics) attestation(result string, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.attestations[result]
	if h == nil {
		h = &histogram{}
		m.attestations[result] = h
	}
	h.observe(took)
}

// Operations answers whoever runs the server: /livez, /readyz and /metrics. The certificates
// are those whose expiry the metrics tell, by a name.
func (s *Server) Operations(certificates func() map[string]*x509.Certificate) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := s.Store.Ping(r.Context()); err != nil {
			s.Log.Error("not ready", "error", err)
			http.Error(w, "the database does not answer", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		counts, err := s.Store.CountDevices(r.Context(), s.Now())
		if err != nil {
			s.Log.Error("count devices", "error", err)
		}
		s.metrics.write(w, counts, err == nil, s.refs)
		s.writeNotices(r.Context(), w)
		writeExpiry(w, certificates())
	})
	return mux
}

var statuses = []store.Status{store.Trusted, store.Untrusted, store.Broken, store.Unverified, store.Overdue}

func (m *metrics) write(w io.Writer, devices map[store.Status]int64, up bool, refs *references) {
	head := func(name, kind, help string) { fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	head("attest_database_up", "gauge", "1 if the database answered.")
	fmt.Fprintf(w, "attest_database_up %d\n", map[bool]int{true: 1}[up])
	if up {
		head("attest_devices", "gauge", "Enrolled devices by status.")
		for _, s := range statuses {
			fmt.Fprintf(w, "attest_devices{status=%q} %d\n", s, devices[s])
		}
		head("attest_devices_overdue", "gauge", "Devices that did not attest in time.")
		fmt.Fprintf(w, "attest_devices_overdue %d\n", devices[store.Overdue])
	}
	count, size := refs.usage()
	head("attest_references", "gauge", "Compiled policies in memory.")
	fmt.Fprintf(w, "attest_references %d\n", count)
	head("attest_references_bytes", "gauge", "What they take.")
	fmt.Fprintf(w, "attest_references_bytes %d\n", size)
	head("attest_panics_total", "counter", "Requests that ended in a panic.")
	fmt.Fprintf(w, "attest_panics_total %d\n", m.panics.Load())
	head("attest_unverified_ek_total", "counter", "Devices that were enrolled on trust.")
	fmt.Fprintf(w, "attest_unverified_ek_total %d\n", m.tofu.Load())

	m.mu.Lock()
	defer m.mu.Unlock()
	head("attest_attestation_duration_seconds", "histogram", "From the evidence to the stored verdict, by result.")
	for _, result := range slices.Sorted(maps.Keys(m.attestations)) {
		m.attestations[result].write(w, "attest_attestation_duration_seconds", fmt.Sprintf("result=%q", result))
	}
	head("attest_request_duration_seconds", "histogram", "All requests.")
	m.latency.write(w, "attest_request_duration_seconds", "")
	head("attest_requests_total", "counter", "Requests by route and status.")
	for _, k := range slices.SortedFunc(maps.Keys(m.requests), func(a, b requestKey) int {
		return slices.Compare([]string{a.listener, a.path, a.method, fmt.Sprint(a.status)}, []string{b.listener, b.path, b.method, fmt.Sprint(b.status)})
	}) {
		fmt.Fprintf(w, "attest_requests_total{listener=%q,method=%q,path=%q,status=\"%d\"} %d\n", k.listener, k.method, k.path, k.status, m.requests[k])
	}
}

type noticeKey struct{ target, result string }

// sent counts an attempt to deliver a notice.
func (m *metrics) sent(target, result string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.notices[noticeKey{target, result}]++
}

// writeNotices writes what became of notices. How many wait is only known to the database.
func (s *Server) writeNotices(ctx context.Context, w io.Writer) {
	head := func(name, kind, help string) { fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	if waiting, dead, err := s.Store.CountJobs(ctx); err == nil {
		head("attest_notices", "gauge", "Notices that are not delivered yet, and dead letters.")
		fmt.Fprintf(w, "attest_notices{state=\"waiting\"} %d\nattest_notices{state=\"dead\"} %d\n", waiting, dead)
	} else {
		s.Log.Error("count notices", "error", err)
	}
	head("attest_notice_waiters", "gauge", "Devices that wait for notices at this replica.")
	fmt.Fprintf(w, "attest_notice_waiters %d\n", s.alarms.waiting())
	s.metrics.mu.Lock()
	defer s.metrics.mu.Unlock()
	head("attest_notice_attempts_total", "counter", "Attempts to deliver notices, by target and result.")
	for _, k := range slices.SortedFunc(maps.Keys(s.metrics.notices), func(a, b noticeKey) int {
		return slices.Compare([]string{a.target, a.result}, []string{b.target, b.result})
	}) {
		fmt.Fprintf(w, "attest_notice_attempts_total{target=%q,result=%q} %d\n", k.target, k.result, s.metrics.notices[k])
	}
}

func (h *histogram) write(w io.Writer, name, labels string) {
	sum := int64(0)
	comma := ""
	if labels != "" {
		comma = ","
	}
	for i, bound := range latencyBounds {
		sum += h.buckets[i]
		fmt.Fprintf(w, "%s_bucket{%s%sle=\"%g\"} %d\n", name, labels, comma, bound, sum)
	}
	fmt.Fprintf(w, "%s_bucket{%s%sle=\"+Inf\"} %d\n", name, labels, comma, h.count)
	if labels != "" {
		labels = "{" + labels + "}"
	}
	fmt.Fprintf(w, "%s_sum%s %g\n%s_count%s %d\n", name, labels, h.sum, name, labels, h.count)
}

func writeExpiry(w io.Writer, certificates map[string]*x509.Certificate) {
	const name = "attest_certificate_expiry_timestamp_seconds"
	fmt.Fprintf(w, "# HELP %s When a certificate ends, in seconds of Unix time.\n# TYPE %s gauge\n", name, name)
	for _, k := range slices.Sorted(maps.Keys(certificates)) {
		fmt.Fprintf(w, "%s{certificate=%q} %d\n", name, k, certificates[k].NotAfter.Unix())
	}
}
