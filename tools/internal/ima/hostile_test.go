package ima

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

// TestHostile: one fault each.
func TestHostile(t *testing.T) {
	d, le := "sha256:\x00"+digestOf("x"), binary.LittleEndian
	good := fields(le, d, "/x\x00")
	for name, list := range map[string][]byte{
		"PCR 32":                   record(le, 32, "ima-ng", good),
		"PCR 4294967295":           record(le, 1<<32-1, "ima-ng", good),
		"template name empty":      record(le, 10, "", good),
		"template name unknown":    record(le, 10, "ima-new", good),
		"template name long":       record(le, 10, strings.Repeat("d", 256), good),
		"template name 4 GB":       append(record(le, 10, "", nil)[:24], 0xff, 0xff, 0xff, 0xff, 'x'),
		"data 4 GB":                append(record(le, 10, "ima-ng", nil)[:34], 0xff, 0xff, 0xff, 0xff, 'x'),
		"no digest":                record(le, 10, "n-ng|sig", fields(le, "/x\x00", "")),
		"digest hidden as modsig":  record(le, 10, "d-modsig|n-ng", good),
		"digest twice":             record(le, 10, "d-ng|d-ng|n-ng", fields(le, d, d, "/x\x00")),
		"two kinds of digest":      record(le, 10, "d-ng|d-ngv2|n-ng", fields(le, d, "ima:"+d, "/x\x00")),
		"name hidden as xattr":     record(le, 10, "d-ng|xattrnames", good),
		"name twice":               record(le, 10, "d-ng|n-ng|n", fields(le, d, "/x\x00", "/y\x00")),
		"too many fields":          record(le, 10, "d-ng|n-ng"+strings.Repeat("|sig", 14), good),
		"field missing":            record(le, 10, "ima-sig", good),
		"field too many":           record(le, 10, "ima-ng", fields(le, d, "/x\x00", "")),
		"field 4 GB":               record(le, 10, "ima-ng", append(fields(le, d), 0xff, 0xff, 0xff, 0xff, 'x')),
		"path empty":               record(le, 10, "ima-ng", fields(le, d, "\x00")),
		"path missing":             record(le, 10, "ima-ng", fields(le, d, "")),
		"path without NUL":         record(le, 10, "ima-ng", fields(le, d, "/x")),
		"path with NUL":            record(le, 10, "ima-ng", fields(le, d, "/x\x00y\x00")),
		"path with space":          record(le, 10, "ima-ng", fields(le, d, "/x y\x00")),
		"digest without algorithm": record(le, 10, "ima-ng", fields(le, ":\x00"+digestOf("x"), "/x\x00")),
		"digest without NUL":       record(le, 10, "ima-ng", fields(le, "sha256:"+digestOf("x"), "/x\x00")),
		"algorithm unknown":        record(le, 10, "ima-ng", fields(le, "SHA256:\x00"+digestOf("x"), "/x\x00")),
		"digest short":             record(le, 10, "ima-ng", fields(le, d[:39], "/x\x00")),
		"digest long":              record(le, 10, "ima-ng", fields(le, d+"x", "/x\x00")),
		"digest of another size":   record(le, 10, "ima-ng", fields(le, "sha512:\x00"+digestOf("x"), "/x\x00")),
		"type missing":             record(le, 10, "ima-ngv2", good),
		"type unknown":             record(le, 10, "ima-ngv2", fields(le, "evm:"+d, "/x\x00")),
		"type of the wrong field":  record(le, 10, "ima-ng", fields(le, "verity:"+d, "/x\x00")),
		"legacy digest":            record(le, 10, "d|n-ng", fields(le, "123456789012345678901", "/x\x00")),
		"uid of two bytes":         record(le, 10, "d-ng|n-ng|iuid", fields(le, d, "/x\x00", "12")),
		"mode of four bytes":       record(le, 10, "d-ng|n-ng|imode", fields(le, d, "/x\x00", "1234")),
		"lengths of three bytes":   record(le, 10, "d-ng|n-ng|xattrlengths", fields(le, d, "/x\x00", "123")),
		// Whoever sends a list may write another template's name over an entry.
		"file passed off as buffer": record(le, 10, "ima-buf", fields(le, d, "/bin/evil\x00", "\x03\x02\x04sig")),
	} {
		for _, r := range []*ListReader{NewListReader(list, little, 0), StreamList(bytes.NewReader(list), little, 0)} {
			if e, err := r.Next(); !errors.Is(err, ErrList) || e != nil {
				t.Errorf("%s: %+v, %v", name, e, err)
			}
			if cap(r.buf) > 1<<18 {
				t.Errorf("%s: a buffer of %d bytes for %d", name, cap(r.buf), len(list))
			}
		}
	}
	for _, line := range []string{
		"10", "x", "010 ", "10  ", " 1", "+1 ", "1  ", "10 00 ima-ng a b", "-1 ", "32 ",
	} {
		if e, err := NewListReader([]byte(line+"\n"), ascii, 0).Next(); !errors.Is(err, ErrList) {
			t.Errorf("%q: %+v, %v", line, e, err)
		}
	}
	line := string(ascii.Append(nil, find(t, "debian-evm-sig", "/w/e")))
	for _, change := range [][2]string{
		{"10 ", " 10 "}, {"10 ", "010 "}, {"sha256:", "sha256"}, {"sha256:", "SHA256:"}, {" evm-sig ", "  evm-sig "}, {" 7 ", " 07 "},
		{" 7 ", " +7 "}, {" 7 ", " "}, {" 7 ", " 7  "}, {" 35305", " 65536"}, {" 2002 ", " 4294967296 "}, {"0502", "05O2"}, {"d5cb", "D5CB"}, {"d5cb", "d5c"},
		{"/w/e", "/w/e\x00"}, {"\n", "\r\n"}, {"\n", " \n"}, {"/w/e ", ""}, {"security.ima|", "security.ima|\x00"},
	} {
		changed := strings.Replace(line, change[0], change[1], 1)
		if changed == line {
			t.Fatalf("%q is not in %q", change[0], line)
		}
		if e, err := NewListReader([]byte(changed), ascii, 0).Next(); !errors.Is(err, ErrList) {
			t.Errorf("%q: %+v, %v", changed, e, err)
		}
	}
}

