package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// call is one request whose caller is known.
type call struct {
	*http.Request
	w    http.ResponseWriter
	who  caller
	peer string // address without port
	now  time.Time
}

// endpoint is a route of a server.
type endpoint struct {
	s        *Server
	listener string
	route
}

// requestTime bounds a handler, its waiting for the database included.
const requestTime = 2 * time.Minute

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), requestTime)
	defer cancel()
	rec := &recorder{ResponseWriter: w}
	w = rec
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store")
	c := &call{Request: r.WithContext(ctx), w: w, peer: peerOf(r.RemoteAddr), now: e.s.Now()}
	err := e.serve(c)
	if err != nil {
		e.refuse(c, rec, err)
	}
	e.s.metrics.request(e.listener, e.method, e.path, rec.status, time.Since(began))
}

// serve establishes the caller, and never lets a panic out: what panics has failed.
func (e *endpoint) serve(c *call) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			e.s.panicked(p, "panic", "path", e.path)
			err = fail(http.StatusInternalServerError, "internal", "internal error")
		}
	}()
	if err := e.s.admit(c, e.roles); err != nil {
		return err
	}
	if slices.Contains(e.roles, Tenant) {
		if err := c.checkTenantPath(); err != nil {
			return err
		}
	}
	return e.handle(e.s, c)
}

// panicked counts and logs what recover returned.
func (s *Server) panicked(p any, text string, args ...any) {
	s.metrics.panics.Add(1)
	s.Log.Error(text, append(args, "panic", fmt.Sprintf("%.200v", p), "stack", string(debug.Stack()))...)
}

// recorder remembers the status, for logs and metrics.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// failure is an error with an answer. Its text goes to the client, so it holds nothing
// that the client did not send or may not know.
type failure struct {
	status int
	code   string
	text   string
	after  time.Duration // Retry-After
}

func (f *failure) Error() string { return f.code + ": " + f.text }

func fail(status int, code, format string, args ...any) error {
	return &failure{status: status, code: code, text: fmt.Sprintf(format, args...)}
}

func later(status int, code, text string, after time.Duration) error {
	return &failure{status, code, text, after}
}

// answers says what the errors of the store mean to a client.
var answers = []struct {
	err    error
	status int
	code   string
	text   string
}{
	{store.ErrNotFound, http.StatusNotFound, "not_found", "not found"},
	{store.ErrExists, http.StatusConflict, "exists", "exists already, as something else"},
	{store.ErrIdentity, http.StatusForbidden, "identity", "this id and this TPM do not belong together: one of them is known with another; an operator can delete the device"},
	{store.ErrProof, http.StatusForbidden, "proof", "the answer to the challenge is wrong, late or one too many: begin anew"},
	{store.ErrTooMany, http.StatusTooManyRequests, "too_many", "too many enrolments under way"},
	{store.ErrReplay, http.StatusForbidden, "old_attestation", "the quote is not newer than the last one"},
	{store.ErrPending, http.StatusForbidden, "challenges_expired", "no such attestation is under way: ask for a new challenge"},
	{store.ErrConflict, http.StatusConflict, "conflict", "the state changed meanwhile: try again"},
	{store.ErrDowngrade, http.StatusConflict, "downgrade", "an older version: say that a downgrade is meant"},
	{store.ErrStopped, http.StatusForbidden, "stopped", "an operator stopped this agent: see attest fleet change, and attest fleet delete"},
	{store.ErrInUse, http.StatusConflict, "in_use", "devices are still assigned to it"},
	{store.ErrChain, http.StatusConflict, "chain", "the history was changed after it was written"},
	{context.Canceled, http.StatusServiceUnavailable, "canceled", "the request was canceled"},
	{context.DeadlineExceeded, http.StatusServiceUnavailable, "timeout", "the server is too busy"},
}

