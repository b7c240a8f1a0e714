package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/http1"
)

// Bounds of the listener. One connection carries one request: a verifier asks every few
// seconds at most, and what is not kept open cannot be worn out.
const (
	maxCallers    = 16 // at a time; one more is hung up on
	handshakeTime = 5 * time.Second
	requestTime   = 30 * time.Second
	answerTime    = 5 * time.Minute // for a list of some hundred megabytes
	complainEvery = time.Minute
)

// listener answers verifiers and tenants of Keylime's pull model.
type listener struct {
	agent *agent
	net   net.Listener
	tls   *tls.Config
	vault *vault
	boot  int64                  // Unix time of this boot
	id    atomic.Pointer[string] // once enrolled
	// revocation signs notices: the certificate of the image, or else of a payload.
	revocation atomic.Pointer[x509.Certificate]
	spool      *notices // where they are left for actions; nil without a certificate of the image
	// wake has the main loop look at the TPM, which alone may open it again.
	wake chan struct{}

	mu         sync.Mutex
	complained time.Time
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
	l.tls = &tls.Config{
		Certificates: []tls.Certificate{a.identity.tls}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
		SessionTicketsDisabled: true, // each caller shows its certificate
	}
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

// serve answers until ctx ends.
func (l *listener) serve(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { l.net.Close() })()
	slots := make(chan struct{}, maxCallers)
	for {
		conn, err := l.net.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			l.complain("listener: %v", err)
			time.Sleep(time.Second) // no descriptor is free, say
			continue
		}
		select {
		case slots <- struct{}{}:
			go func() {
				defer func() { <-slots }()
				l.talk(conn)
			}()
		default:
			conn.Close()
			l.complain("listener: more than %d callers at a time", maxCallers)
		}
	}
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

// talk answers one request.
func (l *listener) talk(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(handshakeTime))
	c := tls.Server(conn, l.tls)
	if err := c.Handshake(); err != nil {
		l.complain("refused %s: %v", conn.RemoteAddr(), err)
		return
	}
	_ = conn.SetDeadline(time.Now().Add(requestTime))
	r, err := http1.ReadRequest(bufio.NewReader(c))
	if err != nil {
		l.complain("refused a request from %s: %v", conn.RemoteAddr(), err)
		return
	}
	a := l.answer(r)
	if a.code != http1.StatusOK {
		l.complain("refused %s %.100q from %s: %s", r.Method, r.Path, conn.RemoteAddr(), a.status)
	}
	_ = conn.SetDeadline(time.Now().Add(answerTime))
	if err := a.write(c); err != nil {
		l.complain("answer %s: %v", conn.RemoteAddr(), err)
		return
	}
	_ = c.Close() // with close_notify: this was all
}

// answer is what is said to a request.
type answer struct {
	code    int
	status  string
	results any
	logs    []log // whose markers stand in results
}

func success(results any) *answer { return &answer{http1.StatusOK, "Success", results, nil} }

// badRequest is what a caller did wrong.
type badRequest struct{ text string }

func (e *badRequest) Error() string { return e.text }

// refusal is the answer to err. A verifier of Keylime's tries again after 500 and 408; any
// other status makes it give up the device.
func refusal(err error) *answer {
	a := &answer{http1.StatusInternalServerError, printable(err.Error(), maxShown), struct{}{}, nil}
	var wrong *evidence.Error
	var bad *badRequest
	switch {
	case errors.Is(err, errHasKey):
		a.code = http1.StatusConflict
	case errors.As(err, &wrong), errors.As(err, &bad):
		a.code = http1.StatusBadRequest
	}
	return a
}

func (a *answer) write(w io.Writer) error {
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
	res := &http1.Response{StatusCode: a.code, Header: http1.Header{"content-type": typeJSON}, Body: io.NopCloser(body)}
	return res.Write(w, size)
}

// answer finds what answers a request. Paths are those of Keylime's agent, v2.1 to v2.6.
func (l *listener) answer(r *http1.Request) *answer {
	path := r.Path
	if path == "/version" && r.Method == http1.MethodGet {
		versions := evidence.PullVersions()
		return success(evidence.AgentVersions{Current: versions[len(versions)-1], Supported: versions})
	}
	version, rest, ok := strings.Cut(strings.TrimPrefix(path, "/v"), "/")
	if !ok || !strings.HasPrefix(path, "/v") {
		return &answer{http1.StatusBadRequest, "Not Implemented: Use /version or /v2.1 to /v2.6", struct{}{}, nil}
	}
	if !(evidence.AgentVersions{Supported: evidence.PullVersions()}).Has(version) {
		return &answer{http1.StatusBadRequest, "API version not supported: v" + printable(version, 20), struct{}{}, nil}
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
	return &answer{http1.StatusBadRequest, "URI not supported", struct{}{}, nil}
}
