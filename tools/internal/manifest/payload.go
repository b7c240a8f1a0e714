package manifest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"time"
	"unicode/utf8"
)

// The fixed text of a statement. The subject comes last so that its digest can be
// computed while the entries are written.
const (
	statementType = "https://in-toto.io/Statement/v1"
	predicateType = "https://meta-attest.github.io/manifest/v1"
	payloadHead   = `{"_type":"` + statementType + `","predicateType":"` + predicateType + `","predicate":{`
	// digestName is ours because the digest is: it covers the entry lines, not an image.
	digestName = "metaAttestEntriesSha256"
)

var errNotCanonical = errors.New("not in canonical form")

// encoder writes a statement line by line.
type encoder struct {
	w     io.Writer
	lines hash.Hash // over each entry's line, its '\n' included, its ',' not
	name  string
	prev  Entry
	count int
	size  int64 // bytes written
	buf   []byte
}

func newEncoder(w io.Writer, h Header) (*encoder, error) {
	if err := h.validate(); err != nil {
		return nil, err
	}
	e := &encoder{w: w, lines: sha256.New(), name: h.Name}
	return e, e.write(appendHeader(nil, h))
}

func (e *encoder) write(b []byte) error {
	n, err := e.w.Write(b)
	e.size += int64(n)
	return err
}

// add writes one entry. After an error of the underlying writer the encoder is of no use;
// a refused entry leaves it as it was.
func (e *encoder) add(en Entry) error {
	if err := en.validate(); err != nil {
		return err
	}
	if err := en.follows(&e.prev); err != nil {
		return err
	}
	e.buf = append(e.buf[:0], ",\n"...)
	e.buf = append(appendEntry(e.buf, &en), '\n')
	line := e.buf[2:]
	if e.size+int64(len(e.buf)) > maxPayload {
		return fmt.Errorf("manifest would be larger than %d bytes", maxFile)
	}
	e.lines.Write(line)
	out := line[:len(line)-1]
	if e.count > 0 {
		out = e.buf[:len(e.buf)-1]
	}
	e.prev = Entry{Path: en.Path, Type: en.Type}
	e.count++
	return e.write(out)
}

func (e *encoder) end() error {
	b := e.buf[:0]
	if e.count > 0 {
		b = append(b, '\n')
	}
	return e.write(appendFooter(b, e.name, e.lines.Sum(nil)))
}

// decoder reads a statement line by line and refuses whatever encoder would not write.
type decoder struct {
	r      *bufio.Reader
	header Header // without Name, until next has returned io.EOF
	lines  hash.Hash
	prev   Entry
	count  int
	comma  bool // the line before ended in one
	buf    []byte
}

func newDecoder(r io.Reader) (*decoder, error) {
	d := &decoder{r: bufio.NewReaderSize(r, maxLine), lines: sha256.New()}
	line, err := d.line()
	if err != nil {
		return nil, fmt.Errorf("line 1: %w", err)
	}
	if d.header, err = parseHeader(line); err != nil {
		return nil, fmt.Errorf("line 1: %w", err)
	}
	return d, nil
}

// line returns the next line with its '\n'; it is valid until the next call.
func (d *decoder) line() ([]byte, error) {
	b, err := d.r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("longer than %d bytes", maxLine)
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	}
	return b, err
}

// next returns the entries in order, then io.EOF if the statement ended as it must.
func (d *decoder) next() (Entry, error) {
	at := d.count + 2 // line 1 is the header
	line, err := d.line()
	if err != nil {
		return Entry{}, fmt.Errorf("line %d: %w", at, err)
	}
	if line[0] == ']' {
		if err := d.end(line); err != nil {
			return Entry{}, fmt.Errorf("line %d: %w", at, err)
		}
		return Entry{}, io.EOF
	}
	e, err := d.entry(line)
	if err != nil {
		return Entry{}, fmt.Errorf("entry %d (line %d): %w", d.count+1, at, err)
	}
	d.count++
	return e, nil
}

