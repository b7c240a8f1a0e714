// Package policy reads the language in which Linux IMA is told what to measure and what
// to appraise, decides as the kernel does, and finds what a policy gets wrong.
//
// The authority is security/integrity/ima/ima_policy.c. It is read with the eyes of a
// given kernel, because a kernel refuses the whole policy for one word that it does not
// know. Known are Linux 4.4 to 7.2 as released; backports of distributions are not.
//
// It opens no file: callers bring text and take text.
package policy

import (
	"fmt"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// MaxSize is the size in bytes of the largest policy that is read. The kernel has no
// such limit; a thousand rules have 64 KiB.
const MaxSize = 1 << 20

// Policy is the text of a policy, line by line.
type Policy struct {
	Lines []Line
	// Unterminated says that the last line does not end in a newline. A kernel that is
	// given the path of such a file refuses it (ima_read_policy of ima_fs.c).
	Unterminated bool
}

// Line is one line of a policy, without its newline.
type Line struct {
	Text string
	Rule *Rule // nil for an empty line and a comment
}

// Append appends the text of p to b. It is the inverse of [Parse].
func (p *Policy) Append(b []byte) []byte {
	for i, l := range p.Lines {
		b = append(b, l.Text...)
		if i < len(p.Lines)-1 || !p.Unterminated {
			b = append(b, '\n')
		}
	}
	return b
}

// Rules returns the rules of p in their order.
func (p *Policy) Rules() []*Rule {
	var rules []*Rule
	for _, l := range p.Lines {
		if l.Rule != nil {
			rules = append(rules, l.Rule)
		}
	}
	return rules
}

// Action is what a rule does with what it matches.
type Action string

// Actions of a rule.
const (
	Measure      Action = "measure"
	DontMeasure  Action = "dont_measure"
	Appraise     Action = "appraise"
	DontAppraise Action = "dont_appraise"
	Audit        Action = "audit"
	DontAudit    Action = "dont_audit"
	Hash         Action = "hash"
	DontHash     Action = "dont_hash"
)

// class is what an action and its dont_ counterpart have in common. The first rule of
// each class that matches decides.
func (a Action) class() Action { return Action(strings.TrimPrefix(string(a), "dont_")) }

// dont says whether a only keeps later rules of its class from matching.
func (a Action) dont() bool { return a != a.class() }

// Func is the hook of a rule: func=.
type Func string

// Hooks. PATH_CHECK and FILE_MMAP are read as FileCheck and MmapCheck.
const (
	AnyFunc             Func = ""
	FileCheck           Func = "FILE_CHECK"
	MmapCheck           Func = "MMAP_CHECK"
	MmapCheckReqprot    Func = "MMAP_CHECK_REQPROT"
	BprmCheck           Func = "BPRM_CHECK"
	CredsCheck          Func = "CREDS_CHECK"
	ModuleCheck         Func = "MODULE_CHECK"
	FirmwareCheck       Func = "FIRMWARE_CHECK"
	KexecKernelCheck    Func = "KEXEC_KERNEL_CHECK"
	KexecInitramfsCheck Func = "KEXEC_INITRAMFS_CHECK"
	PolicyCheck         Func = "POLICY_CHECK"
	KexecCmdline        Func = "KEXEC_CMDLINE"
	KeyCheck            Func = "KEY_CHECK"
	CriticalData        Func = "CRITICAL_DATA"
	SetxattrCheck       Func = "SETXATTR_CHECK"
)

// Mask is a set of kinds of access, with the kernel's bits (include/linux/fs.h).
type Mask uint8

// Kinds of access.
const (
	MayExec   Mask = 1
	MayWrite  Mask = 2
	MayRead   Mask = 4
	MayAppend Mask = 8
)

// ID is a condition on a user or group id: equal to N, less or greater than it.
type ID struct {
	Op byte // '=', '<' or '>'
	N  uint32
}

// holds says whether n meets the condition. A nil condition is met by all.
func (c *ID) holds(n uint32) bool {
	switch {
	case c == nil:
		return true
	case c.Op == '<':
		return n < c.N
	case c.Op == '>':
		return n > c.N
	default:
		return n == c.N
	}
}

// UUID identifies a filesystem.
type UUID [16]byte

// String is the form that the kernel prints.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// LSM are the conditions on security labels. Empty ones are met by all.
type LSM struct{ ObjUser, ObjRole, ObjType, SubjUser, SubjRole, SubjType string }

// Rule is one rule. Zero values are conditions that are not there.
type Rule struct {
	Line   int // of the policy, from 1
	Action Action

	Func    Func
	Mask    Mask // one bit
	MaskIn  bool // mask=^: the access has the bit, and maybe others; without: it is that access alone
	FSMagic *uint64
	FSName  string
	Subtype string // fs_subtype=
	FSUUID  *UUID

	UID, EUID, GID, EGID, FOwner, FGroup *ID

	LSM      LSM
	Keyrings []string
	Labels   []string // label=

	PCR      *int
	Template string
	Algos    []ima.HashAlgo // appraise_algos=, in the order of their numbers

	Imasig         bool // a signature is demanded: any appraise_type=
	Modsig         bool // an appended one will do: appraise_type=imasig|modsig
	SigV3          bool // it must be of version 3: appraise_type=sigv3
	Verity         bool // digest_type=verity
	CheckBlacklist bool // appraise_flag=check_blacklist; from Linux 6.6 all signatures are checked
	DirectIO       bool // permit_directio

	words []word
}

// word is one word of the text of a rule.
type word struct {
	column int // in bytes, from 1
	text   string
}

// find returns the word that sets the condition with this name, such as "mask".
func (r *Rule) find(name string) word {
	for _, w := range r.words {
		rest, ok := strings.CutPrefix(w.text, name)
		if ok && (rest == "" || strings.ContainsRune("=<>", rune(rest[0]))) {
			return w
		}
	}
	return word{}
}
