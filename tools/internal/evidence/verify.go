package evidence

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"io"
	"slices"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// Evidence is one attestation, from whichever protocol: see [Collected.Evidence] and
// [QuoteAnswer.Evidence]. Nothing in it is believed.
type Evidence struct {
	Message   []byte // TPMS_ATTEST
	Signature []byte // TPMT_SIGNATURE
	PCRs      []byte // values: see [AppendPCRBlob]

	List      []byte // measurement list from entry Offset on; nil: none was sent
	ListASCII bool
	Offset    int

	Firmware []byte // event log; nil: none was sent
}

// Expected is what a verifier knows about the device and has asked of it.
type Expected struct {
	AK    *AK       // the enrolled key
	Nonce []byte    // issued for this attestation, at least [MinNonce] bytes, never used before
	PCRs  Selection // as requested

	IMA bool // a measurement list was asked for
	// IMAPCRs are the PCRs into which IMA measures: nil is PCR 10, the kernel's default
	// (CONFIG_IMA_MEASURE_PCR_IDX). Rules with "pcr=" of the device's policy add others.
	IMAPCRs []int
	// Padding names the banks into which the device's kernel extends SHA-1 digests filled up
	// with zeros, as kernels before 5.8 do. Such a bank is as weak as SHA-1.
	Padding map[ima.HashAlgo]ima.Padding
	// SHA1Bank takes PCRs that are quoted in no better bank than SHA-1.
	SHA1Bank bool
	// Firmware says that the firmware's event log was asked for. It changes only with a boot.
	Firmware bool
	// MaxStalled is for how many attestations in a row the same announced entries may be
	// without a quote; 0 is 2. The kernel extends the PCR right after the list, so that
	// honest entries are never late by more than one.
	MaxStalled int
}

// imaPCRs applies the default.
func (x Expected) imaPCRs() []int {
	if x.IMAPCRs == nil {
		return []int{10}
	}
	return x.IMAPCRs
}

// State is what a verifier keeps of a device between two attestations. The zero State is
// that of a device that has not attested. It is public: nothing in it is secret.
type State struct {
	AK       []byte         `json:"ak"` // name of the key, empty in the zero State
	Clock    Clock          `json:"clock"`
	Firmware uint64         `json:"firmware"`
	Entries  int            `json:"entries"`   // of this boot's list that quotes cover
	Values   []ima.PCRValue `json:"values"`    // what they make of IMA's PCRs
	Seen     int            `json:"seen"`      // of this boot's list that were ever sent
	Stalled  int            `json:"stalled"`   // attestations in which Entries did not reach what was sent before
	Big      bool           `json:"bigEndian"` // how the list was written
	Hash     ima.HashAlgo   `json:"hash"`
}

// Offset is the entry from which on to ask for the list: 0 unless the quote that is asked
// for can go on where the last one ended.
func (s State) Offset(want Expected) int {
	banks, err := want.PCRs.banks()
	if err != nil || want.AK == nil || !bytes.Equal(s.AK, want.AK.name) || !want.IMA || !s.covers(want, banks) {
		return 0
	}
	return s.Entries
}

// covers says whether the values of s are of just those PCRs that want would replay.
func (s State) covers(want Expected, banks []bank) bool {
	n := 0
	for _, b := range banks {
		_, hash, err := bankOf(b.alg)
		if err != nil {
			return false
		}
		for _, pcr := range b.pcrs {
			if !slices.Contains(want.imaPCRs(), pcr) {
				continue
			}
			n++
			if !slices.ContainsFunc(s.Values, func(v ima.PCRValue) bool { return v.PCR == pcr && v.Bank == want.bank(hash) }) {
				return false
			}
		}
	}
	return n == len(s.Values)
}

func (x Expected) bank(hash ima.HashAlgo) ima.Bank {
	return ima.Bank{Hash: hash, Padding: x.Padding[hash]}
}

// Verify says whether ev is authentic, given what was expected and what is known of the
// device. It returns claims and the state to keep, or an [*Error] and the state as it was:
// evidence that is refused changes nothing.
//
// Of the measurement list the entries up to the quoted PCR values are claimed. What
// follows is pending: it was measured between the quote and the reading of the list, and
// has to come under the next quote.
func Verify(ev *Evidence, want Expected, prev State) (*Claims, State, error) {
	c, next, err := verify(ev, want, prev)
	if err != nil {
		return nil, prev, err
	}
	return c, next, nil
}

