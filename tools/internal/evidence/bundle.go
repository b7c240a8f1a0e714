package evidence

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// Schemas of a [Bundle].
const (
	SchemaBundle  = "attest.evidence/v2"
	schemaBundle1 = "attest.evidence/v1" // has nothing behind Known
)

// Bundle is one attestation with all that is needed to judge it again, without the
// verifier and long afterwards: what was asked, what was answered and what was known.
type Bundle struct {
	Schema    string    `json:"schema"` // SchemaBundle
	Device    string    `json:"device"`
	At        time.Time `json:"at"` // when it was verified
	AK        []byte    `json:"ak"` // TPM2B_PUBLIC of the enrolled key
	Asked     Requests  `json:"asked"`
	Collected Collected `json:"collected"`
	Known     State     `json:"known"` // before this attestation

	Terms     Terms            `json:"terms,omitzero"`
	Policies  []ComparedPolicy `json:"policies,omitempty"`  // in the order in which they were compiled
	Appraised []byte           `json:"appraised,omitempty"` // state of package appraise before this attestation; nil: none
}

// ComparedPolicy is a policy that evidence was compared with.
type ComparedPolicy struct {
	Name   string `json:"name"`   // "image@2"
	Digest []byte `json:"digest"` // SHA-256 of its text
}

// Terms are what a device's policy says about how its PCRs are extended. The zero Terms are
// the strictest.
type Terms struct {
	SHA1Bank bool        `json:"sha1_bank,omitempty"` // see [Expected]
	IMAPCRs  []int       `json:"ima_pcrs,omitempty"`  // see [Expected]
	Padding  ima.Padding `json:"padding,omitempty"`   // of all banks but SHA-1
}

// Equal says whether t and o ask for the same.
func (t Terms) Equal(o Terms) bool {
	return t.SHA1Bank == o.SHA1Bank && t.Padding == o.Padding && slices.Equal(t.IMAPCRs, o.IMAPCRs)
}

func (Bundle) limits() (string, int64) { return "", 2 * MaxSize }

func (b Bundle) check() error {
	switch {
	case b.Schema != SchemaBundle && b.Schema != schemaBundle1:
		return fmt.Errorf("schema is %.40q, not %s", b.Schema, SchemaBundle)
	case b.Schema == schemaBundle1 && (!b.Terms.Equal(Terms{}) || b.Policies != nil || b.Appraised != nil):
		return fmt.Errorf("schema %s has no terms, policies or appraised", schemaBundle1)
	case len(b.AK) == 0:
		return errors.New("ak is missing")
	case b.Terms.Padding > ima.PaddedOld || slices.ContainsFunc(b.Terms.IMAPCRs, func(pcr int) bool { return pcr < 0 || pcr > maxPCR }):
		return errors.New("terms are not those of a policy")
	}
	return errors.Join(b.Asked.check(), b.Collected.check())
}

// Verify is [Verify] of the bundle. That its key was enrolled, its challenge fresh and its
// state the one that was known, is for who kept it.
func (b *Bundle) Verify() (*Claims, State, error) {
	ak, err := ParseAK(b.AK)
	if err != nil {
		return nil, b.Known, err
	}
	return b.VerifyWith(ak)
}

// VerifyWith is Verify for who has parsed the key already.
func (b *Bundle) VerifyWith(ak *AK) (*Claims, State, error) {
	ev, err := b.Collected.Evidence(b.Asked)
	if err != nil {
		return nil, b.Known, err
	}
	return Verify(ev, b.Asked.Expected(ak, b.Terms), b.Known)
}

// Expected is what evidence for r from the device with this key is held against.
func (r Requests) Expected(ak *AK, t Terms) Expected {
	want := Expected{AK: ak, SHA1Bank: t.SHA1Bank, IMAPCRs: t.IMAPCRs}
	if t.Padding != ima.Unpadded {
		want.Padding = map[ima.HashAlgo]ima.Padding{ima.SHA256: t.Padding, ima.SHA384: t.Padding, ima.SHA512: t.Padding}
	}
	for _, q := range r.Requested {
		switch q.Type {
		case TypeQuote:
			want.Nonce, want.PCRs = q.Parameters.Challenge, q.Parameters.Selected
		case TypeIMA:
			want.IMA = true
		case TypeFirmware:
			want.Firmware = true
		}
	}
	return want
}

// Whole says that the measurement list was asked for from its first entry on.
func (r Requests) Whole() bool {
	for _, q := range r.Requested {
		if q.Type == TypeIMA && q.Parameters.Offset != nil && *q.Parameters.Offset > 0 {
			return false
		}
	}
	return true
}
