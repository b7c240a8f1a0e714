package appraise

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"github.com/meta-attest/meta-attest/tools/internal/bootlog"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// aggregate judges boot_aggregate, with which the kernel binds the list to the boot that
// the quoted PCRs are of. It comes first and once; after a kexec, which carries the list
// over, the new kernel adds another.
func (j *judge) aggregate(e *ima.Entry) {
	j.state.Counts.Aggregates++
	switch {
	case e.Index > 0 && !j.ref.rules.Kexec:
		j.misfit(e, CodeAggregateAgain, 0)
	case e.File.Hash.Weak() && !j.ref.rules.WeakDigests:
		j.misfit(e, CodeWeakDigest, 0)
	case e.File.Verity || !slices.ContainsFunc(j.claims.BootAggregates(e.File.Hash), func(sum []byte) bool { return bytes.Equal(sum, e.File.Sum) }):
		j.misfit(e, CodeAggregate, 0)
	}
}

// firmware reads what a log that came with this quote says. What a boot once said stays.
func (j *judge) firmware() {
	events := j.claims.Firmware()
	if events == nil || j.state.SecureBoot == secureOff {
		return
	}
	j.state.SecureBoot = secureOff
	if secureBoot(events) {
		j.state.SecureBoot = secureOn
	}
}

// lastBootPCR is the last that boot_aggregate is computed of.
const lastBootPCR = 9

// secureBootPCR is where the firmware measures the policy of Secure Boot (PFP 3.3.4.8).
const secureBootPCR = 7

// globalVariable is EFI_GLOBAL_VARIABLE (UEFI 2.10, section 3.3).
const globalVariable = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

// secureBoot says whether the firmware measured that Secure Boot was on: the first event of
// PCR 7 (PFP 3.3.4.8), before a separator ends what the firmware measured. A log's types are
// under no digest, so that whoever sends it may pass an event off as one of another type:
// both are known by what was extended. The name of the variable has to be under the digest
// too, which [bootlog.Event.Proven] does not ask for.
func secureBoot(events []bootlog.Event) bool {
	on := false
	for i := range events {
		e := &events[i]
		if e.PCR != secureBootPCR || e.Type == bootlog.NoAction { // the replay passed over the latter
			continue
		}
		if isSeparator(e) {
			return on
		}
		d, err := e.Details()
		v, ok := d.(*bootlog.Variable)
		isVariable := err == nil && ok && v.Name == "SecureBoot" && v.Vendor.String() == globalVariable
		switch {
		case !on && hasDigest(e, []byte(dmaAction)):
		case isVariable && bytes.Equal(v.Data, []byte{1}) && hasDigest(e, e.Data):
			on = true
		case isVariable || !on:
			return false
		}
	}
	return false
}

// dmaAction is the EV_EFI_ACTION of a firmware whose protection against DMA is off, which
// may come before all else; a debugger's ("UEFI Debug Mode") may not.
const dmaAction = "DMA Protection Disabled"

// isSeparator says whether the digests of e are those of an EV_SEPARATOR of a firmware that
// met no error (PFP 10.4.1).
func isSeparator(e *bootlog.Event) bool {
	return hasDigest(e, []byte{0, 0, 0, 0}) || hasDigest(e, []byte{0xff, 0xff, 0xff, 0xff})
}

// hasDigest says whether every digest of e, of which there has to be one, is that of data.
func hasDigest(e *bootlog.Event, data []byte) bool {
	for _, d := range e.Digests {
		var sum []byte
		switch d.Alg {
		case bootlog.SHA1:
			s := sha1.Sum(data)
			sum = s[:]
		case bootlog.SHA256:
			s := sha256.Sum256(data)
			sum = s[:]
		case bootlog.SHA384:
			s := sha512.Sum384(data)
			sum = s[:]
		case bootlog.SHA512:
			s := sha512.Sum512(data)
			sum = s[:]
		}
		if !bytes.Equal(sum, d.Sum) {
			return false
		}
	}
	return len(e.Digests) > 0
}

// pinned is what became of the pins: the releases that the quoted PCRs allow, and those of
// which a PCR was not quoted.
func (j *judge) pinned() (fits, unquoted mask) {
	fits = j.ref.all
	for _, p := range j.ref.pins {
		switch quoted, ok := j.check(p); {
		case !quoted:
			unquoted |= p.releases
		case !ok:
			fits &^= p.releases
		}
	}
	return fits, unquoted
}

// check compares one PCR in every bank that p has values of.
func (j *judge) check(p pin) (quoted, ok bool) {
	ok = true
	for hash, values := range p.values {
		v, there := j.claims.PCR(hash, p.index)
		quoted = quoted || there
		if there && !slices.Contains(values, string(v)) {
			ok = false
		}
	}
	return quoted, ok
}

// pinReasons say which pins of a release do not hold.
func (j *judge) pinReasons(release int) (reasons []Reason) {
	for _, p := range j.ref.pins {
		quoted, ok := j.check(p)
		if !p.releases.has(release) || quoted && ok {
			continue
		}
		r := Reason{Code: CodePCR, PCR: &p.index, Release: j.ref.names[release],
			Advice: "see what the boot loaded: another boot loader, kernel or command line, or other firmware settings; allow the value if it was meant"}
		if !quoted {
			r.Code, r.Advice = CodeNotQuoted, "the TPM has to quote this PCR: allocate its bank (tpm2_pcrallocate, then a reboot), or pin it in another"
		}
		for _, hash := range slices.Sorted(maps.Keys(p.values)) {
			for _, v := range p.values[hash] {
				if len(r.Expected) < maxExpected {
					r.Expected = append(r.Expected, hash.String()+":"+hex.EncodeToString([]byte(v)))
				}
			}
			if v, there := j.claims.PCR(hash, p.index); there {
				r.Seen = fmt.Sprintf("%v:%x", hash, v)
			}
		}
		reasons = append(reasons, r)
	}
	return reasons
}