// answerTo finds the answer to an error; one that nobody foresaw is logged, not told.
func answerTo(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return &failure{status: http.StatusRequestEntityTooLarge, code: "too_large", text: fmt.Sprintf("more than %d bytes", tooLarge.Limit)}
	}
	if errors.Is(err, store.ErrInvalid) {
		return &failure{status: http.StatusBadRequest, code: "invalid", text: err.Error()}
	}
	for _, a := range answers {
		if errors.Is(err, a.err) {
			f := &failure{status: a.status, code: a.code, text: a.text}
			if a.status == http.StatusTooManyRequests || a.status == http.StatusServiceUnavailable {
				f.after = 30 * time.Second
			}
			return f
		}
	}
	var bad *evidence.Error
	if errors.As(err, &bad) {
		return &failure{status: http.StatusBadRequest, code: string(bad.Code), text: bad.Error()}
	}
	return &failure{status: http.StatusInternalServerError, code: "internal", text: "internal error"}
}

// refuse answers a request that failed, in the shape of its API.
func (e *endpoint) refuse(c *call, rec *recorder, err error) {
	f := answerTo(err)
	level := e.s.Log.Info
	if f.status >= http.StatusInternalServerError && f.code != "canceled" { // the client went away
		level = e.s.Log.Error
	}
	level("request refused", "method", e.method, "path", e.path, "status", f.status, "code", f.code, "peer", c.peer,
		"device", c.logID(), "caller", c.who.name, "error", err.Error())
	if rec.status != 0 {
		return // too late for an answer
	}
	if f.after > 0 {
		c.w.Header().Set("Retry-After", strconv.Itoa(int(max(1, f.after.Round(time.Second)/time.Second))))
	}
	if f.status == http.StatusUnauthorized {
		c.w.Header().Set("WWW-Authenticate", "Bearer")
	}
	switch e.shape {
	case shapeKeylime:
		_ = c.json(f.status, map[string]any{"code": f.status, "status": f.text, "results": struct{}{}})
	case shapePush:
		c.w.Header().Set("Content-Type", contentPush)
		_ = c.json(f.status, evidence.Failure{Errors: []evidence.Problem{{Status: strconv.Itoa(f.status), Code: f.code,
			Title: http.StatusText(f.status), Detail: f.text}}})
	default:
		_ = c.json(f.status, map[string]any{"error": map[string]string{"code": f.code, "message": f.text}})
	}
}

// logID is the {id} of the path where it is fit for a log.
func (c *call) logID() string {
	if id := c.PathValue("id"); evidence.CheckID(id) == nil {
		return id
	}
	return ""
}

const (
	contentPush = "application/vnd.api+json"
	contentJSON = "application/json"
)

// json answers with v.
func (c *call) json(status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	h := c.w.Header()
	if h.Get("Content-Type") == "" {
		h.Set("Content-Type", contentJSON)
	}
	h.Set("Content-Length", strconv.Itoa(len(b)+1))
	c.w.WriteHeader(status)
	_, _ = c.w.Write(append(b, '\n')) // a client that is gone needs no answer
	return nil
}

// push answers with a JSON:API document.
func (c *call) push(status int, v any) error {
	c.w.Header().Set("Content-Type", contentPush)
	return c.json(status, v)
}

// keylime answers in the frame of the APIs of version 2.
func keylime[M evidence.Message](c *call, m M) error {
	return c.json(http.StatusOK, evidence.Answer[M]{Code: http.StatusOK, Status: "Success", Results: m})
}

// decode reads the body of an operator's request. Unknown members are errors: a typing
// error must not pass for a default.
func (c *call) decode(v any) error {
	if t := c.Header.Get("Content-Type"); t != "" && !strings.HasPrefix(t, contentJSON) {
		return fail(http.StatusUnsupportedMediaType, "media_type", "send %s", contentJSON)
	}
	return c.decodeUpTo(maxRequest, v)
}

// decodeUpTo reads one JSON object of at most so many bytes into v.
func (c *call) decodeUpTo(most int64, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(c.w, c.Body, most))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return err
		}
		return fail(http.StatusBadRequest, "malformed", "read body: %v", err)
	}
	if d.More() {
		return fail(http.StatusBadRequest, "malformed", "read body: something follows the object")
	}
	return nil
}

const maxRequest = 64 << 10 // bytes of an operator's request, policies excepted
