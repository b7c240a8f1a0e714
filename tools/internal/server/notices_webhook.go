package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/notice"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// Webhook is where notices are posted to, as CloudEvents in JSON, signed as Standard
// Webhooks 1.0 has it. Only the configuration names one: no request can add another.
type Webhook struct {
	Name   string // in targets, metrics and logs
	URL    string // https only
	Secret notice.Secret
	TLS    *tls.Config // whom to trust, and the client's certificate; nil: the system's
}

type webhook struct {
	s      *Server
	url    string
	secret notice.Secret
	http   *http.Client
}

func newWebhook(s *Server, w Webhook) (*webhook, error) {
	u, err := url.Parse(w.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, fmt.Errorf("webhook %s: its url is not https://HOST[:PORT]/PATH", w.Name)
	}
	if err := store.CheckID(w.Name); err != nil {
		return nil, fmt.Errorf("webhook: name: %w", err)
	}
	conf := w.TLS.Clone()
	if conf == nil {
		conf = &tls.Config{}
	}
	conf.MinVersion = tls.VersionTLS12
	return &webhook{s, w.URL, w.Secret, &http.Client{
		Transport: &http.Transport{TLSClientConfig: conf, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 16 << 10},
		// A redirect would carry the notice to whomever the receiver names.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// send posts the notice of a job. What the receiver says beside the status is not kept.
func (w *webhook) send(ctx context.Context, j store.Job) error {
	e, err := w.s.noticeOf(ctx, j)
	if err != nil {
		return err
	}
	body, err := e.Marshal()
	if err != nil {
		return &undelivered{reason: err.Error(), never: true}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return errors.New("make request: the url of the webhook is not good")
	}
	r.Header.Set("Content-Type", notice.MediaType+"; charset=utf-8")
	r.Header.Set("User-Agent", "attest-verifier")
	w.secret.Sign(r.Header, e.ID, w.s.Now(), body)
	res, err := w.http.Do(r)
	if err != nil {
		return &undelivered{reason: withoutURL(err).Error()}
	}
	defer res.Body.Close()
	if res.StatusCode/100 == 2 {
		return nil
	}
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10) // so that the connection can be used again
	u := &undelivered{reason: fmt.Sprintf("answer %d %s", res.StatusCode, http.StatusText(res.StatusCode)), never: res.StatusCode == http.StatusGone,
		after: askedWait(res.Header.Get("Retry-After"), w.s.Now())}
	if res.StatusCode/100 == 3 {
		u.reason += ": redirects are not followed, write the new url into the configuration"
	}
	return u
}

// withoutURL is the error of a request without the address: that of a webhook may hold a
// secret.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// askedWait reads the header Retry-After of RFC 9110, 10.2.3.
func askedWait(text string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(text); err == nil {
		return t.Sub(now)
	}
	return 0
}

// jitter is a time up to d.
func jitter(d time.Duration) time.Duration { return rand.N(d + 1) }
