package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// document is a JSON object that is written while its longest member, a list, is still
// being made: {"schema": ..., LIST: [...], "summary": {...}}.
type document struct {
	w     *bufio.Writer
	items int
}

func newDocument(w io.Writer, schema, list string) *document {
	d := &document{w: bufio.NewWriter(w)}
	fmt.Fprintf(d.w, "{\"schema\":%q,%q:[", schema, list)
	return d
}

// add appends an element to the list.
func (d *document) add(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if d.items > 0 {
		d.w.WriteByte(',')
	}
	d.items++
	d.w.WriteByte('\n')
	_, err = d.w.Write(text)
	return err
}

// end writes the summary.
func (d *document) end(summary any) error {
	text, err := json.Marshal(summary)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.w, "],\n\"summary\":%s}\n", text)
	return d.w.Flush()
}

// jsonPath is a path in JSON, which has no bytes that are not text.
type jsonPath struct {
	Path   string `json:"path,omitempty"`
	Base64 string `json:"path_base64,omitempty"` // instead of Path, when that is not UTF-8
}

func newJSONPath(path string) jsonPath {
	if utf8.ValidString(path) {
		return jsonPath{Path: path}
	}
	return jsonPath{Base64: base64.StdEncoding.EncodeToString([]byte(path))}
}

// showPath is a path for a person: as it is, or quoted when it could be taken for
// something else on a terminal.
func showPath(path string) string {
	if quoted := strconv.Quote(path); quoted != `"`+path+`"` || strings.Contains(path, ": ") {
		return quoted
	}
	return path
}

// plural is word, with an s unless n is one.
func plural(n int64, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// showText is a message for a person. It may hold names from the tree, which must not be
// able to end the line or to talk to the terminal.
func showText(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
