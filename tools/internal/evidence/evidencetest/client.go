package evidencetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// Verifier is a server as a device sees it.
type Verifier struct {
	URL    string // "https://host:port"
	Client *http.Client
}

// Refused is an answer that was not the one that a device hopes for.
type Refused struct {
	Status int
	Header http.Header
	Body   []byte
}

func (r *Refused) Error() string { return fmt.Sprintf("%d %s", r.Status, r.Body) }

// Send sends one request and returns the answer, which is a [*Refused] unless its status is want.
func (v *Verifier) Send(method, path, token string, body any, want int) ([]byte, http.Header, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, nil, err
	}
	r, err := http.NewRequest(method, v.URL+path, bytes.NewReader(text))
	if err != nil {
		return nil, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	if token == "" {
		r.Header.Del("Authorization")
	}
	res, err := v.Client.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != want {
		err = &Refused{res.StatusCode, res.Header, b}
	}
	return b, res.Header, err
}

// Session proves possession of the key and keeps the token.
func (d *Device) Session(v *Verifier) error {
	id, challenge, err := d.Challenge(v)
	if err != nil {
		return err
	}
	message, signature := d.Certify(challenge)
	b, _, err := v.Send("PATCH", "/v3.0/sessions/"+id, "", evidence.NewDocument(id, evidence.NewSessionProof(d.ID, message, signature)), http.StatusOK)
	if err != nil {
		return err
	}
	r, err := evidence.Decode[evidence.SessionResult](bytes.NewReader(b))
	if err == nil {
		d.Token = r.Data.Attributes.Token
	}
	return err
}

// Challenge begins a session.
func (d *Device) Challenge(v *Verifier) (id string, challenge []byte, err error) {
	b, _, err := v.Send("POST", "/v3.0/sessions", "", evidence.NewDocument("", evidence.SessionRequest{Agent: d.ID, Supported: []evidence.Method{evidence.Possession()}}), http.StatusOK)
	if err != nil {
		return "", nil, err
	}
	c, err := evidence.Decode[evidence.SessionChallenge](bytes.NewReader(b))
	if err != nil {
		return "", nil, err
	}
	return c.Data.ID, c.Data.Attributes.Requested[0].Parameters.Challenge, nil
}

// Negotiate asks what to send, and where to.
func (d *Device) Negotiate(v *Verifier) (location string, asked evidence.Requests, err error) {
	b, header, err := v.Send("POST", "/v3.0/agents/"+d.ID+"/attestations", d.Token, evidence.NewDocument("", d.Capabilities()), http.StatusCreated)
	if err != nil {
		return "", asked, err
	}
	r, err := evidence.Decode[evidence.Requests](bytes.NewReader(b))
	if err != nil {
		return "", asked, err
	}
	return header.Get("Location"), r.Data.Attributes, nil
}

// Submit sends evidence and returns what the device is told.
func (d *Device) Submit(v *Verifier, location string, c evidence.Collected) (*evidence.Verdict, error) {
	b, _, err := v.Send("PATCH", location, d.Token, evidence.NewDocument("", c), http.StatusAccepted)
	if err != nil {
		return nil, err
	}
	a, err := evidence.Decode[evidence.Accepted](bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return a.Meta.Verdict, nil
}

// Attest does one round.
func (d *Device) Attest(v *Verifier) (*evidence.Verdict, error) {
	location, asked, err := d.Negotiate(v)
	if err != nil {
		return nil, err
	}
	return d.Submit(v, location, d.Collect(asked))
}
