package ima

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
)

func value(pcr int, algo HashAlgo, b byte) PCRValue {
	return PCRValue{PCR: pcr, Bank: Bank{Hash: algo}, Value: bytes.Repeat([]byte{b}, algo.Size())}
}

func TestNewReplayRefuses(t *testing.T) {
	ten := value(10, SHA256, 1)
	for name, c := range map[string]struct{ start, quoted []PCRValue }{
		"nothing quoted":          {nil, nil},
		"short value":             {nil, []PCRValue{{PCR: 10, Bank: Bank{Hash: SHA256}, Value: make([]byte, 20)}}},
		"no value":                {nil, []PCRValue{{PCR: 10, Bank: Bank{Hash: SHA256}}}},
		"PCR -1":                  {nil, []PCRValue{value(-1, SHA256, 1)}},
		"PCR 32":                  {nil, []PCRValue{value(32, SHA256, 1)}},
		"MD5":                     {nil, []PCRValue{value(10, MD5, 1)}},
		"bank of no algorithm":    {nil, []PCRValue{value(10, 200, 1)}},
		"bank that Go has not":    {nil, []PCRValue{value(10, 17, 1)}},
		"quoted twice":            {nil, []PCRValue{ten, value(10, SHA256, 2)}},
		"start that is no quote":  {[]PCRValue{value(11, SHA256, 1)}, []PCRValue{ten}},
		"start of another bank":   {[]PCRValue{value(10, SHA1, 1)}, []PCRValue{ten}},
		"start with other pads":   {[]PCRValue{{10, Bank{SHA256, PaddedOld}, make([]byte, 32)}}, []PCRValue{ten}},
		"start of another length": {[]PCRValue{{10, Bank{Hash: SHA256}, nil}}, []PCRValue{ten}},
	} {
		if r, err := NewReplay(c.start, c.quoted); err == nil || r != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestChangedLists: no change of a list leads to the same PCRs, except of what the kernel
// does not hash, and that is looked at.
func TestChangedLists(t *testing.T) {
	name := "debian-tcb-violation-seabios"
	all, err := copies(readList(t, name, little), little)
	if err != nil {
		t.Fatal(err)
	}
	run := func(entries [][]byte) error {
		replay, err := NewReplay(nil, readPCRs(t, name, "10"))
		if err != nil {
			t.Fatal(err)
		}
		return replay.Run(NewListReader(bytes.Join(entries, nil), little, 0), func(*Entry) error { return nil })
	}
	if err := run(all); err != nil {
		t.Fatal(err)
	}
	for i := range all {
		if err := run(slices.Delete(slices.Clone(all), i, i+1)); !errors.Is(err, ErrNotReached) {
			t.Errorf("without entry %d: %v", i, err)
		}
		if i < len(all)-1 {
			if err := run(slices.Insert(slices.Clone(all), i, all[i])); !errors.Is(err, ErrNotReached) {
				t.Errorf("with entry %d twice: %v", i, err)
			}
			swapped := slices.Clone(all)
			swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
			if err := run(swapped); !errors.Is(err, ErrNotReached) {
				t.Errorf("entries %d and %d swapped: %v", i, i+1, err)
			}
		}
		e, err := NewListReader(all[i], little, 0).Next()
		if err != nil {
			t.Fatal(err)
		}
		for at := range all[i] {
			changed := slices.Clone(all)
			changed[i] = bytes.Clone(all[i])
			changed[i][at] ^= 1
			err := run(changed)
			// Nothing protects what is written beside a violation.
			if err == nil && !(e.Violation && at >= len(all[i])-len(e.Data)) {
				t.Errorf("entry %d with byte %d changed", i, at)
			}
		}
	}
}

func TestUnquotedPCR(t *testing.T) {
	data := fields(binary.LittleEndian, "sha256:\x00"+digestOf("x"), "/x\x00")
	list := append(record(binary.LittleEndian, 10, "ima-ng", data), record(binary.LittleEndian, 11, "ima-ng", data)...)
	after := func(pcrs ...int) (quoted []PCRValue) {
		sum := sha256.Sum256(data)
		v := sha256.Sum256(append(make([]byte, 32), sum[:]...))
		for _, p := range pcrs {
			quoted = append(quoted, PCRValue{PCR: p, Bank: Bank{Hash: SHA256}, Value: v[:]})
		}
		return quoted
	}
	for _, c := range []struct {
		quoted []PCRValue
		want   error
		seen   int
	}{
		{after(10), nil, 1}, {after(10, 11), nil, 2}, {after(11), ErrUnquotedPCR, 0}, {after(10, 12), ErrUnquotedPCR, 1},
	} {
		replay, err := NewReplay(nil, c.quoted)
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		err = replay.Run(NewListReader(list, little, 0), func(*Entry) error { seen++; return nil })
		if !errors.Is(err, c.want) || seen != c.seen {
			t.Errorf("%+v: %v after %d", c.quoted, err, seen)
		}
	}
}

// TestVisitStops: an error of the caller's is returned as it is.
func TestVisitStops(t *testing.T) {
	replay, err := NewReplay(nil, []PCRValue{value(10, SHA256, 1)})
	if err != nil {
		t.Fatal(err)
	}
	list := NewListReader(readList(t, "debian-ima-sig", little), little, 0)
	if err := replay.Run(list, func(*Entry) error { return io.ErrClosedPipe }); err != io.ErrClosedPipe || list.Index() != 1 {
		t.Errorf("%v at %d", err, list.Index())
	}
}

// bigList is a list of n files, with 265-byte signatures if signed.
func bigList(n int, template string, sig []byte) []byte {
	var list []byte
	for i := range n {
		path := fmt.Sprintf("/usr/lib/x86_64-linux-gnu/lib%06d.so\x00", i)
		f := []string{"sha256:\x00" + digestOf(path), path}
		if template == "ima-sig" {
			f = append(f, string(sig))
		}
		list = append(list, record(binary.LittleEndian, 10, template, fields(binary.LittleEndian, f...))...)
	}
	return list
}

// BenchmarkReplay goes from bytes to checked digests and the PCR value of SHA-256, which
// is never reached so that each entry counts.
func BenchmarkReplay(b *testing.B) {
	const n = 10000
	for _, c := range []struct {
		name, template string
		sig            int
		ascii          bool
	}{
		{"ima-ng", "ima-ng", 0, false}, {"ima-sig/p256", "ima-sig", 81, false}, {"ima-sig/rsa2048", "ima-sig", 265, false},
		{"ima-ng/ascii", "ima-ng", 0, true},
	} {
		list, form := bigList(n, c.template, make([]byte, c.sig)), little
		if c.ascii {
			var text []byte
			for r := NewListReader(list, little, 0); ; {
				e, err := r.Next()
				if err != nil {
					break
				}
				text = ascii.Append(text, e)
			}
			list, form = text, ascii
		}
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(list)))
			for b.Loop() {
				replay, err := NewReplay(nil, []PCRValue{value(10, SHA256, 1)})
				if err != nil {
					b.Fatal(err)
				}
				if err := replay.Run(NewListReader(list, form, 0), func(*Entry) error { return nil }); !errors.Is(err, ErrNotReached) {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
