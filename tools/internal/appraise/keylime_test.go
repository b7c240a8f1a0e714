package appraise

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// replayASCII makes a device of a recorded list, and of the PCRs that were read with it.
func replayASCII(t *testing.T, lines []string, pcrs string) *device {
	t.Helper()
	d := newDevice(t)
	d.reset()
	if pcrs != "" {
		b, err := os.ReadFile(filepath.Join("../ima/testdata/lists", pcrs))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			var bank string
			var index int
			var value []byte
			if _, err := fmt.Sscanf(strings.Replace(line, ":", " ", 1), "%s %d %x", &bank, &index, &value); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			for hash, values := range d.pcrs {
				if hash.String() == bank && index != imaPCR {
					values[index] = value
				}
			}
		}
	}
	list := []byte(strings.Join(lines, "\n") + "\n")
	r := ima.NewListReader(list, ima.Form{ASCII: true, Order: binary.LittleEndian, Hash: ima.SHA1}, 0)
	replay, err := ima.NewReplay(nil, []ima.PCRValue{
		{PCR: imaPCR, Bank: ima.Bank{Hash: ima.SHA1}, Value: make([]byte, 20)}, {PCR: imaPCR, Bank: ima.Bank{Hash: ima.SHA256}, Value: make([]byte, 32)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range lines {
		e, err := r.Next()
		if err == nil {
			err = replay.Extend(e)
		}
		if err != nil {
			t.Fatal(err)
		}
		d.list = ima.Form{Order: binary.LittleEndian, Hash: ima.SHA1}.Append(d.list, e)
	}
	for _, v := range replay.Values() {
		d.pcrs[v.Bank.Hash][imaPCR] = v.Value
	}
	return d
}

// TestKeylime compares our verdicts with Keylime's own on the same policies and lists. A
// case that "differs" names our verdict and why it is another.
func TestKeylime(t *testing.T) {
	b, err := os.ReadFile("testdata/keylime.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name, Policy, Differs, PCRs string
		List                        []string
		Refused                     []int
	}
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	for _, tt := range cases {
		t.Run(tt.Name, func(t *testing.T) {
			want, entries := "trusted", tt.Refused
			if len(tt.Refused) > 0 {
				want = "untrusted"
			}
			if tt.Differs != "" {
				want, _, _ = strings.Cut(tt.Differs, ":")
				words := strings.Fields(want)
				want, entries = words[0], nil
				for _, w := range words[1:] {
					n, err := strconv.Atoi(w)
					if err != nil {
						t.Fatal(err)
					}
					entries = append(entries, n)
				}
			}
			ref, err := Compile(Rules{}, Release{Name: "keylime", Keylime: []byte(tt.Policy)})
			if want == "error" {
				if err == nil {
					t.Error("compiled")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			v, _ := judged(t, replayASCII(t, tt.List, tt.PCRs).attest(0), ref, State{})
			var got []int
			for _, r := range v.Reasons {
				if r.Entry != nil {
					got = append(got, *r.Entry)
				}
			}
			if string(v.Status) != want || !slices.Equal(got, entries) {
				t.Errorf("%s, want %s of entries %v", told(v), want, entries)
			}
			same := want == "trusted" && len(tt.Refused) == 0 || want == "untrusted" && slices.Equal(entries, tt.Refused)
			if same == (tt.Differs != "") {
				t.Errorf("Keylime refuses %v; it is said that we differ: %q", tt.Refused, tt.Differs)
			}
		})
	}
}

// TestIgnoredKeyrings: keys pass, and no file does that is passed off as one. The name of a
// template is not measured, so that "ima-buf" may stand over what was "ima-sig", with the
// label of the file for the buffer: of a file whose label is its content the digest is right.
func TestIgnoredKeyrings(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	script := append([]byte("\x03 # a label begins so\n: <<X\n"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	script = append(script, "X\n/tmp/evil\n"...)
	for _, ignored := range []string{"*", ".x"} {
		ref := compile(t, "", Release{Name: "k", Keylime: []byte(strings.Replace(goodPolicy, `"ignored_keyrings":[]`, `"ignored_keyrings":["`+ignored+`"]`, 1))})
		for _, c := range []struct {
			name string
			buf  []byte
			want string
		}{
			{".x", der, "unverified k; nothing_measured"},
			{".x", script, "untrusted k; unknown_buffer 1 .x; nothing_measured"},
			{"/tmp/a", der, "untrusted k; unknown_buffer 1 /tmp/a; nothing_measured"},
			{"/tmp/a", script, "untrusted k; unknown_buffer 1 /tmp/a; nothing_measured"},
			{"a.sh", script, "untrusted k; unknown_buffer 1 a.sh; nothing_measured"}, // of a file system that is not mounted
		} {
			d := newDevice(t)
			d.buffer(c.name, c.buf)
			if v, _ := judged(t, d.attest(0), ref, State{}); told(v) != c.want {
				t.Errorf("ignored %q, %s: %s, want %s", ignored, c.name, told(v), c.want)
			}
		}
	}
}

func TestTPMPolicy(t *testing.T) {
	value, other := strings.Repeat("00", 32), strings.Repeat("AB", 32)
	for text, want := range map[string]string{
		`{"7":["` + value + `"],"mask":"0x80"}`:         "trusted keylime",
		`{"7":["` + other + `","` + value + `"]}`:       "trusted keylime",
		`{"7":"` + value + `","mask":"0x10480"}`:        "trusted keylime",
		`{"7":["` + other + `"]}`:                       "untrusted keylime; pcr_mismatch PCR 7",
		`{"12":["` + value + `"]}`:                      "unverified keylime; pcr_not_quoted PCR 12",
		`{"10":["` + value + `"]}`:                      "error",
		`{"16":["` + value + `"]}`:                      "error",
		`{"07":["` + value + `"]}`:                      "error",
		`{"24":["` + value + `"]}`:                      "error",
		`{"7":[]}`:                                      "error",
		`{"7":["` + value + `"],"7":["` + other + `"]}`: "error",
		`{"7":["` + value + `"],"mask":"0x100"}`:        "error",
		`{"7":["` + strings.Repeat("00", 20) + `"]}`:    "error",
		`{"7":["zz` + value[2:] + `"]}`:                 "error",
		`{"7":["` + value + `"]} {}`:                    "error",
		`{"7":["` + value + `"]`:                        "error",
		`{"7":["` + value + `"],"mask":128}`:            "error",
		`{"7":[["` + value + `"]]}`:                     "error",
	} {
		r := one
		r.Name, r.TPMPolicy = "keylime", []byte(text)
		ref, err := Compile(Rules{}, r)
		got := "error"
		if err == nil {
			d := newDevice(t)
			d.file("/usr/bin/ls", content("ls"))
			v, _ := judged(t, d.attest(0), ref, State{})
			got = told(v)
		}
		if got != want {
			t.Errorf("%s: %s, want %s (%v)", text, got, want, err)
		}
	}
}

const goodPolicy = `{"meta":{"version":1,"generator":3,"timestamp":"now"},"release":0,"digests":{"/a":["` +
	`0000000000000000000000000000000000000000000000000000000000000000"]},"excludes":[],"keyrings":{},` +
	`"ima":{"ignored_keyrings":[],"log_hash_alg":"sha1","dm_policy":null},"ima-buf":{},"verification-keys":""}`

// TestKeylimePolicy: one change each to a policy that is read.
func TestKeylimePolicy(t *testing.T) {
	read := func(text string) error {
		_, err := Compile(Rules{}, Release{Name: "r", Keylime: []byte(text)})
		return err
	}
	if err := read(goodPolicy); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{`"release":0,`, ``}, {`"release":0`, `"release":-1`}, {`"release":0`, `"release":0.5`}, {`"release":0`, `"release":0,"release":0`},
		{`"release":0`, `"Release":0`}, {`"release":0`, `"release":0,"more":1`}, {`"version":1`, `"version":2`}, {`"generator":3`, `"generator":4`},
		{`"version":1,`, ``}, {`"sha1"`, `"sha3"`}, {`"sha1"`, `null`}, {`null`, `{}`}, {`"/a"`, `""`}, {`"/a"`, `"/a\u0000"`},
		{`["0`, `["`}, {`["0`, `["A`}, {`["0`, `["g`}, {`["0`, `["00`}, {`["0`, `[{},"0`}, {`"excludes":[]`, `"excludes":["("]`},
		{`"excludes":[]`, `"excludes":[""]`}, {`"excludes":[]`, `"excludes":"x"`}, {`"excludes":[]`, `"excludes":["/"]`},
		{`"excludes":[]`, `"excludes":["/a)|(?:b"]`},
		{`"verification-keys":""`, `"verification-keys":"{}"`}, {`"verification-keys":""`, `"verification-keys":"{\"keyids\":[],\"pubkeys\":[\"AA==\"]}"`},
		{`"verification-keys":""`, `"verification-keys":"{\"keyids\":[1],\"pubkeys\":[]}"`}, {`"verification-keys":""`, `"verification-keys":{}`},
		{`"verification-keys":""}`, `"verification-keys":""`}, {`"verification-keys":""}`, `"verification-keys":""} x`},
	} {
		text := strings.Replace(goodPolicy, change[0], change[1], 1)
		if err := read(text); err == nil || text == goodPolicy {
			t.Errorf("%s for %s was read", change[1], change[0])
		}
	}
	if err := read(strings.Replace(goodPolicy, `{"/a":["`+hex.EncodeToString(make([]byte, 32))+`"]}`, `{}`, 1)); err == nil {
		t.Error("a policy without digests was compiled")
	}
}

func FuzzKeylimePolicy(f *testing.F) {
	f.Add([]byte(goodPolicy))
	f.Add([]byte(strings.Replace(goodPolicy, `""}`, `"{\"keyids\":[1],\"pubkeys\":[]}"}`, 1)))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := Compile(Rules{}, Release{Name: "r", Keylime: text})
		if err != nil {
			return
		}
		if b, err := Compile(Rules{}, Release{Name: "r", Keylime: text}); err != nil || a.Digest() != b.Digest() {
			t.Error("the same policy has two digests")
		}
	})
}

func FuzzTPMPolicy(f *testing.F) {
	f.Add([]byte(`{"7":["` + strings.Repeat("00", 32) + `"],"mask":"0x80"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		pins, err := parseTPMPolicy(text)
		for _, p := range pins {
			if err == nil && len(p.Values) == 0 {
				t.Errorf("PCR %d may have any value", p.Index)
			}
		}
	})
}