func (d *decoder) entry(line []byte) (Entry, error) {
	if d.count > 0 && !d.comma {
		return Entry{}, errNotCanonical
	}
	body, comma := bytes.CutSuffix(line[:len(line)-1], []byte(","))
	e, err := parseEntry(body)
	if err != nil {
		return Entry{}, err
	}
	if err := e.validate(); err != nil {
		return Entry{}, fmt.Errorf("%q: %w", e.Path, err)
	}
	if d.buf = appendEntry(d.buf[:0], &e); !bytes.Equal(d.buf, body) {
		return Entry{}, fmt.Errorf("%q: %w", e.Path, errNotCanonical)
	}
	if err := e.follows(&d.prev); err != nil {
		return Entry{}, fmt.Errorf("%q: %w", e.Path, err)
	}
	d.lines.Write(append(d.buf, '\n'))
	d.prev, d.comma = Entry{Path: e.Path, Type: e.Type}, comma
	return e, nil
}

func (d *decoder) end(line []byte) error {
	if d.comma {
		return errNotCanonical
	}
	name, digest, err := parseFooter(line)
	if err != nil {
		return err
	}
	if sum := hex.EncodeToString(d.lines.Sum(nil)); digest != sum {
		return fmt.Errorf("subject digest is %q, the entries have %s", digest, sum)
	}
	d.header.Name = name
	if err := d.header.validate(); err != nil {
		return err
	}
	if _, err := d.r.ReadByte(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("bytes after the statement")
		}
		return err
	}
	return nil
}

func appendHeader(b []byte, h Header) []byte {
	b = append(b, payloadHead...)
	b = appendField(b, `"generator":`, h.Generator)
	if !h.Created.IsZero() {
		b = appendField(b, `"created":`, h.Created.UTC().Format(time.RFC3339))
	}
	b = appendField(b, `"target":`, h.Target)
	return append(b, "\"entries\":[\n"...)
}

// appendField appends a member whose value is a string, and a comma, unless s is empty.
func appendField(b []byte, key, s string) []byte {
	if s == "" {
		return b
	}
	return append(appendString(append(b, key...), s), ',')
}

func parseHeader(line []byte) (Header, error) {
	rest, ok := bytes.CutPrefix(line, []byte(payloadHead))
	if !ok {
		return Header{}, fmt.Errorf("not a statement of type %s about %s", statementType, predicateType)
	}
	var p struct {
		Generator string `json:"generator"`
		Created   string `json:"created"`
		Target    string `json:"target"`
	}
	if err := json.Unmarshal(append(append([]byte{'{'}, rest...), "]}"...), &p); err != nil {
		return Header{}, fmt.Errorf("parse header: %w", err)
	}
	h := Header{Generator: p.Generator, Target: p.Target}
	if p.Created != "" {
		t, err := time.Parse(time.RFC3339, p.Created)
		if err != nil {
			return Header{}, fmt.Errorf("parse created: %w", err)
		}
		h.Created = t.UTC()
	}
	if !bytes.Equal(appendHeader(nil, h), line) {
		return Header{}, errNotCanonical
	}
	return h, nil
}

func appendFooter(b []byte, name string, digest []byte) []byte {
	b = appendString(append(b, `]},"subject":[{"name":`...), name)
	b = hex.AppendEncode(append(b, `,"digest":{"`+digestName+`":"`...), digest)
	return append(b, "\"}}]}\n"...)
}

