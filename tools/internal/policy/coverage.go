package policy

import (
	"fmt"
	"slices"
	"strings"
)

// where looks at the filesystems that a rule is for.
func (c *checker) where(r *Rule) {
	if r.FSUUID == nil {
		return
	}
	kinds, limited := r.kinds()
	switch {
	case *r.FSUUID == (UUID{}):
		c.add(SeverityWarning, CodeFSUUID, r, "fsuuid", "this matches every filesystem that has no UUID")
	case limited && none(kinds, hasUUID):
		c.add(SeverityError, CodeNever, r, "fsuuid", "%s has no UUID: the rule matches nothing", kinds[0].Name)
	case c.FS == nil:
		c.add(SeverityWarning, CodeFSUUID, r, "fsuuid",
			"this matches nothing on squashfs, overlayfs or tmpfs, nor when the image is made with another UUID: %s", whenMissed(r))
	case !c.FS.AnyUUID && c.FS.UUID == (UUID{}):
		c.add(SeverityError, CodeFSUUID, r, "fsuuid", "%s has no UUID: the rule matches nothing there, and %s", c.FS.Name, whenMissed(r))
	default:
		c.add(SeverityWarning, CodeFSUUID, r, "fsuuid", "the filesystem must be made with this UUID: with another one %s", whenMissed(r))
	}
}

// whenMissed is what happens to files that a rule does not match.
func whenMissed(r *Rule) string {
	switch {
	case r.Action.dont():
		return "the exception does not hold"
	case r.Action == Appraise:
		return "unsigned files run"
	default:
		return "nothing is recorded"
	}
}

// appraises looks at one rule that appraises.
func (c *checker) appraises(r *Rule) {
	kinds, limited := r.kinds()
	on := ""
	if limited && len(kinds) > 0 {
		on = kinds[0].Name
	}
	if c.FS != nil && (!limited || slices.ContainsFunc(kinds, func(f Filesystem) bool { return f.Name == c.FS.Name && f.Magic == c.FS.Magic })) {
		kinds, limited, on = []Filesystem{{Name: c.FS.Name, Magic: c.FS.Magic}}, true, c.FS.Name
	}
	if limited && none(kinds, hasXattr) {
		c.add(SeverityError, CodeNoLabel, r, string(r.Action), "files on %s cannot have a label: the kernel refuses every one that this rule matches", on)
	}
	if r.Verity {
		switch {
		case limited && none(kinds, hasVerity):
			c.add(SeverityError, CodeNoVerity, r, "digest_type", "%s has no fs-verity: the kernel refuses every file that this rule matches", on)
		case !limited && r.FSUUID == nil:
			c.add(SeverityWarning, CodeNoVerity, r, "digest_type", "files without fs-verity are refused, on every filesystem: fsmagic= or fgroup= can limit the rule")
		}
	}
	if !r.Imasig {
		c.add(SeverityWarning, CodeHash, r, string(r.Action),
			"a digest will do: whoever can write the file or its disk can write that, unless EVM is on. appraise_type=imasig demands a signature")
	}
	for _, o := range c.rules {
		if o.Verity && !r.Verity && o.Action != Appraise && o.overlaps(r, c.Kernel) && !c.decidedBefore(r, o) {
			c.add(SeverityError, CodeMerged, r, string(r.Action),
				"digest_type=verity of line %d counts for this rule, too: the kernel refuses files that are not signed for fs-verity", o.Line)
			break
		}
	}
}

// decidedBefore says whether a rule before r decides on the appraisal of all that o matches.
func (c *checker) decidedBefore(r, o *Rule) bool {
	return slices.ContainsFunc(c.rules, func(e *Rule) bool {
		return e.Action.class() == Appraise && e.Line < r.Line && e.covers(o, c.Kernel)
	})
}

// whole looks at the policy as a whole.
func (c *checker) whole() {
	if !slices.ContainsFunc(c.rules, func(r *Rule) bool { return !r.Action.dont() }) {
		c.add(SeverityWarning, CodeNoRule, nil, "", "every rule says dont: the policy does nothing")
		return
	}
	c.applies()
	if m := c.first(Measure, BprmCheck, MayExec); m != nil {
		c.measuresTmpfs()
	}
	if c.any(Appraise) {
		c.appraisesAll()
	}
}

