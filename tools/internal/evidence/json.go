package evidence

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Sizes of messages, in bytes.
const (
	maxSmall = 64 << 10
	// MaxSize is the size of the largest message: evidence with a measurement list of some
	// hundred thousand entries.
	MaxSize = 32 << 20
)

const (
	maxDepth = 16
	// maxValues are members and elements. Two bytes of JSON can stand for a structure of a
	// hundred, so that a body is no bound for what is made of it.
	maxValues = 4096
)

// Message is something that travels as JSON: the attributes of a resource in push
// attestation, the whole body in the APIs of version 2.
type Message interface {
	// limits are the type of the resource, "" where there is none, and a size in bytes.
	limits() (resource string, size int64)
	// check says what is missing or contradicts itself.
	check() error
}

// Document is a JSON:API document with one resource, the frame of push attestation.
type Document[M Message] struct {
	Data Resource[M] `json:"data"`
	Meta *Meta       `json:"meta,omitempty"`
}

// Resource is the data member of a [Document].
type Resource[M Message] struct {
	Type       string `json:"type"`
	ID         string `json:"id,omitempty"`
	Attributes M      `json:"attributes"`
}

// NewDocument frames m; id may be "".
func NewDocument[M Message](id string, m M) *Document[M] {
	kind, _ := m.limits()
	return &Document[M]{Data: Resource[M]{Type: kind, ID: id, Attributes: m}}
}

// Decode reads a [Document] to its end. It refuses, with [CodeMalformed], what is too large,
// what has a name twice in an object (in whatever case) or anything behind its end, what is
// not UTF-8, and what lacks a member that it must have. Members of other names are passed
// over, as JSON:API wants it.
func Decode[M Message](r io.Reader) (*Document[M], error) {
	var d Document[M]
	kind, size := d.Data.Attributes.limits()
	if err := decode(r, size, &d); err != nil {
		return nil, refuse(CodeMalformed, "read %s: %w", kind, err)
	}
	if d.Data.Type != kind {
		return nil, refuse(CodeMalformed, "read %s: its type is %.40q", kind, d.Data.Type)
	}
	if err := d.Data.Attributes.check(); err != nil {
		return nil, refuse(CodeMalformed, "read %s: %w", kind, err)
	}
	return &d, nil
}

// DecodeBody is [Decode] for a message of the APIs of version 2, which has no frame.
func DecodeBody[M Message](r io.Reader) (*M, error) {
	var m M
	_, size := m.limits()
	if err := decode(r, size, &m); err != nil {
		return nil, refuse(CodeMalformed, "read message: %w", err)
	}
	if err := m.check(); err != nil {
		return nil, refuse(CodeMalformed, "read message: %w", err)
	}
	return &m, nil
}

// Answer is the frame of all answers of the APIs of version 2.
type Answer[M Message] struct {
	Code    int    `json:"code"`
	Status  string `json:"status"`
	Results M      `json:"results"`
}

// DecodeAnswer is [Decode] for an answer of the APIs of version 2.
func DecodeAnswer[M Message](r io.Reader) (*Answer[M], error) {
	var a Answer[M]
	_, size := a.Results.limits()
	if err := decode(r, size, &a); err != nil {
		return nil, refuse(CodeMalformed, "read answer: %w", err)
	}
	if err := a.Results.check(); err != nil {
		return nil, refuse(CodeMalformed, "read answer: %w", err)
	}
	return &a, nil
}

func decode(r io.Reader, size int64, v any) error {
	b, err := io.ReadAll(io.LimitReader(r, size+1))
	if err != nil {
		return err
	}
	if int64(len(b)) > size {
		return fmt.Errorf("it has more than %d bytes", size)
	}
	if !utf8.Valid(b) {
		return errors.New("it is not UTF-8")
	}
	if err := scan(b); err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// fold maps the letters that Unmarshal takes for the same to the first of them.
func fold(r rune) rune {
	first := r
	for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
		first = min(first, next)
	}
	return first
}

// scan looks for what [json.Unmarshal] lets pass, before that makes anything of it: too many
// values, great depth, and a name that is there twice in an object (it takes the last, other
// readers the first). What is no JSON is left to Unmarshal.
func scan(b []byte) error {
	var open []map[string]bool // nil for an array
	isName := false            // whether a string that comes now is the name of a member
	var folded []byte
	values := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[', ',':
			if values++; values > maxValues {
				return fmt.Errorf("it has more than %d values", maxValues)
			}
		}
		switch b[i] {
		case '{', '[':
			var names map[string]bool
			if isName = b[i] == '{'; isName {
				names = map[string]bool{}
			}
			if open = append(open, names); len(open) > maxDepth {
				return fmt.Errorf("it is nested more than %d deep", maxDepth)
			}
		case '}', ']':
			open, isName = open[:max(0, len(open)-1)], false
		case ',':
			isName = len(open) > 0 && open[len(open)-1] != nil
		case ':':
			isName = false
		case '"':
			end := endOfString(b, i)
			if isName && end <= len(b) {
				folded = appendFolded(folded[:0], b[i:end])
				if open[len(open)-1][string(folded)] {
					return fmt.Errorf("member %.40q is there twice", b[i+1:end-1])
				}
				open[len(open)-1][string(folded)] = true
			}
			i = end - 1
		}
	}
	return nil
}

// endOfString is where the string that begins at b[i] has ended, behind b if it does not.
func endOfString(b []byte, i int) int {
	for i++; i < len(b) && b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// appendFolded appends a name, quoted, in the form that is the same for all that Unmarshal
// takes for the same.
func appendFolded(to, quoted []byte) []byte {
	for _, c := range quoted[1 : len(quoted)-1] {
		if c == '\\' || c >= utf8.RuneSelf {
			var name string
			_ = json.Unmarshal(quoted, &name) // what is not valid is refused later
			return append(to[:0], strings.Map(fold, name)...)
		}
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		to = append(to, c)
	}
	return to
}
