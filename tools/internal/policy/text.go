package policy

import (
	"fmt"
	"strings"
)

// String is the rule in the order and the spelling in which the kernel prints it
// (ima_policy_show), except that digest_type= and appraise_type= stand so that the kernel
// would read the same rule again. What appraise_flag= says from Linux 6.6 on is nothing,
// and left out.
func (r *Rule) String() string {
	words := []string{string(r.Action)}
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if r.Func != AnyFunc {
		add("func=%s", r.Func)
	}
	if r.Mask != 0 {
		add("mask=%s", maskText(r.Mask, r.MaskIn))
	}
	if r.FSMagic != nil {
		add("fsmagic=0x%x", *r.FSMagic)
	}
	if r.FSName != "" {
		add("fsname=%s", r.FSName)
	}
	if r.Subtype != "" {
		add("fs_subtype=%s", r.Subtype)
	}
	if r.Keyrings != nil {
		add("keyrings=%s", strings.Join(r.Keyrings, "|"))
	}
	if r.Labels != nil {
		add("label=%s", strings.Join(r.Labels, "|"))
	}
	if r.PCR != nil {
		add("pcr=%d", *r.PCR)
	}
	if r.FSUUID != nil {
		add("fsuuid=%v", *r.FSUUID)
	}
	for _, c := range r.ids() {
		if c.id != nil {
			add("%s%c%d", c.name, c.id.Op, c.id.N)
		}
	}
	if r.Algos != nil {
		var names []string
		for _, a := range r.Algos {
			names = append(names, a.String())
		}
		add("appraise_algos=%s", strings.Join(names, ","))
	}
	for _, c := range r.LSM.fields() {
		if c.value != "" {
			add("%s=%s", c.name, c.value)
		}
	}
	if r.Template != "" {
		add("template=%s", r.Template)
	}
	words = append(words, r.demands()...)
	return strings.Join(words, " ")
}

// demands are the words that say what an appraised file must have.
func (r *Rule) demands() []string {
	var words []string
	if r.Imasig && !r.SigV3 && !r.Modsig {
		words = append(words, "appraise_type=imasig")
	}
	if r.Modsig {
		words = append(words, "appraise_type=imasig|modsig")
	}
	if r.Verity {
		words = append(words, "digest_type=verity")
	}
	if r.SigV3 {
		words = append(words, "appraise_type=sigv3")
	}
	if r.CheckBlacklist {
		words = append(words, "appraise_flag=check_blacklist")
	}
	if r.DirectIO {
		words = append(words, "permit_directio")
	}
	return words
}

// namedID is a condition on an id and the word for it.
type namedID struct {
	name string
	id   *ID
}

// ids are the conditions on ids, in the order in which the kernel prints them.
func (r *Rule) ids() []namedID {
	return []namedID{{"uid", r.UID}, {"euid", r.EUID}, {"gid", r.GID}, {"egid", r.EGID}, {"fowner", r.FOwner}, {"fgroup", r.FGroup}}
}

// field is a condition on a security label.
type field struct{ name, value string }

// fields are the conditions, those that are empty too.
func (l LSM) fields() []field {
	return []field{{"obj_user", l.ObjUser}, {"obj_role", l.ObjRole}, {"obj_type", l.ObjType},
		{"subj_user", l.SubjUser}, {"subj_role", l.SubjRole}, {"subj_type", l.SubjType}}
}

// maskText is the value of mask=.
func maskText(m Mask, in bool) string {
	for name, bit := range masks {
		if bit == m && in {
			return "^" + name
		} else if bit == m {
			return name
		}
	}
	return ""
}