// FuzzList: what is read is written back byte for byte, in both forms and orders, and a
// stream says the same as a slice.
func FuzzList(f *testing.F) {
	for _, name := range lists(f) {
		f.Add(readList(f, name, little), false, false)
		f.Add(readList(f, name, ascii), true, false)
	}
	data := fields(binary.BigEndian, "sha256:\x00"+digestOf("x"), "/x\x00", "12", "", "\x00")
	f.Add(record(binary.BigEndian, 10, "ima-modsig", data), false, true)
	f.Fuzz(func(t *testing.T, in []byte, text, big bool) {
		form := Form{ASCII: text, Order: binary.LittleEndian, Hash: SHA1}
		if big {
			form.Order = binary.BigEndian
		}
		r, stream, skip := NewListReader(in, form, 0), StreamList(bytes.NewReader(in), form, 0), NewListReader(in, form, 0)
		for {
			at := r.Offset()
			e, err := r.Next()
			same, sameErr := stream.Next()
			if (err == nil) != (sameErr == nil) || (err == io.EOF) != (sameErr == io.EOF) || (e == nil) == (err == nil) {
				t.Fatalf("%v from the slice, %v from the stream", err, sameErr)
			}
			if err != nil {
				if err != io.EOF && !errors.Is(err, ErrList) {
					t.Fatal(err)
				}
				return
			}
			if got, want := form.Append(nil, e), in[at:r.Offset()]; !bytes.Equal(got, want) || !bytes.Equal(form.Append(nil, same), want) {
				t.Fatalf("%q is written back as %q", want, got)
			}
			if skip.Skip(1) != nil || skip.Offset() != r.Offset() {
				t.Fatalf("skipped to %d, not %d", skip.Offset(), r.Offset())
			}
			other := form
			other.ASCII = !form.ASCII
			if b := other.Append(nil, e); bytes.IndexByte(e.Path, '\n') < 0 && bytes.IndexByte(e.xattrNames, '\n') < 0 {
				back, err := NewListReader(b, other, 0).Next()
				if err != nil || !bytes.Equal(form.Append(nil, back), in[at:r.Offset()]) {
					t.Fatalf("%q becomes %q: %v", in[at:r.Offset()], b, err)
				}
			}
			_ = e.CheckDigest()
			_, _ = e.Label()
			_, _, _ = e.Inode()
		}
	})
}
