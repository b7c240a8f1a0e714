package evidence

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzPullCollected: what an agent that is polled answers is the same evidence in the form of
// push attestation, in which it is judged and kept.
func FuzzPullCollected(f *testing.F) {
	for _, seed := range []string{
		`{"quote":"rAA==:AA==:AA==","hash_alg":"sha256","enc_alg":"rsa","sign_alg":"rsassa","pubkey":"k","ima_measurement_list":"10 x\n","ima_measurement_list_entry":3}`,
		`{"quote":"rAA==:AA==:AA==","hash_alg":"sha256","enc_alg":"rsa","sign_alg":"rsassa","ima_measurement_list":"","ima_measurement_list_entry":0,"mb_measurement_list":"AA=="}`,
		`{"quote":"rAA==:AA==:AA==","ima_measurement_list_entry":4}`,
	} {
		f.Add([]byte(seed), 3)
	}
	f.Fuzz(func(t *testing.T, in []byte, offset int) {
		a, err := DecodeBody[QuoteAnswer](bytes.NewReader(in))
		if err != nil || offset < 0 {
			return
		}
		asked := Requests{Requested: []Request{
			{Class: ClassCertification, Type: TypeQuote},
			{Class: ClassLog, Type: TypeIMA, Parameters: Parameters{Offset: &offset, Format: FormatText}},
			{Class: ClassLog, Type: TypeFirmware, Parameters: Parameters{Format: FormatBinary}},
		}}
		answered, collected, err := a.Collected(asked)
		if err != nil {
			return
		}
		want, err := a.Evidence()
		if err != nil {
			t.Fatalf("collected evidence of an answer that has none: %v", err)
		}
		got, err := collected.Evidence(answered)
		if err != nil {
			t.Fatal(err)
		}
		if want.List == nil {
			want.ListASCII, want.Offset = false, 0 // nothing is said of a list that is not there
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if answered.Whole() != (got.Offset == 0) {
			t.Errorf("whole is %v, and the list begins at %d", answered.Whole(), got.Offset)
		}
		if *asked.Requested[1].Parameters.Offset != offset || len(asked.Requested) != 3 {
			t.Error("what was asked for was changed")
		}
	})
}

// The transport key counts only with the PCR that was extended with it: rust-keylime's agent
// said both.
func TestCheckShareKey(t *testing.T) {
	text, err := os.ReadFile("../../keylimetest/testdata/rust-pull.json")
	if err != nil {
		t.Fatal(err)
	}
	var tr struct {
		Exchanges []struct {
			URI          string
			Body, Answer json.RawMessage
		}
	}
	if err := json.Unmarshal(text, &tr); err != nil {
		t.Fatal(err)
	}
	var ak *AK
	for _, e := range tr.Exchanges {
		if m, err := DecodeBody[Registration](bytes.NewReader(e.Body)); err == nil && ak == nil {
			if ak, err = ParseAK(m.AK); err != nil {
				t.Fatal(err)
			}
		}
		_, query, _ := bytes.Cut([]byte(e.URI), []byte("?"))
		if len(query) == 0 {
			continue
		}
		q, err := ParseQuoteRequest(string(query))
		if err != nil {
			t.Fatal(err)
		}
		a, err := DecodeAnswer[QuoteAnswer](bytes.NewReader(e.Answer))
		if err != nil {
			t.Fatal(err)
		}
		ev, err := a.Results.Evidence()
		if err != nil {
			t.Fatal(err)
		}
		claims, _, err := Verify(ev, Expected{AK: ak, Nonce: []byte(q.Nonce), PCRs: Selection{"sha256": q.WithKeyPCR()}, IMA: true}, State{})
		if err != nil {
			t.Fatal(err)
		}
		if err := claims.CheckShareKey(a.Results.Key); err != nil {
			t.Error(err)
		}
		other, err := FormatShareKey(mustRSA(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"", other, a.Results.Key + "\n", "x" + a.Results.Key} {
			if err := claims.CheckShareKey(bad); CodeOf(err) != CodeKey {
				t.Errorf("%.20q: %v", bad, err)
			}
		}
		return
	}
	t.Fatal("no quote was recorded")
}

func mustRSA(t *testing.T) *rsa.PublicKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return &key.PublicKey
}
