package appraise

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/bootlog"
)

// Vendors of variables, as Keylime's policy knows them.
const (
	imageSecurity = "d719b2cb-3d3a-4596-a3bc-dad00e67656f" // EFI_IMAGE_SECURITY_DATABASE_GUID
	shimLock      = "605dab50-e046-4300-abb6-3dd810dd8b23" // SHIM_LOCK_GUID
)

// mokPCR is where shim measures its lists of keys.
const mokPCR = 14

const (
	maxBootReasons = 8   // of one boot that does not fit
	maxBootReason  = 256 // bytes
)

// bootWalk is a boot log on its way through a refstate.
type bootWalk struct {
	*refstate
	log       []bootlog.Event
	separated map[uint32]bool
	once      map[string]int // events that may come once, by what they are
	crtms     []*bootlog.Event
	blobs     []*bootlog.Event
	loaded    []*bootlog.Event // applications
	initrds   []*bootlog.Event
	vmlinuzes []*bootlog.Event
	cmdlines  []string
	reasons   []string
}

// misfits says why the events of a boot do not fit r: nothing if they do. The events are
// those of a log that leads to quoted PCRs.
func (r *refstate) misfits(events []bootlog.Event) []string {
	w := &bootWalk{refstate: r, log: events, separated: map[uint32]bool{}, once: map[string]int{}}
	for i := range events {
		e := &events[i]
		if why := w.event(e); why != "" {
			w.refuse("event %d (%v of PCR %d): %s", e.Index, e.Type, e.PCR, why)
		}
	}
	w.whole()
	return w.reasons
}

func (w *bootWalk) refuse(format string, args ...any) {
	if len(w.reasons) < maxBootReasons {
		text := display([]byte(fmt.Sprintf(format, args...)))
		w.reasons = append(w.reasons, text[:min(len(text), maxBootReason)])
	}
}

// only notes what may come n times.
func (w *bootWalk) only(n int, what string) string {
	if w.once[what]++; w.once[what] > n {
		return fmt.Sprintf("%s comes more than %d times", what, n)
	}
	return ""
}

// event judges one event, "" for good. What has no rule is refused.
func (w *bootWalk) event(e *bootlog.Event) string {
	type at struct {
		pcr  uint32
		kind bootlog.Type
	}
	here := at{e.PCR, e.Type}
	switch {
	case e.Type == bootlog.NoAction:
		return ""
	case e.Type == bootlog.Separator && e.PCR <= 7:
		w.separated[e.PCR] = true
		return separatorOf(e)
	case e.Type == bootlog.EFIAction:
		return actionOf(e)
	}
	switch here {
	case at{0, bootlog.CRTMVersion}:
		w.crtms = append(w.crtms, e)
	case at{0, bootlog.PlatformFirmwareBlob}, at{0, bootlog.PlatformFirmwareBlob2}:
		w.blobs = append(w.blobs, e)
	case at{1, bootlog.CPUMicrocode}, at{1, bootlog.HandoffTables}, at{1, bootlog.HandoffTables2}, at{5, bootlog.GPTEvent}:
		return w.only(1, e.Type.String())
	case at{1, bootlog.PlatformConfigFlags}:
		return w.only(4, e.Type.String())
	case at{1, bootlog.VariableBoot}:
		return bootVariable(e)
	case at{2, bootlog.BootServicesDriver}:
	case at{4, bootlog.BootServicesApplication}:
		w.loaded = append(w.loaded, e)
	case at{7, bootlog.VariableDriverConfig}:
		return w.config(e)
	case at{7, bootlog.VariableAuthority}:
		return w.authority(e)
	case at{8, bootlog.IPL}:
		return w.command(e)
	case at{9, bootlog.IPL}:
		return w.file(e)
	case at{mokPCR, bootlog.IPL}:
		return w.mokList(e)
	default:
		return "no rule of the policy is about such an event"
	}
	return ""
}

// separatorOf refuses what is not a separator between firmware and boot loader.
func separatorOf(e *bootlog.Event) string {
	if !hasDigest(e, e.Data) || !bytes.Equal(e.Data, []byte{0, 0, 0, 0}) && !bytes.Equal(e.Data, []byte{0xff, 0xff, 0xff, 0xff}) {
		return "the firmware reports an error, or something else than a separator"
	}
	return ""
}

