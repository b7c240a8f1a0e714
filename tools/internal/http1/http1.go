// Package http1 reads and writes the messages of HTTP/1.1 (RFC 9112) for a device: one
// request and its answer on each connection, of either side, with bounds on all that is
// read before a caller sees it. It opens no connection.
//
// It takes the place of net/http in the agent, which costs 800 kilobytes there: what it
// does not know (pipelines, upgrades, multipart, cookies, compression, HTTP/2, folded lines) it
// refuses, and does not pass over.
package http1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Methods and statuses that the agent has a use for.
const (
	MethodGet   = "GET"
	MethodPost  = "POST"
	MethodPut   = "PUT"
	MethodPatch = "PATCH"

	StatusOK                  = 200
	StatusCreated             = 201
	StatusAccepted            = 202
	StatusBadRequest          = 400
	StatusUnauthorized        = 401
	StatusForbidden           = 403
	StatusNotFound            = 404
	StatusConflict            = 409
	StatusTooManyRequests     = 429
	StatusInternalServerError = 500
	StatusUnavailable         = 503
)

// StatusText is the name of a status, or "".
func StatusText(status int) string {
	return map[int]string{StatusOK: "OK", StatusCreated: "Created", StatusAccepted: "Accepted", StatusBadRequest: "Bad Request",
		StatusUnauthorized: "Unauthorized", StatusForbidden: "Forbidden", StatusNotFound: "Not Found", StatusConflict: "Conflict",
		StatusTooManyRequests: "Too Many Requests", StatusInternalServerError: "Internal Server Error", StatusUnavailable: "Service Unavailable"}[status]
}

// Bounds of a message, body aside.
const (
	maxHead    = 64 << 10 // bytes, of all lines before the body
	maxLine    = 16 << 10
	maxFields  = 100
	maxInterim = 8 // answers 1xx before the one that counts
)

// ErrMalformed means that the other side does not speak HTTP/1.1 as this package takes it.
var ErrMalformed = errors.New("not HTTP/1.1")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// Header are fields by their names in lower case. A field that is there more than once has
// its values with commas between (RFC 9110, 5.3).
type Header map[string]string

// Get is the value of a field, whatever the case of its name, or "".
func (h Header) Get(name string) string { return h[strings.ToLower(name)] }

// Request is a request. Path is as it was sent: nothing in it is decoded.
type Request struct {
	Method, Path, Query string
	Header              Header
	Body                io.Reader // of exactly what the header promised; never nil after ReadRequest
}

// Response is an answer. Body ends with an error if the connection ends before it does.
type Response struct {
	StatusCode int
	Header     Header
	Body       io.ReadCloser // never nil after ReadResponse; its Close does nothing
}

// reader reads lines, whose sum it bounds.
type reader struct {
	*bufio.Reader
	left int
}

// line reads to the CR LF, which alone ends a line here.
func (r *reader) line() (string, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if r.left -= len(part); r.left < 0 || len(line) > maxLine {
			return "", malformed("more than %d bytes before the body", maxHead)
		}
		switch {
		case err == bufio.ErrBufferFull:
		case err == io.EOF && (len(line) > 0 || r.left < maxHead):
			return "", io.ErrUnexpectedEOF
		case err != nil:
			return "", err
		default:
			text, ok := strings.CutSuffix(string(line), "\r\n")
			if !ok {
				return "", malformed("line %.40q does not end in CR LF", line)
			}
			return text, nil
		}
	}
}

