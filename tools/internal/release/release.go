// Package release reads policies: what a verifier stores, attest fleet policy put makes and
// attest explain judges by. All of them compile a policy here, so that they cannot disagree;
// and here it is looked at who signed it, package appraise believes what it is given.
package release

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
)

// Schema is what a policy says it is.
const Schema = "attest.policy/v1"

// Ceilings of a policy.
const (
	MaxSize      = 64 << 20 // bytes
	maxManifests = 64
	maxName      = 128
)

// ErrNoCertificates means that no manifest can be believed.
var ErrNoCertificates = errors.New("no certificate to check manifests with")

// Policy is one state of the software that is allowed, and the rules that go with it.
type Policy struct {
	Schema    string          `json:"schema"`
	Release   string          `json:"release,omitempty"`   // shown beside the policy's name
	Rules     string          `json:"rules,omitempty"`     // TOML, see appraise.Rules
	Manifests []string        `json:"manifests,omitempty"` // that attest sign wrote, each as it stands in its file
	Runtime   json.RawMessage `json:"runtime_policy,omitempty"`
	TPM       json.RawMessage `json:"tpm_policy,omitempty"`
	MB        json.RawMessage `json:"mb_policy,omitempty"` // reference state of Keylime's measured boot policy "example"
}

// Parse reads a policy, which may also be a bare runtime policy of Keylime, signed (DSSE) or not. What is in its
// manifests, rules and Keylime's policies is for [Compile].
func Parse(text []byte) (*Policy, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(text), MaxSize)
	}
	members, err := split(text)
	if err != nil {
		return nil, err
	}
	if _, ours := members["schema"]; !ours && (members["digests"] != nil || IsEnvelope(text)) {
		return &Policy{Schema: Schema, Runtime: text}, nil
	}
	p := &Policy{}
	fields := map[string]any{"schema": &p.Schema, "release": &p.Release, "rules": &p.Rules,
		"manifests": &p.Manifests, "runtime_policy": &p.Runtime, "tpm_policy": &p.TPM, "mb_policy": &p.MB}
	for name, value := range members {
		if fields[name] == nil {
			return nil, fmt.Errorf("unknown member %.40q", name)
		}
		if err := json.Unmarshal(value, fields[name]); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return p, p.check()
}

// split returns the members of a JSON object. The case of their names counts, and none
// stands twice: what one reader takes must not be passed over by another.
func split(text []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	members := map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("not JSON: %w", err)
		}
		name := t.(string) // the decoder takes nothing else there
		if _, twice := members[name]; twice {
			return nil, fmt.Errorf("member %.40q stands twice", name)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, fmt.Errorf("not JSON: %w", err)
		}
		members[name] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return members, nil
}

func (p *Policy) check() error {
	switch {
	case p.Schema != Schema:
		return fmt.Errorf("schema is %.40q, not %s", p.Schema, Schema)
	case len(p.Manifests) == 0 && len(p.Runtime) == 0:
		return errors.New("it has neither manifests nor a runtime_policy, so nothing would be allowed")
	case len(p.Manifests) > maxManifests:
		return fmt.Errorf("%d manifests, at most %d are read", len(p.Manifests), maxManifests)
	case len(p.Release) > maxName || strings.ContainsFunc(p.Release, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("release is longer than %d bytes, or not text", maxName)
	}
	return nil
}

// Named is a policy under its own name, such as image@2.
type Named struct {
	Name string
	*Policy
}

// name is what verdicts call the release.
func (n Named) name() string { return strings.TrimSpace(n.Name + " " + n.Release) }

// Compile makes one reference of several policies. The rules are those of the first that
// has some: that is the newest version of the policy that a device prefers. Manifests count
// if one of trusted signed them: without any it returns [ErrNoCertificates], and
// [manifest.ErrNotAuthentic] for one of somebody else, as does a runtime policy that is
// signed by nobody of them, with [ErrUnsigned].
func Compile(trusted []*x509.Certificate, policies ...Named) (*appraise.Reference, error) {
	var rules appraise.Rules
	var releases []appraise.Release
	ruled := false
	for _, p := range policies {
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("policy %s: %w", p.name(), err)
		}
		r, err := appraise.ParseRules("rules", p.Rules)
		if err != nil {
			return nil, fmt.Errorf("policy %s: %w", p.name(), err)
		}
		if !ruled && p.Rules != "" {
			rules, ruled = r, true
		}
		runtime, err := runtimePolicy(p.Runtime, trusted)
		if err != nil {
			return nil, fmt.Errorf("policy %s: runtime policy: %w", p.name(), err)
		}
		one := appraise.Release{Name: p.name(), Keylime: runtime, TPMPolicy: p.TPM, MBPolicy: p.MB}
		for i, text := range p.Manifests {
			m, err := open(text, trusted)
			if err != nil {
				return nil, fmt.Errorf("policy %s: manifest %d: %w", p.name(), i+1, err)
			}
			defer m.Close()
			one.Files = append(one.Files, iter.Seq2[manifest.Entry, error](m.Entries()))
		}
		releases = append(releases, one)
	}
	return appraise.Compile(rules, releases...)
}

// open verifies a manifest with the given certificates, never with those that came along
// with it. The file has no name any more when it returns.
func open(text string, trusted []*x509.Certificate) (*manifest.Manifest, error) {
	if len(trusted) == 0 {
		return nil, ErrNoCertificates
	}
	f, err := os.CreateTemp("", "attest-manifest-*.json")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		return nil, err
	}
	m, err := manifest.Open(f.Name(), trusted)
	if inner := errors.Unwrap(err); inner != nil {
		err = inner // without the name of a file that nobody gave
	}
	return m, err
}