// actions are the texts that may be measured (PFP 10.4.3).
var actions = map[uint32][]string{
	1: {"Entering ROM Based Setup"},
	4: {"Calling EFI Application from Boot Option", "Returning from EFI Application from Boot Option"},
	5: {"Exit Boot Services Invocation", "Exit Boot Services Returned with Failure", "Exit Boot Services Returned with Success"},
}

func actionOf(e *bootlog.Event) string {
	if !slices.Contains(actions[e.PCR], string(e.Data)) || !hasDigest(e, e.Data) {
		return fmt.Sprintf("action %.80q is none that is expected", e.Data)
	}
	return ""
}

var bootName = regexp.MustCompile(`\A(?:BootOrder|Boot[0-9a-fA-F]+)\z`)

func bootVariable(e *bootlog.Event) string {
	v, why := variableOf(e)
	if why == "" && (v.Vendor.String() != globalVariable || !bootName.MatchString(v.Name)) {
		why = fmt.Sprintf("variable %.80q is not one of the boot order", v.Name)
	}
	return why
}

func variableOf(e *bootlog.Event) (*bootlog.Variable, string) {
	d, err := e.Details()
	v, ok := d.(*bootlog.Variable)
	if err != nil || !ok {
		return nil, "its variable cannot be read"
	}
	return v, ""
}

// config judges a variable of Secure Boot.
func (w *bootWalk) config(e *bootlog.Event) string {
	v, why := variableOf(e)
	switch {
	case why != "":
		return why
	case !hasDigest(e, e.Data):
		return "its digest is not of its variable"
	case w.separated[secureBootPCR]:
		return "it comes behind the separator, where anybody can measure"
	}
	vendor := v.Vendor.String()
	switch {
	case vendor == globalVariable && v.Name == "SecureBoot":
		if on := bytes.Equal(v.Data, []byte{1}); on != w.secureBoot {
			return fmt.Sprintf("Secure Boot is on: %t, is to be: %t", on, w.secureBoot)
		}
		return ""
	case vendor == globalVariable && (v.Name == "PK" || v.Name == "KEK"):
		return w.subset(v, bootlog.CertX509)
	case vendor == imageSecurity && (v.Name == "db" || v.Name == "vendor_db"):
		return w.subset(v, bootlog.CertX509, bootlog.CertSHA256)
	case vendor == imageSecurity && v.Name == "dbx":
		return w.superset(v)
	}
	return fmt.Sprintf("no rule of the policy is about variable %.80q", v.Name)
}

// anySignatures says whether a list of signatures may be any: one that the policy has not,
// without Secure Boot.
func (w *bootWalk) anySignatures(name string) bool {
	return !w.secureBoot && len(w.signatures[name]) == 0
}

// subset wants every signature of a variable to be one of the policy's.
func (w *bootWalk) subset(v *bootlog.Variable, kinds ...bootlog.GUID) string {
	name := strings.ToLower(v.Name)
	if why := w.only(1, v.Name); why != "" || w.anySignatures(name) {
		return why
	}
	lists, err := v.SignatureLists()
	if err != nil {
		return "its signatures cannot be read"
	}
	for _, s := range lists {
		if !slices.Contains(kinds, s.Type) {
			return fmt.Sprintf("%s has signatures of type %v", v.Name, s.Type)
		}
		if !slices.Contains(w.signatures[name], keyOfSignature(s)) {
			return fmt.Sprintf("%s has a key or digest that the policy has not: %x", v.Name, sha256.Sum256(s.Data))
		}
	}
	return ""
}

// superset wants every forbidden digest of the policy to be forbidden.
func (w *bootWalk) superset(v *bootlog.Variable) string {
	if why := w.only(1, v.Name); why != "" || w.anySignatures("dbx") {
		return why
	}
	lists, err := v.SignatureLists()
	if err != nil {
		return "its signatures cannot be read"
	}
	have := map[refKey]bool{}
	for _, s := range lists {
		if s.Type != bootlog.CertSHA256 {
			return fmt.Sprintf("dbx has signatures of type %v", s.Type)
		}
		have[keyOfSignature(s)] = true
	}
	for _, k := range w.signatures["dbx"] {
		if !have[k] {
			return fmt.Sprintf("dbx does not forbid %x", k.data)
		}
	}
	return ""
}

