package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var exampleHeader = Header{
	Name: "rootfs", Created: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC), Target: "x86_64", Generator: "attest 0.1.0",
}

func marshal(t interface{ Fatal(...any) }, h Header, es []Entry) []byte {
	var b bytes.Buffer
	enc, err := newEncoder(&b, h)
	for i := 0; err == nil && i < len(es); i++ {
		err = enc.add(es[i])
	}
	if err == nil {
		err = enc.end()
	}
	if err != nil {
		t.Fatal(err)
	}
	if int64(b.Len()) != enc.size {
		t.Fatal("encoder counts", enc.size, "bytes of", b.Len())
	}
	return b.Bytes()
}

// parse holds a whole statement, as only tests do.
func parse(r io.Reader) (Header, []Entry, error) {
	d, err := newDecoder(r)
	if err != nil {
		return Header{}, nil, err
	}
	es := []Entry{}
	for {
		e, err := d.next()
		if errors.Is(err, io.EOF) {
			return d.header, es, nil
		}
		if err != nil {
			return Header{}, nil, err
		}
		es = append(es, e)
	}
}

// TestFormatDocument keeps the example of FORMAT.md true.
func TestFormatDocument(t *testing.T) {
	doc, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "```json\n")
	block, _, ok := strings.Cut(rest, "```\n")
	if !ok {
		t.Fatal("FORMAT.md has no json block")
	}
	if diff := cmp.Diff(string(marshal(t, exampleHeader, example)), block); diff != "" {
		t.Errorf("FORMAT.md shows another statement (-code +document):\n%s", diff)
	}
	h, es, err := parse(strings.NewReader(block))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(example, es) + cmp.Diff(exampleHeader, h); diff != "" {
		t.Error(diff)
	}
}

// TestSubjectDigest computes the digest with the commands that FORMAT.md gives.
func TestSubjectDigest(t *testing.T) {
	for _, es := range [][]Entry{nil, example[:1], example} {
		payload := marshal(t, exampleHeader, es)
		cmd := exec.Command("sh", "-c", `sed -e 1d -e '$d' -e 's/,$//' | sha256sum | cut -c 1-64`)
		cmd.Stdin = bytes.NewReader(payload)
		sum, err := cmd.Output()
		if err != nil {
			t.Skipf("sed and sha256sum do not work here: %v", err)
		}
		if want := `"metaAttestEntriesSha256":"` + strings.TrimSpace(string(sum)) + `"`; !bytes.Contains(payload, []byte(want)) {
			t.Errorf("%d entries: sha256sum finds %s, not in\n%s", len(es), want, payload)
		}
	}
}

