package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/release"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// A runtime policy of Keylime is a policy of its name; its body is what the tenant sent. A
// measured boot policy or a tpm_policy is none by itself: with one of them a device gets a
// policy that was derived, of all versions of the runtime policy together with them. It is
// derived anew whenever one of its parts changes.

// kindTenant is the kind of policies that are a device's alone, or derived.
const kindTenant = release.Schema + " of a tenant"

// allowlist is the body of POST and PUT allowlists/NAME.
type allowlist struct {
	TPM     string  `json:"tpm_policy"`
	Runtime string  `json:"runtime_policy"` // base64
	Key     *string `json:"runtime_policy_key"`
}

// tenantPolicies lists the names of runtime policies, those of operators among them.
func (s *Server) tenantPolicies(c *call) error {
	all, err := s.Store.Policies(c.Context(), "")
	if err != nil {
		return err
	}
	names := []string{}
	for _, p := range all {
		if p.Active && !strings.Contains(p.Name, derivedMark) && !slices.Contains(names, p.Name) {
			names = append(names, p.Name)
		}
	}
	return c.tenant(http.StatusOK, map[string]any{"runtimepolicy names": names})
}

func (s *Server) tenantShowPolicy(c *call) error {
	name := c.PathValue("name")
	docs, err := s.activeBodies(c.Context(), name)
	if err != nil {
		return err
	}
	newest, err := release.Parse(docs[0])
	if err != nil {
		return err
	}
	if len(newest.Runtime) == 0 {
		return fail(http.StatusNotFound, "not_found", "policy %s is of manifests and has no runtime policy: see it with attest fleet policy", name)
	}
	return c.tenant(http.StatusOK, map[string]any{"name": name, "tpm_policy": orNull(string(newest.TPM)), "runtime_policy": string(newest.Runtime)})
}

func (s *Server) tenantAddPolicy(c *call) error    { return s.tenantPutPolicy(c, true) }
func (s *Server) tenantUpdatePolicy(c *call) error { return s.tenantPutPolicy(c, false) }

func (s *Server) tenantPutPolicy(c *call, fresh bool) error {
	var m allowlist
	if err := c.decodeTenant(&m); err != nil {
		return err
	}
	runtime, err := s.runtimeOf(m.Runtime, m.Key)
	if err != nil {
		return err
	}
	if runtime == nil {
		return fail(http.StatusBadRequest, "policy", "runtime_policy is missing")
	}
	tpm, err := pinsOf(m.TPM)
	if err != nil {
		return err
	}
	name, body := c.PathValue("name"), runtime
	if tpm != "" {
		if body, err = composed(runtime, nil, tpm); err != nil {
			return err
		}
	}
	if _, err := s.check(name, body); err != nil {
		return err
	}
	if strings.Contains(name, derivedMark) {
		return fail(http.StatusBadRequest, "name", "%s names a policy that is derived", name)
	}
	err = s.retried(c, func(epoch int64) error {
		if !fresh {
			if err := s.plainRuntime(c, name); err != nil {
				return err
			}
		}
		derived, err := s.derivedFrom(c, name, [][]byte{body})
		if err != nil {
			return err
		}
		put := store.TenantPolicy{Name: name, Kind: release.Schema, Bodies: [][]byte{body}, New: fresh}
		return s.Store.ChangePolicies(c.Context(), store.PolicyChange{Epoch: epoch, Policies: append([]store.TenantPolicy{put}, derived...)}, c.who.name, c.now)
	})
	if err != nil {
		return err
	}
	return c.tenant(http.StatusCreated, struct{}{})
}

// plainRuntime refuses a policy that is not there, or says more than a tenant can.
func (s *Server) plainRuntime(c *call, name string) error {
	if _, err := s.activeBodies(c.Context(), name); err != nil {
		return err
	}
	return s.notRuled(c, name)
}

// notRuled refuses a policy with manifests or rules in a version that is active or newer than
// all active ones: those are the operators', and not for a tenant to replace.
func (s *Server) notRuled(c *call, name string) error {
	newer := true // than all that are active: the newest comes first
	bodies, err := s.bodiesOf(c.Context(), name, func(p store.Policy) bool {
		newer = newer && !p.Active
		return p.Active || newer
	})
	if err != nil {
		return err
	}
	for _, body := range bodies {
		d, err := release.Parse(body)
		if err != nil {
			return err
		}
		if len(d.Manifests) > 0 || d.Rules != "" || len(d.MB) > 0 || len(d.Runtime) == 0 {
			return fail(http.StatusForbidden, "policy", "policy %s has manifests or rules: only operators change it, with attest fleet policy, and what devices it judges, with attest fleet change", name)
		}
	}
	return nil
}