func keyOfSignature(s bootlog.SignatureData) refKey {
	return refKey{s.Owner.String(), string(s.Data)}
}

// authority judges with which key something was allowed to start. Of shim's own keys
// nothing is asked, because shim's digest is.
func (w *bootWalk) authority(e *bootlog.Event) string {
	v, why := variableOf(e)
	if why != "" {
		return why
	}
	if !e.Proven() {
		return "its digest is not of its variable"
	}
	if why := w.only(1, "authority "+v.Name); why != "" {
		return why
	}
	vendor := v.Vendor.String()
	switch {
	case vendor == imageSecurity && v.Name == "db":
		return ""
	case vendor == imageSecurity && v.Name == "vendor_db":
		s, ok := v.Authority()
		if w.anySignatures("vendor_db") || ok && slices.Contains(w.signatures["vendor_db"], keyOfSignature(s)) {
			return ""
		}
		return "vendor_db has a key that the policy has not"
	case vendor == shimLock && v.Name == "MokListTrusted":
		if bytes.Equal(v.Data, []byte{1}) || bytes.Equal(v.Data, []byte{0}) {
			return ""
		}
		return "MokListTrusted is neither 0 nor 1"
	case vendor == shimLock && slices.Contains([]string{"SbatLevel", "Shim", "MokListRT"}, v.Name):
		return ""
	}
	return fmt.Sprintf("no rule of the policy is about variable %.80q", v.Name)
}

// mokList judges the lists of keys that a machine's owner gave to shim. Their name is not
// measured; that of the wrong one does not help, because the digests are compared.
func (w *bootWalk) mokList(e *bootlog.Event) string {
	good := []refDigest{}
	switch text := textOf(e); text {
	case "MokList":
		good = w.mok
	case "MokListX":
		good = w.mokx
	case "MokListTrusted":
		return w.only(1, text)
	}
	if !slices.ContainsFunc(good, func(d refDigest) bool { return d.fits(e) }) {
		return "this list of keys of shim is not one of the policy's"
	}
	return ""
}

// textOf is the text of an event without the NULs at its end.
func textOf(e *bootlog.Event) string {
	d, err := e.Details()
	t, ok := d.(*bootlog.Text)
	if err != nil || !ok {
		return ""
	}
	return t.Value
}

// command judges what GRUB ran: of its commands nothing is asked, of the kernel's command
// line all.
func (w *bootWalk) command(e *bootlog.Event) string {
	text := textOf(e)
	switch {
	case !e.Proven():
		return "its digest is not of its text"
	case strings.HasPrefix(text, "grub_cmd: "):
		return ""
	case strings.HasPrefix(text, "kernel_cmdline: "):
		w.cmdlines = append(w.cmdlines, text)
		return ""
	}
	return fmt.Sprintf("%.80q is no command of GRUB", text)
}

// file judges what GRUB read. The names are not measured; the digests are compared where
// the name says kernel or initrd.
func (w *bootWalk) file(e *bootlog.Event) string {
	text := textOf(e)
	if strings.Contains(text, "\n") {
		return "the name of its file has two lines"
	}
	switch {
	case strings.Contains(text, "/loader/entries"), strings.Contains(text, "/grub"):
	case strings.Contains(text, "/vmlinuz"):
		w.vmlinuzes = append(w.vmlinuzes, e)
	case strings.Contains(text, "/initrd"), strings.Contains(text, "/initramfs"):
		w.initrds = append(w.initrds, e)
	default:
		return fmt.Sprintf("no rule of the policy is about file %.80q", text)
	}
	return ""
}

