package policy

import (
	"slices"
	"strings"
)

// Process is who does something: the ids that conditions look at.
type Process struct{ UID, EUID, GID, EGID uint32 }

// Event is one call of a hook.
type Event struct {
	Func Func
	Mask Mask // what is done with the file
	Process
	FS             Filesystem // that the file is on
	FOwner, FGroup uint32     // owner of the file
	Object         string     // security label of the file, user:role:type; empty if not known
	Data           string     // the keyring of KEY_CHECK, the label of CRITICAL_DATA
}

// Demands are what a file must have to pass. The kernel merges those of all rules that
// decide on an event, whatever their action.
type Demands struct {
	Imasig, Modsig, SigV3, Verity bool
	DirectIO                      bool   // an open with O_DIRECT passes anyway
	algos                         uint32 // of security.ima; 0 for any
}

// Decision is what a policy says of an event.
type Decision struct {
	// The rule of each class that decides. It may be one that says dont; nil is for no rule.
	Measure, Appraise, Audit, Hash *Rule
	Demands
	// Unsure are rules that would decide if the process, or the file, had the security
	// label that they ask for.
	Unsure []*Rule
}

// Measured says whether the event leaves an entry in the measurement list.
func (d *Decision) Measured() bool { return d.Measure != nil && !d.Measure.Action.dont() }

// Appraised says whether the file must have a good label.
func (d *Decision) Appraised() bool { return d.Appraise != nil && !d.Appraise.Action.dont() }

// mayAppraise says whether the file must have a good label, at least with the security
// labels that a rule asks for.
func (d *Decision) mayAppraise() bool {
	return d.Appraised() || slices.ContainsFunc(d.Unsure, func(r *Rule) bool { return r.Action == Appraise })
}

// of is the place for the rule of a class.
func (d *Decision) of(class Action) **Rule {
	switch class {
	case Measure:
		return &d.Measure
	case Appraise:
		return &d.Appraise
	case Audit:
		return &d.Audit
	default:
		return &d.Hash
	}
}

// Decide is ima_match_policy: the first rule of each class that matches decides.
func Decide(rules []*Rule, e *Event, kernel Version) Decision {
	var d Decision
	active := activeClasses(rules)
	for _, r := range rules {
		class := r.Action.class()
		place := d.of(class)
		if *place != nil || !active[class] {
			continue
		}
		switch r.match(e, kernel) {
		case no:
			continue
		case maybe:
			d.Unsure = append(d.Unsure, r)
			continue
		}
		*place = r
		d.Imasig = d.Imasig || r.Imasig
		d.Modsig = d.Modsig || r.Modsig
		d.SigV3 = d.SigV3 || r.SigV3
		d.Verity = d.Verity || r.Verity
		d.DirectIO = d.DirectIO || r.DirectIO
		if r.Algos != nil {
			d.algos = algoSet(r.Algos)
		}
	}
	return d
}

// activeClasses are those that have a rule which does something (ima_policy_flag).
func activeClasses(rules []*Rule) map[Action]bool {
	active := map[Action]bool{}
	for _, r := range rules {
		if !r.Action.dont() && r.Func != SetxattrCheck {
			active[r.Action.class()] = true
		}
	}
	return active
}

// answer is whether a rule matches.
type answer int8

const (
	no answer = iota
	maybe
	yes
)

// match is ima_match_rules.
func (r *Rule) match(e *Event, kernel Version) answer {
	if !r.reaches(e.Func, e.Mask, kernel) {
		return no
	}
	if alone(e.Func, kernel) {
		return r.matchData(e)
	}
	for _, met := range []bool{
		r.FSMagic == nil || *r.FSMagic == e.FS.Magic,
		r.FSName == "" || r.FSName == e.FS.Name,
		r.Subtype == "" || r.Subtype == e.FS.Subtype,
		r.FSUUID == nil || e.FS.hasUUID(*r.FSUUID),
		r.UID.holds(e.UID),
		// The saved id, which counts for a process that may change its ids, is taken for
		// one of the others.
		r.EUID.holds(e.EUID) || e.EUID == 0 && r.EUID.holds(e.UID),
		r.GID.holds(e.GID),
		r.EGID.holds(e.EGID) || e.EUID == 0 && r.EGID.holds(e.GID),
		r.FOwner.holds(e.FOwner),
		r.FGroup.holds(e.FGroup),
	} {
		if !met {
			return no
		}
	}
	return r.LSM.match(e.Object)
}

// matchData is ima_match_rule_data: of all conditions it looks at the user and at the
// list, and before Linux 5.9 at none for the command line of kexec.
func (r *Rule) matchData(e *Event) answer {
	list := r.Keyrings
	switch r.Func {
	case CriticalData:
		list = r.Labels
	case KexecCmdline:
		return yes
	}
	if r.UID.holds(e.UID) && (list == nil || slices.Contains(list, e.Data)) {
		return yes
	}
	return no
}

// match compares with the label of a file. Of the process nothing is known.
func (l LSM) match(object string) answer {
	if l == (LSM{}) {
		return yes
	}
	is := yes
	parts := strings.SplitN(object, ":", 4)
	for i, want := range []string{l.ObjUser, l.ObjRole, l.ObjType} {
		switch {
		case want == "":
		case len(parts) < 3:
			is = maybe
		case parts[i] != want:
			return no
		}
	}
	if l.SubjUser+l.SubjRole+l.SubjType != "" {
		return maybe
	}
	return is
}

// alone says whether only rules that name the hook apply to it, and their other
// conditions are not looked at.
func alone(f Func, kernel Version) bool {
	return f == KeyCheck || f == CriticalData || f == KexecCmdline && kernel.Before(validateSince)
}

// reaches says whether func= and mask= let a rule match.
func (r *Rule) reaches(f Func, m Mask, kernel Version) bool {
	if alone(f, kernel) {
		return r.Func == f
	}
	return (r.Func == AnyFunc || r.Func == f) &&
		(r.Mask == 0 || r.MaskIn && r.Mask&m != 0 || !r.MaskIn && r.Mask == m)
}

// ignored are the conditions of r that the kernel takes and does not look at.
func (r *Rule) ignored(kernel Version) part {
	switch {
	case r.Func == SetxattrCheck:
		return r.parts() & partLSM
	case !alone(r.Func, kernel):
		return 0
	case r.Func == KexecCmdline:
		return r.parts() &^ partPCR
	default:
		return r.parts() &^ (partUID | partPCR | partKeyrings | partLabels)
	}
}
