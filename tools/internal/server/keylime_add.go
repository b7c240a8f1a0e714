package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/release"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// tenantAdd is the body of POST agents/ID at the verifier, of all versions 2. Members that
// say where the verifier is are of no use here.
type tenantAdd struct {
	V             *string         `json:"v"` // base64 of 32 bytes
	IP            *string         `json:"cloudagent_ip"`
	Port          json.RawMessage `json:"cloudagent_port"` // a number, or one in a string
	VerifierIP    json.RawMessage `json:"verifier_ip"`
	VerifierPort  json.RawMessage `json:"verifier_port"`
	TPM           string          `json:"tpm_policy"` // JSON in a string
	Runtime       string          `json:"runtime_policy"`
	RuntimeName   string          `json:"runtime_policy_name"`
	RuntimeKey    *string         `json:"runtime_policy_key"`
	MB            *string         `json:"mb_policy"`
	MBName        string          `json:"mb_policy_name"`
	Keys          *string         `json:"ima_sign_verification_keys"`
	Metadata      string          `json:"metadata"`
	RevocationKey string          `json:"revocation_key"`
	Hashes        []string        `json:"accept_tpm_hash_algs"`
	Encryptions   []string        `json:"accept_tpm_encryption_algs"`
	Signings      []string        `json:"accept_tpm_signing_algs"`
	AK            string          `json:"ak_tpm"`
	TLSCert       *string         `json:"mtls_cert"`
	Version       *string         `json:"supported_version"`
}

// tenantSettings are given back with the status of a device.
type tenantSettings struct {
	TPM         string   `json:"tpm_policy"`
	Metadata    string   `json:"meta_data"`
	IP          string   `json:"ip,omitempty"`
	Port        int      `json:"port,omitempty"`
	Hashes      []string `json:"accept_tpm_hash_algs"`
	Encryptions []string `json:"accept_tpm_encryption_algs"`
	Signings    []string `json:"accept_tpm_signing_algs"`
}

// tenantAddAgent puts an enrolled device under judgement: POST agents/ID at the verifier.
func (s *Server) tenantAddAgent(c *call) error {
	if err := c.tenantCall(); err != nil {
		return err
	}
	var m tenantAdd
	if err := c.decodeTenant(&m); err != nil {
		return err
	}
	id := c.PathValue("id")
	d, err := s.Store.Device(c.Context(), id, c.now)
	if err != nil {
		return err
	}
	if d.State != store.Active {
		return fmt.Errorf("agent %s has not enrolled: %w", id, store.ErrNotFound)
	}
	if _, _, err := s.onVerifier(c, id); !errors.Is(err, store.ErrNotFound) {
		if err != nil {
			return err
		}
		return fail(http.StatusConflict, "exists", "agent %s is on the verifier already: use delete or update", id)
	}
	if len(d.Policies) > 0 { // and is not judged
		return stopped(id)
	}
	settings, err := m.check(d)
	if err == nil {
		err = s.sameRevocationKey(m.RevocationKey)
	}
	if err != nil {
		return err
	}
	pull, err := s.pullOf(&m, d, settings)
	if err != nil {
		return err
	}
	if err := s.retried(c, func(epoch int64) error { return s.addByTenant(c, &m, d.ID, settings, pull, epoch) }); err != nil {
		return err
	}
	s.Log.Info("device added by tenant", "device", id, "tenant", c.who.name, "polled", pull != nil)
	return c.tenant(http.StatusOK, struct{}{})
}

// check refuses what cannot be honoured.
func (m *tenantAdd) check(d store.Device) (*tenantSettings, error) {
	bad := func(format string, args ...any) (*tenantSettings, error) {
		return nil, fail(http.StatusBadRequest, "unsupported", format, args...)
	}
	if err := m.sameKeys(d); err != nil {
		return nil, err
	}
	if m.Keys != nil && *m.Keys != "" {
		return bad("ima_sign_verification_keys is no longer supported: put the keys into the runtime policy (keylime-policy create runtime --add-ima-signature-verification-key)")
	}
	t := &tenantSettings{TPM: m.TPM, Metadata: m.Metadata, Hashes: m.Hashes, Encryptions: m.Encryptions, Signings: m.Signings}
	if err := t.contact(m.IP, m.Port); err != nil {
		return nil, err
	}
	return t, accepted(d, m)
}

