package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Severity says what a finding is worth.
type Severity string

// Severities. An error is a policy that the kernel refuses, a rule that never does what
// it says, or one that stops every system. A warning is what depends on the system, or
// what a rule does not protect although it looks as if it did.
const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
)

// Code names a kind of finding.
type Code string

// Kinds of finding.
const (
	CodeRefused      Code = "refused"            // no kernel takes it
	CodeTooNew       Code = "too-new"            // this kernel does not take it, a later one does
	CodeConfig       Code = "config"             // a kernel takes it only if it is configured so
	CodeKernel       Code = "kernel"             // the kernel is newer than this package
	CodeUnterminated Code = "unterminated"       // no newline at the end
	CodeLongLine     Code = "long-line"          // longer than a page
	CodeShadowed     Code = "shadowed"           // an earlier rule decides, and differently
	CodeRedundant    Code = "redundant"          // an earlier rule decides, and as this one would
	CodeNever        Code = "never-matches"      // a condition that nothing meets
	CodeIgnored      Code = "ignored"            // a condition that is not looked at
	CodeMerged       Code = "merged"             // an option also counts for rules of other actions
	CodeFSUUID       Code = "fsuuid"             // the condition that fails open
	CodeUnknownFS    Code = "unknown-filesystem" // no such filesystem is known
	CodeNoRule       Code = "no-rule"            // nothing applies to the filesystem in question
	CodeNoLabel      Code = "no-label"           // appraised files cannot have a label
	CodeNoVerity     Code = "no-verity"          // files cannot have an fs-verity digest
	CodeKernelFS     Code = "kernel-filesystem"  // appraises what the kernel makes and nobody can sign
	CodeTmpfs        Code = "tmpfs"              // what is in memory runs unsigned, or not at all
	CodeHash         Code = "hash-accepted"      // a digest will do, which everybody can write
	CodeWeakHash     Code = "weak-hash"          // a hash with known collisions will do
	CodePrograms     Code = "programs"           // those of some users or owners are not appraised
	CodeScripts      Code = "scripts"            // sourced scripts are not appraised
	CodeLibraries    Code = "libraries"          // shared libraries are not appraised
	CodeHooks        Code = "hooks"              // modules, firmware or kernels are not appraised
	CodePolicy       Code = "policy-not-signed"  // more rules can be added unsigned
	CodeDirectIO     Code = "directio"           // O_DIRECT passes
	CodeExactMask    Code = "exact-mask"         // misses what opens for reading and writing
	CodeLosesLabels  Code = "loses-labels"       // chmod removes security.ima
	CodeMemfd        Code = "tmpfs-not-measured" // programs in memory are not measured
)

// Finding is something that a policy gets wrong.
type Finding struct {
	Severity     Severity
	Code         Code
	Line, Column int    // from 1; 0 when it is about no line
	Token        string // the word it is about, if it is about one
	Message      string
}

// Options say what a policy is checked for.
type Options struct {
	Kernel Version
	FS     *Filesystem // on which the files in question are; nil if that is not known
	// Config tells whether the kernel was built with an option, such as
	// "CONFIG_IMA_LSM_RULES"; nil if that is not known.
	Config func(option string) bool
}

// Check finds what is wrong with a policy. The findings are in the order of the lines;
// those of the policy as a whole come last.
func Check(text []byte, o Options) []Finding {
	p, errs := parse(text, o.Kernel)
	c := &checker{Options: o}
	for _, e := range errs {
		code := CodeRefused
		if e.Since != (Version{}) {
			code = CodeTooNew
		}
		c.findings = append(c.findings, Finding{SeverityError, code, e.Line, e.Column, e.Token, e.Reason})
	}
	if p == nil {
		return c.findings
	}
	c.rules = p.Rules()
	c.text(p)
	for i, r := range c.rules {
		c.rule(r)
		c.against(r, c.rules[:i])
	}
	// What a policy with refused lines does as a whole is not known.
	if len(errs) == 0 {
		c.whole()
	}
	slices.SortStableFunc(c.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(order(a), order(b)), cmp.Compare(a.Column, b.Column))
	})
	return c.findings
}

// order puts the findings without a line last.
func order(f Finding) int {
	if f.Line == 0 {
		return MaxSize + 1
	}
	return f.Line
}

// checker collects findings.
type checker struct {
	Options
	rules    []*Rule
	options  []string // of the kernel, that were spoken of
	findings []Finding
}

func (c *checker) add(s Severity, code Code, r *Rule, name, format string, args ...any) {
	f := Finding{Severity: s, Code: code, Message: fmt.Sprintf(format, args...)}
	if r != nil {
		f.Line = r.Line
		w := r.blame(name)
		f.Column, f.Token = w.column, w.text
	}
	c.findings = append(c.findings, f)
}

