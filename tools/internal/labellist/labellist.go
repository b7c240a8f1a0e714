// Package labellist reads and writes the list of labels that travels in a package: which
// file has which value of security.ima and security.evm, signed as a whole.
//
// A list is text. Its first line holds a signature of all bytes that follow, in the encoding
// of security.ima; then come records in the form of getfattr(1), paths relative to the root:
//
//	# attest-labels/v1 0sAwIEaqMg8QBHMEUCI...
//	# file: DEBIAN/postinst
//	security.ima=0sAwIEaqMg8QBIMEYCI...
//
//	# file: usr/bin/program
//	security.evm=0sBQIEaqMg8QBGMEQCI...
//	security.ima=0sAwIEaqMg8QBHMEUCI...
//
//	# file: var/lib/program/state
//
// A file without a label is one that the rules of whoever signed skipped. Without its first
// line the text is what setfattr --restore reads. There is one form for each list: whatever
// writes back to other bytes is refused.
package labellist

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// MaxSize bounds a list in bytes: about 300 000 files.
const MaxSize = 64 << 20

const (
	maxPath  = 4096     // Linux PATH_MAX
	maxValue = 64 << 10 // Linux XATTR_SIZE_MAX

	head     = "# attest-labels/v1 0s"
	fileLine = "# file: "
)

// ControlFile is the control file of a package that holds its list. The name has no dot: dpkg
// takes what follows the last dot of PACKAGE.NAME for its own.
const ControlFile = "attest-labels"

// Conffiles is the control file that names the files which an administrator may change.
const Conffiles = "conffiles"

// ControlDirs are where a list has the control files of a deb and of an ipk: where dpkg-deb and
// opkg-build look for them.
var ControlDirs = []string{"DEBIAN", "CONTROL"}

// Scripts are the control files that package managers execute.
var Scripts = []string{"preinst", "postinst", "prerm", "postrm"}

// ErrMalformed means that bytes are no list, or not in the one form that a list has.
var ErrMalformed = errors.New("malformed label list")

// Entry is one file. A nil value is a label that the file does not have.
type Entry struct {
	Path     string // relative to the root, slash-separated; any bytes but NUL
	IMA, EVM []byte
}

// List is a list whose signature has not been looked at.
type List struct {
	Signature []byte // value of security.ima for Body
	Body      []byte
}

// Split finds the signature of a list. The result points into b.
func Split(b []byte) (List, error) {
	line, body, ok := bytes.Cut(b, []byte("\n"))
	encoded, isHead := bytes.CutPrefix(line, []byte(head))
	switch {
	case len(b) > MaxSize:
		return List{}, fmt.Errorf("%w: %d bytes, at most %d are read", ErrMalformed, len(b), MaxSize)
	case !ok || !isHead:
		return List{}, fmt.Errorf("%w: line 1 is not %q and a signature", ErrMalformed, head)
	}
	sig, err := decode(string(encoded))
	if err == nil && base64.StdEncoding.EncodeToString(sig) != string(encoded) {
		err = errors.New("not in canonical form") // the decoder passes over carriage returns
	}
	if err != nil {
		return List{}, fmt.Errorf("%w: line 1: %w", ErrMalformed, err)
	}
	return List{sig, body}, nil
}

// Append appends the text of l to b.
func (l List) Append(b []byte) []byte {
	b = base64.StdEncoding.AppendEncode(append(b, head...), l.Signature)
	return append(append(b, '\n'), l.Body...)
}

// Parse reads the body of a list. Paths are unique and stay below the root; labels are such
// that a kernel could read. Every error is an [ErrMalformed].
func Parse(body []byte) ([]Entry, error) {
	if len(body) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrMalformed, len(body), MaxSize)
	}
	var entries []Entry
	seen := map[string]bool{}
	for off := 0; off < len(body); {
		end := bytes.Index(body[off:], []byte("\n\n"))
		if end < 0 {
			return nil, fmt.Errorf("%w: byte %d: the record does not end", ErrMalformed, off)
		}
		record := body[off : off+end+2]
		e, err := parseRecord(string(record))
		if err == nil && seen[e.Path] {
			err = fmt.Errorf("%q is listed twice", e.Path)
		}
		if err == nil && !bytes.Equal(e.Append(nil), record) {
			err = errors.New("not in canonical form")
		}
		if err != nil {
			return nil, fmt.Errorf("%w: byte %d: %w", ErrMalformed, off, err)
		}
		seen[e.Path] = true
		entries = append(entries, e)
		off += len(record)
	}
	return entries, nil
}

