package keylimetest

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// said is a transcript that is read again, with what a verifier would know by then.
type said struct {
	t     *testing.T
	ak    *evidence.AK
	nonce []byte // of the session
	asked evidence.Requests
	known evidence.State
	done  map[string]int
}

func readTranscript(t *testing.T, name string) []exchange {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var tr transcript
	if err := json.Unmarshal(text, &tr); err != nil {
		t.Fatal(err)
	}
	return tr.Exchanges
}

// TestRustRecorded: what rust-keylime's agents said is still read and believed, and what they
// were answered is still what would be answered; where there are none of them, too.
func TestRustRecorded(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]map[string]int{
		"rust-push.json": {"registration": 1, "activation": 1, "session": 1, "proof": 1, "capabilities": 2, "evidence": 2},
		"rust-pull.json": {"registration": 1, "activation": 1, "versions": 2, "quote": 2, "share": 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := &said{t: t, done: map[string]int{}}
			for _, e := range readTranscript(t, name) {
				if e.Status < 300 {
					s.read(e)
				}
			}
			for kind, n := range want {
				if s.done[kind] < n {
					t.Errorf("%d of kind %s, want %d", s.done[kind], kind, n)
				}
			}
		})
	}
}

var kinds = []struct {
	method, path, name string
	read               func(*said, exchange)
}{
	{"POST", `/v2\.\d/agents/[^/]+`, "registration", (*said).registration},
	{"PUT", `/v2\.\d/agents/[^/]+(/activate)?`, "activation", func(s *said, e exchange) { body[evidence.Activation](s, e.Body) }},
	{"POST", `/v3\.0/sessions`, "session", (*said).session},
	{"PATCH", `/v3\.0/sessions/[^/]+`, "proof", (*said).proof},
	{"POST", `/v3\.0/agents/[^/]+/attestations`, "capabilities", (*said).capabilities},
	{"PATCH", `/v3\.0/agents/[^/]+/attestations/\d+`, "evidence", (*said).collected},
	{"GET", `/version`, "versions", func(s *said, e exchange) {
		if s.ak != nil && !strings.Contains(string(e.Answer), "current_version") { // else the registrar's
			if v := answer[evidence.AgentVersions](s, e.Answer); v.Best() == "" {
				s.t.Errorf("no version of %+v is known", v)
			}
		}
	}},
	{"GET", `/v2\.\d/quotes/integrity\?.*`, "quote", (*said).quote},
	{"POST", `/v2\.\d/keys/vkey`, "share", func(s *said, e exchange) { body[evidence.VShare](s, e.Body) }},
}

func (s *said) read(e exchange) {
	s.t.Helper()
	for _, k := range kinds {
		if e.Method == k.method && regexp.MustCompile("^"+k.path+"$").MatchString(e.URI) {
			k.read(s, e)
			s.done[k.name]++
			return
		}
	}
	s.t.Errorf("nobody knows %s %s", e.Method, e.URI)
}

// body, document and answer decode what was said, as server and poller do.
func body[M evidence.Message](s *said, text []byte) M {
	s.t.Helper()
	m, err := evidence.DecodeBody[M](bytes.NewReader(text))
	if err != nil {
		s.t.Fatal(err)
	}
	return *m
}

func document[M evidence.Message](s *said, text []byte) M {
	s.t.Helper()
	m, err := evidence.Decode[M](bytes.NewReader(text))
	if err != nil {
		s.t.Fatal(err)
	}
	return m.Data.Attributes
}

func answer[M evidence.Message](s *said, text []byte) M {
	s.t.Helper()
	m, err := evidence.DecodeAnswer[M](bytes.NewReader(text))
	if err != nil {
		s.t.Fatal(err)
	}
	return m.Results
}

// same is document of an answer of ours, which has to have all members that it had: the
// agent refuses one that lacks any.
func same[M evidence.Message](s *said, text []byte) M {
	s.t.Helper()
	m, err := evidence.Decode[M](bytes.NewReader(text))
	if err != nil {
		s.t.Fatal(err)
	}
	now, err := json.Marshal(m)
	if err != nil {
		s.t.Fatal(err)
	}
	if !bytes.Equal(compact(now), compact(text)) {
		s.t.Errorf("the answer would be\n%s\nand was\n%s", now, text)
	}
	return m.Data.Attributes
}

func (s *said) registration(e exchange) {
	s.t.Helper()
	m := body[evidence.Registration](s, e.Body)
	var err error
	if s.ak, err = evidence.ParseAK(m.AK); err != nil {
		s.t.Fatal(err)
	}
	if _, err := evidence.ParseEK(m.EK); err != nil {
		s.t.Error(err)
	}
}

func (s *said) session(e exchange) {
	s.t.Helper()
	document[evidence.SessionRequest](s, e.Body)
	s.nonce = same[evidence.SessionChallenge](s, e.Answer).Requested[0].Parameters.Challenge
}

func (s *said) proof(e exchange) {
	s.t.Helper()
	p := document[evidence.SessionProof](s, e.Body).Provided[0].Data
	if err := s.ak.VerifyPossession(s.nonce, p.Message, p.Signature); err != nil {
		s.t.Error(err)
	}
	same[evidence.SessionResult](s, e.Answer)
}

func (s *said) capabilities(e exchange) {
	s.t.Helper()
	document[evidence.Capabilities](s, e.Body)
	s.asked = same[evidence.Requests](s, e.Answer)
	if e.Status != http.StatusCreated || e.AnswerPlace == "" {
		s.t.Errorf("status %d, location %q", e.Status, e.AnswerPlace)
	}
}

func (s *said) collected(e exchange) {
	s.t.Helper()
	s.verify(s.asked, document[evidence.Collected](s, e.Body))
	same[evidence.Accepted](s, e.Answer)
}

// verify believes the evidence as the verifier did.
func (s *said) verify(asked evidence.Requests, collected evidence.Collected) *evidence.Claims {
	s.t.Helper()
	b := evidence.Bundle{Asked: asked, Collected: collected, Known: s.known}
	claims, known, err := b.VerifyWith(s.ak)
	if err != nil {
		s.t.Fatal(err)
	}
	if claims.Covered() < 2 {
		s.t.Errorf("%d entries are covered", claims.Covered())
	}
	s.known = known
	return claims
}

func (s *said) quote(e exchange) {
	s.t.Helper()
	_, query, _ := strings.Cut(e.URI, "?")
	q, err := evidence.ParseQuoteRequest(query)
	if err != nil {
		s.t.Fatal(err)
	}
	asked := evidence.Requests{Requested: []evidence.Request{
		{Class: evidence.ClassCertification, Type: evidence.TypeQuote, Parameters: evidence.Parameters{Challenge: []byte(q.Nonce), Selected: map[string][]int{"sha256": q.WithKeyPCR()}}},
		{Class: evidence.ClassLog, Type: evidence.TypeIMA, Parameters: evidence.Parameters{Offset: &q.Offset, Format: evidence.FormatText}}}}
	a := answer[evidence.QuoteAnswer](s, e.Answer)
	asked, collected, err := a.Collected(asked)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.verify(asked, *collected).CheckShareKey(a.Key); err != nil {
		s.t.Error(err)
	}
}
