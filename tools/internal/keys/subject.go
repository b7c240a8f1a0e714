package keys

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// attribute is a kind of name that a subject may have, with the upper bound of RFC 5280
// appendix A.1 in characters.
type attribute struct {
	name string
	oid  asn1.ObjectIdentifier
	max  int
	tag  int // of the value; 0: PrintableString or UTF8String
}

var subjectAttributes = []attribute{
	{"CN", asn1.ObjectIdentifier{2, 5, 4, 3}, 64, 0},
	{"O", asn1.ObjectIdentifier{2, 5, 4, 10}, 64, 0},
	{"OU", asn1.ObjectIdentifier{2, 5, 4, 11}, 64, 0},
	{"C", asn1.ObjectIdentifier{2, 5, 4, 6}, 2, asn1.TagPrintableString},
	{"ST", asn1.ObjectIdentifier{2, 5, 4, 8}, 128, 0},
	{"L", asn1.ObjectIdentifier{2, 5, 4, 7}, 128, 0},
	{"serialNumber", asn1.ObjectIdentifier{2, 5, 4, 5}, 64, asn1.TagPrintableString},
	{"emailAddress", asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, 255, asn1.TagIA5String},
}

// parseSubject reads a distinguished name as RFC 4514 writes it, CN=Acme IMA 2026,O=Acme:
// the last name is the first in the certificate. It is stricter: each kind of name once, CN
// among them, no blank before or after a value, no +, no value in hexadecimal, no control
// characters.
func parseSubject(s string) (pkix.RDNSequence, error) {
	if !utf8.ValidString(s) || len(s) > 4096 {
		return nil, errors.New("not UTF-8, or longer than 4096 bytes")
	}
	var seq pkix.RDNSequence
	seen := map[string]bool{}
	for rest, more := s, true; more; {
		name, after, ok := strings.Cut(rest, "=")
		if !ok {
			return nil, fmt.Errorf("%q is not NAME=VALUE", rest)
		}
		i := slices.IndexFunc(subjectAttributes, func(a attribute) bool { return a.name == name })
		if i < 0 {
			return nil, fmt.Errorf("name %q is not one of %s", name, attributeNames())
		}
		if seen[name] {
			return nil, fmt.Errorf("%s stands twice", name)
		}
		seen[name] = true
		value, n, err := subjectValue(after)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		typed, err := subjectAttributes[i].value(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		seq = append(seq, pkix.RelativeDistinguishedNameSET{{Type: subjectAttributes[i].oid, Value: typed}})
		if more = n < len(after); more {
			rest = after[n+1:]
		}
	}
	if !seen["CN"] {
		return nil, errors.New("no CN")
	}
	slices.Reverse(seq)
	return seq, nil
}

func attributeNames() string {
	var names []string
	for _, a := range subjectAttributes {
		names = append(names, a.name)
	}
	return strings.Join(names, " ")
}

// subjectValue reads a value up to the end of s or to an unescaped comma at s[n].
func subjectValue(s string) (value string, n int, err error) {
	var b strings.Builder
	escapedEnd := false // the last character was written \x, so it may be a blank
	for n < len(s) && s[n] != ',' {
		c := s[n]
		switch {
		case c == '\\' && n+1 < len(s) && strings.IndexByte(` "#+,;<=>\`, s[n+1]) >= 0:
			b.WriteByte(s[n+1])
			n += 2
			escapedEnd = true
			continue
		case c == '\\':
			if n+3 > len(s) {
				return "", 0, errors.New(`\ at the end`)
			}
			raw, err := hex.DecodeString(s[n+1 : n+3])
			if err != nil {
				return "", 0, fmt.Errorf("%q is no escape", s[n:n+3])
			}
			b.Write(raw)
			n += 3
			escapedEnd = true
			continue
		case strings.IndexByte(`"+;<>`, c) >= 0, c == '#' && n == 0:
			return "", 0, fmt.Errorf(`%q must be written \%c`, c, c)
		case c == ' ' && n == 0:
			return "", 0, errors.New("blank before the value")
		}
		b.WriteByte(c)
		n++
		escapedEnd = false
	}
	if value = b.String(); strings.HasSuffix(value, " ") && !escapedEnd {
		return "", 0, errors.New("blank after the value")
	}
	return value, n, nil
}

// value is what asn1.Marshal writes for v.
func (a attribute) value(v string) (any, error) {
	switch n := utf8.RuneCountInString(v); {
	case n == 0:
		return nil, errors.New("empty")
	case n > a.max || a.name == "C" && n != a.max:
		return nil, fmt.Errorf("%d characters, not %d", n, a.max)
	case !utf8.ValidString(v):
		return nil, errors.New("not UTF-8")
	case strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return nil, errors.New("control character")
	}
	if a.tag == 0 {
		return v, nil
	}
	raw := asn1.RawValue{Tag: a.tag, Bytes: []byte(v)}
	der, err := asn1.Marshal(raw)
	if err != nil {
		return nil, err
	}
	var checked string // Unmarshal knows which characters a PrintableString and an IA5String have
	if err := unmarshal(der, &checked); err != nil {
		return nil, err
	}
	return raw, nil
}

// sameSubject compares names by their characters: openssl and Go choose other string types
// for the same ones.
func sameSubject(a, b pkix.RDNSequence) bool {
	return slices.EqualFunc(a, b, func(x, y pkix.RelativeDistinguishedNameSET) bool {
		return slices.EqualFunc(x, y, func(x, y pkix.AttributeTypeAndValue) bool {
			return x.Type.Equal(y.Type) && valueText(x) == valueText(y)
		})
	})
}

func valueText(a pkix.AttributeTypeAndValue) string {
	if raw, ok := a.Value.(asn1.RawValue); ok {
		return string(raw.Bytes)
	}
	return fmt.Sprint(a.Value)
}
