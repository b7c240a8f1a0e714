package kconfig

import (
	"regexp"
	"strings"
)

// Values of an expression: no, module, yes.
const (
	no = iota
	mod
	yes
)

var tokens = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'[^']*'|&&|\|\||!=|<=|>=|[!=<>()]|[^\s!=<>()&|"']+`)

// expression is read from left to right.
type expression struct {
	rest   []string
	config Config
}

// maxExpression bounds how deep parentheses nest. The longest of Linux 6.12 has 300 bytes.
const maxExpression = 16 << 10

// evaluate returns what an expression is worth. A macro, and what is no expression, is worth yes.
func evaluate(text string, config Config) int {
	if strings.Contains(text, "$(") || len(text) > maxExpression {
		return yes
	}
	e := &expression{tokens.FindAllString(text, -1), config}
	v := e.or()
	if len(e.rest) > 0 {
		return yes
	}
	return v
}

func (e *expression) peek() string {
	if len(e.rest) == 0 {
		return ""
	}
	return e.rest[0]
}

func (e *expression) next() string {
	t := e.peek()
	if t != "" {
		e.rest = e.rest[1:]
	}
	return t
}

func (e *expression) or() int {
	v := e.and()
	for e.peek() == "||" {
		e.next()
		v = max(v, e.and())
	}
	return v
}

func (e *expression) and() int {
	v := e.not()
	for e.peek() == "&&" {
		e.next()
		v = min(v, e.not())
	}
	return v
}

func (e *expression) not() int {
	switch e.peek() {
	case "!":
		e.next()
		return yes - e.not()
	case "(":
		e.next()
		v := e.or()
		if e.peek() == ")" {
			e.next()
		}
		return v
	}
	return e.comparison()
}

// comparison is a symbol, or two of them compared. Only equality is asked for in
// dependencies that a fragment could meet; less and more are taken as satisfied.
func (e *expression) comparison() int {
	left := e.value(e.next())
	switch op := e.peek(); op {
	case "=", "!=":
		e.next()
		if (left == e.value(e.next())) == (op == "=") {
			return yes
		}
		return no
	case "<", ">", "<=", ">=":
		e.next()
		e.next()
		return yes
	}
	switch left {
	case "y":
		return yes
	case "m":
		return mod
	}
	return no
}

// value is that of a constant or of a symbol, without quotes.
func (e *expression) value(token string) string {
	switch {
	case token == "y" || token == "m" || token == "n":
		return token
	case token != "" && (token[0] == '"' || token[0] == '\''):
		return strings.Trim(token, `"'`)
	case token != "" && strings.Trim(token, "0123456789") == "":
		return token
	}
	return strings.Trim(e.config.Get(token), `"`)
}

// conjuncts splits an expression at its outermost "&&". One that has an outer "||" stays whole.
func conjuncts(text string) []string {
	var parts []string
	depth, start := 0, 0
	at := tokens.FindAllStringIndex(text, -1)
	for _, t := range at {
		switch text[t[0]:t[1]] {
		case "(":
			depth++
		case ")":
			depth--
		case "||":
			if depth == 0 {
				return []string{strings.TrimSpace(text)}
			}
		case "&&":
			if depth == 0 {
				parts = append(parts, strings.TrimSpace(text[start:t[0]]))
				start = t[1]
			}
		}
	}
	return append(parts, strings.TrimSpace(text[start:]))
}
