package keylimedb

import (
	"context"
	"strconv"
)

// registrar reads keylime/db/registrar_db.py.
func (s *Snapshot) registrar(ctx context.Context, d *database) error {
	return d.each(ctx, "registrarmain", maxAgents, maxField, []string{"agent_id", "aik_tpm", "ek_tpm", "ekcert", "ip", "port", "mtls_cert", "active", "virtual"},
		func(id string) { s.note("agent %.80q: a field of it is too large", id) },
		func(v []string) error {
			a, err := s.agent(v[0])
			if err != nil {
				return err
			}
			a.AK, a.EK, a.EKCert, a.IP, a.TLSCert = v[1], v[2], v[3], v[4], certificate(v[6])
			a.Active = truth(v[7])
			if truth(v[8]) {
				s.note("agent %.80q: its provider's keys are not taken: give the EK certificate of the virtual TPM", a.ID)
			}
			a.Port, err = port(v[5])
			if err != nil {
				s.note("agent %.80q: port %.20q is none", a.ID, v[5])
			}
			return nil
		})
}

func port(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 65535 {
		return 0, strconv.ErrRange
	}
	return n, nil
}

func truth(text string) bool { return text == "1" || text == "true" }

// verifier reads verifiermain of keylime/db/verifier_db.py. The key share v and the
// revocation key are secrets of that installation and are not read.
func (s *Snapshot) verifier(ctx context.Context, d *database) error {
	runtime, err := names(ctx, d, "allowlists")
	if err != nil {
		return err
	}
	mb, err := names(ctx, d, "mbpolicies")
	if err != nil {
		return err
	}
	return d.each(ctx, "verifiermain", maxAgents, maxField, []string{"agent_id", "ima_policy_id", "mb_policy_id", "tpm_policy", "meta_data",
		"accept_tpm_hash_algs", "accept_tpm_encryption_algs", "accept_tpm_signing_algs", "ak_tpm", "ima_sign_verification_keys"},
		func(id string) { s.note("agent %.80q: a field of it is too large", id) },
		func(v []string) error {
			a, err := s.agent(v[0])
			if err != nil {
				return err
			}
			a.Verified, a.Runtime, a.MB = true, runtime[v[1]], mb[v[2]]
			a.TPM, a.Metadata = unpickled(v[3]), v[4]
			a.Hashes, a.Encs, a.Signs = words(v[5]), words(v[6]), words(v[7])
			if a.AK != "" && v[8] != "" && v[8] != a.AK {
				s.note("agent %.80q: registrar and verifier have different attestation keys, that of the registrar counts", a.ID)
			}
			if v[9] != "" {
				s.note("agent %.80q: ima_sign_verification_keys are not taken: put the keys into the runtime policy (verification-keys)", a.ID)
			}
			// What is empty is Keylime's word for no check.
			if !s.seen["runtime "+a.Runtime] {
				a.Runtime = ""
			}
			if !s.seen["mb "+a.MB] {
				a.MB = ""
			}
			return nil
		})
}

// names are the names of policies by their number.
func names(ctx context.Context, d *database, table string) (map[string]string, error) {
	all := map[string]string{}
	there, err := d.has(ctx, table)
	if err != nil || !there {
		return all, err
	}
	err = d.each(ctx, table, maxPolicies, maxField, []string{"id", "name"}, func(string) {}, func(v []string) error {
		all[v[0]] = v[1]
		return nil
	})
	return all, err
}

func (s *Snapshot) runtimePolicies(ctx context.Context, d *database) error {
	return d.each(ctx, "allowlists", maxPolicies, maxPolicy, []string{"name", "ima_policy", "tpm_policy"},
		func(name string) { s.note("runtime policy %.80q: it has more than %d bytes", name, maxPolicy) },
		func(v []string) error {
			return s.policy(&s.Runtime, "runtime", Policy{Name: v[0], Text: v[1], TPM: unpickled(v[2])})
		})
}

func (s *Snapshot) mbPolicies(ctx context.Context, d *database) error {
	return d.each(ctx, "mbpolicies", maxPolicies, maxPolicy, []string{"name", "mb_policy"},
		func(name string) { s.note("measured boot policy %.80q: it has more than %d bytes", name, maxPolicy) },
		func(v []string) error { return s.policy(&s.MB, "mb", Policy{Name: v[0], Text: v[1]}) })
}
