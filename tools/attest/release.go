package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

const (
	schemaPolicy = "attest.policy/v1"
	maxUpload    = 64 << 20 // bytes of a policy that a verifier takes
)

var (
	errNoRelease  = errors.New("no release to compare with")
	errNoSigner   = errors.New("no certificate to check manifests with")
	errNotRelease = errors.New("is no policy of attest fleet")
)

// release is a policy as a verifier stores it: one state of the software that is allowed.
type release struct {
	Schema    string          `json:"schema"`
	Release   string          `json:"release,omitempty"`
	Rules     string          `json:"rules,omitempty"` // TOML
	Manifests []string        `json:"manifests,omitempty"`
	Runtime   json.RawMessage `json:"runtime_policy,omitempty"` // of Keylime
	TPM       json.RawMessage `json:"tpm_policy,omitempty"`     // of Keylime
	MB        json.RawMessage `json:"mb_policy,omitempty"`      // of Keylime
}

// releaseFlags say what a device is compared with.
type releaseFlags struct {
	name                string
	manifests           []string
	rules, runtime, tpm string
	mb                  string
	certs, cas          []string
}

func (o *releaseFlags) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.manifests, "manifest", nil, "manifest of attest sign in `FILE`, such as of the root filesystem or an initramfs; may be repeated")
	f.StringVar(&o.rules, "rules", "", "rules in the TOML `FILE`: what is excluded, required, pinned")
	f.StringVar(&o.runtime, "runtime-policy", "", "Keylime's runtime policy in the JSON `FILE`, or signed by keylime-policy sign: then one of --cert has to be its signer")
	f.StringVar(&o.tpm, "tpm-policy", "", "Keylime's tpm_policy in the JSON `FILE`")
	f.StringVar(&o.mb, "mb-policy", "", "Keylime's measured boot policy in the JSON `FILE` of keylime-policy create measured-boot")
	f.StringVar(&o.name, "release", "", "`NAME` of the release in verdicts")
	f.StringArrayVar(&o.certs, "cert", nil, "certificate whose manifests count, PEM or DER `FILE`; may be repeated")
	f.StringArrayVar(&o.cas, "ca", nil, "each --cert has to be signed by a CA of `FILE`; may be repeated")
}

// given says whether there is anything that a device could fit.
func (o *releaseFlags) given() bool { return len(o.manifests) > 0 || o.runtime != "" }

// trusted are the certificates whose manifests count.
func (o *releaseFlags) trusted() ([]*x509.Certificate, error) {
	cas, err := readAll(o.cas)
	if err != nil {
		return nil, err
	}
	certs, err := readAll(o.certs)
	if err != nil || len(cas) == 0 { // those of keylime-policy have not even a key id
		return certs, err
	}
	trust, err := rootfs.NewTrust(cas, certs)
	if errors.Is(err, rootfs.ErrUntrusted) {
		return nil, &exitError{exitNotAuthentic, err}
	}
	if err != nil {
		return nil, err
	}
	return trust.Certificates(), nil
}

// read makes the release of the files. It does not look into them: see compile.
func (o *releaseFlags) read() (*release, error) {
	r := &release{Schema: schemaPolicy, Release: o.name}
	for _, path := range o.manifests {
		text, err := readBounded(path, maxUpload)
		if err != nil {
			return nil, err
		}
		r.Manifests = append(r.Manifests, string(text))
	}
	for _, f := range []struct {
		path string
		to   *json.RawMessage
	}{{o.runtime, &r.Runtime}, {o.tpm, &r.TPM}, {o.mb, &r.MB}} {
		if f.path == "" {
			continue
		}
		text, err := readBounded(f.path, maxUpload)
		if err != nil {
			return nil, err
		}
		if !json.Valid(text) {
			return nil, fmt.Errorf("%s: is not JSON", f.path)
		}
		*f.to = text
	}
	if o.rules != "" {
		text, err := readBounded(o.rules, maxUpload)
		if err != nil {
			return nil, err
		}
		if _, err := appraise.ParseRules(o.rules, string(text)); err != nil {
			return nil, err
		}
		r.Rules = string(text)
	}
	return r, nil
}

// readRelease reads a policy that attest fleet policy show printed, or a bare runtime
// policy of Keylime, which a verifier takes too.
func readRelease(path string) (*release, error) {
	text, err := readBounded(path, maxUpload)
	if err != nil {
		return nil, err
	}
	r, err := parseRelease(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

func parseRelease(text []byte) (*release, error) {
	var probe struct {
		Schema  string          `json:"schema"`
		Digests json.RawMessage `json:"digests"`
	}
	if err := json.Unmarshal(text, &probe); err != nil {
		return nil, err
	}
	if probe.Schema == "" && (probe.Digests != nil || appraise.IsEnvelope(text)) {
		return &release{Schema: schemaPolicy, Runtime: text}, nil
	}
	var r release
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if probe.Schema != schemaPolicy {
		return nil, fmt.Errorf("%w: its schema is %.40q, not %s", errNotRelease, probe.Schema, schemaPolicy)
	}
	if err := d.Decode(&r); err != nil {
		return nil, err
	}
	return &r, nil
}

// namedRelease is a release under the name that it has in verdicts.
type namedRelease struct {
	name string
	*release
}

// compile makes the reference of several releases, as a verifier does: the rules are those
// of the first that has some.
func compile(trusted []*x509.Certificate, releases ...namedRelease) (*appraise.Reference, error) {
	var rules appraise.Rules
	var all []appraise.Release
	ruled := false
	for _, r := range releases {
		parsed, err := appraise.ParseRules("rules", r.Rules)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
		if !ruled && r.Rules != "" {
			rules, ruled = parsed, true
		}
		runtime, err := appraise.RuntimePolicy(r.Runtime, trusted)
		if errors.Is(err, appraise.ErrUnsigned) {
			return nil, &exitError{exitNotAuthentic, fmt.Errorf("%s: runtime policy: %w", r.name, err)}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: runtime policy: %w", r.name, err)
		}
		one := appraise.Release{Name: r.name, Keylime: runtime, TPMPolicy: r.TPM, MBPolicy: r.MB}
		for i, text := range r.Manifests {
			m, err := openManifestText(text, trusted)
			if err != nil {
				return nil, fmt.Errorf("%s: manifest %d: %w", r.name, i+1, err)
			}
			defer m.Close()
			one.Files = append(one.Files, iter.Seq2[manifest.Entry, error](m.Entries()))
		}
		all = append(all, one)
	}
	return appraise.Compile(rules, all...)
}

// openManifestText verifies a manifest that is uploaded, or that a verifier has.
func openManifestText(text string, trusted []*x509.Certificate) (*manifest.Manifest, error) {
	if len(trusted) == 0 {
		return nil, errNoSigner
	}
	f, err := os.CreateTemp("", "attest-*.json")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		return nil, err
	}
	m, err := manifest.Open(f.Name(), trusted)
	if errors.Is(err, manifest.ErrNotAuthentic) {
		return nil, &exitError{exitNotAuthentic, err}
	}
	return m, err
}