func (s *Server) tenantDeletePolicy(c *call) error {
	if err := s.plainRuntime(c, c.PathValue("name")); err != nil {
		return err
	}
	if err := s.Store.DeletePolicy(c.Context(), c.PathValue("name"), c.who.name, c.now); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// retried repeats f while policies change under it.
func (s *Server) retried(c *call, f func(epoch int64) error) error {
	for try := 0; ; try++ {
		epoch, err := s.Store.PolicyEpoch(c.Context())
		if err == nil {
			err = f(epoch)
		}
		if !errors.Is(err, store.ErrConflict) || try == maxRetries {
			return err
		}
	}
}

// activeBodies are the bodies of the active versions of a policy, the newest first.
func (s *Server) activeBodies(ctx context.Context, name string) ([][]byte, error) {
	bodies, err := s.bodiesOf(ctx, name, func(p store.Policy) bool { return p.Active })
	if err == nil && len(bodies) == 0 {
		err = fmt.Errorf("policy %s: %w", name, store.ErrNotFound)
	}
	return bodies, err
}

// bodiesOf are the bodies of the versions that which chooses, the newest first.
func (s *Server) bodiesOf(ctx context.Context, name string, which func(store.Policy) bool) (bodies [][]byte, err error) {
	revisions, err := s.Store.Policies(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, p := range slices.Backward(revisions) {
		if !which(p) {
			continue
		}
		body, err := s.Store.PolicyBody(ctx, p.Digest)
		if err != nil {
			return nil, err
		}
		bodies = append(bodies, body)
	}
	return bodies, nil
}

// derivedMark stands in the names of derived policies, between that of the runtime policy,
// cut where it is long, and a digest of all parts.
const derivedMark = ".with."

func derivedName(runtime, mb, tpm string) string {
	h := sha256.New()
	for _, part := range []string{runtime, mb, tpm} {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(part))))
		h.Write([]byte(part))
	}
	end := derivedMark + hex.EncodeToString(h.Sum(nil)[:8])
	return runtime[:min(len(runtime), store.MaxID-len(end))] + end
}

// derived makes the policy of a runtime policy, whose bodies are given, with the others.
func (s *Server) derived(a store.TenantAgent, bodies [][]byte, mb []byte) (store.TenantPolicy, error) {
	p := store.TenantPolicy{Name: derivedName(a.Runtime, a.MBPolicy, a.TPM), Kind: kindTenant, Derived: true}
	for _, b := range bodies {
		body, err := composed(b, mb, a.TPM)
		if err != nil {
			return p, err
		}
		if _, err := s.check(p.Name, body); err != nil {
			return p, err
		}
		p.Bodies = append(p.Bodies, body)
	}
	return p, nil
}

// derivedFrom makes anew what was derived from a runtime policy that gets these bodies.
func (s *Server) derivedFrom(c *call, runtime string, bodies [][]byte) (all []store.TenantPolicy, err error) {
	uses, err := s.Store.TenantUses(c.Context(), runtime, "")
	if err != nil {
		return nil, err
	}
	for _, a := range uses {
		if a.MBPolicy == "" && a.TPM == "" {
			continue
		}
		var mb []byte
		if a.MBPolicy != "" {
			if mb, err = s.Store.MBPolicy(c.Context(), a.MBPolicy); err != nil {
				return nil, err
			}
		}
		p, err := s.derived(a, bodies, mb)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// makeActive does what an operator says of a policy, and makes anew what tenants derived of it,
// in one transaction: no device is judged by what was derived of a version that is withdrawn.
func (s *Server) makeActive(c *call, a store.ActivePolicy) error {
	return s.retried(c, func(epoch int64) error {
		bodies, err := s.bodiesOf(c.Context(), a.Name, func(p store.Policy) bool { return slices.Contains(a.Versions, p.Version) })
		if err != nil {
			return err
		}
		derived, err := s.derivedFrom(c, a.Name, bodies)
		if err != nil {
			return err
		}
		return s.Store.ChangePolicies(c.Context(), store.PolicyChange{Epoch: epoch, Activate: &a, Policies: derived}, c.who.name, c.now)
	})
}

// composed adds a measured boot policy and pins of PCRs to the body of a policy.
func composed(body, mb []byte, tpm string) ([]byte, error) {
	d, err := release.Parse(body)
	if err != nil {
		return nil, fail(http.StatusBadRequest, "policy", "read policy: %v", err)
	}
	if len(mb) > 0 {
		if len(d.MB) > 0 {
			return nil, fail(http.StatusConflict, "policy", "the policy has a measured boot policy of its own")
		}
		d.MB = mb
	}
	if tpm != "" {
		if len(d.TPM) > 0 {
			return nil, fail(http.StatusConflict, "policy", "the policy has a tpm_policy of its own")
		}
		d.TPM = json.RawMessage(tpm)
	}
	return json.Marshal(d)
}

// runtimeOf reads what a tenant gives as a runtime policy: nil for none.
func (s *Server) runtimeOf(encoded string, key *string) ([]byte, error) {
	if encoded == "" {
		return nil, nil
	}
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, fail(http.StatusBadRequest, "policy", "runtime_policy is not base64")
	}
	// The parser that compiles policies says what it is, so that no second one can be misled.
	if p, err := release.Parse(text); err != nil || !bytes.Equal(p.Runtime, text) {
		return nil, fail(http.StatusBadRequest, "policy", "runtime_policy is no runtime policy of Keylime in JSON")
	}
	if key != nil && *key != "" {
		if err := s.knownKey(*key); err != nil {
			return nil, err
		}
		if !release.IsEnvelope(text) {
			return nil, fail(http.StatusBadRequest, "policy", "there is a runtime_policy_key, and the policy is not signed")
		}
	}
	return text, nil
}

// knownKey refuses a key that came with a request, unless the configuration trusts it: who
// brings a signature does not decide whose signatures count.
func (s *Server) knownKey(encoded string) error {
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return fail(http.StatusBadRequest, "policy", "runtime_policy_key is not base64")
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return fail(http.StatusBadRequest, "policy", "runtime_policy_key is not PEM")
	}
	for _, cert := range s.Releases {
		if bytes.Equal(cert.RawSubjectPublicKeyInfo, block.Bytes) || bytes.Equal(cert.Raw, block.Bytes) {
			return nil
		}
	}
	return fail(http.StatusForbidden, "policy", "runtime_policy_key is not of a certificate in [policy] certificates of this verifier")
}