// pullOf is how the device is polled: nil if it is not, because it registered as an agent that
// listens nowhere.
func (s *Server) pullOf(m *tenantAdd, d store.Device, t *tenantSettings) (*store.PullSettings, error) {
	share, err := m.share()
	if err != nil {
		return nil, err
	}
	if len(d.TLSCert) == 0 {
		if share != nil {
			return nil, fail(http.StatusBadRequest, "unsupported", "agent %s listens nowhere, so that no payload can be handed over: add it with --push-model, and give secrets with attest fleet secret", d.ID)
		}
		return nil, nil
	}
	if s.Pull.Certificate == nil && share == nil && d.Verdict.Total > 0 {
		return nil, nil // it listens, and attests of itself
	}
	ip, port := t.IP, t.Port
	if ip == "" {
		ip = d.IP
	}
	if port == 0 {
		port = d.Port
	}
	p, err := s.pullSettings(net.JoinHostPort(ip, strconv.Itoa(port)), share)
	if err != nil {
		return nil, err
	}
	if m.Version != nil && slices.Contains(supported["2"], *m.Version) {
		p.Version = *m.Version
	}
	return &p, nil
}

// sameRevocationKey refuses the key with which Keylime's verifier would sign notices, unless it is
// the one that this verifier has: what is told in its name is not signed with a key that
// travelled over the network.
func (s *Server) sameRevocationKey(text string) error {
	if text == "" {
		return nil
	}
	key, err := evidence.ParseRevocationKey([]byte(text))
	if err != nil {
		return fail(http.StatusBadRequest, "malformed", "revocation_key: %v", err)
	}
	if own := s.Pull.RevocationKey; own != nil && own.PublicKey.Equal(&key.PublicKey) {
		return nil
	}
	return fail(http.StatusBadRequest, "unsupported", "revocation_key is not the key with which this verifier signs notices: "+
		"put RevocationNotifier-private.pem into its configuration ([pull] revocation_key) and add the agent again")
}

// share reads the verifier's half of the key of a payload.
func (m *tenantAdd) share() ([]byte, error) {
	if m.V == nil || *m.V == "" {
		return nil, nil
	}
	share, err := base64.StdEncoding.DecodeString(*m.V)
	if err != nil || len(share) != store.ShareSize {
		return nil, fail(http.StatusBadRequest, "malformed", "v is not a key share of %d bytes in base64", store.ShareSize)
	}
	return share, nil
}