func parseRecord(record string) (e Entry, err error) {
	lines := strings.Split(strings.TrimSuffix(record, "\n\n"), "\n")
	name, ok := strings.CutPrefix(lines[0], fileLine)
	if !ok {
		return e, fmt.Errorf("record does not start with %q", fileLine)
	}
	if e.Path, err = unquote(name); err != nil {
		return e, err
	}
	if err := checkPath(e.Path); err != nil {
		return e, err
	}
	for _, line := range lines[1:] {
		name, text, _ := strings.Cut(line, "=0s")
		value, err := decode(text)
		switch {
		case err != nil:
		case name == ima.XattrIMA:
			e.IMA = value
			_, err = ima.ParseIMA(value)
		case name == ima.XattrEVM:
			e.EVM = value
			_, err = ima.ParseEVM(value)
		default:
			err = errors.New("not a label")
		}
		if err != nil {
			return e, fmt.Errorf("%.40q of %q: %w", name, e.Path, err)
		}
	}
	if e.EVM != nil && e.IMA == nil {
		return e, fmt.Errorf("%q: %w", e.Path, ima.ErrNoIMA)
	}
	return e, nil
}

// Append appends the record of e to b.
func (e Entry) Append(b []byte) []byte {
	b = append(b, fileLine...)
	b = append(appendQuoted(b, e.Path), '\n')
	for _, l := range []struct {
		name  string
		value []byte
	}{{ima.XattrEVM, e.EVM}, {ima.XattrIMA, e.IMA}} {
		if l.value != nil {
			b = append(append(b, l.name...), "=0s"...)
			b = append(base64.StdEncoding.AppendEncode(b, l.value), '\n')
		}
	}
	return append(b, '\n')
}

func decode(text string) ([]byte, error) {
	if base64.StdEncoding.DecodedLen(len(text)) > maxValue {
		return nil, fmt.Errorf("value of %d characters is too long", len(text))
	}
	value, err := base64.StdEncoding.Strict().DecodeString(text)
	if err == nil && len(value) == 0 {
		err = errors.New("value is empty")
	}
	return value, err
}

// appendQuoted writes a path as getfattr does: setfattr takes a backslash and three octal
// digits for any byte.
func appendQuoted(b []byte, path string) []byte {
	for i := range len(path) {
		switch c := path[i]; {
		case c == '\\' || c < ' ' || c == 0x7f:
			b = fmt.Appendf(b, `\%03o`, c)
		default:
			b = append(b, c)
		}
	}
	return b
}

func unquote(text string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			b.WriteByte(text[i])
			continue
		}
		if i+3 >= len(text) {
			return "", fmt.Errorf("path %.80q: backslash without three octal digits", text)
		}
		n := 0
		for _, c := range []byte(text[i+1 : i+4]) {
			if c < '0' || c > '7' {
				return "", fmt.Errorf("path %.80q: backslash without three octal digits", text)
			}
			n = n<<3 | int(c-'0')
		}
		if n > 0xff {
			return "", fmt.Errorf("path %.80q: %o is not a byte", text, n)
		}
		b.WriteByte(byte(n))
		i += 3
	}
	return b.String(), nil
}

func checkPath(p string) error {
	if len(p) > maxPath || strings.IndexByte(p, 0) >= 0 {
		return fmt.Errorf("path of %d bytes: want at most %d, and no NUL", len(p), maxPath)
	}
	for c := range strings.SplitSeq(p, "/") {
		if c == "" || c == "." || c == ".." {
			return fmt.Errorf("path %.80q has the component %q", p, c)
		}
	}
	return nil
}
