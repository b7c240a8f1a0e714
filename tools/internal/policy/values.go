package policy

import (
	"encoding/hex"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

func (p *ruleParser) setFunc(_ byte, value string) *refusal {
	if p.rule.Func != AnyFunc {
		return refuse("the rule has a func= already")
	}
	f, ok := funcs[value]
	if !ok {
		if s := suggest(value, slices.Collect(maps.Keys(funcs))); s != "" {
			return refuse("no kernel knows this hook: is it %s?", s)
		}
		return refuse("no kernel knows this hook")
	}
	p.rule.Func = f.is
	return p.need(f.since)
}

func (p *ruleParser) setMask(_ byte, value string) *refusal {
	if p.rule.Mask != 0 {
		return refuse("the rule has a mask= already")
	}
	name, in := strings.CutPrefix(value, "^")
	m, ok := masks[name]
	if !ok {
		return refuse("mask= is one of MAY_READ, MAY_WRITE, MAY_APPEND, MAY_EXEC, with or without ^ before it")
	}
	p.rule.Mask, p.rule.MaskIn = m, in
	if in {
		return p.need(inmaskSince)
	}
	return nil
}

func (p *ruleParser) setFSMagic(_ byte, value string) *refusal {
	if p.rule.FSMagic != nil && *p.rule.FSMagic != 0 {
		return refuse("the rule has an fsmagic= already")
	}
	n, ok := parseUlong(value, 16)
	if !ok {
		return refuse("fsmagic= is a hexadecimal number of 64 bits")
	}
	p.rule.FSMagic = &n
	return nil
}

func (p *ruleParser) setFSName(_ byte, value string) *refusal {
	p.rule.FSName = value // of several, the kernel takes the last
	return nil
}

func (p *ruleParser) setSubtype(_ byte, value string) *refusal {
	if p.rule.Subtype != "" {
		return refuse("the rule has an fs_subtype= already")
	}
	p.rule.Subtype = value
	return nil
}

// uuidLen is UUID_STRING_LEN of include/linux/uuid.h. The kernel does not look further.
const uuidLen = 36

func (p *ruleParser) setFSUUID(_ byte, value string) *refusal {
	if p.rule.FSUUID != nil && *p.rule.FSUUID != (UUID{}) {
		return refuse("the rule has an fsuuid= already")
	}
	u, err := ParseUUID(value[:min(len(value), uuidLen)])
	if err != nil {
		return refuse("%v", err)
	}
	p.rule.FSUUID = &u
	return nil
}

// ParseUUID reads the form 8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	if len(s) != uuidLen || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, errUUID(s)
	}
	digits := s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:]
	if _, err := hex.Decode(u[:], []byte(digits)); err != nil {
		return UUID{}, errUUID(s)
	}
	return u, nil
}

// errUUID is a text that is no UUID.
type errUUID string

func (e errUUID) Error() string {
	return strconv.Quote(string(e)) + " has not the form of a UUID, 8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6"
}

func uidOf(r *Rule) **ID    { return &r.UID }
func euidOf(r *Rule) **ID   { return &r.EUID }
func gidOf(r *Rule) **ID    { return &r.GID }
func egidOf(r *Rule) **ID   { return &r.EGID }
func fownerOf(r *Rule) **ID { return &r.FOwner }
func fgroupOf(r *Rule) **ID { return &r.FGroup }

// setID returns the setter of an id. The kernel keeps uid and euid in one place, so that
// a rule has one of them only.
func setID(of, other func(*Rule) **ID) func(*ruleParser, byte, string) *refusal {
	return func(p *ruleParser, op byte, value string) *refusal {
		if op != '=' {
			if r := p.need(rangeSince); r != nil {
				return r
			}
		}
		if *of(p.rule) != nil || *other(p.rule) != nil {
			return refuse("the rule has a condition on this id already; uid and euid, and gid and egid, count as one")
		}
		n, ok := parseUlong(value, 10)
		if !ok || n >= math.MaxUint32 { // the last is INVALID_UID
			return refuse("an id is a decimal number, 0 to 4294967294")
		}
		*of(p.rule) = &ID{op, uint32(n)}
		return nil
	}
}

func setLSM(of func(*LSM) *string) func(*ruleParser, byte, string) *refusal {
	return func(p *ruleParser, _ byte, value string) *refusal {
		field := of(&p.rule.LSM)
		if *field != "" {
			return refuse("the rule has this condition already")
		}
		*field = value
		return nil
	}
}

func (p *ruleParser) setDigestType(_ byte, value string) *refusal {
	switch {
	case value != "verity":
		return refuse("digest_type= can only be verity")
	case p.rule.Imasig && p.kernel.Before(sigv3Since):
		return refuse("digest_type= must stand before appraise_type=")
	}
	p.rule.Verity = true
	return nil
}

func (p *ruleParser) setAppraiseType(_ byte, value string) *refusal {
	old := p.kernel.Before(validateSince)
	switch {
	case old && p.rule.Action != Appraise:
		return refuse("the action appraise must stand before it")
	case value == "imasig":
		if p.rule.Verity {
			return refuse("fs-verity digests are signed in version 3: appraise_type=sigv3")
		}
	case value == "sigv3":
		return p.setSigV3()
	case value == "imasig|modsig":
		if r := p.need(modsigSince); r != nil {
			return r
		}
		if old && !signsModules(p.rule.Func) {
			return refuse("func=MODULE_CHECK, KEXEC_KERNEL_CHECK or KEXEC_INITRAMFS_CHECK must stand before it")
		}
		if p.rule.Verity || p.rule.SigV3 {
			return refuse("an appended signature is neither of fs-verity nor of version 3")
		}
		p.rule.Modsig = true
	default:
		return refuse("appraise_type= is one of imasig, imasig|modsig, sigv3")
	}
	p.rule.Imasig = true
	return nil
}

