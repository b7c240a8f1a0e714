package appraise

import "github.com/meta-attest/meta-attest/tools/internal/evidence"

// refusalAdvice says what an operator can do about evidence that is not authentic. Nothing
// of it counts: neither its list nor its PCRs say what the device runs.
func refusalAdvice(code evidence.Code) string {
	switch code {
	case evidence.CodeMalformed:
		return "the agent sends something else than the protocol has: update attest-agent, and see whether a proxy changes what it sends"
	case evidence.CodeKey:
		return "the attestation key could sign what no TPM says: attest-agent enrol --new-key"
	case evidence.CodeCertificate:
		return "give the verifier the certificates of the TPM's manufacturer ([attestation] ek_ca), then attest-agent enrol"
	case evidence.CodeExpectation:
		return "a fault of the policy or of the verifier: look at bank, ima_pcrs and [[pcr]] of the rules, and at the verifier's log"
	case evidence.CodeSignature:
		return "another key than the enrolled one signed: attest-agent enrol if TPM or key were replaced on purpose, else somebody answers in the device's name"
	case evidence.CodeNotQuote:
		return "the key was used for something else than a quote: find out what uses it besides attest-agent, then attest-agent enrol --new-key"
	case evidence.CodeNonce:
		return "an old quote was sent again, or two agents answer for one device: let one run, and look for a copy of the device if that was so"
	case evidence.CodeSelection:
		return "the TPM quotes other PCRs or banks than the rules want: allocate the bank (tpm2_pcrallocate, then a reboot), or name another: bank = ..."
	case evidence.CodePCRDigest:
		return "the PCR values were changed on their way, or a PCR was extended while it was quoted: if the next attestation says it again, take the device off the network"
	case evidence.CodeRewind:
		return "an old quote, or a TPM that was cleared or replaced: attest-agent enrol if that was done on purpose, else somebody replays what the device said"
	case evidence.CodeReboot:
		return "the device has booted: the next attestation is of the whole list"
	case evidence.CodeOffset:
		return "the agent sent other entries than it was asked for: restart attest-agent, or update it"
	case evidence.CodeMissingLog:
		return "the kernel measures nothing, or the agent cannot read what it measured: attest-agent doctor says which, and mends it"
	case evidence.CodeLog:
		return "the list is cut or was changed: reboot the device; if it says so again, its kernel or its agent is not what was built"
	case evidence.CodeTemplate:
		return "an entry was changed after it was measured: what runs on the device lies about it; reinstall it"
	case evidence.CodeUnquoted:
		return "the device's IMA policy measures into a PCR that is not quoted (pcr=): name all of them in the rules, ima_pcrs = [10, ...]"
	case evidence.CodeMismatch:
		return "entries are missing or were changed, or something else extends the PCR: reboot; if it is so again: a kernel before 5.8, or one without the bank's hash, needs padding or bank in the rules"
	case evidence.CodeStalled:
		return "entries were shown that the TPM never had: what runs on the device lies about it; reboot, and reinstall it if it is so again"
	case evidence.CodeFirmwareLog:
		return "the firmware's event log is cut or not of the TCG's format: update the firmware, or do without firmware.secure_boot in the rules"
	case evidence.CodeFirmwarePCRs:
		return "the firmware's event log was changed, or is not of this boot: reboot; if it is so again, update the firmware"
	}
	return ""
}
