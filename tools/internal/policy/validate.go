package policy

// part is a bit for each condition and option, as far as ima_validate_rule tells them apart.
type part uint32

const (
	partMask part = 1 << iota
	partFSMagic
	partFSName
	partSubtype
	partFSUUID
	partUID
	partEUID
	partGID
	partEGID
	partFOwner
	partFGroup
	partPCR
	partKeyrings
	partLabels
	partAlgos
	partImasig
	partModsig
	partSigV3
	partVerity
	partBlacklist
	partDirectIO
	partLSM
)

// partNames are the words that set the parts, in the order of the bits.
var partNames = [...]string{"mask", "fsmagic", "fsname", "fs_subtype", "fsuuid", "uid", "euid", "gid", "egid",
	"fowner", "fgroup", "pcr", "keyrings", "label", "appraise_algos", "appraise_type", "appraise_type",
	"appraise_type", "digest_type", "appraise_flag", "permit_directio", "lsm"}

// Parts that a rule for a hook may have.
const (
	partsWhere = partFSMagic | partFSName | partSubtype | partFSUUID | partFOwner | partFGroup | partLSM
	partsWho   = partUID | partEUID | partGID | partEGID
	partsFile  = partsWhere | partsWho | partMask | partPCR | partImasig | partDirectIO | partAlgos | partBlacklist | partSigV3
)

// parts are the conditions and options that r has.
func (r *Rule) parts() part {
	var set part
	for bit, has := range []bool{r.Mask != 0, r.FSMagic != nil, r.FSName != "", r.Subtype != "", r.FSUUID != nil,
		r.UID != nil, r.EUID != nil, r.GID != nil, r.EGID != nil, r.FOwner != nil, r.FGroup != nil,
		r.PCR != nil, r.Keyrings != nil, r.Labels != nil, r.Algos != nil, r.Imasig, r.Modsig, r.SigV3,
		r.Verity, r.CheckBlacklist, r.DirectIO, r.LSM != LSM{}} {
		if has {
			set |= 1 << bit
		}
	}
	return set
}

// validate is ima_validate_rule. It returns the word that is to blame, if one is.
func (p *ruleParser) validate() (word, *refusal) {
	r := p.rule
	if r.Action == "" {
		return word{}, refuse("the rule has no action")
	}
	if p.kernel.Before(validateSince) {
		return word{}, nil
	}
	if r.PCR != nil && r.Action != Measure {
		return r.find("pcr"), refuse("only a measure rule can have it")
	}
	if r.Action != Appraise {
		for _, name := range []string{"appraise_type", "appraise_algos", "appraise_flag"} {
			// From 6.6 a flag by itself does nothing.
			if w := r.find(name); w.text != "" && (name != "appraise_flag" || r.CheckBlacklist) {
				return w, refuse("only an appraise rule can have it")
			}
		}
	}
	if w, refused := p.validateFunc(); refused != nil {
		return w, refused
	}
	if r.CheckBlacklist && !r.Modsig {
		return r.find("appraise_flag"), &refusal{"appraise_flag=check_blacklist needs appraise_type=imasig|modsig", blacklistSince}
	}
	if r.Action == Appraise && r.Verity && !r.Imasig {
		return r.find("digest_type"), refuse("an appraise rule for fs-verity needs appraise_type=sigv3")
	}
	return word{}, nil
}

// validateFunc looks at what a rule for its hook may have.
func (p *ruleParser) validateFunc() (word, *refusal) {
	r := p.rule
	allowed := partsFile | partVerity
	measureOnly := false
	switch r.Func {
	case ModuleCheck, KexecKernelCheck, KexecInitramfsCheck:
		allowed = partsFile | partModsig
	case KexecCmdline:
		allowed, measureOnly = partsWhere|partsWho|partPCR, true
	case KeyCheck:
		allowed, measureOnly = partUID|partGID|partPCR|partKeyrings, true
	case CriticalData:
		allowed, measureOnly = partUID|partGID|partPCR|partLabels, true
	case SetxattrCheck:
		allowed = partAlgos | partLSM // which it does not look at
		if r.Action != Appraise {
			return r.find("func"), refuse("only an appraise rule can be for this hook")
		}
		if r.Algos == nil {
			return r.find("func"), refuse("a rule for this hook needs appraise_algos=")
		}
	default:
		if p.kernel.Before(blacklistSince) {
			allowed &^= partBlacklist
		}
	}
	if measureOnly && r.Action.class() != Measure {
		return r.find("func"), refuse("only a measure or dont_measure rule can be for this hook")
	}
	wrong := r.parts() &^ allowed
	for bit, name := range partNames {
		if wrong&(1<<bit) == 0 {
			continue
		}
		hook := "without func="
		if r.Func != AnyFunc {
			hook = "for func=" + string(r.Func)
		}
		return r.blame(name), refuse("a rule %s cannot have it", hook)
	}
	return word{}, nil
}

// blame returns the word that sets a part.
func (r *Rule) blame(name string) word {
	if name != "lsm" {
		return r.find(name)
	}
	for _, name := range []string{"obj_user", "obj_role", "obj_type", "subj_user", "subj_role", "subj_type"} {
		if w := r.find(name); w.text != "" {
			return w
		}
	}
	return word{}
}
