package store

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Bounds of what is stored, in bytes unless said otherwise. More is an error, never cut.
const (
	MaxID     = 128       // device id, name of a policy, of an admin token
	MaxText   = 4 << 10   // group, actor, peer and other short texts
	MaxDetail = 256 << 10 // JSON of a verdict or an event
	MaxKey    = 2 << 10   // a public key, in either encoding
	MaxCerts  = 64 << 10  // a certificate chain
	MaxState  = 1 << 20   // what evidence or appraise carry from one attestation to the next
	MaxBody   = 64 << 20  // a policy or evidence, uncompressed

	MaxPolicies = 32 // assigned to one device

	// Unfinished enrolments: one more of the same peer evicts its oldest, one more for the
	// same device is [ErrTooMany], as is one more of all for a device that nobody knows.
	// Nobody can so push out another's.
	MaxAttemptsPeer   = 4
	MaxAttemptsDevice = 32
	MaxAttempts       = 4096
	// MaxTries is how many answers an enrolment may get.
	MaxTries = 3

	// Sessions of one device without a token, and with one. One more evicts the oldest of
	// the same sort: asking for a challenge never ends a session that was proven.
	MaxChallenges = 16
	MaxTokens     = 4
)

var idRE = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)

// CheckID says why id cannot be the id of a device or the name of a policy or a token:
// Keylime's [\w.-]+, in ASCII, bounded, and never a step of a path.
func CheckID(id string) error {
	if !idRE.MatchString(id) || id == "." || id == ".." {
		return fmt.Errorf("id %.40q: want 1 to %d of A-Z a-z 0-9 _ . -", id, MaxID)
	}
	return nil
}

// text refuses what PostgreSQL would and SQLite would not.
func text(name, s string, bound int) error {
	if len(s) > bound {
		return fmt.Errorf("%s: %d bytes, at most %d", name, len(s), bound)
	}
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return fmt.Errorf("%s: not UTF-8 without NUL", name)
	}
	return nil
}

func size(name string, b []byte, bound int) error {
	if len(b) > bound {
		return fmt.Errorf("%s: %d bytes, at most %d", name, len(b), bound)
	}
	return nil
}
