// Package notice is what others are told when the verdict of a device turned bad, or good
// again: a CloudEvent 1.0 in JSON (github.com/cloudevents/spec, spec.md and
// formats/json-format.md). A device gets it in a DSSE envelope, a webhook with the
// signature of Standard Webhooks 1.0.
//
// Devices act on notices as root: what [Open] does not return is not to be acted upon.
package notice

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// MediaType is that of an [Event], in HTTP and in an envelope.
const MediaType = "application/cloudevents+json"

const (
	schema     = "attest.notice/v1"
	typePrefix = "org.meta-attest.verdict."

	// MaxSize bounds an event and its envelope, in bytes.
	MaxSize   = 128 << 10
	maxText   = 4 << 10 // of one text in it
	maxLabels = 1 << 10
	maxCodes  = 64
)

// Event is one notice. Its id is that of the verifier's event: the number, a dash and the
// hash, so that whoever gets it twice can tell.
type Event struct {
	SpecVersion string    `json:"specversion"`
	ID          string    `json:"id"`
	Source      string    `json:"source"` // of the fleet, a URI
	Type        string    `json:"type"`   // org.meta-attest.verdict.STATUS
	Subject     string    `json:"subject"`
	Time        time.Time `json:"time"`
	ContentType string    `json:"datacontenttype"`
	// Sequence is the extension of that name: the number of the event, as decimals that
	// sort. Of two notices of one device the later one counts.
	Sequence string `json:"sequence"`
	Data     Data   `json:"data"`
}

// Data is what became of a device.
type Data struct {
	Schema string            `json:"schema"`
	Device string            `json:"device"`
	Group  string            `json:"group"`
	Labels map[string]string `json:"labels,omitempty"` // that operators gave it
	Status string            `json:"status"`
	Codes  []string          `json:"codes"`
	Reason *Reason           `json:"reason,omitempty"` // the first
}

// Reason is why a device is not trusted.
type Reason struct {
	Code   string `json:"code"`
	Path   string `json:"path,omitempty"`
	Advice string `json:"advice,omitempty"`
}

// Bad says whether a status is one that others are told of at once. What it is when it is
// good again is "trusted".
func Bad(status string) bool {
	return status == "untrusted" || status == "broken" || status == "overdue"
}

// New makes the notice of an event of the verifier: its number, its hash and its time.
func New(source string, seq int64, hash []byte, at time.Time, data Data) *Event {
	data.Schema = schema
	if data.Codes == nil {
		data.Codes = []string{}
	}
	return &Event{SpecVersion: "1.0", ID: fmt.Sprintf("%d-%x", seq, hash), Source: source, Type: typePrefix + data.Status, Subject: data.Device,
		Time: at.UTC().Truncate(time.Microsecond), ContentType: "application/json", Sequence: fmt.Sprintf("%019d", seq), Data: data}
}

// Seq is the number of the verifier's event. [Event.Marshal] and [Parse] have checked it.
func (e *Event) Seq() int64 {
	n, err := strconv.ParseInt(e.Sequence, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Marshal encodes e, or says what is wrong with it.
func (e *Event) Marshal() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("write notice: %w", err)
	}
	b, err := json.Marshal(e)
	if err == nil && len(b) > MaxSize/2 {
		err = fmt.Errorf("%d bytes, at most %d", len(b), MaxSize/2)
	}
	if err != nil {
		return nil, fmt.Errorf("write notice: %w", err)
	}
	return b, nil
}

// Parse decodes an event. Members that are not known are let pass: a newer verifier may
// have more to say.
func Parse(b []byte) (*Event, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("parse notice: %d bytes, at most %d", len(b), MaxSize)
	}
	e := &Event{}
	if err := json.Unmarshal(b, e); err != nil {
		return nil, fmt.Errorf("parse notice: %w", err)
	}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("parse notice: %w", err)
	}
	return e, nil
}

func (e *Event) check() error {
	seq, err := strconv.ParseInt(e.Sequence, 10, 64)
	if err != nil || seq < 1 || e.Sequence != fmt.Sprintf("%019d", seq) {
		return fmt.Errorf("sequence %.40q is no number of an event", e.Sequence)
	}
	d := &e.Data
	switch {
	case e.SpecVersion != "1.0":
		return fmt.Errorf("specversion %.20q is not 1.0", e.SpecVersion)
	case !isID(e.ID, seq):
		return fmt.Errorf("id %.100q is not that of event %d", e.ID, seq)
	case e.Source == "" || e.Subject != d.Device || !isName(d.Device):
		return errors.New("source or subject: missing, or not that of the device")
	case d.Status != "trusted" && !Bad(d.Status) || e.Type != typePrefix+d.Status:
		return fmt.Errorf("type %.100q is not that of a status", e.Type)
	case d.Schema != schema || e.ContentType != "application/json":
		return fmt.Errorf("data of schema %.40q, want %s", d.Schema, schema)
	case e.Time.IsZero():
		return errors.New("time: missing")
	case len(d.Labels) > maxLabels || len(d.Codes) > maxCodes:
		return fmt.Errorf("%d labels and %d codes, at most %d and %d", len(d.Labels), len(d.Codes), maxLabels, maxCodes)
	}
	return d.checkTexts(e.Source)
}

// checkTexts bounds what is printed and handed to programs.
func (d *Data) checkTexts(source string) error {
	texts := append([]string{source, d.Group}, d.Codes...)
	if r := d.Reason; r != nil {
		texts = append(texts, r.Code, r.Path, r.Advice)
	}
	for k, v := range d.Labels {
		texts = append(texts, k, v)
	}
	for _, s := range texts {
		if len(s) > maxText || !utf8.ValidString(s) || strings.Contains(s, "\x00") {
			return fmt.Errorf("a text of %d bytes: too long, not UTF-8, or with a NUL", len(s))
		}
	}
	return nil
}

// isID compares id with SEQ-HASH.
func isID(id string, seq int64) bool {
	number := strconv.FormatInt(seq, 10) + "-"
	if len(id) != len(number)+64 || id[:len(number)] != number {
		return false
	}
	hash, err := hex.DecodeString(id[len(number):])
	return err == nil && id == number+hex.EncodeToString(hash)
}

// isName says whether s is the id of a device, as evidence.CheckID has it.
func isName(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}
