package evidence

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// aBundle is one in which everything is there.
func aBundle() Bundle {
	offset := 3
	return Bundle{Schema: SchemaBundle, Device: "gateway-17", AK: []byte{1}, Asked: Requests{Requested: []Request{{Class: ClassLog, Type: TypeIMA, Parameters: Parameters{Offset: &offset, Format: FormatBinary}}}},
		Collected: Collected{Collected: []Item{{Class: ClassLog, Type: TypeIMA, Data: NewLog([]byte{1}, FormatBinary, 1)}}},
		Terms:     Terms{SHA1Bank: true, IMAPCRs: []int{10, 11}, Padding: ima.PaddedOld}, Policies: []ComparedPolicy{{"image@2", []byte{2}}}, Appraised: []byte("{}")}
}

// TestBundle: what is written is read again, bundles of the first schema too, and one that
// says more than its schema knows is refused.
func TestBundle(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Bundle)
		want   string
	}{
		"all":              {func(*Bundle) {}, ""},
		"nothing optional": {func(b *Bundle) { b.Terms, b.Policies, b.Appraised = Terms{}, nil, nil }, ""},
		"first schema":     {func(b *Bundle) { b.Schema, b.Terms, b.Policies, b.Appraised = schemaBundle1, Terms{}, nil, nil }, ""},
		"first, terms":     {func(b *Bundle) { b.Schema, b.Policies, b.Appraised = schemaBundle1, nil, nil }, "has no terms"},
		"first, policies":  {func(b *Bundle) { b.Schema, b.Terms, b.Appraised = schemaBundle1, Terms{}, nil }, "has no terms"},
		"first, appraised": {func(b *Bundle) { b.Schema, b.Terms, b.Policies = schemaBundle1, Terms{}, nil }, "has no terms"},
		"no schema":        {func(b *Bundle) { b.Schema = "" }, "schema is"},
		"a later schema":   {func(b *Bundle) { b.Schema = "attest.evidence/v3" }, "schema is"},
		"no key":           {func(b *Bundle) { b.AK = nil }, "ak is missing"},
		"a PCR":            {func(b *Bundle) { b.Terms.IMAPCRs = []int{maxPCR + 1} }, "terms"},
		"padding":          {func(b *Bundle) { b.Terms.Padding = 3 }, "terms"},
	} {
		b := aBundle()
		c.change(&b)
		text, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeBody[Bundle](bytes.NewReader(text))
		if err == nil != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err != nil {
			continue
		}
		if again, err := json.Marshal(got); err != nil || !bytes.Equal(again, text) {
			t.Errorf("%s: %s became %s, %v", name, text, again, err)
		}
	}
}

// FuzzBundle: what is read is written and read again as the same, and nothing is proven by
// what nobody signed.
func FuzzBundle(f *testing.F) {
	text, err := json.Marshal(aBundle())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := DecodeBody[Bundle](bytes.NewReader(text))
		if err != nil {
			return
		}
		once, err := json.Marshal(b)
		if err != nil {
			return // a time that JSON cannot have
		}
		again, err := DecodeBody[Bundle](bytes.NewReader(once))
		if err != nil {
			t.Fatalf("%s is not read again: %v", once, err)
		}
		if twice, err := json.Marshal(again); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s became %s, %v", once, twice, err)
		}
		if _, _, err := b.Verify(); err == nil {
			t.Fatalf("%s is verified", text)
		}
	})
}
