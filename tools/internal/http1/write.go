package http1

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Write writes the request to a server whose name and port are host. The body has size
// bytes; without one both are zero.
func (q *Request) Write(w io.Writer, host string, size int64) error {
	target := q.Path
	if q.Query != "" {
		target += "?" + q.Query
	}
	if !isToken(q.Method) || !isTarget(target) {
		return fmt.Errorf("write request: %.40q %.100q", q.Method, target)
	}
	to := bufio.NewWriter(w)
	fmt.Fprintf(to, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n", q.Method, target, host)
	if err := writeHeader(to, q.Header); err != nil {
		return fmt.Errorf("write request: %w", err)
	}
	return writeBody(to, q.Body, size)
}

// Write writes the answer, whose body has size bytes.
func (a *Response) Write(w io.Writer, size int64) error {
	to := bufio.NewWriter(w)
	fmt.Fprintf(to, "HTTP/1.1 %d %s\r\nConnection: close\r\n", a.StatusCode, StatusText(a.StatusCode))
	if err := writeHeader(to, a.Header); err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	return writeBody(to, a.Body, size)
}

func writeHeader(w *bufio.Writer, h Header) error {
	var names []string
	for name, value := range h {
		if !isToken(name) || strings.ContainsFunc(value, isControl) {
			return fmt.Errorf("field %.40q has a value that is none", name)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(w, "%s: %s\r\n", name, h[name])
	}
	return nil
}

func writeBody(w *bufio.Writer, body io.Reader, size int64) error {
	if body == nil {
		fmt.Fprint(w, "\r\n")
		return w.Flush()
	}
	fmt.Fprintf(w, "content-length: %d\r\n\r\n", size)
	n, err := io.Copy(w, io.LimitReader(body, size))
	if err == nil && n != size {
		err = fmt.Errorf("write body: it has %d bytes, %d were promised", n, size)
	}
	if err != nil {
		return err
	}
	return w.Flush()
}
