package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// TestList: while a list grows, every entry is found where it begins, and what the body
// carries is what a peer that holds all of it in memory would have sent.
func TestList(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []byte
	var begins []int
	l, err := openList(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer l.file.Close()
	for _, more := range []int{0, 1, mark - 1, 1, 3 * mark, 7} {
		for range more {
			line, _ := entry(fmt.Sprintf("/usr/bin/%d", len(begins)), content("x"))
			begins = append(begins, len(all))
			all = append(all, line...)
			if _, err := f.Write(line); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.count(); err != nil {
			t.Fatal(err)
		}
		if l.entries != len(begins) || l.end != int64(len(all)) {
			t.Fatalf("%d entries in %d bytes, want %d in %d", l.entries, l.end, len(begins), len(all))
		}
		for _, n := range []int{0, 1, mark - 1, mark, mark + 1, 2 * mark, l.entries - 1, l.entries, l.entries + 9} {
			if n < 0 {
				continue
			}
			var want []byte
			if n < len(begins) {
				want = all[begins[n]:]
			}
			compare(t, l, n, want)
		}
	}
	if _, err := f.Write([]byte{10, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if err := l.count(); err == nil {
		t.Error("half an entry was counted")
	}
}

func compare(t *testing.T, l *list, n int, want []byte) {
	t.Helper()
	for _, format := range []string{evidence.FormatBinary, evidence.FormatText} {
		from, err := l.from(n)
		if err != nil {
			t.Fatal(err)
		}
		c := &collected{}
		c.Collected.Collected = append(c.Collected.Collected, evidence.Item{Class: evidence.ClassCertification, Type: evidence.TypeQuote, Data: evidence.Data{Message: []byte("m")}})
		if format == evidence.FormatText {
			// The bytes of a list are not text: those that are stand for it here.
			text := strings.ToValidUTF8(string(want), "?") + "\"\\\n\t\x01é"
			from = io.NewSectionReader(strings.NewReader(text), 0, int64(len(text)))
			want = []byte(text)
		}
		c.add(evidence.ClassLog, evidence.TypeIMA, format, from, 3)
		r, size, err := c.body()
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil || int64(len(body)) != size {
			t.Fatalf("%d bytes, %d announced, %v", len(body), size, err)
		}
		var got evidence.Document[evidence.Collected]
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatal(err)
		}
		expect := evidence.NewLog(want, format, 3)
		if d := got.Data.Attributes.Collected[1].Data; d.Entries != expect.Entries || *d.Count != 3 {
			t.Fatalf("from entry %d as %s: %d bytes arrive, want %d", n, format, len(d.Entries), len(expect.Entries))
		}
		if _, err := evidence.Decode[evidence.Collected](bytes.NewReader(body)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLocation: evidence and token go to an attestation of this device at this verifier, or
// nowhere.
func TestLocation(t *testing.T) {
	fs := newFlags("run", "")
	cf := addConfigFlags(fs)
	if err := fs.parse(&invocation{args: []string{"--verifier-url", "https://host:8881"}}); err != nil {
		t.Fatal(err)
	}
	conf, err := cf.load(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{verifier: conf.verifier}
	const prefix = "/v3.0/agents/me/attestations/"
	for text, want := range map[string]string{
		"": prefix + "latest", prefix + "7": prefix + "7", "https://host:8881" + prefix + "7": prefix + "7",
		"https://other:8881" + prefix + "7": "", "http://host:8881" + prefix + "7": "", "//other" + prefix + "7": "",
		"/v3.0/agents/other/attestations/7": "", prefix: "", prefix + "../../x": "", prefix + "%2e%2e": "", "7": "",
	} {
		if got, err := c.location(text, prefix); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
}

// TestWaits: a server may ask for a longer wait, within bounds; failures wait longer and
// longer, up to the ceiling.
func TestWaits(t *testing.T) {
	now := time.Now()
	for text, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-7": 0, "999999999": maxRetryAfter, "soon": 0,
		now.Add(-time.Hour).UTC().Format(time.RFC1123): 0,
	} {
		if got := retryAfter(text, now); got != want {
			t.Errorf("Retry-After %q: %s, want %s", text, got, want)
		}
	}
	for asked, most := range map[int]time.Duration{-1: defaultWait, 0: defaultWait, 1: time.Second, 60: time.Minute, 1 << 62: maxWait} {
		if got := next(&evidence.Meta{Next: asked}); got > most || got < most*9/10 {
			t.Errorf("next in %d s: %s, want up to %s", asked, got, most)
		}
	}
	a := &agent{config: &Config{retryMax: 5 * time.Minute}, state: &State{}}
	for failures, most := range map[int]time.Duration{0: time.Second, 3: 8 * time.Second, 12: 5 * time.Minute, 1000: 5 * time.Minute} {
		a.state.Failures = failures
		if got := a.backOff(errNoCA); got > most || got < most/2 {
			t.Errorf("after %d failures: %s, want up to %s", failures, got, most)
		}
	}
	if got := a.backOff(&statusError{after: 20 * time.Minute}); got < 20*time.Minute {
		t.Errorf("Retry-After of 20 minutes: %s", got)
	}
}

// TestPrintable: nothing that another machine wrote can end a line or talk to a terminal.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{"a\nb": "a\ufffdb", "\x1b[2J": "\ufffd[2J", "é": "é", "\u202e": "\ufffd", "abcdef": "abcde..."} {
		if got := printable(in, 5); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
