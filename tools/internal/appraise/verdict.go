package appraise

import (
	"encoding/hex"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// Schema is the name and version of a [Verdict] as JSON.
const Schema = "attest.verdict/v1"

// Status is the verdict in a word.
type Status string

// What a device can be.
const (
	Trusted    Status = "trusted"    // all that it ran fits one release
	Untrusted  Status = "untrusted"  // it ran something that fits none
	Broken     Status = "broken"     // what it sent is not authentic
	Unverified Status = "unverified" // nothing is known against it, and not enough for it
)

// Verdict is what became of an appraisal. Its JSON has the schema attest.verdict/v1.
type Verdict struct {
	Schema   string   `json:"schema"`
	Status   Status   `json:"status"`
	Release  string   `json:"release,omitempty"`  // that fits, or the nearest one
	Releases []string `json:"releases,omitempty"` // all that fit: at first a boot may fit several
	Policy   string   `json:"policy,omitempty"`   // digest of the reference, in hex
	Counts   Counts   `json:"counts"`
	Reasons  []Reason `json:"reasons"`           // why it is not trusted, in the order of the list
	Omitted  int      `json:"omitted,omitempty"` // entries that do not fit and are not among Reasons
	Notes    []Reason `json:"notes,omitempty"`   // the first of what passed by a rule and not by a release
}

// Counts are of the boot so far.
type Counts struct {
	Entries            int `json:"entries"`   // under quotes
	Pending            int `json:"pending"`   // behind the last quote, not judged yet
	Files              int `json:"files"`     // that a release has
	Excluded           int `json:"excluded"`  // passed because their path is not judged
	Signed             int `json:"signed"`    // passed by a signature
	Relocated          int `json:"relocated"` // passed at another path than the release's
	Violations         int `json:"violations"`
	ViolationsAccepted int `json:"violationsAccepted"`
	Buffers            int `json:"buffers"`    // keys, command lines ...
	Aggregates         int `json:"aggregates"` // boot_aggregate
	Misfits            int `json:"misfits"`    // that do not fit Release
}

// Reason is one thing that is wrong, and what to do about it.
type Reason struct {
	Code     Code     `json:"code"`
	Entry    *int     `json:"entry,omitempty"` // in the measurement list, from 0
	PCR      *int     `json:"pcr,omitempty"`
	Path     string   `json:"path,omitempty"`     // quoted as in Go where it has odd characters
	Expected []string `json:"expected,omitempty"` // "sha256:hex"
	Seen     string   `json:"seen,omitempty"`
	Release  string   `json:"release,omitempty"`
	Package  string   `json:"package,omitempty"`
	Advice   string   `json:"advice"`
}

const maxExpected = 8

// Unjudged is the verdict where there was nothing to judge, or judging went wrong.
func Unjudged(code Code, why string) Verdict {
	return Verdict{Schema: Schema, Status: Unverified, Reasons: []Reason{{Code: code, Advice: why}}}
}

// Refused is the verdict on evidence that [evidence.Verify] refused with err.
func Refused(err error) Verdict {
	code := evidence.CodeOf(err)
	v := Verdict{Schema: Schema, Status: Broken, Reasons: []Reason{{Code: Code(code), Seen: display([]byte(err.Error())), Advice: refusalAdvice(code)}}}
	if code == evidence.CodeExpectation {
		v.Status = Unverified // the verifier's fault
	}
	return v
}

func (v *Verdict) refuse(reasons ...Reason) {
	v.Status = Untrusted
	v.Reasons = append(v.Reasons, reasons...)
}

// doubt never makes a verdict better.
func (v *Verdict) doubt(r Reason) {
	if v.Status == Trusted {
		v.Status = Unverified
	}
	v.Reasons = append(v.Reasons, r)
}

// verdict is what j.state and the PCRs come to.
func (j *judge) verdict() Verdict {
	s := &j.state
	v := Verdict{Schema: Schema, Status: Trusted, Policy: hex.EncodeToString(j.ref.digest[:]), Counts: s.Counts, Reasons: []Reason{}}
	pinned, unquoted := j.pinned()
	unbooted, unknown := j.unbooted()
	fits := s.Fits & pinned &^ unbooted
	unquoted |= unknown
	v.Releases = j.ref.list(fits &^ unquoted)
	nearest := s.nearest()
	if best := fits &^ unquoted; best != 0 {
		nearest = lowest(best)
	} else if fits != 0 {
		nearest = lowest(fits)
	}
	v.Release = j.ref.names[nearest]
	v.Counts.Misfits = s.Misfits[nearest]
	if fits == 0 {
		v.refuse(j.misfits(nearest)...)
		v.Omitted = max(0, s.Misfits[nearest]-len(v.Reasons))
		v.refuse(j.pinReasons(nearest)...)
		v.refuse(j.bootReasons(nearest)...)
	} else if fits&^unquoted == 0 {
		for _, r := range j.pinReasons(nearest) {
			v.doubt(r)
		}
		if unknown != 0 && !j.ref.rules.Firmware.SecureBoot {
			v.doubt(Reason{Code: CodeNoFirmwareLog, Advice: "the verifier has to ask for the firmware's event log with the first quote of a boot"})
		}
	}
	j.demands(&v)
	for _, m := range s.Notes {
		v.Notes = append(v.Notes, j.noted(m))
	}
	return v
}

// demands are what a boot has to show beside its list.
func (j *judge) demands(v *Verdict) {
	s := &j.state
	if j.ref.rules.Firmware.SecureBoot {
		switch s.SecureBoot {
		case secureUnknown:
			v.doubt(Reason{Code: CodeNoFirmwareLog, Advice: "no firmware's event log came with a quote of this boot: attest-agent doctor says whether the device has one"})
		case secureOff:
			v.refuse(Reason{Code: CodeSecureBoot, Expected: []string{"SecureBoot on"}, Seen: "not proven by the firmware's event log", Advice: "turn Secure Boot on in the firmware's settings"})
		}
	}
	for _, pcr := range j.ref.rules.imaPCRs() {
		if _, ok := j.claims.PCR(j.ref.bank, pcr); !ok {
			v.doubt(Reason{Code: CodeNotQuoted, PCR: &pcr, Expected: []string{j.ref.bank.String()}, Advice: "the TPM has to quote this PCR: allocate the bank (tpm2_pcrallocate, then a reboot), or name another: bank = ..."})
		}
	}
	if s.Counts.Files+s.Counts.Signed+s.Counts.Relocated == 0 {
		v.doubt(Reason{Code: CodeNothing, Advice: "no file of a release was measured: see whether the device loads an IMA policy that measures (attest policy check)"})
	}
	for i, path := range j.ref.required {
		if !s.Required.has(i) {
			v.doubt(Reason{Code: CodeRequired, Path: display(path), Advice: "this file has to be measured and was not: see the device's IMA policy, or wait until it runs"})
		}
	}
}

func lowest(m mask) int {
	i := 0
	for !m.has(i) {
		i++
	}
	return i
}

// display is text as it stands, or quoted where it has what a terminal or a log could
// take for something else, or is cut.
func display(b []byte) string {
	s := string(b)
	odd := func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError || r == '\\' }
	if utf8.ValidString(s) && !strings.ContainsFunc(s, odd) && !strings.HasPrefix(s, `"`) {
		return s
	}
	return strconv.Quote(s)
}