func TestPayloadRoundTrip(t *testing.T) {
	text := rapid.StringN(0, 40, maxString)
	rapid.Check(t, func(t *rapid.T) {
		h := Header{Name: rapid.StringN(1, 40, maxString).Draw(t, "name"), Target: text.Draw(t, "target"), Generator: text.Draw(t, "generator")}
		if s := rapid.Int64Range(-1, 253402300799).Draw(t, "created"); s >= 0 {
			h.Created = time.Unix(s, 0).UTC()
		}
		want := append([]Entry{}, entries().Draw(t, "entries")...)
		payload := marshal(t, h, want)
		got, es, err := parse(bytes.NewReader(payload))
		if err != nil {
			t.Fatalf("%v\n%s", err, payload)
		}
		if diff := cmp.Diff(want, es) + cmp.Diff(h, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestLongestLine shows that an entry at every limit fits the decoder's buffer.
func TestLongestLine(t *testing.T) {
	long := strings.Repeat(strings.Repeat("\x01", 255)+"/", 15) + strings.Repeat("\x01", 256)
	for _, e := range []Entry{
		{Path: long, Type: Symlink, Mode: 0o7777, UID: 1<<32 - 1, GID: 1<<32 - 1, Target: long, Package: strings.Repeat("\x01", 256)},
		{
			Path: long, Type: File, Mode: 0o7777, UID: 1<<32 - 1, GID: 1<<32 - 1, Size: 1<<63 - 1, Digests: Digests{sum256, sum384, sum512},
			Label: "sigv3", KeyID: "00000000", EVM: "portable", Verity: "sha512:" + sum512,
			Capability: strings.Repeat("00", 64), Package: strings.Repeat("\x01", 256),
		},
	} {
		_, es, err := parse(bytes.NewReader(marshal(t, exampleHeader, []Entry{e})))
		if err != nil || es[0] != e {
			t.Errorf("%s: %v", e.Type, err)
		}
	}
}

func TestHeaderRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		h    Header
		want string
	}{
		{"no name", Header{}, "name is empty"},
		{"name not UTF-8", Header{Name: "\xff"}, "subject name is not"},
		{"long target", Header{Name: "n", Target: strings.Repeat("t", 257)}, "target is not"},
		{"generator not UTF-8", Header{Name: "n", Generator: "a\xc3"}, "generator is not"},
		{"year 10000", Header{Name: "n", Created: time.Unix(253402300800, 0)}, "year 10000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := newEncoder(io.Discard, tt.h)
			checkErr(t, err, tt.want)
		})
	}
}

func TestPayloadTooLarge(t *testing.T) {
	enc, err := newEncoder(io.Discard, exampleHeader)
	if err != nil {
		t.Fatal(err)
	}
	enc.size = maxPayload - 20
	checkErr(t, enc.add(example[0]), "larger than 1073741824 bytes")
}

// TestPayloadRefused changes one thing of a good statement at a time.
func TestPayloadRefused(t *testing.T) {
	const (
		dir  = `{"path":"d","type":"dir","mode":"0755","uid":0,"gid":0}`
		file = `{"path":"f","type":"file","mode":"0644","uid":0,"gid":0,"size":0,"digest":{"sha256":"` + sum256 + `"}}`
		link = `{"path":"l","type":"symlink","mode":"0777","uid":0,"gid":0,"target":"f"}`
	)
	good := string(marshal(t, exampleHeader, []Entry{
		{Path: "d", Type: Dir, Mode: 0o755},
		{Path: "f", Type: File, Mode: 0o644, Digests: Digests{SHA256: sum256}},
		{Path: "l", Type: Symlink, Mode: 0o777, Target: "f"},
	}))
	for _, s := range []string{dir + ",\n", file + ",\n", link + "\n"} {
		if !strings.Contains(good, s) {
			t.Fatalf("no line %q in\n%s", s, good)
		}
	}
	tests := []struct{ name, old, new, want string }{
		{"nothing", good, "", "line 1: unexpected EOF"},
		{"other statement type", "Statement/v1", "Statement/v0.1", "line 1: not a statement"},
		{"other predicate type", "manifest/v1", "manifest/v2", "line 1: not a statement"},
		{"header key in another case", `"target"`, `"Target"`, "line 1: not in canonical"},
		{"header key twice", `"target":"x86_64",`, `"target":"x86_64","target":"x86_64",`, "line 1: not in canonical"},
		{"unknown header key", `"target"`, `"x":1,"target"`, "line 1: not in canonical"},
		{"header order", `"generator":"attest 0.1.0","created":"2026-11-22T00:00:00Z"`, `"created":"2026-11-22T00:00:00Z","generator":"attest 0.1.0"`, "line 1: not in canonical"},
		{"empty header string", `"x86_64"`, `""`, "line 1: not in canonical"},
		{"time with fraction", "00:00:00Z", "00:00:00.5Z", "line 1: not in canonical"},
		{"time with offset", "00:00:00Z", "00:00:00+01:00", "line 1: not in canonical"},
		{"time in words", "2026-11-22T00:00:00Z", "today", "line 1: parse created"},
		{"zero time", "2026-11-22T00:00:00Z", "0001-01-01T00:00:00Z", "line 1: not in canonical"},
		{"long target", "x86_64", strings.Repeat("x", 257), "line 5: target is not"},
		{"no entries list", `"entries":[`, `"entries":{`, "line 1: parse header"},
		{"CRLF", "\n", "\r\n", "line 1: not in canonical"},
		{"space in an entry", `"uid":0`, `"uid": 0`, `entry 1 (line 2): "d": not in canonical`},
		{"leading space", dir, " " + dir, `entry 1 (line 2): "d": not in canonical`},
		{"key in another case", `"uid"`, `"UID"`, `"d": not in canonical`},
		{"key twice", `"uid":0`, `"uid":0,"uid":0`, `"d": not in canonical`},
		{"keys in another order", `"uid":0,"gid":0`, `"gid":0,"uid":0`, `"d": not in canonical`},
		{"unknown key", `"uid":0`, `"uid":0,"x":0`, `"d": not in canonical`},
		{"missing key", `"uid":0,`, ``, `"d": not in canonical`},
		{"null", `"uid":0`, `"uid":null`, `"d": not in canonical`},
		{"number as float", `"uid":0`, `"uid":0.0`, "entry 1 (line 2): parse entry"},
		{"uid too large", `"uid":0`, `"uid":4294967296`, "entry 1 (line 2): parse entry"},
		{"mode as number", `"0755"`, `755`, "parse entry"},
		{"short mode", `"0755"`, `"755"`, `"d": not in canonical`},
		{"mode not octal", `"0755"`, `"0855"`, "parse mode"},
		{"mode with type", `"0755"`, `"40755"`, `"d": mode 040755`},
		{"empty optional", `"target":"f"`, `"target":"f","package":""`, `entry 3 (line 4): "l": not in canonical`},
		{"empty digests", `{"sha256":"` + sum256 + `"}`, `{}`, `entry 2 (line 3): "f": not in canonical`},
		{"unknown digest", `{"sha256"`, `{"sha1":"00","sha256"`, `"f": not in canonical`},
		{"upper-case digest", sum256, strings.ToUpper(sum256), `"f": sha256 digest`},
		{"size of a dir", dir, strings.Replace(dir, "}", `,"size":1}`, 1), `"d": has a field`},
		{"needless escape", `"path":"d"`, `"path":"\u0064"`, `"d": not in canonical`},
		{"escaped slash", `"path":"d"`, `"path":"d\/e"`, `"d/e": not in canonical`},
		{"base64 of UTF-8", `"path":"d"`, `"path_base64":"ZA=="`, `"d": not in canonical`},
		{"base64 not strict", `"path":"d"`, `"path_base64":"/x=="`, `not in canonical`},
		{"path and base64", `"path":"d"`, `"path":"d","path_base64":"/w=="`, `not in canonical`},
		{"raw bytes", `"path":"d"`, "\"path\":\"\xff\"", `not in canonical`},
		{"lone surrogate", `"path":"d"`, `"path":"\ud800"`, `not in canonical`},
		{"bad path", `"path":"d"`, `"path":"../d"`, `"../d": path has the component`},
		{"unsorted", dir + ",\n" + file, file + ",\n" + dir, `entry 2 (line 3): "d": path is not in order`},
		{"twice", dir + ",\n", dir + ",\n" + dir + ",\n", `entry 2 (line 3): "d": path is listed twice`},
		{"below a file", `"path":"l"`, `"path":"f/l"`, `entry 3 (line 4): "f/l": path lies below`},
		{"entry removed", file + ",\n", "", "line 4: subject digest"},
		{"entry changed", `"0644"`, `"0755"`, "line 5: subject digest"},
		{"not an object", dir, "null", "entry 1 (line 2): parse mode"},
		{"not JSON", dir, "{", "entry 1 (line 2): parse entry"},
		{"empty line", dir + ",\n", "\n" + dir + ",\n", "entry 1 (line 2): parse entry"},
		{"two entries in a line", dir + ",\n", dir + ",", "entry 1 (line 2): parse entry"},
		{"missing comma", dir + ",\n", dir + "\n", "entry 2 (line 3): not in canonical"},
		{"comma after the last", link + "\n", link + ",\n", "line 5: not in canonical"},
		{"line too long", `"path":"d"`, `"path":"` + strings.Repeat("d", maxLine) + `"`, "line 2: longer than 65536"},
		{"cut in an entry", good[strings.Index(good, link)+9:], "", "line 4: unexpected EOF"},
		{"cut before the end", good[strings.Index(good, "]}"):], "", "line 5: unexpected EOF"},
		{"last line end missing", "}}]}\n", "}}]}", "line 5: unexpected EOF"},
		{"bytes after the end", "}}]}\n", "}}]}\n\n", "line 5: bytes after"},
		{"no subject", `"subject":[{`, `"subjects":[{`, "line 5: 0 subjects"},
		{"two subjects", `"subject":[`, `"subject":[{},`, "line 5: 2 subjects"},
		{"more in the predicate", "]},", `],"x":1},`, "line 5: not in canonical"},
		{"no subject name", `"rootfs"`, `""`, "line 5: subject name is empty"},
		{"subject key in another case", `"name"`, `"Name"`, "line 5: not in canonical"},
		{"other digest name", digestName, "sha256", "line 5: not in canonical"},
		{"more digests", `"digest":{"meta`, `"digest":{"sha256":"00","meta`, "line 5: not in canonical"},
		{"upper-case subject digest", digestName + `":"`, digestName + `":"A`, "line 5: not in canonical"},
		{"subject not JSON", `"subject":[{`, `"subject":[[`, "line 5: parse subject"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if !strings.Contains(good, tt.old) {
				t.Fatalf("nothing to replace: %q", tt.old)
			}
			_, es, err := parse(strings.NewReader(strings.Replace(good, tt.old, tt.new, 1)))
			checkErr(t, err, tt.want)
			if es != nil {
				t.Error("entries came with the error")
			}
		})
	}
}