// whole judges what only all events together say.
func (w *bootWalk) whole() {
	if w.secureBoot && !secureBoot(w.log) {
		w.refuse("Secure Boot was not measured as on")
	}
	if w.secureBoot && len(w.signatures["dbx"]) > 0 && w.once["dbx"] == 0 {
		w.refuse("dbx was not measured, and the policy forbids %d digests", len(w.signatures["dbx"]))
	}
	if !slices.ContainsFunc(w.firmware, func(f refFirmware) bool {
		return allFit([]refDigest{f.scrtm}, w.crtms) && allFit(f.blobs, w.blobs)
	}) {
		w.refuse("the firmware (%d versions, %d blobs) is none of the %d of the policy", len(w.crtms), len(w.blobs), len(w.firmware))
	}
	why := ""
	for i, k := range w.kernels {
		if why = w.kernel(&k); why == "" {
			return
		}
		why = fmt.Sprintf("kernel %d of the policy: %s", i+1, why)
	}
	w.refuse("%s", why)
}

// kernel says why a boot is not of k.
func (w *bootWalk) kernel(k *refKernel) string {
	switch {
	case !slices.ContainsFunc(k.applications, func(want []refDigest) bool { return allFit(want, w.loaded) }):
		return fmt.Sprintf("the %d programs that were loaded are not shim, GRUB and the kernel of the policy", len(w.loaded))
	case !allFit([]refDigest{k.initrd}, w.initrds):
		return fmt.Sprintf("there are %d initrds, and not just that of the policy", len(w.initrds))
	case !allFit([]refDigest{k.vmlinuz}, w.vmlinuzes):
		return fmt.Sprintf("there are %d kernels, and not just that of the policy", len(w.vmlinuzes))
	case len(w.cmdlines) != 1:
		return fmt.Sprintf("%d command lines were measured, not one", len(w.cmdlines))
	case !k.cmdline.MatchString(w.cmdlines[0]):
		return fmt.Sprintf("%.120q does not match", w.cmdlines[0])
	}
	return ""
}

// allFit compares events with digests, one with one.
func allFit(want []refDigest, events []*bootlog.Event) bool {
	if len(want) != len(events) {
		return false
	}
	for i, e := range events {
		if !want[i].fits(e) {
			return false
		}
	}
	return true
}

// bootMisfit is why the boot does not fit the reference state of a release.
type bootMisfit struct {
	Release int    `json:"release"`
	Why     string `json:"why"`
}

// booted judges the firmware's log by the reference states of the releases. What a boot
// once said stays.
func (j *judge) booted() {
	events := j.claims.Firmware()
	if events == nil || len(j.ref.boots) == 0 || j.state.Booted {
		return
	}
	j.state.Booted = true
	for _, b := range j.ref.boots {
		reasons := b.state.misfits(events)
		if why := j.mokProven(events); why != "" {
			reasons = append(reasons, why)
		}
		for _, why := range reasons[:min(len(reasons), maxBootReasons)] {
			j.state.Unbooted |= 1 << b.release
			j.state.BootMisfits = append(j.state.BootMisfits, bootMisfit{b.release, why})
		}
	}
}

// mokProven refuses a log without the events of PCR 14 where that is not as after a reset:
// the log does not lead to it, so that what it says of it is not known.
func (j *judge) mokProven(events []bootlog.Event) string {
	v, quoted := j.claims.PCR(j.ref.bank, mokPCR)
	switch {
	case !quoted:
		return "PCR 14 was not quoted"
	case slices.ContainsFunc(events, func(e bootlog.Event) bool { return e.PCR == mokPCR }):
	case !bytes.Equal(v, make([]byte, len(v))):
		return "the log does not lead to PCR 14"
	}
	return ""
}

// unbooted are the releases whose reference state the boot does not fit, and those that
// wait for the firmware's log.
func (j *judge) unbooted() (bad, unknown mask) {
	for _, b := range j.ref.boots {
		if !j.state.Booted {
			unknown |= 1 << b.release
		}
	}
	return j.state.Unbooted, unknown
}

// bootReasons say why a boot does not fit a release.
func (j *judge) bootReasons(release int) (reasons []Reason) {
	for _, m := range j.state.BootMisfits {
		if m.Release == release {
			reasons = append(reasons, Reason{Code: CodeMeasuredBoot, Release: j.ref.names[release], Seen: m.Why,
				Advice: "see what the firmware, shim and GRUB loaded; make a new measured boot policy if it was meant (keylime-policy create measured-boot)"})
		}
	}
	return reasons
}