// pageSize is that of most machines; others have larger ones.
const pageSize = 4096

// text looks at what is not in the rules.
func (c *checker) text(p *Policy) {
	for i, l := range p.Lines {
		if len(l.Text) >= pageSize {
			c.findings = append(c.findings, Finding{SeverityWarning, CodeLongLine, i + 1, 0, "",
				fmt.Sprintf("the line has %d bytes: a kernel that gets the policy as text, not by its path, cuts it after %d", len(l.Text), pageSize-1)})
		}
	}
	if p.Unterminated {
		c.findings = append(c.findings, Finding{SeverityError, CodeUnterminated, len(p.Lines), 0, "",
			"the last line does not end in a newline: a kernel that is given the path refuses the policy"})
	}
	if Newest.Before(c.Kernel) {
		c.add(SeverityWarning, CodeKernel, nil, "", "Linux %v is newer than what is known here: checked as for %v", c.Kernel, Newest)
	}
}

// rule looks at one rule by itself.
func (c *checker) rule(r *Rule) {
	c.reachable(r)
	c.words(r)
	c.config(r)
	c.where(r)
	if r.Action == Appraise && r.Func != SetxattrCheck {
		c.appraises(r)
	}
	if r.Algos != nil {
		for _, a := range r.Algos {
			if a.Weak() {
				c.add(SeverityWarning, CodeWeakHash, r, "appraise_algos", "collisions can be made for %v", a)
			}
		}
	}
	if r.Action == DontAppraise && (r.Func != AnyFunc || r.Mask != 0) && c.Kernel.Before(portableSince) {
		c.add(SeverityError, CodeLosesLabels, r, "func",
			"before Linux %v, chmod, chown and touch remove security.ima of files that a dont_appraise rule matches, and func= and mask= do not count there", portableSince)
	}
}

// reachable looks for conditions that nothing meets.
func (c *checker) reachable(r *Rule) {
	if r.Func != SetxattrCheck && r.reach(c.Kernel) == 0 {
		c.add(SeverityError, CodeNever, r, "mask", "%s", r.whyNever())
	}
	for _, cond := range r.ids() {
		if low, high := cond.id.interval(); low > high {
			c.add(SeverityError, CodeNever, r, cond.name, "there is no such id")
		}
	}
	if kinds, limited := r.kinds(); limited && len(kinds) == 0 {
		name, magic := r.knownFS()
		if name && magic {
			c.add(SeverityError, CodeNever, r, "fsmagic", "no filesystem has both this number and %s", r.find("fsname").text)
		}
		if !name {
			c.add(SeverityWarning, CodeUnknownFS, r, "fsname", "no filesystem of this name is known")
		}
		if !magic {
			c.add(SeverityWarning, CodeUnknownFS, r, "fsmagic", "no filesystem with this number is known")
		}
	}
	if r.Subtype != "" {
		if kinds, limited := r.kinds(); limited && !slices.ContainsFunc(kinds, func(f Filesystem) bool { return strings.HasPrefix(f.Name, "fuse") }) {
			c.add(SeverityError, CodeNever, r, "fs_subtype", "only FUSE filesystems have a subtype")
		}
	}
	for _, w := range r.words {
		if strings.HasSuffix(w.text, "\r") {
			c.findings = append(c.findings, Finding{SeverityError, CodeNever, r.Line, w.column, w.text,
				"the line ends in a carriage return, which the kernel takes for a part of the value"})
		}
	}
}

// whyNever says why a rule can match no call of its hook.
func (r *Rule) whyNever() string {
	switch {
	case r.Mask == MayAppend && !r.MaskIn:
		return "a file is opened for reading or writing as well as appending: mask=^MAY_APPEND"
	case r.Func == FileCheck || r.Func == AnyFunc:
		return "no file is opened for that"
	case r.Func == BprmCheck || r.Func == CredsCheck || r.Func == MmapCheck || r.Func == MmapCheckReqprot:
		return "this hook is called with MAY_EXEC only"
	default:
		return "this hook is called with MAY_READ only"
	}
}

