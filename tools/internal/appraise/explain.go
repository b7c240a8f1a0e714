package appraise

import (
	"fmt"
	"io"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

func (m *misfit) digest() string {
	return fmt.Sprintf("%v:%x", kindOf(ima.FileDigest{Hash: m.Hash, Verity: m.Verity}), m.Sum)
}

// misfits say why listed entries do not fit a release.
func (j *judge) misfits(release int) (reasons []Reason) {
	for i := range j.state.Listed {
		if m := &j.state.Listed[i]; !m.Releases.has(release) {
			reasons = append(reasons, j.explain(m, release))
		}
	}
	return reasons
}

func (j *judge) noted(m misfit) Reason {
	r := Reason{Code: m.Code, Entry: &m.Entry, Path: display(m.Path), Seen: m.digest()}
	switch m.Code {
	case CodeExcluded:
		r.Advice = "not judged: an exclude covers the path"
	case CodeSigned:
		r.Advice = "in no release that fits; a certificate of the rules signed it"
	case CodeRelocated:
		r.Advice = "the release has it at another path"
		for f := range j.ref.table.withSum(kindOf(ima.FileDigest{Hash: m.Hash, Verity: m.Verity}), m.Sum) {
			r.Package, r.Release = f.pkg, j.ref.first(f.mask&m.Releases)
			r.Advice = "the release has it as " + display(f.path)
			break
		}
	case CodeWarned:
		r.Seen, r.Advice = "", "a violation that the rules accept; its path is not proven"
	}
	return r
}

// explain says why m does not fit a release, and what is nearest to it.
func (j *judge) explain(m *misfit, release int) Reason {
	r := Reason{Code: m.Code, Entry: &m.Entry, Path: display(m.Path), Seen: m.digest(), Release: j.ref.names[release]}
	switch m.Code {
	case "":
		j.explainFile(&r, m, release)
	case CodeWeakDigest:
		r.Advice = "boot the device with ima_hash=sha256 ima_template=ima-ng, or accept it: weak_digests = true"
	case CodeViolation:
		r.Seen = ""
		r.Advice = "the file was written to while it was open for execution or reading; the path is not proven. Find the writer, or accept: violations = \"warn\""
	case CodeSignature:
		j.explainFile(&r, m, release)
		r.Code, r.Advice = CodeSignature, "the signature is not of this content, and no release has it: "+r.Advice
	case CodeBuffer:
		j.explainBuffer(&r, m)
	case CodeNoAggregate:
		r.Advice = "a list begins with boot_aggregate: this one is not of a booted kernel, or its beginning is lost"
	case CodeAggregate:
		j.explainAggregate(&r, m)
	case CodeAggregateAgain:
		r.Advice = "another kernel was started by kexec: reboot, or allow it: kexec = true"
	}
	return r
}

func (j *judge) explainAggregate(r *Reason, m *misfit) {
	sums := j.claims.BootAggregates(m.Hash)
	for _, sum := range sums {
		r.Expected = append(r.Expected, fmt.Sprintf("%v:%x", m.Hash, sum))
	}
	r.Advice = "the list is not of the boot that was quoted, or PCR 0 to 9 were extended since: reboot"
	if len(sums) == 0 {
		r.Advice = fmt.Sprintf("boot_aggregate is of bank %v, which was not quoted: ask for PCR 0 to 9 of that bank too", m.Hash)
	}
}

func (j *judge) explainBuffer(r *Reason, m *misfit) {
	r.Expected, _ = j.expected(m, func(k kind) bool { return k&bufferKind != 0 }, -1)
	what := "a measurement named " + r.Path
	if strings.HasPrefix(r.Path, ".") {
		what = "a key in keyring " + r.Path
	}
	r.Advice = what + " that no rule allows: list its digest in a [[buffer]] of the rules, if it was meant"
}

// expected are the digests that a release, or any for -1, has for the path of m.
func (j *judge) expected(m *misfit, want func(kind) bool, release int) (digests []string, pkg string) {
	for f := range j.ref.table.withPath(m.Path) {
		if (release < 0 || f.mask.has(release)) && want(f.kind) {
			pkg = f.pkg
			if len(digests) < maxExpected {
				digests = append(digests, fmt.Sprintf("%v:%x", f.kind, f.sum))
			}
		}
	}
	return digests, pkg
}

func (j *judge) explainFile(r *Reason, m *misfit, release int) {
	k := kindOf(ima.FileDigest{Hash: m.Hash, Verity: m.Verity})
	var all []string
	r.Expected, r.Package = j.expected(m, func(other kind) bool { return other == k }, release)
	if len(r.Expected) == 0 {
		all, r.Package = j.expected(m, func(other kind) bool { return other&bufferKind == 0 }, release)
	}
	switch {
	case m.Releases != 0:
		other := lowest(m.Releases)
		_, r.Package = j.expected(m, func(kind) bool { return true }, other)
		r.Code, r.Release = CodeOtherRelease, j.ref.names[other]
		r.Advice = fmt.Sprintf("%s has this file, the rest is %s: finish the update, or roll it back", j.ref.names[other], j.ref.names[release])
	case len(all) > 0:
		r.Code, r.Expected = CodeDigestAlgorithm, all
		r.Advice = algorithmAdvice(k, all)
	case j.elsewhere(r, k, m, release, len(r.Expected) > 0):
	case len(r.Expected) > 0:
		r.Code = CodeChangedFile
		r.Advice = fmt.Sprintf("the file is not the one of %s%s: reinstall it, or allow a release that has it", r.Release, ofPackage(r.Package))
	default:
		j.unknown(r, k, m)
	}
}

// elsewhere says where else the content of m is, in the release itself if it can.
func (j *judge) elsewhere(r *Reason, k kind, m *misfit, release int, changed bool) bool {
	var found *record
	for f := range j.ref.table.withSum(k, m.Sum) {
		if f.mask.has(release) {
			found = &f
			break
		}
		if found == nil {
			found = &f
		}
	}
	if found == nil {
		return false
	}
	where := fmt.Sprintf("%s%s of %s", display(found.path), ofPackage(found.pkg), j.ref.first(found.mask))
	if found.mask.has(release) {
		where = fmt.Sprintf("%s%s of %s", display(found.path), ofPackage(found.pkg), r.Release)
	}
	if changed {
		r.Code, r.Advice = CodeChangedFile, "its content is that of "+where+": reinstall"+ofPackage(r.Package)
		return true
	}
	r.Code, r.Package = CodeMovedFile, found.pkg
	r.Advice = "this is " + where + ", run from another path: remove the copy, or allow the place: relocated = [...]"
	return true
}

// unknown looks for the path in other releases.
func (j *judge) unknown(r *Reason, k kind, m *misfit) {
	r.Code = CodeUnknownFile
	r.Advice = "no release has this file: remove it, or build a release that has it"
	for f := range j.ref.table.withPath(m.Path) {
		if f.kind&bufferKind == 0 {
			other := j.ref.first(f.mask)
			r.Package = f.pkg
			r.Advice = fmt.Sprintf("%s does not have the path; %s has, with other content%s", r.Release, other, ofPackage(f.pkg))
			if f.kind == k {
				r.Expected = append(r.Expected, fmt.Sprintf("%v:%x", f.kind, f.sum))
			}
			return
		}
	}
	if len(m.Path) > 0 && m.Path[0] != '/' {
		r.Advice = "the path is not from the root: it was run from a file system that is not mounted, or without a name (memfd)"
	}
}

func ofPackage(pkg string) string {
	if pkg == "" {
		return ""
	}
	return " (package " + display([]byte(pkg)) + ")"
}

func algorithmAdvice(k kind, all []string) string {
	var names []string
	for _, d := range all {
		name := d[:strings.LastIndexByte(d, ':')]
		if !strings.Contains(" "+strings.Join(names, " ")+" ", " "+name+" ") {
			names = append(names, name)
		}
	}
	advice := fmt.Sprintf("the release has %s of this file, the list %v", strings.Join(names, " and "), k)
	switch {
	case k&verityKind != 0:
		return advice + ": make the manifest with fs-verity digests (attest sign --verity)"
	case strings.HasPrefix(names[0], "verity:"):
		return advice + ": let the device's IMA policy measure with digest_type=verity"
	}
	return advice + ": boot with ima_hash=" + names[0]
}

// WriteText writes v for people: the verdict, then what is wrong and what to do.
func (v Verdict) WriteText(w io.Writer) error {
	b := &strings.Builder{}
	fmt.Fprintf(b, "%s", v.Status)
	switch {
	case v.Status == Trusted && len(v.Releases) > 1:
		fmt.Fprintf(b, ": everything fits %s", strings.Join(v.Releases, " and "))
	case v.Status == Trusted:
		fmt.Fprintf(b, ": everything fits %s", v.Release)
	case v.Release != "":
		fmt.Fprintf(b, ": nearest is %s, %s", v.Release, plural(v.Counts.Misfits, "entry does", "entries do")+" not fit")
	}
	c := v.Counts
	fmt.Fprintf(b, "\n%s under quotes", plural(c.Entries, "measurement", "measurements"))
	for _, n := range []struct {
		n    int
		text string
	}{
		{c.Files, "files of a release"}, {c.Signed, "by signature"}, {c.Relocated, "relocated"}, {c.Excluded, "excluded"}, {c.Buffers, "keys and buffers"},
		{c.Violations, "violations"}, {c.ViolationsAccepted, "violations accepted"}, {c.Pending, "pending"},
	} {
		if n.n > 0 {
			fmt.Fprintf(b, ", %d %s", n.n, n.text)
		}
	}
	b.WriteByte('\n')
	for _, r := range v.Reasons {
		r.write(b)
	}
	if v.Omitted > 0 {
		fmt.Fprintf(b, "\nand %d more\n", v.Omitted)
	}
	for _, r := range v.Notes {
		r.write(b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Reason) write(b *strings.Builder) {
	fmt.Fprintf(b, "\n%s", r.Code)
	if r.Entry != nil {
		fmt.Fprintf(b, "  entry %d", *r.Entry)
	}
	if r.PCR != nil {
		fmt.Fprintf(b, "  PCR %d", *r.PCR)
	}
	if r.Path != "" {
		fmt.Fprintf(b, "  %s", r.Path)
	}
	b.WriteByte('\n')
	for _, e := range r.Expected {
		fmt.Fprintf(b, "  expected %s\n", e)
	}
	for _, line := range []struct{ name, text string }{{"seen", r.Seen}, {"package", r.Package}, {"release", r.Release}} {
		if line.text != "" {
			fmt.Fprintf(b, "  %-8s %s\n", line.name, line.text)
		}
	}
	fmt.Fprintf(b, "  -> %s\n", r.Advice)
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
