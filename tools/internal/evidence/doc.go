// Package evidence holds what a device sends to prove itself, and says whether it is
// authentic: made by the TPM that was enrolled, fresh, and of one piece. Whether it is
// acceptable is another question, for package appraise.
//
// The messages are those of Keylime (registrar API 2.x, push attestation 3.0, and the
// answer of a pull agent 2.x). [Verify] turns [Evidence] into [*Claims] and is the only
// thing that does; a claim that could not be checked is no claim but an [*Error] with a
// [Code]. An absent thing never counts as a matching one.
//
// The package opens nothing and keeps nothing: a verifier keeps the [State] that Verify
// returns beside the device's record. All bytes are taken for hostile, and each size is
// compared with a ceiling before anything is made of it.
package evidence

import (
	"errors"
	"fmt"
)

// Code says why evidence is not authentic, or cannot be judged. It is part of the
// management API: a code keeps its meaning.
type Code string

// The codes of an [*Error].
const (
	CodeMalformed    Code = "malformed"           // a message or a structure in it is not what its specification says
	CodeKey          Code = "key"                 // a key whose attributes or algorithms cannot carry an attestation
	CodeCertificate  Code = "ek_certificate"      // the endorsement key's certificate is missing, not its own or not trusted
	CodeExpectation  Code = "expectation"         // the verifier asked for something that would prove nothing
	CodeSignature    Code = "quote_signature"     // not signed by the enrolled attestation key
	CodeNotQuote     Code = "not_a_quote"         // signed, but not a statement of a TPM about PCRs
	CodeNonce        Code = "nonce"               // the quote answers another challenge
	CodeSelection    Code = "pcr_selection"       // other PCRs or banks are quoted than were asked for
	CodePCRDigest    Code = "pcr_digest"          // the PCR values are not those that were signed
	CodeRewind       Code = "rewind"              // the TPM's clock or counters went back: an old quote, or another TPM
	CodeReboot       Code = "reboot"              // the device has booted again: ask for the lists from their beginning
	CodeOffset       Code = "log_offset"          // the list begins at another entry than the one asked for
	CodeMissingLog   Code = "log_missing"         // a log that was asked for is not there
	CodeLog          Code = "ima_log"             // the measurement list is not what Linux writes
	CodeTemplate     Code = "ima_template_digest" // an entry's digest is not that of its content
	CodeUnquoted     Code = "ima_unquoted_pcr"    // an entry was measured into a PCR that is not quoted
	CodeMismatch     Code = "ima_pcr_mismatch"    // the list does not lead to the quoted PCR
	CodeStalled      Code = "ima_tail_not_quoted" // entries were announced and never came under a quote
	CodeFirmwareLog  Code = "firmware_log"        // the firmware's event log is not what the TCG specifies
	CodeFirmwarePCRs Code = "firmware_pcr_mismatch"
)

// Error is why evidence was refused.
type Error struct {
	Code Code
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// CodeOf is the code of err, and [CodeMalformed] of an error without one: what nobody
// foresaw is refused like anything else.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeMalformed
}

func refuse(code Code, format string, args ...any) error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...)}
}