// any says whether a rule has the action.
func (c *checker) any(a Action) bool {
	return slices.ContainsFunc(c.rules, func(r *Rule) bool { return r.Action == a && r.Func != SetxattrCheck })
}

// first returns the first rule with the action that can match a call of the hook.
func (c *checker) first(a Action, hook Func, m Mask) *Rule {
	i := slices.IndexFunc(c.rules, func(r *Rule) bool { return r.Action == a && r.reaches(hook, m, c.Kernel) })
	if i < 0 {
		return nil
	}
	return c.rules[i]
}

// applies looks whether the policy says anything about the filesystem in question.
func (c *checker) applies() {
	if c.FS == nil {
		return
	}
	var applies, appraises bool
	for _, call := range calls {
		d := c.rootReads(*c.FS, call.hook, call.mask)
		applies = applies || d.Measured() || d.Appraised() || d.Audit != nil || d.Hash != nil || len(d.Unsure) > 0
		appraises = appraises || d.mayAppraise()
	}
	switch {
	case !applies:
		c.add(SeverityError, CodeNoRule, nil, "", "nothing that root does with its files on %s is measured or appraised", c.FS.Name)
	case !appraises && c.any(Appraise):
		c.add(SeverityError, CodeNoRule, nil, "", "nothing that root does with its files on %s is appraised: unsigned files run", c.FS.Name)
	}
}

// appraisesAll looks at what a policy that appraises leaves out, and at what it should.
func (c *checker) appraisesAll() {
	bprm := c.first(Appraise, BprmCheck, MayExec)
	if bprm != nil {
		c.everyProgram(bprm)
		if !c.rootNeeds(bprm, FileCheck, MayRead) {
			c.add(SeverityWarning, CodeScripts, bprm, string(Appraise),
				"what an interpreter reads is not executed: sourced scripts, sh FILE, python FILE run unsigned unless a rule appraises FILE_CHECK")
		}
		if !c.rootNeeds(bprm, MmapCheck, MayExec) && !c.rootNeeds(bprm, MmapCheckReqprot, MayExec) {
			c.add(SeverityWarning, CodeLibraries, bprm, string(Appraise), "root loads shared libraries unsigned unless a rule appraises MMAP_CHECK")
		}
		c.otherHooks(bprm)
		c.appraisesTmpfs(bprm)
	}
	if !c.policySigned() {
		c.add(SeverityWarning, CodePolicy, nil, "",
			"no rule demands that policies are signed (appraise func=POLICY_CHECK appraise_type=imasig): a kernel with CONFIG_IMA_WRITE_POLICY lets root append unsigned rules")
	}
	c.kernelFilesystems()
}

// place is where holes beside r are looked for: on the filesystem in question, or on one
// that r is for.
func (c *checker) place(r *Rule) Filesystem {
	if c.FS != nil {
		return *c.FS
	}
	fs := Filesystem{Name: "ext4", Magic: 0xef53}
	if kinds, limited := r.kinds(); limited {
		fs = Filesystem{Name: r.FSName}
		if len(kinds) > 0 {
			fs = kinds[0]
		} else if r.FSMagic != nil {
			fs.Magic = *r.FSMagic
		}
	}
	fs.Subtype = r.Subtype
	if r.FSUUID != nil {
		fs.UUID = *r.FSUUID
	}
	return fs
}

// rootNeeds says whether a file of root, which root uses where r is for, must have a label.
func (c *checker) rootNeeds(r *Rule, hook Func, m Mask) bool {
	d := c.rootReads(c.place(r), hook, m)
	return d.mayAppraise()
}

// someUser stands for every user but root.
const someUser = 1000

// everyProgram looks whether who runs a program, or who owns it, lets it run unsigned.
func (c *checker) everyProgram(bprm *Rule) {
	user := Process{UID: someUser, EUID: someUser, GID: someUser, EGID: someUser}
	for _, gap := range []struct {
		process Process
		owner   uint32
		whose   string
	}{
		{Process{}, 0, "root runs programs of its own"},
		{Process{}, someUser, "root runs programs that other users own"},
		{user, 0, "other users run programs that root owns"},
		{user, someUser, "other users run programs of their own"},
	} {
		e := Event{Func: BprmCheck, Mask: MayExec, Process: gap.process, FS: c.place(bprm), FOwner: gap.owner, FGroup: gap.owner}
		if d := Decide(c.rules, &e, c.Kernel); !d.mayAppraise() {
			c.add(SeverityWarning, CodePrograms, bprm, string(Appraise), "%s unsigned: no rule appraises BPRM_CHECK for them", gap.whose)
			return
		}
	}
}

