//go:build !nopull

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
	stdlog "log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// Bounds of the listener. One connection carries one request: a verifier asks every few
// seconds at most, and what is not kept open cannot be worn out. Bodies have the bounds of
// their messages.
const (
	maxCallers    = 16       // at a time; one more is hung up on
	maxHead       = 16 << 10 // bytes of a request before its body
	headTime      = 5 * time.Second
	requestTime   = 30 * time.Second
	answerTime    = 5 * time.Minute // for a list of some hundred megabytes
	complainEvery = time.Minute
)

// listener answers verifiers and tenants of Keylime's pull model.
type listener struct {
	agent   *agent
	net     net.Listener
	server  *http.Server
	callers atomic.Int32
	vault   *vault
	boot    int64                  // Unix time of this boot
	id      atomic.Pointer[string] // once enrolled
	// revocation signs notices: the certificate of the image, or else of a payload.
	revocation atomic.Pointer[x509.Certificate]
	spool      *notices // where they are left for actions; nil without a certificate of the image
	// wake has the main loop look at the TPM, which alone may open it again.
	wake chan struct{}

	mu         sync.Mutex
	complained time.Time
}

// checkListen looks at what a device that is polled needs.
func (c *Config) checkListen() error {
	listen, contact := c.get("listen"), c.get("contact")
	if listen == "" {
		return nil
	}
	origin := "contact"
	if contact == "" {
		contact, origin = listen, "listen"
	}
	var err error
	if c.contact, err = netip.ParseAddrPort(contact); err != nil || c.contact.Port() == 0 || c.contact.Addr().Zone() != "" {
		return fmt.Errorf("%s: %s = %q is not IP:PORT", c.origins[origin], origin, contact)
	}
	if c.contact.Addr().IsUnspecified() && origin == "contact" {
		return fmt.Errorf("%s: %s = %q: %w", c.origins[origin], origin, contact, errNoContact)
	}
	return nil
}

// openListener opens the port; nobody is answered before serve.
func openListener(a *agent) (*listener, error) {
	pool, err := readCA(a.config.get("listen_ca"))
	if err != nil {
		return nil, fmt.Errorf("listen_ca: %w", err)
	}
	if a.device.ascii == nil {
		return nil, fmt.Errorf("listen: %w: polled agents send text, and %s has no ascii file beside it", errNoList, a.config.get("ima_list"))
	}
	boot, err := a.bootTime()
	if err != nil {
		return nil, err
	}
	l := &listener{agent: a, boot: boot.Unix(), wake: make(chan struct{}, 1)}
	l.vault = &vault{key: a.identity.share, deliver: l.deliver}
	l.server = &http.Server{
		Handler: l,
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{a.identity.tls}, MinVersion: tls.VersionTLS12,
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
			SessionTicketsDisabled: true, // each caller shows its certificate
		},
		MaxHeaderBytes: maxHead, ReadHeaderTimeout: headTime, // of the handshake, too
		ReadTimeout: requestTime, WriteTimeout: answerTime,
		Protocols: new(http.Protocols), ConnState: l.count, ErrorLog: stdlog.New(l, "", 0),
	}
	l.server.Protocols.SetHTTP1(true)
	l.server.SetKeepAlivesEnabled(false)
	if err := l.readRevocationCert(); err != nil {
		return nil, err
	}
	if l.net, err = net.Listen("tcp", a.config.get("listen")); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

func (l *listener) readRevocationCert() error {
	cert, err := readRevocationCert(l.agent.config)
	if err != nil || cert == nil {
		return err
	}
	l.revocation.Store(cert)
	l.spool = &notices{dir: l.agent.config.get("notices_dir"), temporary: ".keylime"}
	return l.spool.makeFolder(os.Geteuid(), os.Getegid())
}

// serve answers until ctx ends; the error is that of a port which is lost.
func (l *listener) serve(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { l.server.Close() })()
	err := l.server.ServeTLS(l.net, "", "")
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("listen: %w", err)
}

