//go:build !nopull

package main

import (
	"crypto"
	"crypto/rand"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// polledQuote quotes the PCRs that were asked for and the one that names the transport key,
// in the bank of the signature's hash, as Keylime has one hash for both. d.mu is held.
func (d *device) polledQuote(q *evidence.QuoteRequest, key string) (*evidence.QuoteAnswer, error) {
	bank, hash, alg := d.public.Hash(), crypto.SHA256, tpm2.TPMAlgSHA256
	if bank == "sha384" {
		hash, alg = crypto.SHA384, tpm2.TPMAlgSHA384
	}
	selection, err := evidence.Selection{bank: q.WithKeyPCR()}.TPM()
	if err != nil {
		return nil, err
	}
	if err := d.tpm.SetPCR(evidence.KeyPCR, alg, evidence.KeyDigest(hash, key)); err != nil {
		return nil, &tpmError{err}
	}
	quote, err := d.ak.Quote([]byte(q.Nonce), selection)
	if err != nil {
		return nil, &tpmError{err}
	}
	blob, err := evidence.AppendPCRBlob(nil, selection, quote.Values)
	if err != nil {
		return nil, err
	}
	return &evidence.QuoteAnswer{Quote: evidence.NewQuote(quote.Message, quote.Signature, blob), Hash: bank, Scheme: d.public.Scheme()}, nil
}

// polledLogs puts markers for the logs into an answer: the list as text, from the entry that
// was asked for, and the firmware's log where its PCR 0 is quoted.
func (d *device) polledLogs(q *evidence.QuoteRequest, to *evidence.QuoteAnswer) ([]log, error) {
	if err := d.ascii.count(); err != nil {
		return nil, err
	}
	entry := q.Offset
	if entry > d.ascii.entries {
		entry = 0 // the device has booted since, and the list is another
	}
	from, err := d.ascii.from(entry)
	if err != nil {
		return nil, err
	}
	list := log{rand.Text(), from, evidence.FormatText}
	to.List, to.Offset = &list.marker, &entry
	logs := []log{list}
	if len(q.PCRs) > 0 && q.PCRs[0] == 0 && d.firmware != nil {
		from, err := d.firmwareLog()
		if err != nil {
			return nil, err
		}
		boot := log{rand.Text(), from, evidence.FormatBinary}
		to.Firmware = &boot.marker
		logs = append(logs, boot)
	}
	return logs, nil
}
