package appraise

import (
	"bytes"
	"fmt"
	"math/bits"
	"slices"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// Appraise says whether what c proves, with what prev says of the same boot, is what ref
// allows, and returns the state to keep. Whole lists and their parts lead to the same
// verdict. An entry that fits no release makes the rest of the boot untrusted; another
// boot begins anew. PCRs and what is required are looked at each time.
//
// The only error is [ErrNeedWhole]. With it, and where there is nothing to compare with,
// the verdict is [Unverified] and the state as it was.
func Appraise(c *evidence.Claims, ref *Reference, prev State) (Verdict, State, error) {
	switch {
	case c == nil || c.AK() == nil:
		return Unjudged(CodeNoClaims, "there is no evidence that was verified"), prev, nil
	case ref == nil || len(ref.names) == 0:
		return Unjudged(CodeNoPolicy, "no release is allowed for this device, so nothing was compared: attest fleet change DEVICE --policy NAME, and activate a version of it"), prev, nil
	}
	s, ok := begin(c, ref, prev)
	if !ok {
		return Unjudged(CodeNeedWhole, "the list is asked for from its beginning, and judged then"), prev, ErrNeedWhole
	}
	j := judge{ref: ref, claims: c, state: s}
	if err := j.list(); err != nil {
		v := j.verdict()
		v.refuse(Reason{Code: CodeList, Seen: err.Error(), Advice: "this is a fault of the verifier: report it"})
		return v, prev, nil
	}
	j.firmware()
	j.booted()
	return j.verdict(), State{j.state}, nil
}

// begin is the state to go on from; false where entries are missing.
func begin(c *evidence.Claims, ref *Reference, prev State) (state, bool) {
	s := newState(ref, c)
	if !prev.s.sameBoot(ref, c) || c.Rebooted() || len(prev.s.Misfits) != len(ref.names) {
		return s, c.First() == 0
	}
	if c.First() == 0 {
		// The whole list again. The firmware's log may not have come again.
		s.SecureBoot = prev.s.SecureBoot
		s.Booted, s.Unbooted, s.BootMisfits = prev.s.Booted, prev.s.Unbooted, prev.s.BootMisfits
		return s, true
	}
	s = prev.s
	s.Misfits, s.Left = slices.Clone(s.Misfits), slices.Clone(s.Left)
	s.Listed, s.Notes, s.BootMisfits = slices.Clone(s.Listed), slices.Clone(s.Notes), slices.Clone(s.BootMisfits)
	return s, c.First() == s.Next
}

// judge is one appraisal.
type judge struct {
	ref    *Reference
	claims *evidence.Claims
	state  state
}

// list judges the entries that the quote covers.
func (j *judge) list() error {
	for e, err := range j.claims.Entries() {
		if err != nil {
			return err
		}
		if e.Index != j.state.Next {
			return fmt.Errorf("entry %d comes where %d is wanted", e.Index, j.state.Next)
		}
		j.state.Next++
		j.state.Counts.Entries++
		j.entry(e)
	}
	j.state.Counts.Pending = j.claims.Pending()
	return nil
}

var aggregate = []byte("boot_aggregate")

func (j *judge) entry(e *ima.Entry) {
	isAggregate := bytes.Equal(e.Path, aggregate) && !e.Violation && len(e.Buffer) == 0
	switch {
	case isAggregate:
		j.aggregate(e)
	case e.Index == 0:
		j.misfit(e, CodeNoAggregate, 0)
	case e.Violation:
		j.violation(e)
	case len(e.Buffer) > 0:
		j.buffer(e)
	default:
		j.file(e)
	}
}

// file judges the measurement of a file: what is in every release that still fits costs
// one look-up.
func (j *judge) file(e *ima.Entry) {
	if e.File.Hash.Weak() && !j.ref.rules.WeakDigests {
		m := j.excluded(e)
		j.settle(e, CodeWeakDigest, m, 0, CodeExcluded)
		return
	}
	k := kindOf(e.File)
	m := j.ref.table.find(k, e.File.Sum, e.Path)
	if m != 0 {
		j.state.Counts.Files++
		j.measured(e.Path)
	}
	if m == j.ref.all {
		return
	}
	if j.state.Fits&^m == 0 && j.state.Fits != 0 {
		j.misfit(e, "", m)
		return
	}
	var note Code
	code := Code("")
	admitted := m | j.excluded(e)
	if admitted != m {
		note = CodeExcluded
	}
	// Signatures cost much. Of a boot that is lost they can save nothing.
	if admitted&j.state.Fits != j.state.Fits {
		by, bad := j.ref.signatures(e)
		if by&^admitted != 0 {
			admitted, note = admitted|by, CodeSigned
		}
		if bad {
			code = CodeSignature
		}
	}
	if admitted != j.ref.all && matchAny(j.ref.rules.Relocated, e.Path) {
		if by := j.ref.table.anywhere(k, e.File.Sum); by&^admitted != 0 {
			admitted, note = admitted|by, CodeRelocated
		}
	}
	j.settle(e, code, admitted, m, note)
}

// settle takes an entry that fits the releases of listed by itself, and those of admitted
// by a rule that note is about.
func (j *judge) settle(e *ima.Entry, code Code, admitted, listed mask, note Code) {
	if admitted != listed {
		n := &j.state.Counts
		switch note {
		case CodeExcluded:
			n.Excluded++
		case CodeSigned:
			n.Signed++
		case CodeRelocated:
			n.Relocated++
		}
		j.note(e, note, admitted)
	}
	j.misfit(e, code, admitted)
}

// excluded returns the releases for which the path of e is not judged.
func (j *judge) excluded(e *ima.Entry) (m mask) {
	for _, x := range j.ref.rules.Excludes {
		if x.Path.matches(string(e.Path)) {
			return j.ref.all
		}
	}
	for _, p := range j.ref.patterns {
		if m&p.releases != p.releases && p.regexp.Match(e.Path) {
			m |= p.releases
		}
	}
	return m
}

func (j *judge) measured(path []byte) {
	for i, p := range j.ref.required {
		if bytes.Equal(p, path) {
			j.state.Required |= 1 << i
		}
	}
}

// violation judges that a file was open for writing while it was measured. Nothing else of
// the entry is proven.
func (j *judge) violation(e *ima.Entry) {
	j.state.Counts.Violations++
	action := j.ref.rules.Violations
	for _, v := range j.ref.rules.Violation {
		if v.Path.matches(string(e.Path)) {
			action = v.Action
			break
		}
	}
	if action != Warn {
		j.misfit(e, CodeViolation, 0)
		return
	}
	j.state.Counts.ViolationsAccepted++
	j.note(e, CodeWarned, j.ref.all)
}

// buffer judges what is no file: e.Path is the name of the event.
func (j *judge) buffer(e *ima.Entry) {
	j.state.Counts.Buffers++
	if e.File.Hash.Weak() && !j.ref.rules.WeakDigests {
		j.misfit(e, CodeWeakDigest, 0)
		return
	}
	m := j.ref.table.find(kindOf(e.File)|bufferKind, e.File.Sum, e.Path) | j.ref.any[string(e.Path)]
	// No keyring is called so: a file whose label is its content could be passed off as a key.
	if m != j.ref.all && len(j.ref.anyKey) > 0 && e.Path[0] != '/' && isKey(e.Buffer) {
		m |= j.ref.anyKey[string(e.Path)] | j.ref.anyKey["*"]
	}
	j.misfit(e, CodeBuffer, m)
}

// misfit takes an entry that fits just the releases of m.
func (j *judge) misfit(e *ima.Entry, code Code, m mask) {
	s := &j.state
	out := j.ref.all &^ m
	if out == 0 {
		return
	}
	// Listed is what ends the fit of a release, and what does not fit the nearest one.
	list := s.Fits&out != 0 || !m.has(s.nearest())
	s.Fits &= m
	for ; out != 0; out &= out - 1 {
		i := bits.TrailingZeros64(uint64(out))
		if s.Misfits[i]++; s.Left[i] < 0 {
			s.Left[i] = e.Index
		}
	}
	if list && len(s.Listed) < maxListed {
		s.Listed = append(s.Listed, newMisfit(e, code, m))
	}
}

func (j *judge) note(e *ima.Entry, code Code, m mask) {
	if s := &j.state; len(s.Notes) < maxNotes {
		s.Notes = append(s.Notes, newMisfit(e, code, m))
	}
}

func newMisfit(e *ima.Entry, code Code, m mask) misfit {
	return misfit{
		Code: code, Entry: e.Index, Path: bytes.Clone(e.Path[:min(len(e.Path), maxShown)]),
		Hash: e.File.Hash, Verity: e.File.Verity, Sum: bytes.Clone(e.File.Sum), Releases: m,
	}
}

// nearest is the release with the fewest misfits; of several the one that fitted longest.
func (s *state) nearest() int {
	best := 0
	for i := range s.Misfits {
		if s.Misfits[i] < s.Misfits[best] || s.Misfits[i] == s.Misfits[best] && s.Left[i] > s.Left[best] {
			best = i
		}
	}
	return best
}
