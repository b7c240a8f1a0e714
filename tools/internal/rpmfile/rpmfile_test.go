package rpmfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func readHello(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/hello.rpm")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parseHello(t testing.TB) (*Package, []byte) {
	t.Helper()
	b := readHello(t)
	p, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return p, b
}

func TestParse(t *testing.T) {
	p, b := parseHello(t)
	hello, empty := sha256.Sum256([]byte("echo hello\n")), sha256.Sum256(nil)
	want := []File{{"/usr/bin/hello", hello[:]}, {"/usr/bin/hi", nil}, {"/usr/share/hello", nil}, {"/usr/share/hello/empty", empty[:]}}
	if diff := cmp.Diff(want, p.Files); diff != "" {
		t.Error(diff)
	}
	if gzip := b[p.Size:]; !bytes.HasPrefix(gzip, []byte{0x1f, 0x8b}) && !bytes.HasPrefix(gzip, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		t.Errorf("at %d no payload starts: %x", p.Size, gzip[:4])
	}
}

// TestSign has rpm read what it wrote.
func TestSign(t *testing.T) {
	p, b := parseHello(t)
	front, err := p.Sign([][]byte{{3, 2, 4, 1}, nil, nil, {3, 2, 4, 2, 2}})
	if err != nil {
		t.Fatal(err)
	}
	signed := append(front, b[p.Size:]...)
	again, err := Parse(signed)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.Files, again.Files); diff != "" {
		t.Error(diff)
	}
	none := make([][]byte, 4)
	removed, err := again.Sign(none)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := p.Sign(none); err != nil || !bytes.Equal(plain, removed) || !bytes.Equal(plain, b[:p.Size]) {
		t.Errorf("without signatures it is not the package that rpmbuild made: %v", err)
	}
	if _, err := p.Sign(none[1:]); err == nil {
		t.Error("a file without a place for its signature is no error")
	}

	if _, err := exec.LookPath("rpm"); err != nil {
		t.Skip("rpm is not installed")
	}
	file := filepath.Join(t.TempDir(), "hello.rpm")
	if err := os.WriteFile(file, signed, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-K", file}, "digests OK"},
		{[]string{"-qp", "--qf", `[%{FILENAMES} %{FILESIGNATURES}\n]%{FILESIGNATURELENGTH}`, file}, "/usr/bin/hello 03020401\n/usr/bin/hi \n/usr/share/hello \n/usr/share/hello/empty 0302040202\n5"},
	} {
		out, err := exec.CommandContext(t.Context(), "rpm", c.args...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), c.want) {
			t.Errorf("rpm %v: %v\n%s", c.args, err, out)
		}
	}
}

func TestRefuses(t *testing.T) {
	b := readHello(t)
	edit := func(at int, value ...byte) []byte {
		c := bytes.Clone(b)
		copy(c[at:], value)
		return c
	}
	for name, text := range map[string][]byte{
		"nothing":           nil,
		"no lead":           edit(0, 0),
		"cut lead":          b[:95],
		"no header":         edit(96, 0),
		"too many entries":  edit(104, 0xff),
		"store too large":   edit(108, 0xff),
		"entry outside":     edit(112+8, 0xff),
		"unknown type":      edit(112+4, 0, 0, 0, 77),
		"count too large":   edit(112+12, 0xff, 0xff, 0xff, 0xff),
		"cut in the header": b[:2000],
	} {
		if p, err := Parse(text); !errors.Is(err, ErrMalformed) || p != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// header returns a header of entries whose data is at the start of a store of size bytes.
func header(tag, kind, count uint32, entries, size int) []byte {
	b := append([]byte{}, headerMagic...)
	b = binary.BigEndian.AppendUint32(b, uint32(entries))
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	for range entries {
		b = appendEntry(b, tag, kind, 0, count)
	}
	return append(b, make([]byte, size)...)
}

// TestBounds: a small file cannot make much work, or a large result.
func TestBounds(t *testing.T) {
	lead := append(append([]byte{}, leadMagic...), make([]byte, leadSize-len(leadMagic))...)
	const size = 1 << 20
	many := append(lead, header(1000, typeStringArray, size, maxEntries, size)...)
	if _, err := Parse(many); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "entry 1, tag 1000") {
		t.Errorf("%d arrays of %d strings: %v", maxEntries, size, err)
	}

	long := append(bytes.Repeat([]byte("/x"), maxPath), 0)
	array := func(tag uint32, text string, n int) entry {
		return entry{tag, typeStringArray, uint32(n), bytes.Repeat([]byte(text+"\x00"), n)}
	}
	files := []entry{
		{tagFileModes, typeInt16, 2, make([]byte, 4)}, array(tagFileDigests, "", 2), {tagDirIndexes, typeInt32, 2, make([]byte, 8)},
		array(tagBaseNames, "a", 2), {tagDirNames, typeStringArray, 1, long}, {tagDigestAlgo, typeInt32, 1, []byte{0, 0, 0, digestSHA256}},
	}
	if _, err := readFiles(files); err == nil || !strings.Contains(err.Error(), "longer than 4096 bytes") {
		t.Errorf("long paths: %v", err)
	}
	files[4] = array(tagDirNames, "/usr/", 1)
	if got, err := readFiles(files); err != nil || len(got) != 2 || got[1].Path != "/usr/a" {
		t.Errorf("short paths: %v, %v", got, err)
	}
	if _, err := readFiles(append(files, files[0])); err == nil || !strings.Contains(err.Error(), "tag 1030 is there twice") {
		t.Errorf("rpm takes the one, and we the other: %v", err)
	}
}

// FuzzParse: what is signed with nothing, and parsed again, is the same.
func FuzzParse(f *testing.F) {
	f.Add(readHello(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			if p != nil {
				t.Fatal("a package, and an error")
			}
			return
		}
		front, err := p.Sign(make([][]byte, len(p.Files)))
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(front)
		if err != nil {
			t.Fatalf("wrote what it does not read: %v", err)
		}
		if twice, err := again.Sign(make([][]byte, len(p.Files))); err != nil || !bytes.Equal(front, twice) {
			t.Fatalf("wrote other bytes the second time: %v", err)
		}
	})
}