func parseFooter(line []byte) (name, digest string, err error) {
	rest, ok := bytes.CutPrefix(line, []byte("]},"))
	if !ok {
		return "", "", errNotCanonical
	}
	var p struct {
		Subject []struct {
			Name   string            `json:"name"`
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
	}
	if err := json.Unmarshal(append([]byte{'{'}, rest...), &p); err != nil {
		return "", "", fmt.Errorf("parse subject: %w", err)
	}
	if len(p.Subject) != 1 {
		return "", "", fmt.Errorf("%d subjects, want 1", len(p.Subject))
	}
	name, digest = p.Subject[0].Name, p.Subject[0].Digest[digestName]
	sum, err := hex.DecodeString(digest)
	if err != nil || !bytes.Equal(appendFooter(nil, name, sum), line) {
		return "", "", errNotCanonical
	}
	return name, digest, nil
}

// entryJSON names the members for encoding/json, which is laxer than the format: it
// takes keys in any case and order, twice and unknown. Only what appendEntry would write
// gets past entry.
type entryJSON struct {
	Path         string  `json:"path"`
	PathBase64   []byte  `json:"path_base64"`
	Type         Type    `json:"type"`
	Mode         string  `json:"mode"`
	UID          uint32  `json:"uid"`
	GID          uint32  `json:"gid"`
	Size         int64   `json:"size"`
	Digest       Digests `json:"digest"`
	Target       string  `json:"target"`
	TargetBase64 []byte  `json:"target_base64"`
	Major        uint32  `json:"major"`
	Minor        uint32  `json:"minor"`
	Label        string  `json:"label"`
	KeyID        string  `json:"keyid"`
	EVM          string  `json:"evm"`
	Verity       string  `json:"verity"`
	Capability   string  `json:"capability"`
	Package      string  `json:"package"`
}

func parseEntry(body []byte) (Entry, error) {
	var p entryJSON
	if err := json.Unmarshal(body, &p); err != nil {
		return Entry{}, fmt.Errorf("parse entry: %w", err)
	}
	mode, err := strconv.ParseUint(p.Mode, 8, 32)
	if err != nil {
		return Entry{}, fmt.Errorf("parse mode: %w", err)
	}
	e := Entry{
		Path: p.Path, Type: p.Type, Mode: uint32(mode), UID: p.UID, GID: p.GID, Size: p.Size,
		Digests: p.Digest, Target: p.Target, Major: p.Major, Minor: p.Minor, Label: p.Label, KeyID: p.KeyID,
		EVM: p.EVM, Verity: p.Verity, Capability: p.Capability, Package: p.Package,
	}
	if p.PathBase64 != nil {
		e.Path = string(p.PathBase64)
	}
	if p.TargetBase64 != nil {
		e.Target = string(p.TargetBase64)
	}
	return e, nil
}

// appendEntry appends the one form of e, without a line end.
func appendEntry(b []byte, e *Entry) []byte {
	b = appendBytes(append(b, '{'), `"path":`, `"path_base64":`, e.Path)
	b = appendString(append(b, `,"type":`...), string(e.Type))
	b = fmt.Appendf(b, `,"mode":"%04o","uid":%d,"gid":%d`, e.Mode, e.UID, e.GID)
	switch e.Type {
	case File:
		b = strconv.AppendInt(append(b, `,"size":`...), e.Size, 10)
		b = appendDigests(b, &e.Digests)
	case Symlink:
		b = appendBytes(append(b, ','), `"target":`, `"target_base64":`, e.Target)
	case Char, Block:
		b = fmt.Appendf(b, `,"major":%d,"minor":%d`, e.Major, e.Minor)
	}
	for _, f := range [...]struct{ key, value string }{
		{`,"label":`, e.Label}, {`,"keyid":`, e.KeyID}, {`,"evm":`, e.EVM},
		{`,"verity":`, e.Verity}, {`,"capability":`, e.Capability}, {`,"package":`, e.Package},
	} {
		if f.value != "" {
			b = appendString(append(b, f.key...), f.value)
		}
	}
	return append(b, '}')
}

func appendDigests(b []byte, d *Digests) []byte {
	if *d == (Digests{}) {
		return b
	}
	b = append(b, `,"digest":{`...)
	for _, k := range digestKinds {
		b = appendField(b, `"`+k.name+`":`, *k.of(d))
	}
	b[len(b)-1] = '}'
	return b
}

// appendBytes appends s under key when it is UTF-8, and else in base64 under key64.
func appendBytes(b []byte, key, key64, s string) []byte {
	if utf8.ValidString(s) {
		return appendString(append(b, key...), s)
	}
	b = append(append(b, key64...), '"')
	return append(base64.StdEncoding.AppendEncode(b, []byte(s)), '"')
}

// appendString appends s as RFC 8785 section 3.2.2.2 (JCS) writes strings. It is written
// out here because the form must not follow encoding/json, which has changed its escapes.
func appendString(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, `\b`...)
		case '\t':
			b = append(b, `\t`...)
		case '\n':
			b = append(b, `\n`...)
		case '\f':
			b = append(b, `\f`...)
		case '\r':
			b = append(b, `\r`...)
		default:
			if c < ' ' {
				b = append(b, `\u00`...)
				b = append(b, digits[c>>4], digits[c&15])
			} else {
				b = append(b, c)
			}
		}
	}
	return append(b, '"')
}
