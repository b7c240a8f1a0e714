package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// pullAgent is an agent that waits to be asked.
type pullAgent struct {
	base    string // https://IP:PORT
	version string // of the API, "" until it was negotiated
	http    *http.Client
}

// contactOf is the agent of a device. What answers at its address is believed to be the
// agent only with the very certificate that it registered with; what it says is proven by
// its TPM all the same.
func (s *Server) contactOf(c store.PullClaim) (*pullAgent, error) {
	if s.Pull.Certificate == nil {
		return nil, errors.New("this verifier polls no agents: set cert and key of [pull] in its configuration")
	}
	if len(c.TLSCert) == 0 {
		return nil, errors.New("the agent registered without a certificate (mtls_cert): it has to answer with TLS to be polled (enable_agent_mtls)")
	}
	contact := c.Contact
	if contact == "" {
		a, err := netip.ParseAddr(c.IP)
		if err != nil || c.Port == 0 {
			return nil, errors.New("the agent registered without address and port, and no operator has set its contact")
		}
		contact = netip.AddrPortFrom(a, uint16(c.Port)).String()
	}
	to, err := s.mayContact(contact)
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS12,
		// Nobody issued the certificate, so it is compared instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if !bytes.Equal(state.PeerCertificates[0].Raw, c.TLSCert) {
				return errOtherAgent
			}
			return nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.Pull.Certificate(), nil },
	}
	transport := &http.Transport{ // no proxy
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  30 * time.Second, // a slow TPM signs, and others wait for it
		MaxResponseHeaderBytes: 64 << 10, DisableCompression: true,
	}
	return &pullAgent{base: "https://" + to.String(), version: c.Version, http: &http.Client{Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}, nil
}

var errOtherAgent = errors.New("what answers there has another certificate than the agent registered with")

func (a *pullAgent) close() { a.http.CloseIdleConnections() }

// do sends a request and gives the body of its answer to read, if it is a good one.
func (a *pullAgent) do(ctx context.Context, method, path string, body []byte, read func(*http.Response) error) (err error) {
	r, err := http.NewRequestWithContext(ctx, method, a.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if body != nil {
		r.Header.Set("Content-Type", contentJSON)
	}
	res, err := a.http.Do(r)
	path, _, _ = strings.Cut(path, "?")
	if err != nil {
		return fmt.Errorf("%s %s%s: %w", method, a.base, path, withoutURL(err))
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: the agent answered %d%s", method, path, res.StatusCode, saidOf(res.Body))
	}
	if err := read(res); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// saidOf is what an agent says of a refusal, cut to what fits into a line of a log.
func saidOf(body io.Reader) string {
	text, err := io.ReadAll(io.LimitReader(body, 4<<10))
	var m struct {
		Status string `json:"status"`
	}
	if err != nil || json.Unmarshal(text, &m) != nil || m.Status == "" {
		return ""
	}
	if len(m.Status) > 200 {
		m.Status = m.Status[:200]
	}
	return ": " + strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, m.Status)
}

// ask is a GET whose results are an M.
func ask[M evidence.Message](ctx context.Context, a *pullAgent, path string, places chan struct{}) (*M, error) {
	var m *M
	err := a.do(ctx, http.MethodGet, path, nil, func(res *http.Response) error {
		if res.ContentLength < 0 || res.ContentLength > smallBody {
			select { // as few at a time as those of agents that call
			case places <- struct{}{}:
				defer func() { <-places }()
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		answer, err := evidence.DecodeAnswer[M](res.Body)
		if err == nil {
			m = &answer.Results
		}
		return err
	})
	return m, err
}

// negotiate chooses the newest version of the API that both sides have.
func (a *pullAgent) negotiate(ctx context.Context) error {
	v, err := ask[evidence.AgentVersions](ctx, a, "/version", make(chan struct{}, 1))
	if err != nil {
		return err
	}
	if a.version = v.Best(); a.version == "" {
		return fmt.Errorf("the agent speaks version %.20q of the API, and none of %s", v.Current, strings.Join(evidence.PullVersions(), ", "))
	}
	return nil
}

// quote asks for a quote and the logs that go with it.
func (a *pullAgent) quote(ctx context.Context, q evidence.QuoteRequest, places chan struct{}) (*evidence.QuoteAnswer, error) {
	return ask[evidence.QuoteAnswer](ctx, a, "/v"+a.version+"/quotes/integrity?"+q.Query(), places)
}

// handOver gives the agent the verifier's share of the key of its payload, so that only the
// owner of the transport key can read it.
func (a *pullAgent) handOver(ctx context.Context, key string, share []byte) error {
	sealed, err := evidence.SealShare(key, share)
	if err != nil {
		return err
	}
	return a.post(ctx, "keys/vkey", evidence.VShare{Share: sealed})
}

// post sends a message. What is in a good answer is of no importance.
func (a *pullAgent) post(ctx context.Context, path string, m evidence.Message) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return a.do(ctx, http.MethodPost, "/v"+a.version+"/"+path, body, func(res *http.Response) error {
		_, err := io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
		return err
	})
}
