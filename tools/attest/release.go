package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
	"github.com/meta-attest/meta-attest/tools/internal/release"
	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

const maxUpload = release.MaxSize // bytes of a file of a policy

var errNoRelease = errors.New("no release to compare with")

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
func (o *releaseFlags) read() (*release.Policy, error) {
	r := &release.Policy{Schema: release.Schema, Release: o.name}
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

// compile makes the reference of policies.
func compile(trusted []*x509.Certificate, policies ...release.Named) (*appraise.Reference, error) {
	ref, err := release.Compile(trusted, policies...)
	if errors.Is(err, manifest.ErrNotAuthentic) || errors.Is(err, release.ErrUnsigned) {
		return nil, &exitError{exitNotAuthentic, err}
	}
	return ref, err
}