func verify(ev *Evidence, want Expected, prev State) (*Claims, State, error) {
	if want.AK == nil {
		return nil, prev, refuse(CodeExpectation, "check quote: no attestation key is enrolled")
	}
	asked, err := want.PCRs.banks()
	if err != nil {
		return nil, prev, err
	}
	if err := want.AK.verifySignature(ev.Message, ev.Signature); err != nil {
		return nil, prev, err
	}
	a, err := parseAttest(ev.Message, typeQuote)
	if err != nil {
		return nil, prev, err
	}
	if err := checkNonce(a.extraData, want.Nonce); err != nil {
		return nil, prev, err
	}
	c := &Claims{ak: want.AK, clock: a.clock}
	if c.pcrs, err = checkPCRs(ev.PCRs, a, asked, want); err != nil {
		return nil, prev, err
	}
	if len(prev.AK) > 0 && !bytes.Equal(prev.AK, want.AK.name) {
		prev = State{} // the device was enrolled anew, with another key
	}
	if c.rebooted, err = prev.advance(a.clock, ev.Offset == 0); err != nil {
		return nil, prev, err
	}
	next := prev
	if c.rebooted {
		next = State{AK: want.AK.Name()}
	}
	next.Clock, next.Firmware = a.clock, a.firmware
	if want.Firmware {
		if err := c.replayFirmware(ev.Firmware, want.SHA1Bank); err != nil {
			return nil, prev, err
		}
	}
	if want.IMA {
		if err := c.replay(ev, want, &next); err != nil {
			return nil, prev, err
		}
	}
	return c, next, nil
}

// advance compares the TPM's counters with the last ones. They are compared by their
// difference, as what a TPM adds to those of some keys may make them wrap around. After a
// restart the PCRs are as they were, if the device resumed, or new, if it booted after a
// suspend that nothing resumed (TPM Restart: TPM 2.0 part 3, TPM2_Startup): the counters are the
// same. What goes on from a value that was quoted before is of the same boot; a whole list
// is taken for that of another, so that nothing is believed of one boot for the other.
func (s State) advance(now Clock, whole bool) (rebooted bool, err error) {
	if len(s.AK) == 0 {
		return true, nil
	}
	resets, restarts := int32(now.ResetCount-s.Clock.ResetCount), int32(now.RestartCount-s.Clock.RestartCount)
	switch {
	case resets > 0:
		return true, nil
	case resets < 0 || restarts < 0 || now.Milliseconds <= s.Clock.Milliseconds:
		return false, refuse(CodeRewind, "check quote: the TPM's counters went from %+v to %+v", s.Clock, now)
	}
	return restarts > 0 && whole, nil
}

// debugPCR may be quoted unasked: Keylime's agents put the digest of a key there.
const debugPCR = 16

// checkPCRs returns the quoted values if they are those of the signed digest, and of just
// the PCRs that were asked for.
func checkPCRs(blob []byte, a *attest, asked []bank, want Expected) ([]PCR, error) {
	dumped, values, err := parsePCRBlob(blob)
	if err != nil {
		return nil, refuse(CodeMalformed, "read PCR values: %w", err)
	}
	same := func(x, y bank) bool { return x.alg == y.alg && slices.Equal(x.pcrs, y.pcrs) }
	if !slices.EqualFunc(dumped, a.banks, same) {
		return nil, refuse(CodeSelection, "check PCR values: they are of %v, the quote is of %v", dumped, a.banks)
	}
	if err := checkSelection(a.banks, asked); err != nil {
		return nil, err
	}
	digest := want.AK.hash.New()
	var pcrs []PCR
	for _, b := range a.banks {
		_, hash, err := bankOf(b.alg)
		if err != nil {
			return nil, refuse(CodeSelection, "check PCR values: %w", err)
		}
		for _, pcr := range b.pcrs {
			if len(values) == 0 || len(values[0]) != hash.Size() {
				return nil, refuse(CodePCRDigest, "check PCR values: PCR %d of bank %v is missing, or has another size", pcr, hash)
			}
			digest.Write(values[0])
			pcrs = append(pcrs, PCR{hash, pcr, bytes.Clone(values[0])})
			values = values[1:]
		}
	}
	if len(values) > 0 {
		return nil, refuse(CodePCRDigest, "check PCR values: %d more than were quoted", len(values))
	}
	if subtle.ConstantTimeCompare(digest.Sum(nil), a.pcrDigest) != 1 {
		return nil, refuse(CodePCRDigest, "check PCR values: they are not those that the TPM signed")
	}
	if !want.SHA1Bank {
		return pcrs, checkStrength(pcrs)
	}
	return pcrs, nil
}

func checkSelection(quoted, asked []bank) error {
	for _, b := range asked {
		i := slices.IndexFunc(quoted, func(q bank) bool { return q.alg == b.alg })
		if i < 0 {
			return refuse(CodeSelection, "check quote: bank %#x was asked for and is not quoted", uint16(b.alg))
		}
		got := quoted[i].pcrs
		if !slices.Contains(b.pcrs, debugPCR) {
			got = slices.DeleteFunc(slices.Clone(got), func(pcr int) bool { return pcr == debugPCR })
		}
		if !slices.Equal(got, b.pcrs) {
			return refuse(CodeSelection, "check quote: PCRs %v of bank %#x are quoted, %v were asked for", quoted[i].pcrs, uint16(b.alg), b.pcrs)
		}
	}
	for _, q := range quoted {
		if len(q.pcrs) > 0 && !slices.ContainsFunc(asked, func(b bank) bool { return b.alg == q.alg }) {
			return refuse(CodeSelection, "check quote: bank %#x is quoted and was not asked for", uint16(q.alg))
		}
	}
	return nil
}

