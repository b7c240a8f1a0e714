package evidence

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCheckID(t *testing.T) {
	for _, good := range []string{"d432fbb3-d2f1-4a97-9ef7-75bd81c00001", "a", "A_b.c-9", strings.Repeat("a", 80)} {
		if err := CheckID(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", ".", "..", "a b", "a\nb", "a\x1b[31m", "a/b", "a%2f", "\u202eabc", "ä", "a\x00", strings.Repeat("a", 81), strings.Repeat("a", 1<<20)} {
		if err := CheckID(bad); CodeOf(err) != CodeMalformed || err == nil {
			t.Errorf("%.20q is taken", bad)
		} else if strings.ContainsAny(err.Error(), "\n\x1b\u202e") || len(err.Error()) > 200 {
			t.Errorf("the error repeats what was sent: %.100q", err)
		}
	}
}

const goodSession = `{"data":{"type":"session","attributes":{"agent_id":"U","authentication_supported":[{"authentication_class":"pop","authentication_type":"tpm_pop"}]}}}`

func TestDecodeIsStrict(t *testing.T) {
	if _, err := Decode[SessionRequest](strings.NewReader(goodSession)); err != nil {
		t.Fatal(err)
	}
	with := func(old, new string) string { return strings.Replace(goodSession, old, new, 1) }
	for name, in := range map[string]string{
		"empty":                  "",
		"null":                   "null",
		"array":                  "[]",
		"something behind":       goodSession + "x",
		"twice":                  goodSession + goodSession,
		"name twice":             with(`"agent_id":"U"`, `"agent_id":"U","agent_id":"V"`),
		"name in another case":   with(`"agent_id":"U"`, `"agent_id":"U","Agent_ID":"V"`),
		"long s for s":           with(`"type":"session"`, `"type":"session","ſ":1,"S":2`),
		"escaped name twice":     with(`"agent_id":"U"`, `"agent_id":"U","agent\u005fid":"V"`),
		"another type":           with(`"session"`, `"attestation"`),
		"no id":                  with(`"agent_id":"U",`, ``),
		"number for a text":      with(`"U"`, `7`),
		"id with a line feed":    with(`"U"`, `"U\nV"`),
		"no method":              with(`tpm_pop`, `password`),
		"not UTF-8":              with(`"U"`, "\"\xff\""),
		"deep":                   with(`"U"`, `"U","x":`+strings.Repeat("[", 100)+strings.Repeat("]", 100)),
		"too long":               with(`"U"`, `"`+strings.Repeat("U", maxSmall)+`"`),
		"cut short":              goodSession[:len(goodSession)-2],
		"unknown members nested": with(`"U"`, `"U","x":{"y":1,"y":2}`),
	} {
		if d, err := Decode[SessionRequest](strings.NewReader(in)); err == nil || d != nil || CodeOf(err) != CodeMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Decode[SessionRequest](strings.NewReader(with(`"U"`, `"U","later":{"versions":["may","add"]}`))); err != nil {
		t.Errorf("a member that is not known: %v", err)
	}
}

// TestManyValues: what a body would be made into is bounded before it is made, not after.
func TestManyValues(t *testing.T) {
	for name, in := range map[string]string{
		"elements": `{"data":{"type":"attestation","attributes":{"evidence_collected":[` + strings.Repeat("{},", 10*maxValues) + `{}]}}}`,
		"members":  `{"data":{"type":"attestation","attributes":{"evidence_collected":[{}]` + members(10*maxValues) + `}}}`,
		"unknown":  `{"x":[` + strings.Repeat("0,", 10*maxValues) + `0]}`,
	} {
		if _, err := Decode[Collected](strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), "values") {
			t.Errorf("%s: %.200v", name, err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = Decode[Collected](strings.NewReader(in)) // seen above
		runtime.ReadMemStats(&after)
		taken := after.TotalAlloc - before.TotalAlloc
		if taken > uint64(8*len(in))+1<<20 {
			t.Errorf("%s: %d bytes are allocated for a body of %d", name, taken, len(in))
		}
	}
}

func members(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"%d":0`, i)
	}
	return b.String()
}

// TestNoJSON: the walk over a body comes before anybody looks whether it is JSON.
func TestNoJSON(t *testing.T) {
	for _, in := range []string{`"`, `"\`, `{"`, `{"\`, `}`, `]]]`, `{}"x"`, `{}"x","x"`, `,"a"`, `[,"a","a"`, `{]"a"`, `{"a":1}}"a","a"`, `{"a":"b","a`, `{"\u12":1}`} {
		if _, err := Decode[SessionRequest](strings.NewReader(in)); CodeOf(err) != CodeMalformed || err == nil {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// endless is a body without an end: reading it has to stop.
type endless struct{ n int }

func (e *endless) Read(p []byte) (int, error) {
	e.n += len(p)
	return copy(p, bytes.Repeat([]byte(" "), len(p))), nil
}

func TestEndlessBody(t *testing.T) {
	body := &endless{}
	if _, err := Decode[SessionRequest](body); err == nil {
		t.Error("an endless body was read")
	}
	if body.n > 4*maxSmall {
		t.Errorf("%d bytes were read", body.n)
	}
}

func TestRoundTrips(t *testing.T) {
	now := time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)
	sixteen := bytes.Repeat([]byte{7}, 16)
	n, yes := 3, true
	same(t, NewDocument("", SessionRequest{Agent: "U", Supported: []Method{Possession()}}))
	same(t, NewDocument("7", NewSessionChallenge("U", sixteen, now, now)))
	same(t, NewDocument("7", NewSessionProof("U", sixteen, sixteen)))
	same(t, NewDocument("7", SessionResult{Agent: "U", Evaluation: "pass", Token: "t", Expires: &now}))
	same(t, NewDocument("", Capabilities{System: SystemInfo{now}, Supported: []Supported{
		{ClassCertification, TypeQuote, Capability{Version: "2.0", Hashes: []string{"sha256"}, AvailablePC: Selection{"sha256": {1}}, Keys: []Key{{Class: "asymmetric", Size: 256}}}},
		{ClassLog, TypeIMA, Capability{Entries: &n, Partial: &yes, Appendable: &yes, Formats: []string{FormatBinary, FormatText}}},
	}}))
	same(t, NewDocument("", Requests{Stage: "awaiting_evidence", Expires: now, Received: now, System: SystemInfo{now}, Requested: []Request{
		{ClassCertification, TypeQuote, Parameters{Challenge: sixteen, Selected: Selection{"sha256": {10}}}},
		{ClassLog, TypeIMA, Parameters{Offset: &n, Format: FormatText}},
	}}))
	d := NewDocument("", Collected{[]Item{
		{ClassCertification, TypeQuote, Data{Message: sixteen, Signature: sixteen, PCRs: sixteen}},
		{ClassLog, TypeIMA, NewLog([]byte("10 ...\n"), FormatText, 1)},
	}})
	d.Meta = &Meta{Next: 5, Verdict: &Verdict{State: "trusted", Reasons: []Reason{{Code: "x", Path: "/y"}}}}
	same(t, d)
}

// same sends d through the wire.
func same[M Message](t *testing.T, d *Document[M]) {
	t.Helper()
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode[M](bytes.NewReader(b))
	if err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	if diff := cmp.Diff(d, back); diff != "" {
		t.Error(diff)
	}
}

func TestCollectedForAsked(t *testing.T) {
	offset := 4
	asked := Requests{Requested: []Request{
		{ClassCertification, TypeQuote, Parameters{}},
		{ClassLog, TypeFirmware, Parameters{Format: FormatBinary}},
		{ClassLog, TypeIMA, Parameters{Offset: &offset, Format: FormatText}},
	}}
	quote := Item{ClassCertification, TypeQuote, Data{Message: []byte("m"), Signature: []byte("s"), PCRs: []byte("p")}}
	boot := Item{ClassLog, TypeFirmware, NewLog([]byte("boot"), FormatBinary, -1)}
	list := Item{ClassLog, TypeIMA, NewLog([]byte("10 x\n"), FormatText, 1)}
	ev, err := Collected{[]Item{quote, boot, list}}.Evidence(asked)
	if err != nil {
		t.Fatal(err)
	}
	want := &Evidence{Message: []byte("m"), Signature: []byte("s"), PCRs: []byte("p"), Firmware: []byte("boot"), List: []byte("10 x\n"), ListASCII: true, Offset: 4}
	if diff := cmp.Diff(want, ev); diff != "" {
		t.Error(diff)
	}
	bad := boot
	bad.Data.Entries = "not base64!"
	for name, c := range map[string][]Item{
		"one is missing": {quote, boot}, "another order": {quote, list, boot}, "one more": {quote, boot, list, list}, "no base64": {quote, bad, list}, "none": nil,
	} {
		if ev, err := (Collected{c}).Evidence(asked); err == nil || ev != nil {
			t.Errorf("%s: taken", name)
		}
	}
	empty, err := Collected{[]Item{quote, boot, {ClassLog, TypeIMA, Data{}}}}.Evidence(asked)
	if err != nil || empty.List == nil {
		t.Errorf("an empty list was sent, not none: %v", err)
	}
	if _, err := Decode[Collected](strings.NewReader(`{"data":{"type":"attestation","attributes":{"evidence_collected":[{"evidence_class":"log","evidence_type":"ima_log","data":{"entries":""}},{"evidence_class":"log","evidence_type":"ima_log","data":{"entries":"x"}}]}}}`)); err == nil {
		t.Error("two lists are taken")
	}
}

func TestPulledQuote(t *testing.T) {
	d := newDevice(t, "ecdsa")
	want := d.expected()
	ev := d.evidence(want, 0)
	list := "10 x\n"
	body := fmt.Sprintf(`{"code":200,"status":"Success","results":{"quote":"r%s:%s:%s","hash_alg":"sha256","enc_alg":"ecc256","sign_alg":"ecdsa","ima_measurement_list":%q,"ima_measurement_list_entry":2,"boottime":12}}`,
		strict64.EncodeToString(ev.Message), strict64.EncodeToString(ev.Signature), strict64.EncodeToString(ev.PCRs), list)
	a, err := DecodeAnswer[QuoteAnswer](strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	got, err := a.Results.Evidence()
	if err != nil {
		t.Fatal(err)
	}
	ev.List, ev.ListASCII, ev.Offset = []byte(list), true, 2
	if diff := cmp.Diff(ev, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "r", "rAA==", "rAA==:AA==", "AA==:AA==:AA==", "rAA==:AA==:AA==:AA==", "r!:AA==:AA==", "rAA=:AA==:AA=="} {
		if ev, err := (QuoteAnswer{Quote: bad}).Evidence(); err == nil || ev != nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
