package appraise

import (
	"slices"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// Part judges evidence by itself, for who explains a verdict afterwards, with other
// releases than those that judged what came before: a device that is polled sends what is
// new, and the rest is not there any more. The verdict
// names what does not fit. It is at best [Unverified], with [CodeNeedWhole], unless the
// evidence begins at the first entry: then it is that of [Appraise].
func Part(c *evidence.Claims, ref *Reference) Verdict {
	if c == nil || c.AK() == nil || ref == nil || len(ref.names) == 0 || c.First() == 0 {
		v, _, _ := Appraise(c, ref, State{}) // ErrNeedWhole cannot be: the list is whole
		return v
	}
	s := newState(ref, c)
	s.Next = c.First()
	j := judge{ref: ref, claims: c, state: s}
	err := j.list()
	v := j.verdict()
	if err != nil {
		v.refuse(Reason{Code: CodeList, Seen: err.Error(), Advice: "this is a fault of the verifier: report it"})
	}
	// What the rest of the list or an earlier quote may have shown is not held against it.
	v.Reasons = slices.DeleteFunc(v.Reasons, func(r Reason) bool {
		return r.Code == CodeNothing || r.Code == CodeRequired || r.Code == CodeNoFirmwareLog
	})
	v.doubt(Reason{Code: CodeNeedWhole, Advice: "the entries before these were judged earlier, by other releases than the given ones, and are not in this evidence"})
	return v
}