// pinsOf reads a tpm_policy: "" where it pins no PCR. The mask that the tenant computes
// says what is to be quoted, which is known here.
func pinsOf(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &members); err != nil {
		return "", fail(http.StatusBadRequest, "tpm_policy", "tpm_policy is not a JSON object")
	}
	delete(members, "mask")
	if len(members) == 0 {
		return "", nil
	}
	pins, err := json.Marshal(members) // in the order of the names
	if err != nil {
		return "", err
	}
	return string(pins), nil
}

// mbPolicy is the body of POST and PUT mbpolicies/NAME.
type mbPolicy struct {
	MB *string `json:"mb_policy"` // JSON in a string
}

func (s *Server) tenantMBPolicies(c *call) error {
	names, err := s.Store.MBPolicies(c.Context())
	if err != nil {
		return err
	}
	return c.tenant(http.StatusOK, map[string]any{"mbpolicy names": append([]string{}, names...)})
}

func (s *Server) tenantShowMBPolicy(c *call) error {
	body, err := s.Store.MBPolicy(c.Context(), c.PathValue("name"))
	if err != nil {
		return err
	}
	return c.tenant(http.StatusOK, map[string]any{"name": c.PathValue("name"), "mb_policy": string(body)})
}

func (s *Server) tenantAddMBPolicy(c *call) error    { return s.tenantPutMBPolicy(c, true) }
func (s *Server) tenantUpdateMBPolicy(c *call) error { return s.tenantPutMBPolicy(c, false) }

func (s *Server) tenantPutMBPolicy(c *call, fresh bool) error {
	var m mbPolicy
	if err := c.decodeTenant(&m); err != nil {
		return err
	}
	body, err := bootPolicyOf(m.MB)
	if err != nil {
		return err
	}
	if body == nil {
		return fail(http.StatusBadRequest, "mb_policy", "mb_policy is missing")
	}
	name := c.PathValue("name")
	err = s.retried(c, func(epoch int64) error {
		uses, err := s.Store.TenantUses(c.Context(), "", name)
		if err != nil {
			return err
		}
		change := store.PolicyChange{Epoch: epoch, MB: &store.TenantMB{Name: name, Body: body, New: fresh}}
		for _, a := range uses {
			bodies, err := s.activeBodies(c.Context(), a.Runtime)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			p, err := s.derived(a, bodies, body)
			if err != nil {
				return err
			}
			change.Policies = append(change.Policies, p)
		}
		return s.Store.ChangePolicies(c.Context(), change, c.who.name, c.now)
	})
	if err != nil {
		return err
	}
	return c.tenant(http.StatusCreated, struct{}{})
}

func (s *Server) tenantDeleteMBPolicy(c *call) error {
	if err := s.Store.DeleteMBPolicy(c.Context(), c.PathValue("name"), c.who.name, c.now); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// bootPolicyOf reads a measured boot policy: nil for none. The empty one, with which
// Keylime checks nothing, is refused.
func bootPolicyOf(text *string) ([]byte, error) {
	if text == nil || *text == "" {
		return nil, nil
	}
	if err := appraise.CheckRefstate([]byte(*text)); err != nil {
		return nil, fail(http.StatusBadRequest, "mb_policy", "read mb_policy: %v", err)
	}
	return []byte(*text), nil
}
