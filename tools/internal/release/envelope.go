package release

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
)

const (
	keylimePayload = "application/vnd.keylime+json"
	maxSignatures  = 16
)

// ErrUnsigned means that none of the trusted certificates signed an envelope.
var ErrUnsigned = errors.New("no trusted certificate signed it")

// IsEnvelope says whether a runtime policy is in a DSSE envelope, as keylime-policy sign
// runtime writes it.
func IsEnvelope(text []byte) bool {
	var probe struct {
		Payload *string         `json:"payload"`
		Digests json.RawMessage `json:"digests"`
	}
	return json.Unmarshal(text, &probe) == nil && probe.Payload != nil && probe.Digests == nil
}

// runtimePolicy returns the runtime policy of Keylime that text is, or that it is the DSSE
// envelope of (github.com/secure-systems-lab/dsse, protocol.md; ECDSA over SHA-256, Keylime
// has no other). An envelope counts when one of the trusted certificates signed it: the keys
// and certificates that Keylime puts into an envelope prove nothing and are not looked at.
// A policy without an envelope is returned as it is.
func runtimePolicy(text []byte, trusted []*x509.Certificate) ([]byte, error) {
	if !IsEnvelope(text) {
		return text, nil
	}
	var e struct {
		Payload    string `json:"payload"`
		Type       string `json:"payloadType"`
		Signatures []struct {
			Sig string `json:"sig"`
		} `json:"signatures"`
	}
	if len(text) > MaxSize {
		return nil, fmt.Errorf("read envelope: %d bytes: at most %d are read", len(text), MaxSize)
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return nil, fmt.Errorf("read envelope: %w", err)
	}
	if e.Type != keylimePayload || len(e.Signatures) > maxSignatures {
		return nil, fmt.Errorf("read envelope: %d signatures of a payload of type %.60q, want at most %d of %s", len(e.Signatures), e.Type, maxSignatures, keylimePayload)
	}
	payload, err := base64.StdEncoding.Strict().DecodeString(e.Payload)
	if err != nil {
		return nil, fmt.Errorf("read envelope: payload: %w", err)
	}
	sum := sha256.Sum256(append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(e.Type), e.Type, len(payload)), payload...))
	for _, s := range e.Signatures {
		sig, err := base64.StdEncoding.DecodeString(s.Sig)
		if err != nil {
			return nil, fmt.Errorf("read envelope: signature: %w", err)
		}
		for _, cert := range trusted {
			if key, ok := cert.PublicKey.(*ecdsa.PublicKey); ok && ecdsa.VerifyASN1(key, sum[:], sig) {
				return payload, nil
			}
		}
	}
	return nil, fmt.Errorf("%w: signatures of the envelope: %d, trusted certificates: %d", ErrUnsigned, len(e.Signatures), len(trusted))
}
