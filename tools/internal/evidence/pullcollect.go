package evidence

import (
	"crypto/subtle"
	"slices"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// Collected is the answer in the form of push attestation, so that both are judged and kept
// alike, and what of asked it answers to: an agent that is polled leaves out the logs that
// it has not got, and begins its list anew where it has fewer entries than it was asked for.
func (q QuoteAnswer) Collected(asked Requests) (Requests, *Collected, error) {
	ev, err := q.Evidence()
	if err != nil {
		return asked, nil, err
	}
	c := &Collected{}
	requested := asked.Requested
	asked.Requested = nil
	for _, r := range requested {
		item := Item{Class: r.Class, Type: r.Type}
		switch {
		case r.Type == TypeQuote:
			item.Data = Data{Message: ev.Message, Signature: ev.Signature, PCRs: ev.PCRs}
		case r.Type == TypeIMA && ev.List != nil:
			if want := r.Parameters.Offset; want != nil && ev.Offset != *want {
				if ev.Offset != 0 {
					return asked, nil, refuse(CodeOffset, "read quote: the list begins at entry %d, not at %d", ev.Offset, *want)
				}
				r.Parameters.Offset = new(int)
			}
			item.Data = NewLog(ev.List, FormatText, -1)
		case r.Type == TypeFirmware && ev.Firmware != nil:
			item.Data = NewLog(ev.Firmware, FormatBinary, -1)
		default:
			continue
		}
		asked.Requested = append(asked.Requested, r)
		c.Collected = append(c.Collected, item)
	}
	return asked, c, nil
}

// CheckShareKey says whether the quote is from an agent with this transport key, in PEM as
// it was sent: whether [KeyPCR] was extended with it, and with nothing else. The error's
// code is [CodeKey].
func (c *Claims) CheckShareKey(key string) error {
	if _, err := parseShareKey(key); err != nil {
		return refuse(CodeKey, "check transport key: %w", err)
	}
	quoted := c.PCRs()
	i := slices.IndexFunc(quoted, func(p PCR) bool { return p.Index == KeyPCR && p.Bank != ima.SHA1 })
	if i < 0 {
		return refuse(CodeKey, "check transport key: PCR %d is not quoted", KeyPCR)
	}
	if subtle.ConstantTimeCompare(quoted[i].Value, KeyPCRValue(quoted[i].Bank.Hash(), key)) != 1 {
		return refuse(CodeKey, "check transport key: PCR %d does not hold it: the answer has another key than the agent that was quoted", KeyPCR)
	}
	return nil
}
