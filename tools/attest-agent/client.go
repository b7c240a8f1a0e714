package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

const (
	typeAPI  = "application/vnd.api+json"
	typeJSON = "application/json"

	maxCA     = 1 << 20
	maxAnswer = 64 << 10 // of an error
)

// client talks to registrar and verifier. It trusts the certificates of one file only.
type client struct {
	http                *http.Client
	registrar, verifier *url.URL
	token               string // of a session; never written down
}

func newClient(c *Config) (*client, error) {
	pool, err := readCA(c.get("ca"))
	if err != nil {
		return nil, err
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	t.MaxIdleConns, t.IdleConnTimeout = 2, 2*time.Minute
	t.ForceAttemptHTTP2, t.Protocols = false, new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.DisableCompression, t.MaxResponseHeaderBytes = true, 64<<10
	return &client{
		http: &http.Client{Transport: t, Timeout: c.timeout,
			// A redirect would carry the token elsewhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		registrar: c.registrar, verifier: c.verifier,
	}, nil
}

func readCA(path string) (*x509.CertPool, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read ca: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCA))
	if err != nil {
		return nil, fmt.Errorf("read ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read ca: %s has no certificate in PEM", path)
	}
	return pool, nil
}

// statusError is an answer with a status that was not hoped for.
type statusError struct {
	what   string
	status int
	code   string        // of JSON:API, as "not_enrolled"
	detail string        // what the server says, made printable
	after  time.Duration // that the server asks to wait for
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%s: the server answers %d %s", e.what, e.status, http.StatusText(e.status))
	for _, more := range []string{e.code, e.detail} {
		if more != "" {
			text += ": " + more
		}
	}
	return text
}

// statusOf is the status of an answer in err, or 0.
func statusOf(err error) int {
	var s *statusError
	if errors.As(err, &s) {
		return s.status
	}
	return 0
}

const (
	whatRegister = "register"
	whatSession  = "open session"
)

// request is one message to a server.
type request struct {
	what    string // for errors: "register"
	method  string
	base    *url.URL
	path    string
	body    io.Reader
	size    int64
	content string
	want    int
	bearer  bool
}

// do sends r and returns the answer's body, which the caller reads and closes.
func (c *client) do(ctx context.Context, r request) (*http.Response, error) {
	u, err := r.base.Parse(strings.TrimSuffix(r.base.Path, "/") + r.path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.what, err)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), r.body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.what, err)
	}
	req.ContentLength = r.size
	req.Header.Set("Accept", r.content)
	if r.body != nil {
		req.Header.Set("Content-Type", r.content)
	}
	if r.bearer {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.what, err)
	}
	if res.StatusCode != r.want {
		defer res.Body.Close()
		return nil, failure(r.what, res)
	}
	return res, nil
}

// failure reads what the server says of its refusal.
func failure(what string, res *http.Response) error {
	e := &statusError{what: what, status: res.StatusCode, after: retryAfter(res.Header.Get("Retry-After"), time.Now())}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return e
	}
	var said struct {
		evidence.Failure
		Status string `json:"status"` // of API version 2
	}
	if json.Unmarshal(text, &said) != nil {
		return e
	}
	e.detail = printable(said.Status, 300)
	if len(said.Errors) > 0 {
		p := said.Errors[0]
		e.code, e.detail = printable(p.Code, 60), printable(p.Detail, 300)
		if e.detail == "" {
			e.detail = printable(p.Title, 300)
		}
	}
	return e
}

// maxRetryAfter bounds for how long a server can keep the agent waiting.
const maxRetryAfter = time.Hour