func (p *ruleParser) setSigV3() *refusal {
	if r := p.need(veritySince); r != nil {
		return r
	}
	if !p.rule.Verity && p.kernel.Before(sigv3Since) {
		return &refusal{"digest_type=verity must stand before appraise_type=sigv3", sigv3Since}
	}
	p.rule.SigV3, p.rule.Imasig = true, true
	return nil
}

func (p *ruleParser) setAppraiseFlag(_ byte, value string) *refusal {
	if !p.kernel.Before(blacklistSince) {
		return nil
	}
	p.rule.CheckBlacklist = strings.Contains(value, "blacklist") || p.rule.CheckBlacklist
	if !p.kernel.Before(validateSince) && !strings.Contains(value, "blacklist") {
		return refuse("appraise_flag= can only be check_blacklist")
	}
	return nil
}

func (p *ruleParser) setAlgos(_ byte, value string) *refusal {
	if p.rule.Algos != nil {
		return refuse("the rule has an appraise_algos= already")
	}
	for name := range strings.SplitSeq(value, ",") {
		a, ok := findAlgo(name)
		if !ok {
			return refuse("the kernel has no hash algorithm %q", name)
		}
		if strings.HasPrefix(name, "sha3-") {
			if r := p.need(sha3Since); r != nil {
				return r
			}
		}
		if !slices.Contains(p.rule.Algos, a) {
			p.rule.Algos = append(p.rule.Algos, a)
		}
	}
	slices.Sort(p.rule.Algos)
	return nil
}

func (p *ruleParser) setDirectIO(byte, string) *refusal {
	p.rule.DirectIO = true
	return nil
}

// maxPCR is the number of bits in measured_pcrs of struct ima_iint_cache on a machine
// of 64 bits. It is 32 on one of 32 bits, and a TPM has 24 registers.
const maxPCR = 63

func (p *ruleParser) setPCR(_ byte, value string) *refusal {
	if p.kernel.Before(validateSince) && p.rule.Action != Measure {
		return refuse("the action measure must stand before it")
	}
	digits, negative := strings.CutPrefix(value, "-")
	if negative {
		value = digits
		if strings.HasPrefix(digits, "+") {
			return refuse("pcr= is a decimal number, 0 to %d", maxPCR)
		}
	}
	n, ok := parseUlong(value, 10)
	if !ok || n > maxPCR || negative && n != 0 {
		return refuse("pcr= is a decimal number, 0 to %d", maxPCR)
	}
	pcr := int(n)
	p.rule.PCR = &pcr
	return nil
}

func (p *ruleParser) setTemplate(_ byte, value string) *refusal {
	if p.rule.Action != Measure {
		return refuse("the action measure must stand before it")
	}
	if p.rule.Template != "" {
		return refuse("the rule has a template= already")
	}
	for name, t := range templates {
		if value == name || value == t.format {
			p.rule.Template = value
			return p.need(t.since)
		}
	}
	if s := suggest(value, slices.Collect(maps.Keys(templates))); s != "" {
		return refuse("no kernel has this template: is it %s?", s)
	}
	return refuse("no kernel has this template")
}

func (p *ruleParser) setKeyrings(_ byte, value string) *refusal {
	if p.rule.Keyrings != nil {
		return refuse("the rule has a keyrings= already")
	}
	if p.kernel.Before(validateSince) && (p.rule.Action != Measure || p.rule.Func != KeyCheck) {
		return refuse("measure and func=KEY_CHECK must stand before it")
	}
	p.rule.Keyrings = strings.Split(value, "|")
	if !p.kernel.Before(listSince) && slices.Contains(p.rule.Keyrings, "") {
		return refuse("there is an empty name in the list")
	}
	return nil
}

// listSince is the first version that looks into the list of keyrings.
var listSince = Version{5, 11}

func (p *ruleParser) setLabels(_ byte, value string) *refusal {
	if p.rule.Labels != nil {
		return refuse("the rule has a label= already")
	}
	p.rule.Labels = strings.Split(value, "|")
	if slices.Contains(p.rule.Labels, "") {
		return refuse("there is an empty name in the list")
	}
	return nil
}

// parseUlong is kstrtoul of lib/kstrtox.c on a machine of 64 bits.
func parseUlong(s string, base int) (uint64, bool) {
	s = strings.TrimPrefix(s, "+")
	if base == 16 && len(s) > 2 && s[0] == '0' && s[1]|0x20 == 'x' {
		s = s[2:]
	}
	n, err := strconv.ParseUint(s, base, 64)
	return n, err == nil
}

// signsModules says whether a hook can take an appended signature.
func signsModules(f Func) bool {
	return f == ModuleCheck || f == KexecKernelCheck || f == KexecInitramfsCheck
}

// algoSet is the kernel's bit field of a list of algorithms.
func algoSet(algos []ima.HashAlgo) uint32 {
	var set uint32
	for _, a := range algos {
		set |= 1 << a
	}
	return set
}
