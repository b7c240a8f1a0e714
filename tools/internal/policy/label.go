package policy

import "github.com/meta-attest/meta-attest/tools/internal/ima"

// Labels are what appraisal looks at. That a label belongs to the content is not
// looked at here.
type Labels struct {
	IMA, EVM []byte // values of security.ima and security.evm; nil for none
	EVMOn    bool   // EVM has a key: files must have security.evm
	Appended bool   // the file ends in an appended signature
}

// Refusal says why the kernel refuses a file with these labels, as it does in its audit
// record (cause=), or nothing when it does not. It is ima_appraise_measurement and
// xattr_verify of ima_appraise.c with good keys.
func (d *Decision) Refusal(l Labels, kernel Version) string {
	if !d.Appraised() {
		return ""
	}
	appended := d.Modsig && l.Appended
	if len(l.IMA) == 0 {
		switch {
		case appended:
			return ""
		case d.Imasig:
			return d.signatureRequired()
		default:
			return "missing-hash"
		}
	}
	if l.EVMOn {
		_, err := ima.ParseEVM(l.EVM)
		switch {
		case len(l.EVM) == 0:
			return "missing-HMAC"
		case err != nil:
			return "invalid-HMAC"
		}
	}
	x, err := ima.ParseIMA(l.IMA)
	if err != nil {
		return "unknown-ima-data"
	}
	cause := d.label(x, l.portable(kernel), kernel)
	if appended && (x.Type == ima.DigestNG || cause == "") {
		return ""
	}
	if cause == "" && d.algos != 0 && d.algos&(1<<x.Hash) == 0 {
		return "denied-hash-algorithm"
	}
	return cause
}

// signatureRequired is the cause when there is no signature.
func (d *Decision) signatureRequired() string {
	if d.Verity {
		return "verity-signature-required"
	}
	return "IMA-signature-required"
}

// label is xattr_verify.
func (d *Decision) label(x *ima.Xattr, portable bool, kernel Version) string {
	switch {
	case x.Type == ima.Digest || x.Type == ima.DigestNG:
		if d.Imasig && !portable {
			return d.signatureRequired()
		}
	case x.Type == ima.Signature:
		switch {
		case d.Imasig && d.Verity:
			return "verity-signature-required"
		case x.Version == 3 && kernel.Before(sigv3Since):
			return "invalid-signature-version"
		case x.Version != 3 && d.SigV3 && !kernel.Before(sigv3Since):
			return "IMA-sigv3-required"
		}
	case kernel.Before(veritySince):
		return "unknown-ima-data"
	case d.Imasig && !d.Verity:
		return "IMA-signature-required"
	case !d.Verity:
		return "invalid-verity-signature"
	}
	return ""
}

// portable says whether EVM takes security.evm for a portable signature
// (INTEGRITY_PASS_IMMUTABLE).
func (l *Labels) portable(kernel Version) bool {
	evm, err := ima.ParseEVM(l.EVM)
	return l.EVMOn && err == nil && evm.Type == ima.PortableSignature && !kernel.Before(portableSince)
}

// immutable says whether the labels keep the file from being written to: security.ima is
// a signature, or EVM vouches with a portable one for a digest (IMA_DIGSIG).
func (l *Labels) immutable(kernel Version) bool {
	x, err := ima.ParseIMA(l.IMA)
	return err == nil && (x.IsSignature() || l.portable(kernel))
}