// header reads fields to the empty line.
func (r *reader) header() (Header, error) {
	h := Header{}
	for n := 0; ; n++ {
		line, err := r.line()
		if err != nil {
			return nil, err
		}
		if line == "" {
			return h, nil
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		if !ok || !isToken(name) || strings.ContainsFunc(value, isControl) {
			return nil, malformed("field %.40q", line)
		}
		if n == maxFields {
			return nil, malformed("more than %d fields", maxFields)
		}
		name = strings.ToLower(name)
		if old, twice := h[name]; twice {
			if name == "content-length" || name == "transfer-encoding" || name == "host" {
				return nil, malformed("field %s is there twice", name)
			}
			value = old + ", " + value
		}
		h[name] = value
	}
}

// isToken says whether s is a token (RFC 9110, 5.6.2).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// ReadRequest reads a request up to its body.
func ReadRequest(from *bufio.Reader) (*Request, error) {
	r := &reader{from, maxHead}
	line, err := r.line()
	if err != nil {
		return nil, err
	}
	method, rest, _ := strings.Cut(line, " ")
	target, version, _ := strings.Cut(rest, " ")
	if !isToken(method) || !isTarget(target) || version != "HTTP/1.1" && version != "HTTP/1.0" {
		return nil, malformed("request %.40q", line)
	}
	q := &Request{Method: method}
	q.Path, q.Query, _ = strings.Cut(target, "?")
	if q.Header, err = r.header(); err != nil {
		return nil, err
	}
	if q.Body, err = body(q.Header, r.Reader, strings.NewReader("")); err != nil {
		return nil, err
	}
	return q, nil
}

// isTarget says whether s is an absolute path with or without a query (RFC 9112, 3.2.1).
func isTarget(s string) bool {
	return strings.HasPrefix(s, "/") && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' })
}

// ReadResponse reads an answer up to its body, past what is only interim.
func ReadResponse(from *bufio.Reader) (*Response, error) {
	r := &reader{from, maxHead}
	for range maxInterim {
		line, err := r.line()
		if err != nil {
			return nil, err
		}
		version, rest, _ := strings.Cut(line, " ")
		code, _, _ := strings.Cut(rest, " ")
		status, err := strconv.ParseUint(code, 10, 16)
		if err != nil || len(code) != 3 || status < 100 || version != "HTTP/1.1" && version != "HTTP/1.0" {
			return nil, malformed("answer %.40q", line)
		}
		a := &Response{StatusCode: int(status)}
		if a.Header, err = r.header(); err != nil {
			return nil, err
		}
		if status == 101 {
			return nil, malformed("another protocol was switched to")
		}
		if status < 200 {
			continue
		}
		var b io.Reader = strings.NewReader("")
		if status != 204 && status != 304 {
			b, err = body(a.Header, r.Reader, r.Reader)
		}
		a.Body = io.NopCloser(b)
		return a, err
	}
	return nil, malformed("more than %d interim answers", maxInterim)
}

// body is what the fields say of it (RFC 9112, 6.3); otherwise is without them.
func body(h Header, r *bufio.Reader, otherwise io.Reader) (io.Reader, error) {
	length, sized := h["content-length"]
	coding, coded := h["transfer-encoding"]
	switch {
	case coded && sized:
		return nil, malformed("a length and a transfer coding")
	case coded:
		if !strings.EqualFold(coding, "chunked") {
			return nil, malformed("transfer coding %.40q", coding)
		}
		return &chunks{r: &reader{r, maxHead}}, nil
	case sized:
		n, err := strconv.ParseUint(length, 10, 62)
		if err != nil {
			return nil, malformed("length %.40q", length)
		}
		return &exactly{r, int64(n)}, nil
	}
	return otherwise, nil
}

// exactly is as many bytes as were promised.
type exactly struct {
	r    io.Reader
	left int64
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// chunks is a body in the chunked coding (RFC 9112, 7.1).
type chunks struct {
	r    *reader
	left int64 // of this chunk
	any  bool  // one began
	last bool  // all were read
	err  error
}

func (c *chunks) Read(p []byte) (int, error) {
	if c.err == nil && c.left == 0 {
		if c.err = c.next(); c.err == io.EOF && !c.last {
			c.err = io.ErrUnexpectedEOF
		}
	}
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	c.err = err
	return n, err
}

// next reads the size of a chunk; the error is [io.EOF] behind the last one.
func (c *chunks) next() error {
	c.r.left = maxHead
	if c.any {
		if line, err := c.r.line(); err != nil || line != "" {
			return errors.Join(malformed("a chunk has no end"), err)
		}
	}
	c.any = true
	line, err := c.r.line()
	if err != nil {
		return err
	}
	size, _, _ := strings.Cut(line, ";")
	n, err := strconv.ParseUint(strings.TrimRight(size, " \t"), 16, 62)
	if err != nil {
		return malformed("chunk of size %.40q", size)
	}
	if c.left = int64(n); n > 0 {
		return nil
	}
	if _, err := c.r.header(); err != nil { // trailers, which say nothing to us
		return err
	}
	c.last = true
	return io.EOF
}
