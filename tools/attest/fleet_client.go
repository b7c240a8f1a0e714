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
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

// What a verifier may answer that a person can mend.
var (
	errServerCA   = errors.New("the verifier's TLS certificate is not trusted")
	errServerDate = errors.New("the verifier's TLS certificate is not valid now")
	errServerName = errors.New("the verifier's TLS certificate is for another name")
	errRefusedWho = errors.New("the verifier does not know you")
	errRole       = errors.New("your role does not suffice")
	errNoDevice   = errors.New("the verifier has no such device, policy, secret or evidence")
	errDowngrade  = errors.New("that would be a downgrade")
	errInUse      = errors.New("it is in use")
	errChain      = errors.New("the history was changed after it was written")
	errUnreached  = errors.New("nobody listens there")
	errNoHost     = errors.New("the name of the verifier is not known")
	errNoPath     = errors.New("this is not where operators are answered")
)

// maxAnswer is more than a page of devices, a policy or evidence has.
const maxAnswer = 128 << 20

// fleetClient calls a verifier's API for operators.
type fleetClient struct {
	base  string // https://HOST:PORT/api/v1
	token string // "" with a certificate
	http  *http.Client
	key   *keys.Key // of the certificate; nil without
}

func (c *fleetClient) close() {
	c.http.CloseIdleConnections()
	if c.key != nil {
		_ = c.key.Close() // nothing of it is wanted any more
	}
}

// apiPath makes a path whose parts may have any characters.
func apiPath(parts ...string) string {
	p := ""
	for _, part := range parts {
		p += "/" + url.PathEscape(part)
	}
	return p
}

// get reads what is at path, and decodes it into v.
func (c *fleetClient) get(ctx context.Context, path string, query url.Values, v any) error {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	text, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	return decodeAnswer(text, v)
}

// send sends v as JSON, and decodes the answer into answer unless that is nil.
func (c *fleetClient) send(ctx context.Context, method, path string, v, answer any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	text, err := c.do(ctx, method, path, body)
	if err != nil || answer == nil {
		return err
	}
	return decodeAnswer(text, answer)
}

func decodeAnswer(text []byte, v any) error {
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("read the verifier's answer: %w", err)
	}
	return nil
}

// do sends a request with JSON and returns the body of the answer.
func (c *fleetClient) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	return c.request(ctx, method, path, "application/json", body)
}

func (c *fleetClient) request(ctx context.Context, method, path, content string, body []byte) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		r.Header.Set("Content-Type", content)
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(r)
	if err != nil {
		return nil, reach(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the verifier's answer: %w", err)
	}
	if len(text) > maxAnswer {
		return nil, fmt.Errorf("the verifier's answer has more than %d bytes", maxAnswer)
	}
	if res.StatusCode/100 != 2 {
		err := refusal(res.StatusCode, text)
		if errors.Is(err, errNoDevice) {
			asked, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "?")
			err = fmt.Errorf("%s: %w", asked, err)
		}
		return nil, err
	}
	return text, nil
}

// reach adds to an error why nobody was reached.
func reach(err error) error {
	var untrusted *tls.CertificateVerificationError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var host *net.DNSError
	switch {
	case errors.As(err, &host):
		return fmt.Errorf("%w: %w", errNoHost, err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("%w: %w", errServerDate, err)
	case errors.As(err, &name):
		return fmt.Errorf("%w: %w", errServerName, err)
	case errors.As(err, &untrusted):
		return fmt.Errorf("%w: %w", errServerCA, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: %w", errUnreached, err)
	}
	return err
}

// refusedError is what a verifier says to a request that it understood.
type refusedError struct {
	status int
	text   string
}

func (e *refusedError) Error() string { return fmt.Sprintf("the verifier refuses: %.500s", e.text) }

// refusal is the error that an answer stands for.
func refusal(status int, text []byte) error {
	var answer struct {
		Error struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
		Status string `json:"status"`
	}
	if json.Unmarshal(text, &answer) == nil && answer.Error.Message == "" { // of Keylime's API
		answer.Error.Message = answer.Status
	}
	if answer.Error.Message == "" {
		return fmt.Errorf("the server answers %d %s, and is no attest-verifier", status, http.StatusText(status))
	}
	var err error = &refusedError{status, answer.Error.Message}
	known := map[string]error{"unauthorized": errRefusedWho, "token": errRefusedWho, "certificate": errRefusedWho, "role": errRole,
		"not_found": errNoDevice, "no_path": errNoPath, "downgrade": errDowngrade, "in_use": errInUse, "chain": errChain}[answer.Error.Code]
	if known != nil {
		return fmt.Errorf("%w: %w", err, known)
	}
	return err
}
