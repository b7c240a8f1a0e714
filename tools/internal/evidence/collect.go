package evidence

import (
	"encoding/base64"
	"fmt"
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
