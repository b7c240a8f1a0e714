package keylimedb

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

// ReadAnswers reads answers of Keylime's management API, one JSON object after another, in
// any order. What an object is, its results say:
//
//	{"code": 200, "status": "Success", "results": {"uuids": [...]}}                  reglist, cvlist: nothing but ids
//	{..., "results": {"agent_id": "...", "aik_tpm": "...", "ek_tpm": "...", ...}}    registrar, GET /v2.x/agents/ID
//	{..., "results": {"ID": {"aik_tpm": "...", "ek_tpm": "...", ...}, ...}}          keylime_tenant -c regstatus
//	{..., "results": {"ID": {"attestation_status": "...", ...}, ...}}                keylime_tenant -c bulkinfo, cvstatus
//	{..., "results": {"name": "...", "runtime_policy": "..."}}                       GET /v2.x/allowlists/NAME
//	{..., "results": {"name": "...", "mb_policy": "..."}}                            GET /v2.x/mbpolicies/NAME
//
// They do not say which device has which policy.
func ReadAnswers(files ...io.Reader) (*Snapshot, error) {
	s := newSnapshot()
	for i, r := range files {
		limited := &io.LimitedReader{R: r, N: maxTotal + 1}
		d := json.NewDecoder(limited)
		for n := 1; ; n++ {
			var answer struct {
				Results map[string]json.RawMessage `json:"results"`
			}
			err := d.Decode(&answer)
			if errors.Is(err, io.EOF) && limited.N > 0 {
				break
			}
			if limited.N <= 0 {
				err = fmt.Errorf("more than %d bytes", maxTotal)
			}
			if err == nil {
				err = s.answer(answer.Results)
			}
			if err != nil {
				return nil, fmt.Errorf("read answers: file %d: object %d, before byte %d: %w", i+1, n, d.InputOffset(), err)
			}
		}
	}
	return s.done(), nil
}

func (s *Snapshot) answer(results map[string]json.RawMessage) error {
	switch {
	case results == nil:
		return errors.New("it is no answer of Keylime: it has no results")
	case results["uuids"] != nil:
		return s.ids(results["uuids"])
	case results["aik_tpm"] != nil:
		all, err := json.Marshal(results)
		if err != nil {
			return err
		}
		var id string
		if err := json.Unmarshal(results["agent_id"], &id); err != nil {
			return errors.New("an answer of the registrar has no agent_id")
		}
		return s.status(id, all)
	case results["name"] != nil:
		return s.named(results)
	}
	for _, id := range slices.Sorted(maps.Keys(results)) {
		if err := s.status(id, results[id]); err != nil {
			return err
		}
	}
	return nil
}

// ids are rows of one column, or texts.
func (s *Snapshot) ids(text json.RawMessage) error {
	var rows []json.RawMessage
	if err := json.Unmarshal(text, &rows); err != nil {
		return err
	}
	for _, row := range rows {
		var id string
		var column []string
		if json.Unmarshal(row, &column) == nil && len(column) == 1 {
			id = column[0]
		} else if err := json.Unmarshal(row, &id); err != nil {
			return err
		}
		if _, err := s.agent(id); err != nil {
			return err
		}
	}
	return nil
}

func (s *Snapshot) named(results map[string]json.RawMessage) error {
	var name, text, tpm string
	if err := json.Unmarshal(results["name"], &name); err != nil {
		return fmt.Errorf("name of a policy: %w", err)
	}
	list, sort, body := &s.Runtime, "runtime", results["runtime_policy"]
	if body == nil {
		list, sort, body = &s.MB, "mb", results["mb_policy"]
	}
	if body == nil {
		return fmt.Errorf("policy %.80q has neither runtime_policy nor mb_policy", name)
	}
	if json.Unmarshal(body, &text) != nil {
		text = string(body) // the policy itself, and not a string of it
	}
	if t := results["tpm_policy"]; t != nil {
		_ = json.Unmarshal(t, &tpm) // null for none
	}
	return s.policy(list, sort, Policy{Name: name, Text: text, TPM: tpm})
}

// status is what registrar or verifier say of a device.
func (s *Snapshot) status(id string, text json.RawMessage) error {
	var v struct {
		AK         *string  `json:"aik_tpm"`
		EK         string   `json:"ek_tpm"`
		EKCert     *string  `json:"ekcert"`
		IP         *string  `json:"ip"`
		Port       *int     `json:"port"`
		TLSCert    *string  `json:"mtls_cert"`
		Status     *string  `json:"attestation_status"`
		TPM        *string  `json:"tpm_policy"`
		Metadata   *string  `json:"meta_data"`
		Hashes     []string `json:"accept_tpm_hash_algs"`
		Encs       []string `json:"accept_tpm_encryption_algs"`
		Signs      []string `json:"accept_tpm_signing_algs"`
		HasRuntime int      `json:"has_runtime_policy"`
		HasMB      int      `json:"has_mb_refstate"`
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return fmt.Errorf("agent %.80q: %w", id, err)
	}
	if v.AK == nil && v.Status == nil {
		return fmt.Errorf("agent %.80q: neither an answer of the registrar nor one of the verifier", id)
	}
	a, err := s.agent(id)
	if err != nil {
		return err
	}
	if v.AK != nil { // the registrar shows none that did not activate
		a.AK, a.EK, a.EKCert, a.IP, a.TLSCert, a.Active = *v.AK, v.EK, value(v.EKCert), value(v.IP), certificate(value(v.TLSCert)), true
		if v.Port != nil {
			a.Port = *v.Port
		}
		return nil
	}
	a.Verified, a.TPM, a.Metadata, a.Hashes, a.Encs, a.Signs = true, value(v.TPM), value(v.Metadata), v.Hashes, v.Encs, v.Signs
	if v.HasRuntime != 0 || v.HasMB != 0 {
		s.note("agent %.80q: it has policies, and the answer does not say which: assign them with --policy or attest fleet change", id)
	}
	return nil
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
