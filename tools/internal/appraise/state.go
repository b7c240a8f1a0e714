package appraise

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// ErrNeedWhole means that claims begin in the middle of a list of which the beginning was
// judged by another reference, in another boot, or never: ask for the list from entry 0.
var ErrNeedWhole = errors.New("the measurement list is needed from its beginning")

const (
	stateVersion = 1
	maxState     = 256 << 10
	maxListed    = 64   // misfits of which more is kept than their number
	maxNotes     = 16   // of what passed unlisted
	maxShown     = 1024 // bytes of a path
)

// State is what is known of a boot so far. It is bound to one reference and one boot, and
// public. The zero State knows nothing.
type State struct{ s state }

type state struct {
	Version   int    `json:"version"`
	Reference []byte `json:"reference"`      // digest
	AK        []byte `json:"ak"`             // name of the key
	Resets    uint32 `json:"resets"`         // the TPM's counter: the boot,
	Boot      []byte `json:"boot,omitempty"` // and the digest of what firmware and boot loader measured
	Next      int    `json:"next"`           // the entry to judge next

	Fits       mask      `json:"fits"`    // releases that everything fits
	Misfits    []int     `json:"misfits"` // by release: entries that do not fit it
	Left       []int     `json:"left"`    // by release: the first of those; -1
	Listed     []misfit  `json:"listed"`
	Notes      []misfit  `json:"notes"`
	Required   mask      `json:"required"` // by their number: files that were measured
	SecureBoot firmState `json:"secureBoot"`
	Counts     Counts    `json:"counts"`

	Booted      bool         `json:"booted,omitempty"`   // the firmware's log was judged by the reference states
	Unbooted    mask         `json:"unbooted,omitempty"` // releases whose reference state it does not fit
	BootMisfits []bootMisfit `json:"bootMisfits,omitempty"`
}

// firmState is what the firmware's log says of Secure Boot.
type firmState string

const (
	secureUnknown firmState = ""
	secureOn      firmState = "on"
	secureOff     firmState = "off"
)

// misfit is an entry that does not fit all releases, or that fits though it is in none.
type misfit struct {
	Code     Code         `json:"code"` // "" until a verdict says why a file does not fit
	Entry    int          `json:"entry"`
	Path     []byte       `json:"path"` // its first bytes
	Hash     ima.HashAlgo `json:"hash"`
	Verity   bool         `json:"verity"`
	Sum      []byte       `json:"sum"`
	Releases mask         `json:"releases"` // that it fits
}

func newState(ref *Reference, c *evidence.Claims) state {
	s := state{
		Version: stateVersion, Reference: bytes.Clone(ref.digest[:]), AK: c.AK().Name(), Resets: c.Clock().ResetCount, Boot: bootOf(c),
		Fits: ref.all, Misfits: make([]int, len(ref.names)), Left: make([]int, len(ref.names)),
	}
	for i := range s.Left {
		s.Left[i] = -1
	}
	return s
}

// sameBoot says whether s is of the boot of c, judged by ref. The counter alone does not say
// it: it does not grow with a boot after a suspend that was not resumed (TPM Restart), and
// whoever boots so can extend IMA's PCR to the value that it had before.
func (s *state) sameBoot(ref *Reference, c *evidence.Claims) bool {
	return bytes.Equal(s.Reference, ref.digest[:]) && bytes.Equal(s.AK, c.AK().Name()) && s.Resets == c.Clock().ResetCount && bytes.Equal(s.Boot, bootOf(c))
}

// bootOf is a digest of the quoted values of PCR 0 to 9, of which boot_aggregate and the
// firmware's log are: within a boot nothing extends them.
func bootOf(c *evidence.Claims) []byte {
	h := sha256.New()
	for _, p := range c.PCRs() {
		if p.Index <= lastBootPCR {
			h.Write([]byte{byte(p.Bank), byte(p.Index)})
			h.Write(p.Value)
		}
	}
	return h.Sum(nil)
}

// Continues says whether s was made with ref. If not, the next list has to be asked for
// from entry 0.
func (s State) Continues(ref *Reference) bool {
	return ref != nil && bytes.Equal(s.s.Reference, ref.digest[:])
}

// Firmware says whether the firmware's log of the boot was read. It may come with any quote.
func (s State) Firmware() bool { return s.s.SecureBoot != secureUnknown }

// MarshalBinary writes s as JSON, at most some 200 KB, and mostly less than one.
func (s State) MarshalBinary() ([]byte, error) {
	s.s.Version = stateVersion
	return json.Marshal(s.s)
}

// UnmarshalBinary takes what [State.MarshalBinary] wrote and nothing else.
func (s *State) UnmarshalBinary(b []byte) error {
	var got state
	if len(b) > maxState {
		return fmt.Errorf("read appraisal state: %d bytes: at most %d are read", len(b), maxState)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&got); err != nil {
		return fmt.Errorf("read appraisal state: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("read appraisal state: something follows it")
	}
	if err := got.check(); err != nil {
		return fmt.Errorf("read appraisal state: %w", err)
	}
	if again, err := (State{got}).MarshalBinary(); err != nil || !bytes.Equal(again, b) {
		return errors.New("read appraisal state: it is not in the form in which it is written")
	}
	s.s = got
	return nil
}

func (s *state) check() error {
	if s.Version != stateVersion {
		return fmt.Errorf("version %d, not %d", s.Version, stateVersion)
	}
	n := len(s.Misfits)
	if n > maxReleases || len(s.Left) != n || len(s.Listed) > maxListed || len(s.Notes) > maxNotes || s.Next < 0 {
		return errors.New("its parts do not fit together")
	}
	for i := range n {
		alive := s.Fits.has(i)
		if s.Left[i] < -1 || s.Left[i] >= s.Next || s.Misfits[i] < 0 || s.Misfits[i] > s.Next || alive != (s.Left[i] == -1) || alive != (s.Misfits[i] == 0) {
			return fmt.Errorf("release %d is said to fit and not to fit", i)
		}
	}
	if n < maxReleases && s.Fits>>n != 0 {
		return errors.New("a release fits that there is not")
	}
	switch s.SecureBoot {
	case secureUnknown, secureOn, secureOff:
	default:
		return fmt.Errorf("secure boot is %.20q", s.SecureBoot)
	}
	if !s.Booted && (s.Unbooted != 0 || len(s.BootMisfits) > 0) || n < maxReleases && s.Unbooted>>n != 0 || len(s.BootMisfits) > n*maxBootReasons {
		return errors.New("what is said of the boot does not fit together")
	}
	for _, m := range s.BootMisfits {
		if m.Release < 0 || !s.Unbooted.has(m.Release) || len(m.Why) > maxBootReason {
			return errors.New("a reason why a boot does not fit is out of bounds")
		}
	}
	for _, l := range [][]misfit{s.Listed, s.Notes} {
		for _, m := range l {
			if len(m.Path) > maxShown || len(m.Sum) > 64 || m.Entry < 0 || m.Entry >= s.Next {
				return fmt.Errorf("entry %d is out of bounds", m.Entry)
			}
		}
	}
	return nil
}