// policySigned says whether root can load a signed policy only.
func (c *checker) policySigned() bool {
	p := c.first(Appraise, PolicyCheck, MayRead)
	if p == nil {
		return false
	}
	d := c.rootReads(c.place(p), PolicyCheck, MayRead)
	return d.Appraised() && d.Imasig
}

// otherHooks names the ways for code into the kernel that are not appraised.
func (c *checker) otherHooks(bprm *Rule) {
	var missing []string
	for _, hook := range []Func{ModuleCheck, FirmwareCheck, KexecKernelCheck} {
		if !c.rootNeeds(bprm, hook, MayRead) {
			missing = append(missing, string(hook))
		}
	}
	if missing != nil {
		c.add(SeverityWarning, CodeHooks, bprm, string(Appraise), "no rule appraises %s for root", strings.Join(missing, ", "))
	}
}

// rootReads is what a policy says of root's reading a file of its own on a filesystem.
func (c *checker) rootReads(fs Filesystem, hook Func, m Mask) Decision {
	return Decide(c.rules, &Event{Func: hook, Mask: m, FS: fs}, c.Kernel)
}

// kernelFilesystems looks for files without which no system starts and which cannot have a label.
func (c *checker) kernelFilesystems() {
	refused := map[*Rule][]string{}
	for _, k := range filesystems {
		if k.traits&isKernel == 0 {
			continue
		}
		if d := c.rootReads(Filesystem{Name: k.name, Magic: k.magic}, FileCheck, MayRead); d.Appraised() {
			refused[d.Appraise] = append(refused[d.Appraise], fmt.Sprintf("%s (fsmagic=0x%x)", k.name, k.magic))
		}
	}
	for _, r := range c.rules {
		names := refused[r]
		if names == nil {
			continue
		}
		severity := SeverityWarning
		if slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "proc ") || strings.HasPrefix(n, "sysfs ") }) {
			severity = SeverityError
		}
		c.add(severity, CodeKernelFS, r, string(Appraise), "it also refuses the files of %s, which have no labels: dont_appraise them before it", strings.Join(names, ", "))
	}
}

// memory are the filesystems that an initramfs, /run, /tmp and memfd_create are on.
func memory() []Filesystem {
	return []Filesystem{{Name: "tmpfs", Magic: 0x01021994}, {Name: "rootfs", Magic: 0x01021994}, {Name: "rootfs", Magic: 0x858458f6}}
}

// appraisesTmpfs looks at programs in memory, which either run unsigned or not at all.
func (c *checker) appraisesTmpfs(bprm *Rule) {
	var refused bool
	for _, fs := range memory() {
		d := c.rootReads(fs, BprmCheck, MayExec)
		refused = refused || d.Appraised()
		if fs.Name == "tmpfs" && !d.Appraised() {
			r := bprm
			if d.Appraise != nil {
				r = d.Appraise
			}
			c.add(SeverityWarning, CodeTmpfs, r, string(r.Action), "programs on tmpfs run unsigned: mount /tmp, /run and /dev/shm noexec")
			return
		}
	}
	if refused {
		c.add(SeverityWarning, CodeTmpfs, bprm, string(Appraise),
			"an initramfs has no labels: load the policy as its last step, or from the root filesystem. Programs on tmpfs and in memory (memfd_create) do not run")
	}
}

// measuresTmpfs looks for programs in memory that leave no trace.
func (c *checker) measuresTmpfs() {
	d := c.rootReads(memory()[0], BprmCheck, MayExec)
	if d.Measure == nil || d.Measured() {
		return
	}
	if _, limited := d.Measure.kinds(); limited {
		c.add(SeverityWarning, CodeMemfd, d.Measure, string(DontMeasure),
			"programs on tmpfs and in memory (memfd_create) run unmeasured: func=FILE_CHECK leaves only reading out")
	}
}
