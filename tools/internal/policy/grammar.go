package policy

import (
	"slices"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// feature is a word of the language: when it came, and what a kernel must have been
// built with to know it.
type feature struct {
	since  Version
	config string
}

// Options of the kernel's configuration without which it refuses some words.
const (
	configModsig = "CONFIG_IMA_APPRAISE_MODSIG"
	configKeys   = "CONFIG_IMA_MEASURE_ASYMMETRIC_KEYS"
	configLSM    = "CONFIG_IMA_LSM_RULES"
)

// actions of a rule.
var actions = map[string]feature{
	"measure":       {since: Version{2, 6}},
	"dont_measure":  {since: Version{2, 6}},
	"appraise":      {since: Version{3, 7}},
	"dont_appraise": {since: Version{3, 7}},
	"audit":         {since: Version{3, 7}},
	"dont_audit":    {since: Version{6, 19}},
	"hash":          {since: Version{4, 16}},
	"dont_hash":     {since: Version{4, 16}},
}

// conditions and options of a rule, with the operators that they take.
var conditions = map[string]struct {
	feature
	ops string
	set func(*ruleParser, byte, string) *refusal
}{
	"func":            {feature{since: Version{2, 6}}, "=", (*ruleParser).setFunc},
	"mask":            {feature{since: Version{2, 6}}, "=", (*ruleParser).setMask},
	"fsmagic":         {feature{since: Version{2, 6}}, "=", (*ruleParser).setFSMagic},
	"fsname":          {feature{since: Version{4, 18}}, "=", (*ruleParser).setFSName},
	"fs_subtype":      {feature{since: Version{6, 19}}, "=", (*ruleParser).setSubtype},
	"fsuuid":          {feature{since: Version{3, 9}}, "=", (*ruleParser).setFSUUID},
	"uid":             {feature{since: Version{2, 6}}, "=<>", setID(uidOf, euidOf)},
	"euid":            {feature{since: Version{4, 2}}, "=<>", setID(euidOf, uidOf)},
	"gid":             {feature{since: Version{5, 16}}, "=<>", setID(gidOf, egidOf)},
	"egid":            {feature{since: Version{5, 16}}, "=<>", setID(egidOf, gidOf)},
	"fowner":          {feature{since: Version{3, 7}}, "=<>", setID(fownerOf, fownerOf)},
	"fgroup":          {feature{since: Version{5, 16}}, "=<>", setID(fgroupOf, fgroupOf)},
	"obj_user":        {feature{Version{2, 6}, configLSM}, "=", setLSM(func(l *LSM) *string { return &l.ObjUser })},
	"obj_role":        {feature{Version{2, 6}, configLSM}, "=", setLSM(func(l *LSM) *string { return &l.ObjRole })},
	"obj_type":        {feature{Version{2, 6}, configLSM}, "=", setLSM(func(l *LSM) *string { return &l.ObjType })},
	"subj_user":       {feature{Version{2, 6}, configLSM}, "=", setLSM(func(l *LSM) *string { return &l.SubjUser })},
	"subj_role":       {feature{Version{2, 6}, configLSM}, "=", setLSM(func(l *LSM) *string { return &l.SubjRole })},
	"subj_type":       {feature{Version{2, 6}, configLSM}, "=", setLSM(func(l *LSM) *string { return &l.SubjType })},
	"digest_type":     {feature{since: Version{5, 19}}, "=", (*ruleParser).setDigestType},
	"appraise_type":   {feature{since: Version{3, 9}}, "=", (*ruleParser).setAppraiseType},
	"appraise_flag":   {feature{since: Version{5, 5}}, "=", (*ruleParser).setAppraiseFlag},
	"appraise_algos":  {feature{since: Version{5, 15}}, "=", (*ruleParser).setAlgos},
	"permit_directio": {feature{since: Version{3, 16}}, "", (*ruleParser).setDirectIO},
	"pcr":             {feature{since: Version{4, 8}}, "=", (*ruleParser).setPCR},
	"template":        {feature{since: Version{5, 3}}, "=", (*ruleParser).setTemplate},
	"keyrings":        {feature{Version{5, 6}, configKeys}, "=", (*ruleParser).setKeyrings},
	"label":           {feature{since: Version{5, 12}}, "=", (*ruleParser).setLabels},
}

// rangeSince is the first version with uid<N and uid>N, and so on.
var rangeSince = Version{4, 11}

// commentSince is the first version in which a comment may follow a rule on its line. On
// a line of its own every kernel takes one, after spaces and tabs too.
var commentSince = Version{6, 14}

// validateSince is the first version that looks at a rule as a whole (ima_validate_rule).
var validateSince = Version{5, 9}

// blacklistSince is the first version in which every signature is looked up among the
// blacklisted ones, and appraise_flag= has no effect.
var blacklistSince = Version{6, 6}

// sigv3Since is the first version in which a signature of version 3 can be demanded of
// files without fs-verity.
var sigv3Since = Version{7, 1}

// inmaskSince is the first version with mask=^.
var inmaskSince = Version{4, 2}

// modsigSince is the first version with appraise_type=imasig|modsig.
var modsigSince = Version{5, 4}

// veritySince is the first version with fs-verity digests.
var veritySince = Version{5, 19}

// portableSince is the first version in which an EVM portable signature makes up for a
// missing IMA signature (INTEGRITY_PASS_IMMUTABLE in ima_appraise.c).
var portableSince = Version{5, 14}

// funcs are the values of func=.
var funcs = map[string]struct {
	feature
	is Func
}{
	"PATH_CHECK":            {feature{since: Version{2, 6}}, FileCheck},
	"FILE_MMAP":             {feature{since: Version{2, 6}}, MmapCheck},
	"FILE_CHECK":            {feature{since: Version{2, 6}}, FileCheck},
	"BPRM_CHECK":            {feature{since: Version{2, 6}}, BprmCheck},
	"MODULE_CHECK":          {feature{since: Version{3, 8}}, ModuleCheck},
	"MMAP_CHECK":            {feature{since: Version{3, 9}}, MmapCheck},
	"FIRMWARE_CHECK":        {feature{since: Version{3, 17}}, FirmwareCheck},
	"KEXEC_KERNEL_CHECK":    {feature{since: Version{4, 6}}, KexecKernelCheck},
	"KEXEC_INITRAMFS_CHECK": {feature{since: Version{4, 6}}, KexecInitramfsCheck},
	"POLICY_CHECK":          {feature{since: Version{4, 6}}, PolicyCheck},
	"CREDS_CHECK":           {feature{since: Version{4, 17}}, CredsCheck},
	"KEXEC_CMDLINE":         {feature{since: Version{5, 3}}, KexecCmdline},
	"KEY_CHECK":             {feature{Version{5, 6}, configKeys}, KeyCheck},
	"CRITICAL_DATA":         {feature{since: Version{5, 12}}, CriticalData},
	"SETXATTR_CHECK":        {feature{since: Version{5, 15}}, SetxattrCheck},
	"MMAP_CHECK_REQPROT":    {feature{since: Version{6, 3}}, MmapCheckReqprot},
}

// masks are the values of mask=, which may have a ^ before them.
var masks = map[string]Mask{
	"MAY_EXEC":   MayExec,
	"MAY_WRITE":  MayWrite,
	"MAY_READ":   MayRead,
	"MAY_APPEND": MayAppend,
}

// templates are the values of template=: builtin_templates of ima_template.c. The kernel
// takes the format for the name, too.
var templates = map[string]struct {
	since  Version
	format string
}{
	"ima":        {Version{5, 3}, "d|n"},
	"ima-ng":     {Version{5, 3}, "d-ng|n-ng"},
	"ima-sig":    {Version{5, 3}, "d-ng|n-ng|sig"},
	"ima-buf":    {Version{5, 3}, "d-ng|n-ng|buf"},
	"ima-modsig": {Version{5, 4}, "d-ng|n-ng|sig|d-modsig|modsig"},
	"evm-sig":    {Version{5, 14}, "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode"},
	"ima-ngv2":   {Version{5, 19}, "d-ngv2|n-ng"},
	"ima-sigv2":  {Version{5, 19}, "d-ngv2|n-ng|sig"},
}

// sha3Since is the first version whose table of hash algorithms has SHA-3.
var sha3Since = Version{6, 7}

// findAlgo looks up the name of a hash algorithm.
func findAlgo(name string) (ima.HashAlgo, bool) {
	for a := range ima.HashAlgo(32) { // the kernel keeps them in 32 bits
		if a.Size() > 0 && a.String() == name {
			return a, true
		}
	}
	return 0, false
}

// suggest returns the known word that name is most likely a misspelling of, or "".
func suggest(name string, known []string) string {
	slices.Sort(known)
	best, distance := "", 3
	for _, k := range known {
		if d := editDistance(name, k); d < distance && d < len(k)/2 {
			best, distance = k, d
		}
	}
	return best
}

// editDistance is the number of bytes to insert, remove or change to make b of a.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
