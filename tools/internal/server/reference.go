package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
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

func (r *reference) wantsFirmware() bool { return r != nil && r.Firmware() }

// selection is what to quote: without a policy what one would ask for as a rule, so that a
// device can be watched before its policy is written.
func (r *reference) selection() evidence.Selection {
	if r == nil {
		return evidence.Selection{"sha256": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}
	}
	return r.Selection()
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
	var docs []*policyDocument
	var names []string
	for _, ref := range refs {
		body, err := r.store.PolicyBody(ctx, ref.Digest)
		if err == nil {
			var d *policyDocument
			if d, err = parsePolicy(body); err == nil {
				docs, names = append(docs, d), append(names, fmt.Sprintf("%s@%d", ref.Name, ref.Version))
			}
		}
		if err != nil {
			h.err = fmt.Errorf("policy %s@%d: %w", ref.Name, ref.Version, err)
			return h
		}
	}
	compiled, err := compile(names, docs, r.trusted)
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

// schemaPolicy is what the body of a policy says it is.
const schemaPolicy = "attest.policy/v1"

// policyDocument is the body of a policy: a release, and the rules that go with it.
type policyDocument struct {
	Schema    string          `json:"schema"`
	Release   string          `json:"release,omitempty"`   // shown beside the policy's name
	Rules     string          `json:"rules,omitempty"`     // TOML, see appraise.Rules
	Manifests []string        `json:"manifests,omitempty"` // that attest sign wrote, each as it stands in its file
	Runtime   json.RawMessage `json:"runtime_policy,omitempty"`
	TPM       json.RawMessage `json:"tpm_policy,omitempty"`
	MB        json.RawMessage `json:"mb_policy,omitempty"` // reference state of Keylime's measured boot policy "example"
}

// parsePolicy reads a body, which may also be a bare runtime policy of Keylime.
func parsePolicy(body []byte) (*policyDocument, error) {
	if !json.Valid(body) {
		return nil, errors.New("not JSON")
	}
	var probe map[string]json.RawMessage
	if err := json.Unmarshal(body, &probe); err != nil {
		return nil, errors.New("not a JSON object")
	}
	if _, ours := probe["schema"]; !ours && (probe["digests"] != nil || appraise.IsEnvelope(body)) {
		return &policyDocument{Schema: schemaPolicy, Runtime: body}, nil
	}
	d := &policyDocument{}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(d); err != nil {
		return nil, err
	}
	if d.Schema != schemaPolicy {
		return nil, fmt.Errorf("schema is %.40q, not %s", d.Schema, schemaPolicy)
	}
	if len(d.Manifests) == 0 && len(d.Runtime) == 0 {
		return nil, errors.New("it has neither manifests nor a runtime_policy, so nothing would be allowed")
	}
	if len(d.Release) > 128 || strings.ContainsFunc(d.Release, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, errors.New("release is longer than 128 bytes, or not text")
	}
	return d, nil
}

// errNoReleaseCertificates means that no manifest can be believed.
var errNoReleaseCertificates = errors.New("this verifier trusts no certificate of releases: set [policy] certificates")

// compile makes one reference of several releases. The rules are those of the first that
// has some: that is the newest revision of the policy that the device prefers.
func compile(names []string, docs []*policyDocument, trusted []*x509.Certificate) (*appraise.Reference, error) {
	var rules appraise.Rules
	var releases []appraise.Release
	ruled := false
	for i, d := range docs {
		r, err := appraise.ParseRules("rules", d.Rules)
		if err != nil {
			return nil, fmt.Errorf("policy %s: %w", names[i], err)
		}
		if !ruled && d.Rules != "" {
			rules, ruled = r, true
		}
		runtime, err := appraise.RuntimePolicy(d.Runtime, trusted)
		if err != nil {
			return nil, fmt.Errorf("policy %s: %w", names[i], err)
		}
		release := appraise.Release{Name: strings.TrimSpace(names[i] + " " + d.Release), Keylime: runtime, TPMPolicy: d.TPM, MBPolicy: d.MB}
		for n, text := range d.Manifests {
			m, err := openManifest(text, trusted)
			if err != nil {
				return nil, fmt.Errorf("policy %s: manifest %d: %w", names[i], n+1, err)
			}
			defer m.Close()
			release.Files = append(release.Files, iter.Seq2[manifest.Entry, error](m.Entries()))
		}
		releases = append(releases, release)
	}
	return appraise.Compile(rules, releases...)
}

// openManifest verifies a manifest with the certificates of the configuration, never with
// those that came along with it. The file has no name any more when it returns.
func openManifest(text string, trusted []*x509.Certificate) (*manifest.Manifest, error) {
	if len(trusted) == 0 {
		return nil, errNoReleaseCertificates
	}
	f, err := os.CreateTemp("", "attest-verifier-*.json")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		return nil, err
	}
	return manifest.Open(f.Name(), trusted)
}

// sortedNames of the policies that refs are revisions of.
func sortedNames(refs []store.PolicyRef) []string {
	var names []string
	for _, r := range refs {
		names = append(names, fmt.Sprintf("%s@%d", r.Name, r.Version))
	}
	return slices.Sorted(slices.Values(names))
}
