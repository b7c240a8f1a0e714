// Package kconfig compares the configuration of a Linux kernel, the file .config, with the
// fragments that it was made from, and says why Kconfig dropped a symbol
// (Documentation/kbuild/kconfig-language.rst). Kconfig itself is silent about it.
//
// The language is read as far as dependencies go. What a build computes by running the
// compiler, "$(cc-option,...)", is never blamed: it is taken as satisfied.
package kconfig

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// ErrEmpty means that a file has no setting in it.
var ErrEmpty = errors.New("no symbol of Kconfig in it")

// Setting is a line of a .config or of a fragment.
type Setting struct {
	Symbol string // without CONFIG_
	Value  string // y, m, n, a number, or a string in its quotes; "" is written as n
	File   string
	Line   int
}

// String is the setting as a fragment has it.
func (s Setting) String() string { return "CONFIG_" + s.Symbol + "=" + s.Value }

var (
	isSet    = regexp.MustCompile(`^CONFIG_([A-Za-z0-9_]+)=(.*)$`)
	isNotSet = regexp.MustCompile(`^# CONFIG_([A-Za-z0-9_]+) is not set$`)
)

// Parse reads a .config or a fragment. "is not set" and the empty string are n, as is what
// is not there. All lines are returned, also those that a later one overrides.
func Parse(file, text string) ([]Setting, error) {
	var settings []Setting
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, " \t\r\n")
		s := Setting{File: file, Line: n, Value: "n"}
		if m := isSet.FindStringSubmatch(line); m != nil {
			s.Symbol = m[1]
			if m[2] != "" && m[2] != `""` {
				s.Value = m[2]
			}
		} else if m := isNotSet.FindStringSubmatch(line); m != nil {
			s.Symbol = m[1]
		} else if line == "" || line[0] == '#' {
			continue
		} else {
			return nil, fmt.Errorf("%s:%d: not a line of a configuration: %s", file, n, line)
		}
		settings = append(settings, s)
	}
	if len(settings) == 0 {
		return nil, fmt.Errorf("%s: %w", file, ErrEmpty)
	}
	return settings, nil
}

// Config has the value of each symbol.
type Config map[string]string

// NewConfig makes a configuration of lines, of which the last one counts.
func NewConfig(settings []Setting) Config {
	c := Config{}
	for _, s := range settings {
		c[s.Symbol] = s.Value
	}
	return c
}

// Get returns the value of a symbol, n for one that is not there.
func (c Config) Get(symbol string) string {
	if v, ok := c[symbol]; ok {
		return v
	}
	return "n"
}

// last keeps the last setting of each symbol, at the place of the first, as merge_config.sh does.
func last(settings []Setting) []Setting {
	at := map[string]int{}
	var kept []Setting
	for _, s := range settings {
		if i, ok := at[s.Symbol]; ok {
			kept[i] = s
			continue
		}
		at[s.Symbol] = len(kept)
		kept = append(kept, s)
	}
	return kept
}

// Finding is a symbol that is not as it has to be.
type Finding struct {
	Want Setting
	Got  string
}

// Check returns the settings of fragments that a configuration does not have.
func Check(fragments []Setting, config Config) []Finding {
	var findings []Finding
	for _, want := range last(fragments) {
		if got := config.Get(want.Symbol); got != want.Value {
			findings = append(findings, Finding{want, got})
		}
	}
	return findings
}

// Contradiction is a line whose author meant something else than the fragments.
type Contradiction struct {
	Line, Fragment Setting
}

// Contradictions returns the lines that switch on, or give a value to, what fragments switch
// off or give another value. A line that only lacks what a fragment adds is none: full
// configurations are full of those.
func Contradictions(fragments, lines []Setting) []Contradiction {
	want := NewConfig(fragments)
	var found []Contradiction
	for _, l := range last(lines) {
		w, ok := want[l.Symbol]
		if !ok || w == l.Value || l.Value == "n" || l.Value == "m" && w == "y" {
			continue
		}
		for _, f := range last(fragments) {
			if f.Symbol == l.Symbol {
				found = append(found, Contradiction{l, f})
			}
		}
	}
	return found
}