// contact reads the address of an agent.
func (t *tenantSettings) contact(ip *string, port json.RawMessage) error {
	if ip != nil && *ip != "" {
		a, err := netip.ParseAddr(*ip)
		if err != nil {
			return fail(http.StatusBadRequest, "contact", "cloudagent_ip is not an address")
		}
		t.IP = a.String()
	}
	text := strings.Trim(string(port), `"`)
	if text == "" || text == "null" {
		return nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 65535 {
		return fail(http.StatusBadRequest, "contact", "cloudagent_port is not a port")
	}
	t.Port = n
	return nil
}

// accepted compares the algorithms of the enrolled keys, which never change, with those
// that the tenant accepts.
func accepted(d store.Device, m *tenantAdd) error {
	hash, enc, sign, err := algorithms(d)
	if err != nil {
		return err
	}
	for _, a := range []struct {
		list string
		have []string // any of them
		all  []string
	}{{"accept_tpm_hash_algs", []string{hash}, m.Hashes}, {"accept_tpm_encryption_algs", enc, m.Encryptions}, {"accept_tpm_signing_algs", []string{sign}, m.Signings}} {
		if !slices.ContainsFunc(a.have, func(h string) bool { return slices.Contains(a.all, h) }) {
			return fail(http.StatusBadRequest, "algorithm", "agent %s has %s, which is not in %s", d.ID, a.have[0], a.list)
		}
	}
	return nil
}

// algorithms are Keylime's words for those of a device's keys.
func algorithms(d store.Device) (hash string, enc []string, sign string, err error) {
	ak, err := evidence.ParseAK(d.AK.Public)
	if err != nil {
		return "", nil, "", err
	}
	ek, err := evidence.ParseEK(d.EK.Public)
	if err != nil {
		return "", nil, "", err
	}
	switch k := ek.Key().(type) {
	case *rsa.PublicKey:
		enc = []string{"rsa", fmt.Sprintf("rsa%d", k.N.BitLen())}
	case *ecdsa.PublicKey:
		enc = []string{"ecc", fmt.Sprintf("ecc%d", k.Curve.Params().BitSize)}
	}
	return ak.Hash(), enc, ak.Scheme(), nil
}

// addByTenant puts what came with the request, and assigns the policies that follow.
func (s *Server) addByTenant(c *call, m *tenantAdd, id string, settings *tenantSettings, pull *store.PullSettings, epoch int64) error {
	text, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	change := store.TenantChange{Tenant: c.who.role == Tenant, Epoch: epoch, Pull: pull, Due: c.now.Add(s.due()), Agent: &store.TenantAgent{Device: id, Settings: text}}
	bodies, err := s.runtimeFor(c, m, &change)
	if err != nil {
		return err
	}
	mb, err := s.bootFor(c, m, &change)
	if err != nil {
		return err
	}
	a := change.Agent
	if a.TPM, err = pinsOf(m.TPM); err != nil {
		return err
	}
	switch {
	case a.Runtime == "" && (mb != nil || a.TPM != ""):
		return fail(http.StatusBadRequest, "policy", "a measured boot policy or a tpm_policy needs a runtime policy beside it: without one no file is allowed")
	case mb != nil || a.TPM != "":
		p, err := s.derived(*a, bodies, mb)
		if err != nil {
			return err
		}
		change.Policies = append(change.Policies, p)
		change.Assign = []string{p.Name}
	case a.Runtime != "":
		change.Assign = []string{a.Runtime}
	}
	return s.Store.ChangeByTenant(c.Context(), change, c.who.name, c.now)
}

// runtimeFor finds the runtime policy, or puts the one that came with the request: under the
// id of the device, unless it has a name.
func (s *Server) runtimeFor(c *call, m *tenantAdd, change *store.TenantChange) ([][]byte, error) {
	body, err := s.runtimeOf(m.Runtime, m.RuntimeKey)
	if err != nil {
		return nil, err
	}
	a := change.Agent
	if a.Runtime = m.RuntimeName; a.Runtime != "" {
		if err := store.CheckID(a.Runtime); err != nil || strings.Contains(a.Runtime, derivedMark) {
			return nil, fail(http.StatusBadRequest, "name", "runtime_policy_name %.40q is not the name of a policy", a.Runtime)
		}
		if body == nil {
			return s.activeBodies(c.Context(), a.Runtime)
		}
	}
	if body == nil {
		return nil, nil
	}
	put := store.TenantPolicy{Name: a.Runtime, Kind: release.Schema, Bodies: [][]byte{body}, New: true}
	if put.Name == "" {
		put.Name, put.Kind, put.New, put.Derived = a.Device, kindTenant, false, true
		a.Runtime = a.Device
		if there, err := s.Store.Policies(c.Context(), put.Name); err != nil {
			return nil, err
		} else if slices.ContainsFunc(there, func(p store.Policy) bool { return p.Kind != kindTenant }) {
			return nil, fail(http.StatusConflict, "exists", "there is a policy %s that is not this device's alone: give the new one a name", put.Name)
		}
	}
	if _, err := s.check(put.Name, body); err != nil {
		return nil, err
	}
	change.Policies = append(change.Policies, put)
	return put.Bodies, nil
}

// bootFor does the same for the measured boot policy.
func (s *Server) bootFor(c *call, m *tenantAdd, change *store.TenantChange) ([]byte, error) {
	body, err := bootPolicyOf(m.MB)
	if err != nil {
		return nil, err
	}
	a := change.Agent
	if a.MBPolicy = m.MBName; a.MBPolicy != "" {
		if err := store.CheckID(a.MBPolicy); err != nil {
			return nil, fail(http.StatusBadRequest, "name", "mb_policy_name: %v", err)
		}
		if body == nil {
			return s.Store.MBPolicy(c.Context(), a.MBPolicy)
		}
	}
	if body == nil {
		return nil, nil
	}
	if a.MBPolicy == "" {
		a.MBPolicy = a.Device
		old, err := s.Store.MBPolicy(c.Context(), a.Device)
		if err == nil && bytes.Equal(old, body) {
			return body, nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, errors.Join(err, fail(http.StatusConflict, "exists", "there is a measured boot policy %s: give the new one a name", a.Device))
		}
	}
	change.MB = &store.TenantMB{Name: a.MBPolicy, Body: body, New: true}
	return body, nil
}
