package keylimetest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

func pushExchanges(t *testing.T) []exchange {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "push.json"))
	if err != nil {
		t.Fatal(err)
	}
	var tr transcript
	if err := json.Unmarshal(b, &tr); err != nil {
		t.Fatal(err)
	}
	return tr.Exchanges
}

// TestPushTranscript reads, without Keylime, what its registrar and verifier answered, and
// what our agent had sent. (What its tenant and verifier ask a polled agent is said to the
// agent again by TestTranscript of attest-agent.)
func TestPushTranscript(t *testing.T) {
	t.Parallel()
	kinds := map[string]int{}
	for _, e := range pushExchanges(t) {
		name := e.Method + " " + e.URI
		if e.Status >= 300 {
			t.Errorf("%s was answered with %d", name, e.Status)
		}
		asked, answered := messages(e)
		if asked == nil && answered == nil {
			t.Errorf("%s is no message that is known", name)
			continue
		}
		for text, read := range map[*json.RawMessage]func(io.Reader) error{&e.Body: asked, &e.Answer: answered} {
			if read == nil {
				continue
			}
			kinds[e.Method]++
			if err := read(bytes.NewReader(*text)); err != nil {
				t.Errorf("%s: %v in %.300s", name, err, *text)
			}
		}
	}
	if kinds["GET"] == 0 || kinds["PUT"] == 0 || kinds["POST"] < 6 || kinds["PATCH"] < 4 {
		t.Errorf("the transcript has not all kinds of messages: %v", kinds)
	}
}

// messages are how the body and the answer of an exchange are read.
func messages(e exchange) (asked, answered func(io.Reader) error) {
	switch {
	case strings.HasSuffix(e.URI, "/version"):
		return nil, readResults[evidence.Versions]
	case e.Method == http.MethodPut:
		return readBody[evidence.Activation], readResults[evidence.Empty]
	case strings.HasPrefix(e.URI, "/v2"):
		return readBody[evidence.Registration], readResults[evidence.Challenge]
	case e.Method == http.MethodPost && strings.HasSuffix(e.URI, "/sessions"):
		return readDocument[evidence.SessionRequest], readDocument[evidence.SessionChallenge]
	case strings.Contains(e.URI, "/sessions/"):
		return readDocument[evidence.SessionProof], readDocument[evidence.SessionResult]
	case e.Method == http.MethodPost && strings.HasSuffix(e.URI, "/attestations"):
		return readDocument[evidence.Capabilities], readDocument[evidence.Requests]
	case e.Method == http.MethodPatch:
		return readDocument[evidence.Collected], readDocument[evidence.Accepted]
	}
	return nil, nil
}

func readDocument[M evidence.Message](r io.Reader) error { _, err := evidence.Decode[M](r); return err }
func readBody[M evidence.Message](r io.Reader) error     { _, err := evidence.DecodeBody[M](r); return err }
func readResults[M evidence.Message](r io.Reader) error {
	_, err := evidence.DecodeAnswer[M](r)
	return err
}