// words looks at options that do something else than it looks like.
func (c *checker) words(r *Rule) {
	if ignored := r.ignored(c.Kernel); ignored != 0 {
		for bit, name := range partNames {
			if ignored&(1<<bit) != 0 {
				c.add(SeverityWarning, CodeIgnored, r, name, "the kernel does not look at it for %s", r.Func)
			}
		}
	}
	if w := r.find("fsuuid"); len(w.text) > len("fsuuid=")+uuidLen {
		c.add(SeverityWarning, CodeIgnored, r, "fsuuid", "the kernel does not look at what follows the UUID")
	}
	if w := r.find("appraise_flag"); w.text != "" && !c.Kernel.Before(blacklistSince) {
		c.add(SeverityWarning, CodeIgnored, r, "appraise_flag", "from Linux %v the blacklist is always looked at", blacklistSince)
	}
	if r.Mask != 0 && !r.MaskIn && r.Mask != MayExec && !r.Action.dont() && r.reach(c.Kernel) != 0 && (r.Func == FileCheck || r.Func == AnyFunc) {
		c.add(SeverityWarning, CodeExactMask, r, "mask", "files that are opened for reading and writing at once are not matched: mask=^ does that")
	}
	if r.DirectIO && slices.ContainsFunc(c.rules, func(o *Rule) bool { return o.Action == Appraise && o.overlaps(r, c.Kernel) }) {
		c.add(SeverityWarning, CodeDirectIO, r, "permit_directio", "a file that is opened with O_DIRECT is not refused, whatever its label")
	}
}

// config looks for what the kernel must have been built with, and says it once.
func (c *checker) config(r *Rule) {
	need := func(option, name, what string) {
		if option == "" || slices.Contains(c.options, option) {
			return
		}
		c.options = append(c.options, option)
		switch {
		case c.Config == nil:
			c.add(SeverityWarning, CodeConfig, r, name, "%s without %s", what, option)
		case !c.Config(option):
			c.add(SeverityError, CodeConfig, r, name, "%s: the kernel has no %s", what, option)
		}
	}
	const refused = "a kernel refuses the policy"
	for _, w := range r.words {
		name, value, _ := strings.Cut(w.text, "=")
		need(conditions[name].config, name, refused)
		if name == "func" {
			need(funcs[value].config, name, refused)
		}
	}
	if r.Modsig {
		need(configModsig, "appraise_type", refused)
	}
	for _, a := range r.Algos {
		need(algoConfigs[a.String()], "appraise_algos", refused)
	}
	if c.Config == nil { // every kernel that is meant to appraise has what follows
		return
	}
	if r.Action == Appraise {
		need("CONFIG_IMA_APPRAISE", "appraise", "the rule does nothing")
	}
	if r.Verity {
		need("CONFIG_FS_VERITY", "digest_type", "no file has such a digest")
	}
}

// algoConfigs are the options for the hash algorithms that are not in every kernel with IMA.
var algoConfigs = map[string]string{
	"md4": "CONFIG_CRYPTO_MD4", "rmd160": "CONFIG_CRYPTO_RMD160", "sha384": "CONFIG_CRYPTO_SHA512", "sha512": "CONFIG_CRYPTO_SHA512",
	"wp256": "CONFIG_CRYPTO_WP512", "wp384": "CONFIG_CRYPTO_WP512", "wp512": "CONFIG_CRYPTO_WP512",
	"sm3": "CONFIG_CRYPTO_SM3", "streebog256": "CONFIG_CRYPTO_STREEBOG", "streebog512": "CONFIG_CRYPTO_STREEBOG",
	"sha3-256": "CONFIG_CRYPTO_SHA3", "sha3-384": "CONFIG_CRYPTO_SHA3", "sha3-512": "CONFIG_CRYPTO_SHA3",
}

// against compares a rule with those before it: the first that matches decides.
func (c *checker) against(r *Rule, earlier []*Rule) {
	for _, e := range earlier {
		if e.Action.class() != r.Action.class() {
			continue
		}
		if e.Func == SetxattrCheck || r.Func == SetxattrCheck {
			if e.Func == r.Func {
				c.add(SeverityError, CodeShadowed, r, "func", "of several rules for this hook the first counts, line %d", e.Line)
				return
			}
			continue
		}
		if !e.covers(r, c.Kernel) {
			continue
		}
		if e.sameEffect(r) {
			c.add(SeverityWarning, CodeRedundant, r, string(r.Action), "line %d does the same to everything that this rule matches", e.Line)
		} else {
			c.add(SeverityError, CodeShadowed, r, string(r.Action), "never decides: line %d, %q, matches everything that this rule matches", e.Line, e)
		}
		return
	}
}

// sameEffect says whether a and b do the same to what they match.
func (a *Rule) sameEffect(b *Rule) bool {
	samePCR := a.PCR == nil && b.PCR == nil || a.PCR != nil && b.PCR != nil && *a.PCR == *b.PCR
	return a.Action == b.Action && samePCR && a.Template == b.Template && slices.Equal(a.Algos, b.Algos) &&
		slices.Equal(a.demands(), b.demands())
}
