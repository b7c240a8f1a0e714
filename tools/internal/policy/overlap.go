package policy

import (
	"math"
	"slices"
)

// call is one way in which a hook is called: which kinds of access it is told of.
type call struct {
	hook  Func
	mask  Mask
	since Version
}

// calls are all of them: the callers of process_measurement and of
// process_buffer_measurement in ima_main.c. A file is opened for reading, writing or
// both, with or without O_APPEND, or to be executed.
var calls = []call{
	{FileCheck, MayExec, Version{}},
	{FileCheck, MayRead, Version{}},
	{FileCheck, MayWrite, Version{}},
	{FileCheck, MayRead | MayWrite, Version{}},
	{FileCheck, MayRead | MayAppend, Version{}},
	{FileCheck, MayWrite | MayAppend, Version{}},
	{FileCheck, MayRead | MayWrite | MayAppend, Version{}},
	{MmapCheck, MayExec, Version{}},
	{MmapCheckReqprot, MayExec, Version{6, 3}},
	{BprmCheck, MayExec, Version{}},
	{CredsCheck, MayExec, Version{4, 17}},
	{ModuleCheck, MayRead, Version{}},
	{FirmwareCheck, MayRead, Version{}},
	{KexecKernelCheck, MayRead, Version{4, 6}},
	{KexecInitramfsCheck, MayRead, Version{4, 6}},
	{PolicyCheck, MayRead, Version{4, 6}},
	{KexecCmdline, 0, Version{5, 3}},
	{KeyCheck, 0, Version{5, 6}},
	{CriticalData, 0, Version{5, 12}},
}

// reach is the set of calls that r can match, a bit for each.
func (r *Rule) reach(kernel Version) uint32 {
	var set uint32
	for i, c := range calls {
		if !kernel.Before(c.since) && r.reaches(c.hook, c.mask, kernel) {
			set |= 1 << i
		}
	}
	return set
}

// covers says whether every event that b matches is matched by a, too. It may say no
// although it is so.
func (a *Rule) covers(b *Rule, kernel Version) bool {
	ra, rb := a.reach(kernel), b.reach(kernel)
	if rb == 0 || rb&^ra != 0 {
		return false
	}
	for i, c := range a.ids() {
		if !contains(c.id, b.ids()[i].id) {
			return false
		}
	}
	for i, c := range a.LSM.fields() {
		if c.value != "" && c.value != b.LSM.fields()[i].value {
			return false
		}
	}
	return a.coversFS(b) && coversList(a.Keyrings, b.Keyrings) && coversList(a.Labels, b.Labels)
}

// coversFS is covers for the conditions on the filesystem.
func (a *Rule) coversFS(b *Rule) bool {
	if a.Subtype != "" && a.Subtype != b.Subtype || a.FSUUID != nil && (b.FSUUID == nil || *a.FSUUID != *b.FSUUID) {
		return false
	}
	if (a.FSName == "" || a.FSName == b.FSName) && (a.FSMagic == nil || b.FSMagic != nil && *a.FSMagic == *b.FSMagic) {
		return true
	}
	// fsname=proc and fsmagic=0x9fa0 are the same files.
	kinds, limited := b.kinds()
	return limited && len(kinds) > 0 && !slices.ContainsFunc(kinds, func(f Filesystem) bool {
		return a.FSName != "" && a.FSName != f.Name || a.FSMagic != nil && *a.FSMagic != f.Magic
	})
}

// coversList is covers for a list of which one must be met.
func coversList(a, b []string) bool {
	return a == nil || b != nil && !slices.ContainsFunc(b, func(s string) bool { return !slices.Contains(a, s) })
}

// overlaps says whether there may be an event that both match.
func (a *Rule) overlaps(b *Rule, kernel Version) bool {
	if a.reach(kernel)&b.reach(kernel) == 0 {
		return false
	}
	for i, c := range a.ids() {
		// A process can have more than one effective id that counts.
		if c.name != "euid" && c.name != "egid" && disjoint(c.id, b.ids()[i].id) {
			return false
		}
	}
	for i, c := range a.LSM.fields() {
		if other := b.LSM.fields()[i].value; c.value != "" && other != "" && c.value != other {
			return false
		}
	}
	if a.FSUUID != nil && b.FSUUID != nil && *a.FSUUID != *b.FSUUID || a.Subtype != "" && b.Subtype != "" && a.Subtype != b.Subtype {
		return false
	}
	return a.overlapsFS(b) && overlapsList(a.Keyrings, b.Keyrings) && overlapsList(a.Labels, b.Labels)
}

// overlapsFS is overlaps for the name and the magic number of the filesystem.
func (a *Rule) overlapsFS(b *Rule) bool {
	if a.FSName != "" && b.FSName != "" && a.FSName != b.FSName || a.FSMagic != nil && b.FSMagic != nil && *a.FSMagic != *b.FSMagic {
		return false
	}
	ka, la := a.kinds()
	kb, lb := b.kinds()
	if !la || !lb || len(ka) == 0 || len(kb) == 0 {
		return true
	}
	return slices.ContainsFunc(ka, func(f Filesystem) bool { return slices.Contains(kb, f) })
}

// overlapsList is overlaps for a list of which one must be met.
func overlapsList(a, b []string) bool {
	return a == nil || b == nil || slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

// maxID is the largest id that a user or group can have.
const maxID = math.MaxUint32 - 1

// interval is the range of ids that meet c; low > high for none.
func (c *ID) interval() (low, high int64) {
	switch {
	case c == nil:
		return 0, maxID
	case c.Op == '<':
		return 0, int64(c.N) - 1
	case c.Op == '>':
		return int64(c.N) + 1, maxID
	default:
		return int64(c.N), int64(c.N)
	}
}

// contains says whether every id that meets b meets a.
func contains(a, b *ID) bool {
	if a == nil {
		return true
	}
	if b == nil {
		return false
	}
	lowA, highA := a.interval()
	lowB, highB := b.interval()
	return lowB > highB || lowA <= lowB && highB <= highA
}

// disjoint says whether no id meets both.
func disjoint(a, b *ID) bool {
	lowA, highA := a.interval()
	lowB, highB := b.interval()
	return max(lowA, lowB) > min(highA, highB)
}
