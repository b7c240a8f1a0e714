package http1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func parse(text string) (*Request, []byte, error) {
	q, err := ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		return nil, nil, err
	}
	b, err := io.ReadAll(q.Body)
	return q, b, err
}

func TestReadRequest(t *testing.T) {
	q, b, err := parse("POST /v2.6/keys/ukey?x=1&y=%2f HTTP/1.1\r\nHost: a:9002\r\nX-One: 1\r\nx-one:  2 \r\nContent-Length: 3\r\n\r\nabcdef")
	if err != nil || q.Method != "POST" || q.Path != "/v2.6/keys/ukey" || q.Query != "x=1&y=%2f" || q.Header.Get("X-ONE") != "1, 2" || string(b) != "abc" {
		t.Errorf("%+v, %q, %v", q, b, err)
	}
	q, b, err = parse("POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n3;x=y\r\nabc\r\n0A\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n")
	if err != nil || string(b) != "abc0123456789" {
		t.Errorf("%+v, %q, %v", q, b, err)
	}
	if q, b, err = parse("GET /version HTTP/1.0\r\n\r\nmore"); err != nil || len(b) > 0 || q.Path != "/version" {
		t.Errorf("%+v, %q, %v", q, b, err)
	}
	for name, text := range map[string]string{
		"nothing":                      "",
		"no end":                       "GET / HTTP/1.1\r\nHost: a\r\n",
		"no version":                   "GET /\r\n\r\n",
		"another version":              "GET / HTTP/2.0\r\n\r\n",
		"a space in the target":        "GET /a b HTTP/1.1\r\n\r\n",
		"a target that is no path":     "GET http://a/ HTTP/1.1\r\n\r\n",
		"a method that is none":        "GE\tT / HTTP/1.1\r\n\r\n",
		"a control character":          "GET /\x01 HTTP/1.1\r\n\r\n",
		"a folded line":                "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
		"a name with a space":          "GET / HTTP/1.1\r\nA : b\r\n\r\n",
		"a field without a name":       "GET / HTTP/1.1\r\n: b\r\n\r\n",
		"a value with NUL":             "GET / HTTP/1.1\r\nA: b\x00\r\n\r\n",
		"two lengths":                  "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
		"a length and chunks":          "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"another coding":               "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"two codings":                  "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"a negative length":            "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
		"a length with a sign":         "POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\na",
		"a length too large":           "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
		"a body cut short":             "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\na",
		"a chunk cut short":            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\na",
		"a chunk without an end":       "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
		"chunks without a last one":    "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
		"a chunk whose size is signed": "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
		"a line too long":              "GET /" + strings.Repeat("a", maxLine) + " HTTP/1.1\r\n\r\n",
		"too many fields":              "GET / HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", maxFields+1) + "\r\n",
		"too many bytes":               "GET / HTTP/1.1\r\n" + strings.Repeat("A: "+strings.Repeat("b", 8000)+"\r\n", 9) + "\r\n",
		"a line that ends in LF":       "GET / HTTP/1.1\r\nA: b\n\r\n",
		"two hosts":                    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
	} {
		if q, b, err := parse(text); err == nil {
			t.Errorf("%s: %+v, %q", name, q, b)
		}
	}
}

func TestReadResponse(t *testing.T) {
	for text, want := range map[string]string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc":                                     "200 ab",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nLocation: /x\r\n\r\nto the end": "201 to the end",
		"HTTP/1.1 204 No Content\r\n\r\nnot a body":                                           "204 ",
		"HTTP/1.0 404\r\n\r\n": "404 ",
		"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n": "202 a",
	} {
		a, err := ReadResponse(bufio.NewReader(strings.NewReader(text)))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		b, err := io.ReadAll(a.Body)
		if got := fmt.Sprintf("%d %s", a.StatusCode, b); got != want || err != nil {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 099 OK\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/2 200 OK\r\n\r\n", "SSH-2.0-x\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\n\r\n", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", maxInterim+1)} {
		if a, err := ReadResponse(bufio.NewReader(strings.NewReader(text))); err == nil {
			t.Errorf("%.40q: %+v", text, a)
		}
	}
}

