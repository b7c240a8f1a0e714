package server

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/release"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// reference is a compiled policy; nil is that of a device without one.
type reference struct{ *appraise.Reference }

func (r *reference) compiled() *appraise.Reference {
	if r == nil {
		return nil
	}
	return r.Reference
}

// wantsFirmware says whether the firmware's log is still needed, given what is known of the boot.
func (r *reference) wantsFirmware(state []byte) bool {
	if r == nil || !r.Firmware() {
		return false
	}
	var s appraise.State
	return s.UnmarshalBinary(state) != nil || !s.Firmware()
}

// selection is what to quote: without a policy what one would ask for as a rule, so that a
// device can be watched before its policy is written.
func (r *reference) selection(can *evidence.Capabilities) evidence.Selection {
	if r == nil {
		return evidence.Selection{"sha256": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}
	}
	var banks []string
	for bank, pcrs := range can.Quote().AvailablePC {
		if len(pcrs) > 0 {
			banks = append(banks, bank)
		}
	}
	return r.Selection(banks...)
}

// terms are the strictest without a policy.
func (r *reference) terms() evidence.Terms {
	if r == nil {
		return evidence.Terms{}
	}
	return r.Terms()
}

// continues says whether what is known of a device was appraised by this policy.
func (r *reference) continues(state []byte) bool {
	if r == nil {
		return true // nothing is appraised
	}
	var s appraise.State
	return s.UnmarshalBinary(state) == nil && s.Continues(r.Reference)
}

// references are the compiled policies that are in use. Each is compiled once, however
// many devices ask for it at a time, and shared by all of them.
type references struct {
	store   *store.Store
	trusted []*x509.Certificate
	bound   int64
	now     func() time.Time
	flight  singleflight.Group

	mu   sync.Mutex
	held map[string]*held
	size int64
	tick int64
}

type held struct {
	ref   *reference
	err   error
	until time.Time // of an error
	size  int64
	used  int64
}

// retryAfter is for how long a policy that cannot be compiled is not tried again.
const retryAfter = 30 * time.Second

func newReferences(st *store.Store, trusted []*x509.Certificate, bound int64, now func() time.Time) *references {
	return &references{store: st, trusted: trusted, bound: bound, now: now, held: map[string]*held{}}
}

// keyOfRefs names a set of revisions, in their order.
func keyOfRefs(refs []store.PolicyRef) string {
	h := sha256.New()
	for _, r := range refs {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(r.Name))))
		h.Write([]byte(r.Name))
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(r.Version)))
		h.Write(r.Digest)
	}
	return string(h.Sum(nil))
}

// of returns the compiled policy of a device's revisions, and nil for none.
func (r *references) of(ctx context.Context, refs []store.PolicyRef) (*reference, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	key := keyOfRefs(refs)
	if h := r.find(key); h != nil {
		return h.ref, h.err
	}
	// A caller that is gone waits all the same: who ends the server waits for its handlers,
	// and must not close the database under a compilation.
	got, err, _ := r.flight.Do(key, func() (any, error) {
		if h := r.find(key); h != nil {
			return h, nil
		}
		return r.put(key, r.compile(context.WithoutCancel(ctx), refs)), nil
	})
	if err != nil {
		return nil, err
	}
	h := got.(*held)
	return h.ref, h.err
}

func (r *references) find(key string) *held {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.held[key]
	if h == nil || h.err != nil && r.now().After(h.until) {
		return nil
	}
	r.tick++
	h.used = r.tick
	return h
}

// put keeps h, and forgets what was not used for longest where there is no room.
func (r *references) put(key string, h *held) *held {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.held[key]; old != nil {
		r.size -= old.size
	}
	r.tick++
	h.used = r.tick
	r.held[key] = h
	r.size += h.size
	for r.size > r.bound && len(r.held) > 1 {
		oldest := ""
		for k, v := range r.held {
			if k != key && (oldest == "" || v.used < r.held[oldest].used) {
				oldest = k
			}
		}
		r.size -= r.held[oldest].size
		delete(r.held, oldest)
	}
	return h
}

// entrySize is what an entry costs beside its policy.
const entrySize = 1 << 10

func (r *references) compile(ctx context.Context, refs []store.PolicyRef) (h *held) {
	h = &held{size: entrySize}
	defer func() {
		if p := recover(); p != nil { // the body of a policy is made by somebody else
			h.err = fmt.Errorf("compile policy: panic: %.200v", p)
		}
		if h.err != nil {
			h.ref, h.until = nil, r.now().Add(retryAfter)
		}
	}()
	var policies []release.Named
	for _, ref := range refs {
		body, err := r.store.PolicyBody(ctx, ref.Digest)
		if err == nil {
			var p *release.Policy
			if p, err = release.Parse(body); err == nil {
				policies = append(policies, release.Named{Name: revision(ref), Policy: p})
			}
		}
		if err != nil {
			h.err = fmt.Errorf("policy %s: %w", revision(ref), err)
			return h
		}
	}
	compiled, err := r.compilePolicies(policies...)
	if err != nil {
		h.err = err
		return h
	}
	h.ref = &reference{compiled}
	h.size += int64(compiled.Size())
	return h
}

// usage is for the metrics.
func (r *references) usage() (count int, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.held), r.size
}

// errNoReleaseCertificates is [release.ErrNoCertificates] in the words of a verifier.
var errNoReleaseCertificates = errors.New("this verifier trusts no certificate of releases: set [policy] certificates")

func (r *references) compilePolicies(policies ...release.Named) (*appraise.Reference, error) {
	ref, err := release.Compile(r.trusted, policies...)
	if errors.Is(err, release.ErrNoCertificates) {
		return nil, errNoReleaseCertificates
	}
	return ref, err
}

// revision is the name of ref in verdicts: "image@2".
func revision(ref store.PolicyRef) string { return fmt.Sprintf("%s@%d", ref.Name, ref.Version) }

// sortedNames of the policies that refs are revisions of.
func sortedNames(refs []store.PolicyRef) []string {
	var names []string
	for _, r := range refs {
		names = append(names, revision(r))
	}
	return slices.Sorted(slices.Values(names))
}