// retryAfter reads the header of RFC 9110, 10.2.3.
func retryAfter(text string, now time.Time) time.Duration {
	var d time.Duration
	if n, err := strconv.Atoi(text); err == nil {
		d = time.Duration(min(max(n, 0), int(maxRetryAfter/time.Second))) * time.Second
	} else if t, err := http.ParseTime(text); err == nil {
		d = t.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}

// with is r with a message as its body.
func (r request) with(message any) (request, error) {
	text, err := json.Marshal(message)
	r.body, r.size = bytes.NewReader(text), int64(len(text))
	return r, err
}

// exchange sends a message of push attestation and reads the answer to it.
func exchange[M evidence.Message](ctx context.Context, c *client, r request, message any) (*evidence.Document[M], http.Header, error) {
	r.base, r.content = c.verifier, typeAPI
	if message != nil {
		var err error
		if r, err = r.with(message); err != nil {
			return nil, nil, err
		}
	}
	res, err := c.do(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	d, err := evidence.Decode[M](res.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", r.what, err)
	}
	return d, res.Header, nil
}

// results sends a message to the registrar and reads the results of its answer.
func results[M evidence.Message](ctx context.Context, c *client, r request, message any) (*M, error) {
	r.base, r.content, r.want = c.registrar, typeJSON, http.StatusOK
	if message != nil {
		var err error
		if r, err = r.with(message); err != nil {
			return nil, err
		}
	}
	res, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	a, err := evidence.DecodeAnswer[M](res.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.what, err)
	}
	return &a.Results, nil
}

// version is the newest of the registrar's versions that this agent speaks too.
func (c *client) version(ctx context.Context) (string, error) {
	v, err := results[evidence.Versions](ctx, c, request{what: "ask the registrar for its versions", method: http.MethodGet, path: "/version"}, nil)
	if statusOf(err) == http.StatusNotFound {
		return "v2.1", nil // a registrar before there were several
	}
	if err != nil {
		return "", err
	}
	for _, ours := range []string{"2.6", "2.5", "2.4", "2.3", "2.2", "2.1"} {
		if slices.Contains(v.Supported, ours) {
			return "v" + ours, nil
		}
	}
	return "", fmt.Errorf("the registrar speaks versions %.200q, this agent 2.1 to 2.6", v.Supported)
}

// session proves possession of the attestation key, and keeps the token.
func (c *client) session(ctx context.Context, id string, d *device) error {
	asked, _, err := exchange[evidence.SessionChallenge](ctx, c,
		request{what: whatSession, method: http.MethodPost, path: "/v3.0/sessions", want: http.StatusOK},
		evidence.NewDocument("", evidence.SessionRequest{Agent: id, Supported: []evidence.Method{evidence.Possession()}}))
	if err != nil {
		return err
	}
	message, signature, err := d.ak.Certify(asked.Data.Attributes.Requested[0].Parameters.Challenge)
	if err != nil {
		return &tpmError{err}
	}
	got, _, err := exchange[evidence.SessionResult](ctx, c,
		request{what: "prove session", method: http.MethodPatch, path: "/v3.0/sessions/" + url.PathEscape(asked.Data.ID), want: http.StatusOK},
		evidence.NewDocument(asked.Data.ID, evidence.NewSessionProof(id, message, signature)))
	if err != nil {
		return err
	}
	if got.Data.Attributes.Evaluation != "pass" {
		// Keylime's verifier says so of a device that nobody has added to it.
		return &statusError{what: "prove session", status: http.StatusNotFound, code: "not_enrolled", detail: "the verifier does not know this device"}
	}
	c.token = got.Data.Attributes.Token
	return nil
}

// negotiate says what can be sent, and returns what is wanted and where to.
func (c *client) negotiate(ctx context.Context, id string, can evidence.Capabilities) (*evidence.Requests, string, error) {
	d, header, err := exchange[evidence.Requests](ctx, c,
		request{what: "negotiate", method: http.MethodPost, path: "/v3.0/agents/" + id + "/attestations", want: http.StatusCreated, bearer: true},
		evidence.NewDocument("", can))
	if err != nil {
		return nil, "", err
	}
	path, err := c.location(header.Get("Location"), "/v3.0/agents/"+id+"/attestations/")
	return &d.Data.Attributes, path, err
}

// location is where to send evidence: what the answer says, as long as that is an
// attestation of this device at this verifier.
func (c *client) location(text, prefix string) (string, error) {
	if text == "" {
		return prefix + "latest", nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return "", fmt.Errorf("negotiate: location %.200q: %w", text, err)
	}
	path := strings.TrimPrefix(u.EscapedPath(), strings.TrimSuffix(c.verifier.EscapedPath(), "/"))
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok || rest == "" || strings.ContainsAny(rest, "/%.") || u.Host != "" && (u.Host != c.verifier.Host || u.Scheme != "https") {
		return "", fmt.Errorf("negotiate: location %.200q is no attestation of this device", text)
	}
	return path, nil
}

// submit sends the evidence and returns what the verifier says to it.
func (c *client) submit(ctx context.Context, path string, ev *collected) (*evidence.Meta, error) {
	body, size, err := ev.body()
	if err != nil {
		return nil, err
	}
	d, _, err := exchange[evidence.Accepted](ctx, c,
		request{what: "send evidence", method: http.MethodPatch, path: path, body: body, size: size, want: http.StatusAccepted, bearer: true}, nil)
	if err != nil {
		return nil, err
	}
	if d.Meta == nil {
		return &evidence.Meta{}, nil
	}
	return d.Meta, nil
}
