package ima

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
)

// The ASCII form (ima_ascii_measurements_show of ima_fs.c) escapes nothing. Fields are
// parted by one space each, which no path holds (see [ListPath]), but a path may hold a
// line feed and so write lines of its own. Such a line is refused here where its fields
// do not add up, and by [Replay] where its digest does not.

// lineSize measures the next line, with its line feed, and brings it into the buffer.
func (r *ListReader) lineSize() (int, error) {
	for seen := 0; ; {
		if i := bytes.IndexByte(r.buf[r.pos+seen:], '\n'); i >= 0 && seen+i < maxLine {
			return seen + i + 1, nil
		}
		seen = len(r.buf) - r.pos
		if seen >= maxLine {
			return 0, r.fail(fmt.Errorf("line is longer than %d bytes", maxLine))
		}
		if err := r.need(seen + 1); err != nil {
			return 0, err
		}
	}
}

func (r *ListReader) nextASCII() error {
	size, err := r.lineSize()
	if err != nil {
		return err
	}
	if err := r.line(r.buf[r.pos : r.pos+size-1]); err != nil {
		return err
	}
	r.pos += size
	return nil
}

func (r *ListReader) line(line []byte) error {
	pcr, err := parsePCR(line)
	if err != nil {
		return r.fail(err)
	}
	digest, rest, _ := bytes.Cut(line[3:], []byte{' '})
	r.ascii = r.ascii[:0]
	if r.ascii, err = appendHex(r.ascii, digest); err == nil && len(r.ascii) != r.form.Hash.Size() {
		err = fmt.Errorf("it has %d bytes; one of %v has %d", len(r.ascii), r.form.Hash, r.form.Hash.Size())
	}
	if err != nil {
		return r.fail(fmt.Errorf("template digest: %w", err))
	}
	name, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return r.fail(fmt.Errorf("template data: %w", io.ErrUnexpectedEOF))
	}
	t, err := r.template(name)
	if err != nil {
		return r.fail(err)
	}
	if err := r.fields(t, rest); err != nil {
		return r.fail(err)
	}
	n := r.form.Hash.Size()
	return r.begin(pcr, r.ascii[:n:n], t, r.ascii[n:])
}

// fields appends to r.ascii the template data that the fields in text stand for.
func (r *ListReader) fields(t *Template, text []byte) error {
	order := r.form.Order.(binary.AppendByteOrder)
	for i, f := range t.fields {
		word, rest, more := bytes.Cut(text, []byte{' '})
		if last := i == len(t.fields)-1; more == last {
			return fmt.Errorf("the fields are not the %d of template %s", len(t.fields), t.Name)
		}
		text = rest
		at := len(r.ascii)
		if !t.legacy() || f == fieldN {
			r.ascii = order.AppendUint32(r.ascii, 0)
		}
		start := len(r.ascii)
		var err error
		if r.ascii, err = appendField(r.ascii, f, word, order); err != nil {
			return fmt.Errorf("field %v: %w", f, err)
		}
		if t.legacy() {
			// No length is hashed with these two: they are as long as they must be.
			if f == fieldN {
				r.ascii = bytes.TrimSuffix(r.ascii, []byte{0})
			}
			if n := len(r.ascii) - start; f == fieldD && n != legacyDigest || f == fieldN && n > maxLegacyName {
				return fmt.Errorf("field %v: %d bytes do not fit template ima", f, n)
			}
		}
		if start > at {
			r.form.Order.PutUint32(r.ascii[at:], uint32(len(r.ascii)-start))
		}
	}
	return nil
}

// appendField appends the bytes of the field that Linux shows as word; nothing is shown
// of an empty one (ima_show_template_data_ascii of ima_template_lib.c).
func appendField(b []byte, f field, word []byte, order binary.AppendByteOrder) ([]byte, error) {
	if len(word) == 0 {
		return b, nil
	}
	switch f {
	case fieldN, fieldNNG, fieldXattrNames:
		return append(append(b, word...), 0), nil
	case fieldDNG, fieldDNGv2, fieldDModsig:
		i := bytes.LastIndexByte(word, ':') + 1
		if bytes.IndexByte(word[:i], 0) >= 0 {
			return b, errors.New("a NUL in the name of an algorithm")
		}
		return appendHex(append(append(b, word[:i]...), 0), word[i:])
	case fieldIUID, fieldIGID:
		n, err := parseDecimal(word, math.MaxUint32)
		return order.AppendUint32(b, n), err
	case fieldIMode:
		n, err := parseDecimal(word, math.MaxUint16)
		return order.AppendUint16(b, uint16(n)), err
	default:
		return appendHex(b, word)
	}
}

// parsePCR reads "%2d ".
func parsePCR(line []byte) (uint32, error) {
	if len(line) < 3 || line[2] != ' ' {
		return 0, errors.New("line does not begin with a PCR of two characters")
	}
	return parseDecimal(bytes.TrimPrefix(line[:2], []byte{' '}), maxPCR)
}

// parseDecimal takes but one spelling of a number.
func parseDecimal(word []byte, limit uint32) (uint32, error) {
	n, err := strconv.ParseUint(string(word), 10, 32)
	if err != nil || n > uint64(limit) || len(word) > 1 && (word[0] == '0' || word[0] == '+') {
		return 0, fmt.Errorf("%.12q is not a number up to %d", word, limit)
	}
	return uint32(n), nil
}

// appendHex takes lower case only, so that there is but one spelling.
func appendHex(b, word []byte) ([]byte, error) {
	if len(word)%2 != 0 {
		return b, fmt.Errorf("%d hexadecimal digits", len(word))
	}
	for i := 0; i < len(word); i += 2 {
		hi, lo := nibbles[word[i]], nibbles[word[i+1]]
		if hi|lo > 15 {
			return b, fmt.Errorf("%q is not hexadecimal in lower case", word[i:i+2])
		}
		b = append(b, hi<<4|lo)
	}
	return b, nil
}

// nibbles has 255 for what is no digit.
var nibbles = func() (t [256]byte) {
	for i := range t {
		t[i] = 255
	}
	for i, c := range []byte("0123456789abcdef") {
		t[c] = byte(i)
	}
	return t
}()

func appendASCII(b []byte, e *Entry) []byte {
	b = fmt.Appendf(b, "%2d %x %s", e.PCR, e.Digest, e.Template.Name)
	if e.Template.legacy() {
		return fmt.Appendf(b, " %x %s\n", e.Data[:legacyDigest], e.Path)
	}
	rest := e.Data
	for _, f := range e.Template.fields {
		n := e.order.Uint32(rest)
		v := rest[4 : 4+n]
		rest = rest[4+n:]
		b = append(b, ' ')
		if n == 0 {
			continue
		}
		switch f {
		case fieldN, fieldNNG, fieldXattrNames:
			b = append(b, v[:n-1]...)
		case fieldDNG, fieldDNGv2, fieldDModsig:
			name, sum, _ := bytes.Cut(v, []byte{0})
			b = hex.AppendEncode(append(b, name...), sum)
		case fieldIUID, fieldIGID:
			b = strconv.AppendUint(b, uint64(e.order.Uint32(v)), 10)
		case fieldIMode:
			b = strconv.AppendUint(b, uint64(e.order.Uint16(v)), 10)
		default:
			b = hex.AppendEncode(b, v)
		}
	}
	return append(b, '\n')
}
