package evidence

import (
	"bytes"

	"github.com/meta-attest/meta-attest/tools/internal/bootlog"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// maxFirmware bounds an event log; one with a large dbx has some 100 KiB.
const maxFirmware = 1 << 20

// lastBootPCR is the last PCR that belongs to the firmware and the boot loader alone (TCG
// PC Client Platform Firmware Profile 1.06, 3.3.4; GRUB has 8 and 9): no system extends
// it later, so that a log has to lead to its value.
const (
	firstLoaderPCR = 8 // those before it are the firmware's
	lastBootPCR    = 9
)

func bootAlg(hash ima.HashAlgo) (bootlog.Alg, bool) {
	for _, b := range bankNames {
		if b.hash == hash {
			return bootlog.Alg(b.alg), true
		}
	}
	return 0, false
}

// replayFirmware compares the event log with every quoted bank for which it has digests,
// and keeps the events whose PCRs it leads to.
func (c *Claims) replayFirmware(log []byte, weak bool) error {
	if log == nil {
		return refuse(CodeMissingLog, "replay event log: the device sent none")
	}
	if len(log) > maxFirmware {
		return refuse(CodeFirmwareLog, "replay event log: %d bytes, %d at most", len(log), maxFirmware)
	}
	parsed, err := bootlog.Parse(log)
	if err != nil {
		return &Error{Code: CodeFirmwareLog, Err: err}
	}
	proven, strong := map[int]bool{}, false
	for _, p := range c.pcrs {
		proven[p.Index] = true
	}
	for pcr := range firstLoaderPCR {
		if !proven[pcr] {
			return refuse(CodeExpectation, "replay event log: PCR %d was not asked for, so that the log would prove nothing", pcr)
		}
	}
	for _, b := range bankNames {
		quoted := c.bankValues(b.hash)
		if len(quoted) == 0 || !hasDigests(parsed, bootlog.Alg(b.alg)) {
			continue
		}
		values, err := parsed.Replay(bootlog.Alg(b.alg))
		if err != nil {
			return &Error{Code: CodeFirmwareLog, Err: err}
		}
		strong = strong || !b.hash.Weak()
		for pcr, value := range quoted {
			if bytes.Equal(values[pcr], value) {
				continue
			}
			if pcr <= lastBootPCR {
				return refuse(CodeFirmwarePCRs, "replay event log: it leads PCR %d of bank %s to %x, quoted is %x", pcr, b.name, values[pcr], value)
			}
			proven[pcr] = false
		}
	}
	if !strong && !weak {
		return refuse(CodeFirmwareLog, "replay event log: it has digests of no quoted bank that is better than SHA-1")
	}
	c.events = []bootlog.Event{}
	for _, e := range parsed.Events {
		if proven[int(e.PCR)] {
			c.events = append(c.events, e)
		}
	}
	return nil
}

func hasDigests(log *bootlog.Log, alg bootlog.Alg) bool {
	if log.Spec == nil {
		return alg == bootlog.SHA1
	}
	for _, a := range log.Spec.Algs {
		if a == alg {
			return true
		}
	}
	return false
}
