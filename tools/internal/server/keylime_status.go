package server

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// States of an agent in Keylime (keylime/common/states.py), as far as they occur here.
const (
	stateGetQuote      = 3
	stateGetQuoteRetry = 4
	stateInvalidQuote  = 9
	stateTenantFailed  = 10
)

// severityEmergency is the number of the last of Keylime's severity labels, which it gives
// to every failure unless told otherwise.
const severityEmergency = 6

// tenantState is a verdict in Keylime's words. Only what was judged since the tenant added
// the device is a PASS.
func tenantState(d store.Device, a *store.TenantAgent) (state int, status string) {
	v := d.Verdict
	switch {
	case !d.Attest:
		return stateTenantFailed, "FAIL"
	case v.Status == store.Untrusted || v.Status == store.Broken:
		return stateInvalidQuote, "FAIL"
	case v.Status == store.Overdue:
		return stateGetQuoteRetry, "TIMEOUT"
	case v.Status != store.Trusted || a != nil && v.Attested.Before(a.Created):
		return stateGetQuote, "PENDING"
	}
	return stateGetQuote, "PASS"
}

// tenantStatusOf is process_get_status of keylime/cloud_verifier_common.py. The key share v
// is never shown.
func (s *Server) tenantStatusOf(c *call, d store.Device, a *store.TenantAgent) (map[string]any, error) {
	hash, enc, sign, err := algorithms(d)
	if err != nil {
		return nil, err
	}
	t := tenantSettings{TPM: "{}", Metadata: "{}", IP: d.IP, Port: d.Port, Hashes: []string{hash}, Encryptions: enc[:1], Signings: []string{sign}}
	mb := 0
	if a != nil {
		if err := json.Unmarshal(a.Settings, &t); err != nil {
			return nil, fmt.Errorf("read settings of agent %s: %w", d.ID, err)
		}
		if a.MBPolicy != "" {
			mb = 1
		}
	}
	state, status := tenantState(d, a)
	good, err := s.lastGood(c, d)
	if err != nil {
		return nil, err
	}
	var severity, event any
	if status == "FAIL" && d.Attest {
		severity, event = severityEmergency, eventID(d.Verdict)
	}
	host, at := c.address()
	return map[string]any{
		"operational_state": state, "v": nil, "ip": orNull(t.IP), "port": orNull(t.Port), "tpm_policy": t.TPM, "meta_data": t.Metadata,
		"has_mb_refstate": mb, "has_runtime_policy": min(len(d.Policies), 1),
		"accept_tpm_hash_algs": t.Hashes, "accept_tpm_encryption_algs": t.Encryptions, "accept_tpm_signing_algs": t.Signings,
		"hash_alg": hash, "enc_alg": enc[0], "sign_alg": sign,
		"verifier_id": verifierID, "verifier_ip": host, "verifier_port": at,
		"severity_level": severity, "last_event_id": event,
		"attestation_count": d.Verdict.Total, "last_received_quote": seconds(d.Verdict.Attested), "last_successful_attestation": seconds(good),
		"attestation_status": status, "attestation_period": fmt.Sprintf("%ds", int(s.Interval.Seconds())),
		"maximum_attestation_interval": fmt.Sprintf("%ds", int(s.due().Seconds())),
	}, nil
}

func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// maxLooked bounds how many events are read to find the last good attestation.
const maxLooked = 64

// lastGood is when a device was last known to be trusted. Of one that is not any more it is
// when it became so, as later attestations of the same verdict make no event.
func (s *Server) lastGood(c *call, d store.Device) (time.Time, error) {
	v := d.Verdict
	if v.Status == store.Trusted {
		return v.Attested, nil
	}
	if v.Total == 0 {
		return time.Time{}, nil
	}
	events, err := s.Store.Events(c.Context(), d.ID, 0, maxLooked)
	if err != nil {
		return time.Time{}, err
	}
	for _, e := range events {
		if e.Status == store.Trusted {
			return e.At, nil
		}
	}
	return time.Time{}, nil
}

// eventIDs are Keylime's names of what is wrong (keylime/failure.py, keylime/ima/ima.py,
// keylime/tpm/tpm_main.py), by ours; the first in this order is shown.
var eventIDs = []struct{ code, id string }{
	{string(evidence.CodeSignature), "qoute_validation.quote_validation"},
	{string(evidence.CodeNotQuote), "qoute_validation.quote_validation"},
	{string(evidence.CodeNonce), "qoute_validation.quote_validation"},
	{string(evidence.CodePCRDigest), "qoute_validation.quote_validation"},
	{string(evidence.CodeSelection), "pcr_validation.missing_pcrs"},
	{string(evidence.CodeRewind), "qoute_validation.quote_validation"},
	{string(evidence.CodeMismatch), "ima.pcr_mismatch"},
	{string(evidence.CodeTemplate), "ima.validation.ima_hash"},
	{string(evidence.CodeUnquoted), "ima.validation.ima_pcr"},
	{string(evidence.CodeStalled), "ima.quote_progress"},
	{string(evidence.CodeLog), "ima.parser.entry"},
	{string(evidence.CodeFirmwarePCRs), "measured_boot.invalid_pcrs"},
	{string(evidence.CodeFirmwareLog), "measured_boot.parser"},
	{string(appraise.CodeMeasuredBoot), "measured_boot.policy_example"},
	{string(appraise.CodeSecureBoot), "measured_boot.policy_example"},
	{string(appraise.CodeSignature), "ima.validation.validator.ima-sig.invalid_signature"},
	{string(appraise.CodeUnknownFile), "ima.validation.ima-ng.not_in_allowlist"},
	{string(appraise.CodeMovedFile), "ima.validation.ima-ng.not_in_allowlist"},
	{string(appraise.CodeOtherRelease), "ima.validation.ima-ng.not_in_allowlist"},
	{string(appraise.CodeChangedFile), "ima.validation.ima-ng.runtime_policy_hash"},
	{string(appraise.CodeDigestAlgorithm), "ima.validation.ima-ng.runtime_policy_hash"},
	{string(appraise.CodeWeakDigest), "ima.validation.ima-ng.runtime_policy_hash"},
	{string(appraise.CodeAggregate), "ima.validation.ima-ng.runtime_policy_hash"},
	{string(appraise.CodeNoAggregate), "ima.validation.ima-ng.not_in_allowlist"},
	{string(appraise.CodeAggregateAgain), "ima.validation.ima-ng.runtime_policy_hash"},
	{string(appraise.CodeBuffer), "ima.validation.ima-buf.not_in_allowlist"},
	{string(appraise.CodeViolation), "ima.validation.tomtou"},
	{string(appraise.CodePCR), "pcr_validation.invalid_pcr"},
}

// eventID is Keylime's name of the gravest reason of a verdict.
func eventID(v store.Verdict) string {
	codes := " " + v.Codes + " "
	for _, e := range eventIDs {
		if !strings.Contains(codes, " "+e.code+" ") {
			continue
		}
		if e.code == string(appraise.CodePCR) {
			return e.id + pinnedPCR(v.Detail)
		}
		return e.id
	}
	return "internal.verifier." + strings.ReplaceAll(v.Codes, " ", "+")
}

// pinnedPCR is "_7" where PCR 7 has another value than it may have.
func pinnedPCR(detail json.RawMessage) string {
	var v appraise.Verdict
	if json.Unmarshal(detail, &v) != nil {
		return ""
	}
	for _, r := range v.Reasons {
		if r.Code == appraise.CodePCR && r.PCR != nil {
			return fmt.Sprintf("_%d", *r.PCR)
		}
	}
	return ""
}
