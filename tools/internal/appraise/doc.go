// Package appraise says whether what a device has proven is what was built.
//
// [Compile] makes a [Reference] of the releases that are allowed and of the operator's
// [Rules]; [Appraise] compares it with [evidence.Claims]. A device passes when everything
// that it ran fits one release, the same for all; a mixture of two does not pass. What is
// not known is never trusted: no reference, nothing measured or a PCR that was not quoted
// is [Unverified], and whatever fits no release is [Untrusted] until the next boot.
//
// The package has no I/O, no clock and no globals that change. It takes the bytes of
// policies and of measurements for hostile: each is compared with a ceiling, and what it
// does not understand in a policy is an error, never a rule that is passed over.
package appraise

// Code says why a device is not trusted. It is part of the verdict's schema: a code keeps
// its meaning.
type Code string

// Codes of reasons that make a device untrusted.
const (
	CodeUnknownFile     Code = "unknown_file"     // no release has its path or its content
	CodeChangedFile     Code = "changed_file"     // the release has other content for its path
	CodeMovedFile       Code = "moved_file"       // the release has its content at another path
	CodeOtherRelease    Code = "other_release"    // another release than the nearest has just this file
	CodeDigestAlgorithm Code = "digest_algorithm" // the release has its path, but digests of another kind
	CodeWeakDigest      Code = "weak_digest"      // MD5 or SHA-1
	CodeViolation       Code = "violation"        // a file changed while it was measured
	CodeSignature       Code = "signature"        // a signature that should count does not match
	CodeBuffer          Code = "unknown_buffer"   // a key, kernel command line ... that no rule lists

	CodeNoAggregate    Code = "boot_aggregate_missing"  // the list does not begin with it
	CodeAggregate      Code = "boot_aggregate_mismatch" // it is not that of the quoted PCRs
	CodeAggregateAgain Code = "boot_aggregate_again"    // a kexec, which the rules do not allow

	CodePCR          Code = "pcr_mismatch"  // a quoted PCR has none of the allowed values
	CodeMeasuredBoot Code = "measured_boot" // the firmware's log does not fit Keylime's measured boot policy
	CodeSecureBoot   Code = "secure_boot"   // the firmware's log says that Secure Boot was off, or does not say it
	CodeList         Code = "ima_log"       // the list changed after it was verified
)

// Codes of reasons that leave a device unverified.
const (
	CodeNoPolicy      Code = "no_policy"
	CodeNoClaims      Code = "no_claims"
	CodeNeedWhole     Code = "need_whole"       // judged next time, with the list from its beginning
	CodeNothing       Code = "nothing_measured" // no file of a release was: is an IMA policy loaded?
	CodeRequired      Code = "required_missing" // a file that has to be measured was not, yet
	CodeNotQuoted     Code = "pcr_not_quoted"   // a PCR that a rule is about
	CodeNoFirmwareLog Code = "firmware_log_missing"
)

// Codes of notes: what passed although no release lists it.
const (
	CodeExcluded  Code = "excluded"
	CodeSigned    Code = "signed"
	CodeRelocated Code = "relocated"
	CodeWarned    Code = "violation_accepted"
)
