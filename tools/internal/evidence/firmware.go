package evidence

import (
	"bytes"
	"slices"

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
// and keeps the events whose PCRs it leads to, with the digests that lead there.
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
	quoted := map[int]bool{}
	for _, p := range c.pcrs {
		quoted[p.Index] = true
	}
	for pcr := range firstLoaderPCR {
		if !quoted[pcr] {
			return refuse(CodeExpectation, "replay event log: PCR %d was not asked for, so that the log would prove nothing", pcr)
		}
	}
	proven, err := c.provenBanks(parsed)
	if err != nil {
		return err
	}
	for pcr := range firstLoaderPCR {
		if !slices.ContainsFunc(proven[pcr], func(b ima.HashAlgo) bool { return weak || !b.Weak() }) {
			return refuse(CodeFirmwareLog, "replay event log: of PCR %d it has digests of no quoted bank that is better than SHA-1", pcr)
		}
	}
	c.events = []bootlog.Event{}
	for _, e := range parsed.Events {
		if banks := proven[int(e.PCR)]; len(banks) > 0 {
			e.Digests = digestsOf(&e, banks)
			c.events = append(c.events, e)
		}
	}
	return nil
}

// provenBanks are, by PCR, the banks in which the log leads to the quoted value; none where
// it leads to another.
func (c *Claims) provenBanks(log *bootlog.Log) (map[int][]ima.HashAlgo, error) {
	proven, later := map[int][]ima.HashAlgo{}, map[int]bool{}
	for _, b := range bankNames {
		quoted := c.bankValues(b.hash)
		if len(quoted) == 0 || !hasDigests(log, bootlog.Alg(b.alg)) {
			continue
		}
		values, err := log.Replay(bootlog.Alg(b.alg))
		if err != nil {
			return nil, &Error{Code: CodeFirmwareLog, Err: err}
		}
		for pcr, value := range quoted {
			switch {
			case bytes.Equal(values[pcr], value):
				proven[pcr] = append(proven[pcr], b.hash)
			case pcr <= lastBootPCR:
				return nil, refuse(CodeFirmwarePCRs, "replay event log: it leads PCR %d of bank %s to %x, quoted is %x", pcr, b.name, values[pcr], value)
			default:
				later[pcr] = true
			}
		}
	}
	for pcr := range later {
		delete(proven, pcr)
	}
	return proven, nil
}

// digestsOf are the digests of e in banks. Those of other banks were extended into nothing
// that is quoted, so that whoever sends the log may write there what he likes.
func digestsOf(e *bootlog.Event, banks []ima.HashAlgo) (proven []bootlog.Digest) {
	for _, bank := range banks {
		if alg, ok := bootAlg(bank); ok && e.Digest(alg) != nil {
			proven = append(proven, bootlog.Digest{Alg: alg, Sum: e.Digest(alg)})
		}
	}
	return proven
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
