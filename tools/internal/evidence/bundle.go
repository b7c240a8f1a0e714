package evidence

import (
	"errors"
	"fmt"
	"time"
)

// SchemaBundle is the schema of a [Bundle].
const SchemaBundle = "attest.evidence/v1"

// Bundle is one attestation with all that is needed to verify it again, without the
// verifier and long afterwards: what was asked, what was answered and what was known.
type Bundle struct {
	Schema    string    `json:"schema"` // SchemaBundle
	Device    string    `json:"device"`
	At        time.Time `json:"at"` // when it was verified
	AK        []byte    `json:"ak"` // TPM2B_PUBLIC of the enrolled key
	Asked     Requests  `json:"asked"`
	Collected Collected `json:"collected"`
	Known     State     `json:"known"` // before this attestation
}

func (Bundle) limits() (string, int64) { return "", 2 * MaxSize }

func (b Bundle) check() error {
	if b.Schema != SchemaBundle {
		return fmt.Errorf("schema is %.40q, not %s", b.Schema, SchemaBundle)
	}
	if len(b.AK) == 0 {
		return errors.New("ak is missing")
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
	return Verify(ev, b.Asked.Expected(ak), b.Known)
}

// Expected is what evidence for r from the device with this key is held against.
func (r Requests) Expected(ak *AK) Expected {
	want := Expected{AK: ak}
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