// endless is a peer that never stops.
type endless struct{ n int }

func (e *endless) Read(p []byte) (int, error) {
	e.n += len(p)
	return copy(p, bytes.Repeat([]byte("a"), len(p))), nil
}

func TestEndless(t *testing.T) {
	e := &endless{}
	if _, err := ReadRequest(bufio.NewReader(e)); !errors.Is(err, ErrMalformed) || e.n > 2*maxHead {
		t.Errorf("%d bytes were read: %v", e.n, err)
	}
}

// TestPeers: net/http understands what is written here, and the other way round.
func TestPeers(t *testing.T) {
	var w bytes.Buffer
	q := &Request{Method: "PATCH", Path: "/a%2fb", Query: "c=d", Header: Header{"authorization": "Bearer x"}, Body: strings.NewReader("body")}
	if err := q.Write(&w, "host:1", 4); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadRequest(bufio.NewReader(&w))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil || r.RequestURI != "/a%2fb?c=d" || r.Host != "host:1" || string(b) != "body" || r.Header.Get("Authorization") != "Bearer x" || !r.Close {
		t.Errorf("%+v, %q, %v", r, b, err)
	}
	w.Reset()
	if err := (&Response{StatusCode: 404, Header: Header{"content-type": "a/b"}, Body: io.NopCloser(strings.NewReader("{}"))}).Write(&w, 2); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(&w), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 404 || string(b) != "{}" || res.Header.Get("Content-Type") != "a/b" {
		t.Errorf("%+v, %q, %v", res, b, err)
	}
	rec := httptest.NewRecorder()
	http.Error(rec, "no", http.StatusForbidden)
	w.Reset()
	if err := rec.Result().Write(&w); err != nil {
		t.Fatal(err)
	}
	if a, err := ReadResponse(bufio.NewReader(&w)); err != nil || a.StatusCode != 403 {
		t.Errorf("%+v, %v", a, err)
	}
	for _, bad := range []*Request{{Method: "G T", Path: "/"}, {Method: "GET", Path: "a"}, {Method: "GET", Path: "/ "}, {Method: "GET", Path: "/", Header: Header{"a": "b\r\nc: d"}}, {Method: "GET", Path: "/", Header: Header{"a b": "c"}}} {
		if err := bad.Write(&w, "h", 0); err == nil {
			t.Errorf("%+v is written", bad)
		}
	}
	if err := (&Request{Method: "PUT", Path: "/", Body: strings.NewReader("short")}).Write(&w, "h", 6); err == nil {
		t.Error("a body shorter than promised is written")
	}
}

// FuzzReadRequest: what is taken, net/http takes as well, and reads the same body of it: two
// readers that differ are how requests are smuggled.
func FuzzReadRequest(f *testing.F) {
	f.Add([]byte("POST /a?b=c HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nA: b\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		q, body, err := parse(string(in))
		if err != nil {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
		if err != nil {
			if strings.Contains(err.Error(), "Host") || strings.Contains(err.Error(), "parse") || strings.Contains(err.Error(), "invalid URL escape") {
				return // nothing of it is looked at here
			}
			t.Fatalf("net/http refuses %q: %v", in, err)
		}
		theirs, err := io.ReadAll(r.Body)
		if r.Method != q.Method || err != nil || !bytes.Equal(theirs, body) {
			t.Fatalf("%q: %q and %q, %q and %q, %v", in, q.Method, r.Method, body, theirs, err)
		}
	})
}

// FuzzReadResponse: likewise of answers.
func FuzzReadResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, err := ReadResponse(bufio.NewReader(bytes.NewReader(in)))
		if err != nil || bytes.Contains(in, []byte(" 1")) {
			return // net/http leaves interim answers to its client
		}
		ours, ourErr := io.ReadAll(a.Body)
		r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(in)), nil)
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", in, err)
		}
		theirs, err := io.ReadAll(r.Body)
		if r.StatusCode != a.StatusCode || ourErr == nil && (err != nil || !bytes.Equal(ours, theirs)) {
			t.Fatalf("%q: %q and %q, %v and %v", in, ours, theirs, ourErr, err)
		}
	})
}
