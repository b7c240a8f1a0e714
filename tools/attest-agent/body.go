package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// collected is evidence whose logs are still in the kernel: they go from there to the
// network in pieces, so that the agent's memory does not grow with the list.
type collected struct {
	evidence.Collected
	logs []log
}

// log is what stands in place of a marker in the message.
type log struct {
	marker string
	from   *io.SectionReader
	format string
}

// add appends a log in the given format; entries is negative where nobody counted.
func (c *collected) add(class, kind, format string, from *io.SectionReader, entries int) {
	item := evidence.Item{Class: class, Type: kind, Data: evidence.NewLog(nil, format, entries)}
	item.Data.Entries = rand.Text()
	c.Collected.Collected = append(c.Collected.Collected, item)
	c.logs = append(c.logs, log{item.Data.Entries, from, format})
}

// body is the message and its length.
func (c *collected) body() (io.Reader, int64, error) {
	text, err := json.Marshal(evidence.NewDocument("", c.Collected))
	if err != nil {
		return nil, 0, err
	}
	return withLogs(text, c.logs)
}

// withLogs is text with each log in the place of its marker, in their order, and its length.
func withLogs(text []byte, logs []log) (io.Reader, int64, error) {
	var parts []io.Reader
	var size int64
	for _, l := range logs {
		before, after, ok := bytes.Cut(text, []byte(l.marker))
		if !ok {
			return nil, 0, errors.New("write evidence: the place of a log is missing")
		}
		n, err := l.size()
		if err != nil {
			return nil, 0, fmt.Errorf("read log: %w", err)
		}
		parts = append(parts, bytes.NewReader(before), l.encoded())
		size += int64(len(before)) + n
		text = after
	}
	return io.MultiReader(append(parts, bytes.NewReader(text))...), size + int64(len(text)), nil
}

// size is the length of the log as it is sent.
func (l *log) size() (int64, error) {
	if l.format == evidence.FormatBinary {
		return (l.from.Size() + 2) / 3 * 4, nil
	}
	n, err := io.Copy(io.Discard, l.encoded())
	return n, err
}

func (l *log) encoded() io.Reader {
	src := io.NewSectionReader(l.from, 0, l.from.Size())
	if l.format == evidence.FormatBinary {
		return &encoder{src: src, left: l.from.Size(), encode: base64.StdEncoding.AppendEncode}
	}
	return &encoder{src: src, left: l.from.Size(), encode: appendEscaped}
}

// encoder reads src by pieces of a multiple of three bytes, as base64 needs, and encodes them.
type encoder struct {
	src    io.Reader
	left   int64
	encode func(to, from []byte) []byte
	in     [12 << 10]byte
	buf    []byte
	out    []byte // what of buf is not read yet
}

func (e *encoder) Read(p []byte) (int, error) {
	if len(e.out) == 0 {
		if e.left == 0 {
			return 0, io.EOF
		}
		n := int(min(e.left, int64(len(e.in))))
		if _, err := io.ReadFull(e.src, e.in[:n]); err != nil {
			return 0, fmt.Errorf("read log: %w", err)
		}
		e.left -= int64(n)
		e.buf = e.encode(e.buf[:0], e.in[:n])
		e.out = e.buf
	}
	n := copy(p, e.out)
	e.out = e.out[n:]
	return n, nil
}

// appendEscaped writes the inside of a JSON string. Bytes that are not UTF-8 stay what they
// are, for the verifier to refuse: to replace them would be to change what was measured.
func appendEscaped(to, from []byte) []byte {
	for _, b := range from {
		switch {
		case b == '"' || b == '\\':
			to = append(to, '\\', b)
		case b == '\n':
			to = append(to, '\\', 'n')
		case b < ' ':
			to = fmt.Appendf(to, `\u%04x`, b)
		default:
			to = append(to, b)
		}
	}
	return to
}
