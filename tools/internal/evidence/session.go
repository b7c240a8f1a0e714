package evidence

import (
	"errors"
	"fmt"
	"time"
)

// The proof of possession is the one method by which an agent opens a session.
const (
	classPossession = "pop"
	typePossession  = "tpm_pop"
)

// SessionRequest is the body of POST /v3.0/sessions: an agent asks for a challenge.
type SessionRequest struct {
	Agent     string   `json:"agent_id"`
	Supported []Method `json:"authentication_supported"`
}

// Method is a way to authenticate.
type Method struct {
	Class string `json:"authentication_class"`
	Type  string `json:"authentication_type"`
}

// Possession is the method that is always used: TPM2_Certify of the attestation key by itself.
func Possession() Method { return Method{classPossession, typePossession} }

func (m Method) check() error {
	if m != Possession() {
		return fmt.Errorf("authentication %.20q of class %.20q is not %s", m.Type, m.Class, typePossession)
	}
	return nil
}

func (SessionRequest) limits() (string, int64) { return "session", maxSmall }

func (s SessionRequest) check() error {
	if err := CheckID(s.Agent); err != nil {
		return err
	}
	for _, m := range s.Supported {
		if m.check() == nil {
			return nil
		}
	}
	return fmt.Errorf("the agent does not support %s", typePossession)
}

// SessionChallenge answers a [SessionRequest].
type SessionChallenge struct {
	Agent     string           `json:"agent_id"`
	Requested []RequestedProof `json:"authentication_requested"`
	Created   time.Time        `json:"created_at"`
	Expires   time.Time        `json:"challenges_expire_at"`
}

// RequestedProof carries the challenge.
type RequestedProof struct {
	Method
	Parameters struct {
		Challenge []byte `json:"challenge"`
	} `json:"chosen_parameters"`
}

// NewSessionChallenge asks for the one proof that there is.
func NewSessionChallenge(agent string, challenge []byte, created, expires time.Time) SessionChallenge {
	p := RequestedProof{Method: Possession()}
	p.Parameters.Challenge = challenge
	return SessionChallenge{Agent: agent, Requested: []RequestedProof{p}, Created: created, Expires: expires}
}

func (SessionChallenge) limits() (string, int64) { return "session", maxSmall }

func (s SessionChallenge) check() error {
	if len(s.Requested) != 1 {
		return fmt.Errorf("%d proofs are requested, not 1", len(s.Requested))
	}
	return errors.Join(s.Requested[0].check(), lengthOf("challenge", s.Requested[0].Parameters.Challenge, MinNonce, 64))
}

// SessionProof is the body of PATCH /v3.0/sessions/ID.
type SessionProof struct {
	Agent    string          `json:"agent_id"`
	Provided []ProvidedProof `json:"authentication_provided"`
}

// ProvidedProof is the proof: see [AK.VerifyPossession].
type ProvidedProof struct {
	Method
	Data ProofData `json:"data"`
}

// ProofData is what tpm.AK.Certify made.
type ProofData struct {
	Message   []byte `json:"message"`
	Signature []byte `json:"signature"`
}

// NewSessionProof frames what tpm.AK.Certify made.
func NewSessionProof(agent string, message, signature []byte) SessionProof {
	p := ProvidedProof{Method: Possession()}
	p.Data.Message, p.Data.Signature = message, signature
	return SessionProof{Agent: agent, Provided: []ProvidedProof{p}}
}

func (SessionProof) limits() (string, int64) { return "session", maxSmall }

func (s SessionProof) check() error {
	if err := CheckID(s.Agent); err != nil {
		return err
	}
	if len(s.Provided) != 1 {
		return fmt.Errorf("%d proofs are provided, not 1", len(s.Provided))
	}
	p := s.Provided[0]
	return errors.Join(p.check(), lengthOf("message", p.Data.Message, 1, maxAttest), lengthOf("signature", p.Data.Signature, 1, maxSignature))
}

// SessionResult answers a [SessionProof]: Token is there where Evaluation is "pass".
type SessionResult struct {
	Agent      string         `json:"agent_id"`
	Evaluation string         `json:"evaluation"` // "pass" or "fail"
	Token      string         `json:"token,omitempty"`
	Checked    []CheckedProof `json:"authentication"`
	Created    *time.Time     `json:"created_at,omitempty"` // of the challenge
	Until      *time.Time     `json:"challenges_expire_at,omitempty"`
	Received   *time.Time     `json:"response_received_at,omitempty"` // the proof
	Expires    *time.Time     `json:"token_expires_at,omitempty"`
}

// CheckedProof is a proof with what was asked for.
type CheckedProof struct {
	RequestedProof
	Data ProofData `json:"data"`
}

// NewSessionResult is that of a proof which was good. Agents of rust-keylime refuse an answer
// that lacks any member.
func NewSessionResult(asked SessionChallenge, provided ProvidedProof, token string, received, expires time.Time) SessionResult {
	return SessionResult{Agent: asked.Agent, Evaluation: "pass", Token: token, Checked: []CheckedProof{{asked.Requested[0], provided.Data}},
		Created: &asked.Created, Until: &asked.Expires, Received: &received, Expires: &expires}
}

func (SessionResult) limits() (string, int64) { return "session", maxSmall }

func (s SessionResult) check() error {
	if s.Evaluation != "pass" && s.Evaluation != "fail" || (s.Evaluation == "pass") != (s.Token != "") {
		return fmt.Errorf("evaluation is %.20q, with a token of %d bytes", s.Evaluation, len(s.Token))
	}
	return nil
}

func lengthOf(what string, b []byte, least, most int) error {
	if len(b) < least || len(b) > most {
		return fmt.Errorf("%s has %d bytes, not %d to %d", what, len(b), least, most)
	}
	return nil
}
