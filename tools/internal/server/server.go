// Package server is the network side of registrar and verifier: Keylime's registrar API 2.x
// and push attestation 3.0 for devices, and an API of its own for operators.
//
// One table (routes.go) says of each route who may call it; a request reaches a handler
// only when its caller was established. Facts are in the store and none in memory, so a
// server may be killed at any moment and any number may share one database; what is kept
// here are compiled policies, and counts that bound what a stranger can cost.
package server

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// Options are what a Server is made of. Zero values of numbers and durations stand for
// the defaults of [New].
type Options struct {
	Store *store.Store
	Log   *slog.Logger

	// ClientCA are the issuers of operators' client certificates; empty: tokens only. The
	// role is the certificate's organizational unit, "operator" or "admin".
	ClientCA []*x509.Certificate
	TenantCA []*x509.Certificate // issuers of the certificates of Keylime's tenants; see [Tenant]

	EKCA     *evidence.CAStore // certificates of TPM manufacturers; nil: none can be verified
	TOFU     bool              // enrol a TPM whose certificate cannot be verified, with an alarm
	AnyID    bool              // a device may choose its id; else it is the hash of its EK
	Releases []*x509.Certificate
	Secrets  *SecretKeys // nil: no secrets are taken or given
	// Policies are assigned to a device that no operator has named before it enrols.
	Policies []string

	Interval          time.Duration // between attestations of a device
	Grace             int           // intervals after which a device is overdue
	ChallengeLifetime time.Duration
	SessionLifetime   time.Duration
	KeepTrusted       time.Duration // evidence of events that left a device trusted
	KeepOthers        time.Duration // all other evidence

	Notices Notices
	Pull    Pull

	Limits Limits

	Now func() time.Time // nil: time.Now
}

// Limits bound what one client, or all of them, can cost.
type Limits struct {
	Connections     int   // all together, on one listener
	ConnectionsIP   int   // from one address
	RequestsIP      int   // unproven requests a minute from one address
	RequestsDevice  int   // a minute from one device; never less than the interval needs
	Replays         int   // judgements of a whole list at a time
	ReferenceMemory int64 // bytes of compiled policies
	Waiters         int   // devices that wait for notices at a time
}

func (o *Options) defaults() {
	set(&o.Interval, time.Minute)
	set(&o.Grace, 3)
	set(&o.ChallengeLifetime, 5*time.Minute)
	set(&o.SessionLifetime, time.Hour)
	set(&o.KeepTrusted, 7*24*time.Hour)
	set(&o.KeepOthers, 90*24*time.Hour)
	set(&o.Limits.Connections, 20_000)
	set(&o.Limits.ConnectionsIP, 1_000)
	set(&o.Limits.RequestsIP, 600)
	set(&o.Limits.RequestsDevice, 60)
	// An attestation is two requests; with sessions and repetitions it is never thrice that.
	o.Limits.RequestsDevice = max(o.Limits.RequestsDevice, int(6*time.Minute/o.Interval))
	set(&o.Limits.Replays, 4)
	set(&o.Limits.ReferenceMemory, 512<<20)
	set(&o.Limits.Waiters, 20_000)
	set(&o.Pull.Parallel, 32)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

func set[T comparable](to *T, value T) {
	var zero T
	if *to == zero {
		*to = value
	}
}

// Server answers requests. Its methods may be called from many goroutines.
type Server struct {
	Options
	operators *x509.CertPool
	tenants   *x509.CertPool
	refs      *references
	aks       *akCache
	judge     judgeFunc

	byIP     *buckets
	byDevice *buckets
	kept     *buckets // evidence of devices, in bytes
	busy     *inFlight
	bodies   chan struct{} // large bodies that are being read
	queue    chan struct{} // whole lists that wait to be judged
	replays  chan struct{} // and that are
	metrics  *metrics

	alarms  *alarms
	senders []sender
	told    []store.Notice // who is told when a verdict turns bad
}

// New returns a server. It opens nothing; see [Server.Handler] and [Listen].
func New(o Options) (*Server, error) {
	o.defaults()
	if o.Store == nil {
		return nil, errors.New("new server: no store")
	}
	s := &Server{
		Options: o, judge: appraised,
		byIP: newBuckets(o.Limits.RequestsIP), byDevice: newBuckets(o.Limits.RequestsDevice), kept: newKept(), busy: newInFlight(),
		bodies: make(chan struct{}, 4*o.Limits.Replays), queue: make(chan struct{}, 16*o.Limits.Replays), replays: make(chan struct{}, o.Limits.Replays),
		metrics: newMetrics(), aks: newAKCache(),
	}
	s.alarms = newAlarms(o.Limits.Waiters)
	if err := s.addSenders(); err != nil {
		return nil, err
	}
	s.refs = newReferences(o.Store, o.Releases, o.Limits.ReferenceMemory, o.Now)
	s.operators, s.tenants = poolOf(o.ClientCA), poolOf(o.TenantCA)
	return s, nil
}

// poolOf is nil without certificates: nobody is known by one then.
func poolOf(certs []*x509.Certificate) *x509.CertPool {
	if len(certs) == 0 {
		return nil
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}

// Run does what is due without a request, until ctx ends: it notes devices that became
// overdue, tells others of bad verdicts, polls agents, and forgets what is older than it has
// to be. An error of the database is logged and the work tried again; no verdict depends on
// it.
func (s *Server) Run(ctx context.Context) {
	sweep, prune := time.NewTicker(10*time.Second), time.NewTicker(time.Hour)
	defer sweep.Stop()
	defer prune.Stop()
	var others sync.WaitGroup
	defer others.Wait()
	others.Go(func() { s.watchAlarms(ctx) })
	for _, x := range s.senders {
		others.Go(func() { s.deliver(ctx, x) })
	}
	if s.Pull.Certificate != nil {
		others.Go(func() { s.pollAll(ctx) })
	}
	began := s.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			s.sweepSince(ctx, began)
		case <-prune.C:
			s.prune(ctx)
		}
	}
}

const batch = 1000 // rows of one transaction

// sweepSince is sweep of a server that has run for a while. A device may be late because
// there was no verifier to come to: nobody is told before each had the time to come back.
func (s *Server) sweepSince(ctx context.Context, began time.Time) {
	if len(s.told) == 0 || s.Now().Sub(began) > s.due() {
		s.sweep(ctx)
	}
}

func (s *Server) sweep(ctx context.Context) {
	for ctx.Err() == nil {
		events, err := s.Store.SweepOverdue(ctx, s.Now(), batch, s.told)
		for _, e := range events {
			s.Log.Warn("device overdue", "device", e.Device, "event", e.Seq)
		}
		if err != nil {
			s.Log.Error("sweep overdue devices", "error", err)
		}
		if err != nil || len(events) < batch {
			return
		}
	}
}

func (s *Server) prune(ctx context.Context) {
	for ctx.Err() == nil {
		now := s.Now()
		old := now.Add(-s.KeepOthers)
		n, err := s.Store.Prune(ctx, now.Add(-s.KeepTrusted), old, now, batch)
		jobs, lost := s.Store.PruneJobs(ctx, old, batch)
		alarms, kept := s.Store.PruneAlarms(ctx, old, batch)
		if jobs > 0 {
			s.Log.Warn("notices forgotten that nobody took", "number", jobs, "older_than", old)
		}
		if err := errors.Join(err, lost, kept); err != nil {
			s.Log.Error("prune", "error", err)
			return
		}
		if n+jobs+alarms == 0 {
			return
		}
	}
}
