package server

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// buckets allow each key a number of requests a minute, in bursts of as many, or of bytes in
// longer a time: the generic cell rate algorithm, which needs one time for each key.
type buckets struct {
	step time.Duration // that one request, or byte, costs
	full time.Duration // that a burst may cost

	mu   sync.Mutex
	free map[string]time.Time // when the key's debt is paid
}

const maxBuckets = 100_000 // keys at a time; some 10 MB

func newBuckets(perMinute int) *buckets {
	return &buckets{step: time.Minute / time.Duration(perMinute), full: time.Minute, free: map[string]time.Time{}}
}

// Bytes of evidence that are kept of one device: at once, and after that in an hour. A
// device that is well changes its verdict some times a day; one that is not must not fill
// the database by changing it with each attestation.
const (
	keptAtOnce = 2 * evidence.MaxSize
	keptHourly = 8 << 20
)

func newKept() *buckets {
	const each = time.Hour / keptHourly
	return &buckets{step: each, full: keptAtOnce * each, free: map[string]time.Time{}}
}

// take counts a request, and returns how long to wait before it would be good.
func (b *buckets) take(key string, now time.Time) (wait time.Duration) { return b.spend(key, 1, now) }

// spend is take for n of what the buckets count.
func (b *buckets) spend(key string, n int, now time.Time) (wait time.Duration) {
	cost := time.Duration(n) * b.step
	b.mu.Lock()
	defer b.mu.Unlock()
	at := b.free[key]
	if at.Before(now) || at.Sub(now) > b.full { // or the clock was set back: nobody can owe more
		at = now
	}
	if wait = at.Add(cost).Sub(now) - b.full; wait > 0 {
		return wait
	}
	if len(b.free) >= maxBuckets {
		b.sweep(now)
	}
	b.free[key] = at.Add(cost)
	return 0
}

// sweep makes room: keys without a debt go, and if that is not enough any others.
func (b *buckets) sweep(now time.Time) {
	for key, at := range b.free {
		if !at.After(now) {
			delete(b.free, key)
		}
	}
	for key := range b.free {
		if len(b.free) < maxBuckets*9/10 {
			return
		}
		delete(b.free, key)
	}
}

// peerOf is the address of a client: of IPv6 the network of 64 bits, which is what one
// subscriber has.
func peerOf(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is4() {
		return addr.String()
	}
	prefix, err := addr.Prefix(64)
	if err != nil {
		return addr.String()
	}
	return prefix.String()
}

// inFlight lets each device have one attestation judged at a time.
type inFlight struct {
	mu   sync.Mutex
	busy map[string]bool
}

func newInFlight() *inFlight { return &inFlight{busy: map[string]bool{}} }

func (f *inFlight) enter(id string) (leave func(), ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy[id] {
		return nil, false
	}
	f.busy[id] = true
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.busy, id)
	}, true
}