// count hangs up on callers that are too many.
func (l *listener) count(conn net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		if l.callers.Add(1) > maxCallers {
			conn.Close()
			l.complain("listener: more than %d callers at a time", maxCallers)
		}
	case http.StateClosed:
		l.callers.Add(-1)
	}
}

// Write takes what the server of net/http has to say.
func (l *listener) Write(line []byte) (int, error) {
	l.complain("listener: %s", bytes.TrimSpace(line))
	return len(line), nil
}

// complain prints a line, of which others can cause as many as they like, once a minute.
func (l *listener) complain(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.complained) >= complainEvery {
		l.complained = now
		l.agent.say("%s", printable(fmt.Sprintf(format, args...), maxShown))
	}
}

// ServeHTTP answers a request.
func (l *listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := l.answer(r)
	if a.code != http.StatusOK {
		l.complain("refused %s %.100q from %s: %s", r.Method, r.URL.Path, r.RemoteAddr, a.status)
	}
	if err := a.write(w); err != nil {
		l.complain("answer %s: %v", r.RemoteAddr, err)
	}
}

// answer is what is said to a request.
type answer struct {
	code    int
	status  string
	results any
	logs    []log // whose markers stand in results
}

func success(results any) *answer { return &answer{http.StatusOK, "Success", results, nil} }

// badRequest is what a caller did wrong.
type badRequest struct{ text string }

func (e *badRequest) Error() string { return e.text }

// refusal is the answer to err. A verifier of Keylime's tries again after 500 and 408; any
// other status makes it give up the device.
func refusal(err error) *answer {
	a := &answer{http.StatusInternalServerError, printable(err.Error(), maxShown), struct{}{}, nil}
	var wrong *evidence.Error
	var bad *badRequest
	switch {
	case errors.Is(err, errHasKey):
		a.code = http.StatusConflict
	case errors.As(err, &wrong), errors.As(err, &bad):
		a.code = http.StatusBadRequest
	}
	return a
}

func (a *answer) write(w http.ResponseWriter) error {
	text, err := json.Marshal(struct {
		Code    int    `json:"code"`
		Status  string `json:"status"`
		Results any    `json:"results"`
	}{a.code, a.status, a.results})
	if err != nil {
		return err
	}
	body, size, err := withLogs(text, a.logs)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", typeJSON)
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	w.WriteHeader(a.code)
	_, err = io.Copy(w, body)
	return err
}

// answer finds what answers a request. Paths are those of Keylime's agent, v2.1 to v2.6.
func (l *listener) answer(r *http.Request) *answer {
	path := r.URL.Path
	if path == "/version" && r.Method == http.MethodGet {
		versions := evidence.PullVersions()
		return success(evidence.AgentVersions{Current: versions[len(versions)-1], Supported: versions})
	}
	version, rest, ok := strings.Cut(strings.TrimPrefix(path, "/v"), "/")
	if !ok || !strings.HasPrefix(path, "/v") {
		return &answer{http.StatusBadRequest, "Not Implemented: Use /version or /v2.1 to /v2.6", struct{}{}, nil}
	}
	if !(evidence.AgentVersions{Supported: evidence.PullVersions()}).Has(version) {
		return &answer{http.StatusBadRequest, "API version not supported: v" + printable(version, 20), struct{}{}, nil}
	}
	id := l.id.Load()
	if id == nil {
		return refusal(errNotEnrolled)
	}
	switch r.Method + " " + rest {
	case "GET quotes/identity":
		return l.identityQuote(r, version)
	case "GET quotes/integrity":
		return l.integrityQuote(r, version)
	case "GET keys/pubkey":
		return success(evidence.KeyAnswer{Key: l.agent.identity.shareKey})
	case "GET keys/verify":
		return l.proveKey(r)
	case "POST keys/ukey":
		return l.takeU(r)
	case "POST keys/vkey":
		return l.takeV(r, *id)
	case "GET agent/info":
		return l.info(*id, version)
	case "POST notifications/revocation":
		return l.takeRevocation(r)
	}
	return &answer{http.StatusBadRequest, "URI not supported", struct{}{}, nil}
}
