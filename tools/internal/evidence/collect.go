package evidence

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// strict64 takes one encoding of each value only, unlike [base64.StdEncoding].
var strict64 = base64.StdEncoding.Strict()

// Evidence is what was collected for asked: each piece in its place, none missing, none
// more. Formats and offsets are those that were asked for.
func (c Collected) Evidence(asked Requests) (*Evidence, error) {
	if len(c.Collected) != len(asked.Requested) {
		return nil, refuse(CodeMissingLog, "read evidence: %d pieces for %d requests", len(c.Collected), len(asked.Requested))
	}
	ev := &Evidence{}
	for i, item := range c.Collected {
		want := asked.Requested[i]
		if item.Type != want.Type || item.Class != want.Class {
			return nil, refuse(CodeMalformed, "read evidence: piece %d is %.40q, %.40q was asked for", i, item.Type, want.Type)
		}
		switch item.Type {
		case TypeQuote:
			ev.Message, ev.Signature, ev.PCRs = item.Data.Message, item.Data.Signature, item.Data.PCRs
			continue
		case TypeIMA, TypeFirmware:
		default:
			return nil, refuse(CodeExpectation, "read evidence: %q was asked for, and is unknown", want.Type)
		}
		log, err := item.Data.log(want.Parameters.Format)
		if err != nil {
			return nil, refuse(CodeMalformed, "read %s: %w", item.Type, err)
		}
		if item.Type == TypeFirmware {
			ev.Firmware = log
			continue
		}
		ev.List, ev.ListASCII = log, want.Parameters.Format == FormatText
		if o := want.Parameters.Offset; o != nil {
			ev.Offset = *o
		}
	}
	return ev, nil
}

// log is never nil where it is good: an empty log was sent, not left out.
func (d Data) log(format string) ([]byte, error) {
	switch format {
	case FormatText:
		return []byte(d.Entries), nil
	case FormatBinary:
		b, err := strict64.DecodeString(d.Entries)
		if err != nil {
			return nil, err
		}
		return append([]byte{}, b...), nil
	}
	return nil, fmt.Errorf("format %.40q is unknown", format)
}

// NewLog is the data of a log in the format that was asked for. entries is how many the
// log has, or negative where nobody counted.
func NewLog(log []byte, format string, entries int) Data {
	d := Data{}
	if entries >= 0 {
		d.Count = &entries
	}
	if format == FormatText {
		d.Entries = string(log)
	} else {
		d.Entries = base64.StdEncoding.EncodeToString(log)
	}
	return d
}

// QuoteAnswer are the results of GET /v2.x/quotes/integrity at an agent that is polled, and
// of quotes/identity, which has no logs.
type QuoteAnswer struct {
	Quote    string  `json:"quote"` // "r" and base64 of TPMS_ATTEST, TPMT_SIGNATURE and PCR values, with colons between
	Hash     string  `json:"hash_alg"`
	KeyAlg   string  `json:"enc_alg"`  // "rsa", "ecc"; from 2.5 on "rsa2048", "ecc256"
	Scheme   string  `json:"sign_alg"` // "rsassa", "ecdsa"
	Key      string  `json:"pubkey,omitempty"`
	List     *string `json:"ima_measurement_list,omitempty"` // text
	Offset   *int    `json:"ima_measurement_list_entry,omitempty"`
	Firmware *string `json:"mb_measurement_list,omitempty"` // base64
}

func (QuoteAnswer) limits() (string, int64) { return "", MaxSize }

func (q QuoteAnswer) check() error {
	if !strings.HasPrefix(q.Quote, "r") || strings.Count(q.Quote, ":") != 2 {
		return errors.New("quote is not r and three parts with colons between")
	}
	if q.Offset != nil && *q.Offset < 0 {
		return errors.New("ima_measurement_list_entry is " + strconv.Itoa(*q.Offset))
	}
	return nil
}

// Evidence is what the answer holds. The nonce of such a quote is the text that was in the
// request's URL.
func (q QuoteAnswer) Evidence() (*Evidence, error) {
	if err := q.check(); err != nil {
		return nil, refuse(CodeMalformed, "read quote: %w", err)
	}
	ev := &Evidence{ListASCII: true}
	parts := strings.Split(q.Quote[1:], ":")
	for i, to := range []*[]byte{&ev.Message, &ev.Signature, &ev.PCRs} {
		var err error
		if *to, err = strict64.DecodeString(parts[i]); err != nil {
			return nil, refuse(CodeMalformed, "read quote: part %d: %w", i+1, err)
		}
	}
	if q.List != nil {
		ev.List = []byte(*q.List)
	}
	if q.Offset != nil {
		ev.Offset = *q.Offset
	}
	if q.Firmware != nil {
		var err error
		if ev.Firmware, err = strict64.DecodeString(*q.Firmware); err != nil {
			return nil, refuse(CodeMalformed, "read event log: %w", err)
		}
	}
	return ev, nil
}