// checkStrength refuses a PCR that is quoted in a weak bank only.
func checkStrength(pcrs []PCR) error {
	for _, p := range pcrs {
		if p.Bank.Weak() && !slices.ContainsFunc(pcrs, func(o PCR) bool { return o.Index == p.Index && !o.Bank.Weak() }) {
			return refuse(CodeSelection, "check quote: PCR %d is quoted in bank %v only, for which collisions can be made", p.Index, p.Bank)
		}
	}
	return nil
}

// replay finds the entries that lead to the quoted values, and brings next up to date.
func (c *Claims) replay(ev *Evidence, want Expected, next *State) error {
	start, err := c.begin(ev, want, next)
	if err != nil {
		return err
	}
	var quoted []ima.PCRValue
	for _, p := range c.pcrs {
		if slices.Contains(want.imaPCRs(), p.Index) {
			quoted = append(quoted, ima.PCRValue{PCR: p.Index, Bank: want.bank(p.Bank), Value: p.Value})
		}
	}
	run, err := ima.NewReplay(start, quoted)
	if err != nil {
		return refuse(CodeExpectation, "%w", err)
	}
	list := ima.NewListReader(c.list, c.form, c.first)
	if err := run.Run(list, func(*ima.Entry) error { return nil }); err != nil {
		return &Error{Code: listCode(err), Err: err}
	}
	c.covered = list.Index()
	if c.covered == 0 {
		return refuse(CodeMissingLog, "replay measurement list: the kernel has measured nothing: boot it with IMA")
	}
	if c.covered < next.Entries {
		return refuse(CodeMismatch, "replay measurement list: the quote covers %d entries, an earlier one of the same boot %d", c.covered, next.Entries)
	}
	if err := c.readTail(list); err != nil {
		return err
	}
	if c.covered >= next.Seen {
		next.Stalled = 0
	} else if next.Stalled++; next.Stalled >= want.maxStalled() {
		return refuse(CodeStalled, "replay measurement list: %d entries were sent, and quotes cover only %d of them for %d attestations", next.Seen, c.covered, next.Stalled)
	}
	next.Entries, next.Values, next.Seen = c.covered, run.Values(), max(next.Seen, c.end)
	return nil
}

func (x Expected) maxStalled() int {
	if x.MaxStalled == 0 {
		return 2
	}
	return x.MaxStalled
}

// begin decides where the list begins and how it is written, and returns the values from
// which its replay goes out.
func (c *Claims) begin(ev *Evidence, want Expected, next *State) ([]ima.PCRValue, error) {
	if ev.List == nil {
		return nil, refuse(CodeMissingLog, "replay measurement list: the device sent none")
	}
	c.list, c.first = ev.List, ev.Offset
	if ev.Offset == 0 {
		form, err := ima.DetectForm(ev.List)
		if err != nil { // the replay says what is wrong with it
			form = ima.Form{Order: binary.LittleEndian, Hash: ima.SHA1}
		}
		form.ASCII = ev.ListASCII
		c.form, next.Big, next.Hash = form, form.Order == binary.BigEndian, form.Hash
		return nil, nil
	}
	if c.rebooted {
		return nil, refuse(CodeReboot, "replay measurement list: the device has booted, and sent its list from entry %d on", ev.Offset)
	}
	banks, err := want.PCRs.banks()
	if err != nil {
		return nil, err
	}
	if ev.Offset != next.Entries || !next.covers(want, banks) {
		return nil, refuse(CodeOffset, "replay measurement list: it begins at entry %d, not at %d", ev.Offset, next.Offset(want))
	}
	c.form = ima.Form{ASCII: ev.ListASCII, Order: binary.LittleEndian, Hash: next.Hash}
	if next.Big {
		c.form.Order = binary.BigEndian
	}
	return next.Values, nil
}

// readTail looks at what is pending: it has to be a list too, and digests have to fit.
func (c *Claims) readTail(list *ima.ListReader) error {
	for {
		e, err := list.Next()
		if errors.Is(err, io.EOF) {
			c.end = list.Index()
			return nil
		}
		if err == nil {
			err = e.CheckDigest()
		}
		if err != nil {
			return &Error{Code: listCode(err), Err: err}
		}
	}
}

func listCode(err error) Code {
	switch {
	case errors.Is(err, ima.ErrNotReached):
		return CodeMismatch
	case errors.Is(err, ima.ErrTemplateDigest):
		return CodeTemplate
	case errors.Is(err, ima.ErrUnquotedPCR):
		return CodeUnquoted
	}
	return CodeLog
}