func FuzzParsePayload(f *testing.F) {
	f.Add(marshal(f, Header{Name: "n"}, nil))
	f.Add(marshal(f, exampleHeader, example))
	for _, e := range example {
		f.Add(marshal(f, exampleHeader, []Entry{e}))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		in = redigest(in)
		h, es, err := parse(bytes.NewReader(in))
		if err != nil {
			if es != nil {
				t.Fatalf("kept entries with %v", err)
			}
			return
		}
		if out := marshal(t, h, es); !bytes.Equal(out, in) {
			t.Fatalf("wrote back %q", out)
		}
		var p struct{ Predicate struct{ Entries []entryJSON } }
		if err := json.Unmarshal(in, &p); err != nil || len(p.Predicate.Entries) != len(es) {
			t.Fatalf("another reader sees %d entries of %d: %v", len(p.Predicate.Entries), len(es), err)
		}
		for i, e := range p.Predicate.Entries {
			if path := e.Path + string(e.PathBase64); path != es[i].Path {
				t.Fatalf("another reader sees %q, we %q", path, es[i].Path)
			}
		}
	})
}

// redigest corrects the subject digest, or no change of an entry would ever be accepted.
func redigest(in []byte) []byte {
	lines := bytes.SplitAfter(in, []byte("\n"))
	if len(lines) < 3 {
		return in
	}
	n := len(lines) - 2 // the footer; nothing comes after its line end
	h := sha256.New()
	for _, l := range lines[1:n] {
		h.Write(bytes.TrimRight(l, ",\n"))
		h.Write([]byte("\n"))
	}
	key := []byte(digestName + `":"`)
	at := bytes.Index(lines[n], key) + len(key)
	if at < len(key) || at+64 > len(lines[n]) {
		return in
	}
	out := bytes.Clone(in)
	hex.Encode(out[len(in)-len(lines[n])+at:], h.Sum(nil))
	return out
}
