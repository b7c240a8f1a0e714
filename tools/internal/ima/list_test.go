package ima

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
)

// little is the form of binary_runtime_measurements on the machines of testdata/lists.
var little = Form{Order: binary.LittleEndian, Hash: SHA1}

// lists returns the names of the real boots in testdata/lists.
func lists(t testing.TB) []string {
	files, err := filepath.Glob("testdata/lists/*.binary_runtime_measurements")
	if err != nil || len(files) == 0 {
		t.Fatalf("no lists: %v", err)
	}
	var names []string
	for _, f := range files {
		name, _, _ := strings.Cut(filepath.Base(f), ".")
		names = append(names, name)
	}
	return names
}

func readList(t testing.TB, name string, form Form) []byte {
	file := name + ".binary_runtime_measurements"
	if form.ASCII {
		file = name + ".ascii_runtime_measurements"
	}
	b, err := os.ReadFile(filepath.Join("testdata/lists", file))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readPCRs reads PCR 10 of each bank from lines "sha1:10 <hex>".
func readPCRs(t testing.TB, name string, pcrs ...string) []PCRValue {
	text, err := os.ReadFile(filepath.Join("testdata/lists", name+".pcrs"))
	if err != nil {
		t.Fatal(err)
	}
	var values []PCRValue
	for line := range strings.Lines(string(text)) {
		bank, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		pcr, digits, _ := strings.Cut(rest, " ")
		algo, known := hashByName([]byte(bank))
		value, err := hex.DecodeString(digits)
		if err != nil || !known {
			t.Fatalf("%s: line %q: %v", name, line, err)
		}
		for _, want := range pcrs {
			if pcr == want {
				n, _ := strconv.Atoi(pcr)
				bank := Bank{Hash: algo}
				if algo == SHA384 { // Debian's kernel has SHA-512 in a module only
					bank.Padding = PaddedUnknown
				}
				values = append(values, PCRValue{PCR: n, Bank: bank, Value: value})
			}
		}
	}
	return values
}

// copies reads all of a list into entries that stay.
func copies(list []byte, form Form) (entries [][]byte, err error) {
	r := NewListReader(list, form, 0)
	for {
		e, err := r.Next()
		if err == io.EOF {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, form.Append(nil, e))
	}
}

// ascii is the form of ascii_runtime_measurements beside little.
var ascii = Form{ASCII: true, Order: binary.LittleEndian, Hash: SHA1}

// TestBothForms: Linux wrote each list twice; the one makes the other, entry by entry. A
// line feed in a path cannot be read back from ASCII, and is said to be the cause.
func TestBothForms(t *testing.T) {
	for _, name := range lists(t) {
		t.Run(name, func(t *testing.T) {
			r := NewListReader(readList(t, name, little), little, 0)
			var asBinary, asASCII []byte
			for {
				e, err := r.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := e.CheckDigest(); err != nil {
					t.Error(err)
				}
				if label, err := e.Label(); err != nil {
					t.Errorf("%s: %v: %v", e.Path, label, err)
				}
				entry, line := little.Append(nil, e), ascii.Append(nil, e)
				asBinary, asASCII = append(asBinary, entry...), append(asASCII, line...)
				back, err := NewListReader(line, ascii, 0).Next()
				switch feed := bytes.IndexByte(e.Path, '\n') >= 0; {
				case feed && err == nil:
					err = back.CheckDigest()
					fallthrough
				case feed:
					if !errors.Is(err, ErrTemplateDigest) && !errors.Is(err, ErrList) {
						t.Errorf("%q: %v", line, err)
					}
				case err != nil:
					t.Errorf("%q: %v", line, err)
				case !bytes.Equal(little.Append(nil, back), entry):
					t.Errorf("%q: got %x, want %x", line, little.Append(nil, back), entry)
				}
			}
			if !bytes.Equal(asBinary, readList(t, name, little)) {
				t.Error("another binary list")
			}
			if !bytes.Equal(asASCII, readList(t, name, ascii)) {
				t.Errorf("another ASCII list:\n%s", asASCII)
			}
		})
	}
}

func TestDetectForm(t *testing.T) {
	for _, name := range lists(t) {
		for _, want := range []Form{little, ascii} {
			if got, err := DetectForm(readList(t, name, want)); got != want || err != nil {
				t.Errorf("%s: got %+v, %v; want %+v", name, got, err, want)
			}
		}
	}
	for _, in := range []string{"", "\n", "10 ", strings.Repeat("\x00", 100)} {
		if form, err := DetectForm([]byte(in)); err == nil {
			t.Errorf("%q is %+v", in, form)
		}
	}
}

// TestReplay: the list leads to the PCR values that the TPM had, in every bank.
func TestReplay(t *testing.T) {
	for _, name := range lists(t) {
		t.Run(name, func(t *testing.T) {
			quoted := readPCRs(t, name, "10")
			if len(quoted) < 2 {
				t.Fatalf("%d values of PCR 10", len(quoted))
			}
			replay, err := NewReplay(nil, quoted)
			if err != nil {
				t.Fatal(err)
			}
			list, n := NewListReader(readList(t, name, little), little, 0), 0
			if err := replay.Run(list, func(e *Entry) error { n++; return nil }); err != nil {
				t.Fatal(err)
			}
			if _, err := list.Next(); err != io.EOF || n == 0 {
				t.Errorf("after %d entries: %v", n, err)
			}
		})
	}
}

// TestTail: a verifier that has seen n entries goes on from there, and what came after
// the quote is pending, wherever both stand.
func TestTail(t *testing.T) {
	name := "debian-tcb-violation-seabios"
	all, err := copies(readList(t, name, little), little)
	if err != nil {
		t.Fatal(err)
	}
	var values [][]PCRValue // after n entries
	replay, err := NewReplay(nil, readPCRs(t, name, "10"))
	if err != nil {
		t.Fatal(err)
	}
	values = append(values, replay.Values())
	list := NewListReader(bytes.Join(all, nil), little, 0)
	for range all {
		e, err := list.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := replay.Extend(e); err != nil {
			t.Fatal(err)
		}
		values = append(values, replay.Values())
	}
	for seen := range values {
		for quoted := seen; quoted < len(values); quoted++ {
			replay, err := NewReplay(values[seen], values[quoted])
			if err != nil {
				t.Fatal(err)
			}
			list, next := NewListReader(bytes.Join(all[seen:], nil), little, seen), seen
			err = replay.Run(list, func(e *Entry) error {
				if e.Index != next {
					t.Errorf("entry %d is called %d", next, e.Index)
				}
				next++
				return nil
			})
			if err != nil || next != quoted || list.Index() != quoted || list.Offset() != int64(len(bytes.Join(all[seen:quoted], nil))) {
				t.Errorf("from %d to %d: ended at %d: %v", seen, quoted, next, err)
			}
		}
	}
}

// TestStream: a list that comes byte by byte is the same list, and one that breaks off is
// none, wherever it does.
func TestStream(t *testing.T) {
	for _, form := range []Form{little, ascii} {
		list := readList(t, "custom-evm-portable", form)
		r := StreamList(iotest.OneByteReader(bytes.NewReader(list)), form, 0)
		var again []byte
		for {
			e, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			again = form.Append(again, e)
		}
		if !bytes.Equal(again, list) {
			t.Error("another list")
		}
		whole := map[int]bool{0: true}
		for r := NewListReader(list, form, 0); ; {
			if _, err := r.Next(); err != nil {
				break
			}
			whole[int(r.Offset())] = true
		}
		for n := range len(list) {
			for _, r := range []*ListReader{NewListReader(list[:n], form, 0), StreamList(bytes.NewReader(list[:n]), form, 0)} {
				var err error
				for err == nil {
					_, err = r.Next()
				}
				if whole[n] != (err == io.EOF) || !whole[n] && (!errors.Is(err, ErrList) || !errors.Is(err, io.ErrUnexpectedEOF)) {
					t.Fatalf("cut at %d: %v", n, err)
				}
			}
		}
	}
}

func TestSkip(t *testing.T) {
	for _, form := range []Form{little, ascii} {
		list := readList(t, "custom-evm-portable", form)
		all, err := copies(list, form)
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(all) + 1 {
			r := NewListReader(list, form, 0)
			if err := r.Skip(n); err != nil || r.Index() != n || r.Offset() != int64(len(bytes.Join(all[:n], nil))) {
				t.Errorf("skipping %d: at %d, %v", n, r.Offset(), err)
			}
			if e, err := r.Next(); n == len(all) && err != io.EOF || n < len(all) && (err != nil || e.Index != n || !bytes.Equal(form.Append(nil, e), all[n])) {
				t.Errorf("after %d: %v", n, err)
			}
		}
		if err := NewListReader(list, form, 0).Skip(len(all) + 1); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("beyond the end: %v", err)
		}
	}
}
