package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Error is a line that a kernel refuses, and with it the policy.
type Error struct {
	Line, Column int    // from 1; the column in bytes. Line 0 is the policy as a whole
	Token        string // the word that is refused; empty when it is the line as a whole
	Reason       string
	Since        Version // the first kernel that takes the word; zero when none does
}

func (e *Error) Error() string {
	switch {
	case e.Line == 0:
		return e.Reason
	case e.Token == "":
		return fmt.Sprintf("line %d: %s", e.Line, e.Reason)
	default:
		return fmt.Sprintf("line %d, column %d: %q: %s", e.Line, e.Column, e.Token, e.Reason)
	}
}

// Errors are all lines that a kernel refuses, in their order. The kernel stops at the first.
type Errors []*Error

func (e Errors) Error() string {
	if len(e) == 1 {
		return e[0].Error()
	}
	return fmt.Sprintf("%v (and %d more)", e[0], len(e)-1)
}

// Parse reads a policy as the given kernel does. It returns [Errors], and no policy, for
// one that this kernel refuses.
func Parse(text []byte, kernel Version) (*Policy, error) {
	p, errs := parse(text, kernel)
	if len(errs) > 0 {
		return nil, errs
	}
	return p, nil
}

// parse is [Parse] without the refusal: refused lines have no rule.
func parse(text []byte, kernel Version) (*Policy, Errors) {
	if len(text) > MaxSize {
		return nil, Errors{{Reason: fmt.Sprintf("policy is larger than %d bytes", MaxSize)}}
	}
	if len(text) == 0 {
		return &Policy{}, Errors{{Reason: noRule}}
	}
	body, terminated := strings.CutSuffix(string(text), "\n")
	p := &Policy{Unterminated: !terminated}
	var errs Errors
	rules := 0
	for n, text := range strings.Split(body, "\n") {
		rule, refused := parseLine(text, n+1, kernel)
		if refused != nil {
			refused.Line = n + 1
			errs = append(errs, refused)
		}
		if rule != nil || refused != nil {
			rules++
		}
		p.Lines = append(p.Lines, Line{Text: text, Rule: rule})
	}
	if rules == 0 {
		errs = append(errs, &Error{Reason: noRule})
	}
	return p, errs
}

// noRule is what ima_check_policy refuses.
const noRule = "there is no rule in it: the kernel refuses an empty policy"

// parseLine is ima_parse_add_rule. It returns neither a rule nor an error for an empty
// line and a comment.
func parseLine(text string, line int, kernel Version) (*Rule, *Error) {
	if at := strings.IndexByte(text, 0); at >= 0 {
		return nil, &Error{Column: at + 1, Token: text[at : at+1], Reason: "the kernel takes a NUL byte for the end of the policy"}
	}
	trimmed := strings.TrimLeft(text, " \t")
	if trimmed == "" || trimmed[0] == '#' {
		return nil, nil
	}
	p := &ruleParser{rule: &Rule{Line: line}, kernel: kernel}
	for _, w := range split(text) {
		if w.text[0] == '#' && !kernel.Before(commentSince) {
			break
		}
		if r := p.word(w.text); r != nil {
			if strings.HasSuffix(w.text, "\r") {
				r = refuse("the line ends in a carriage return, which the kernel takes for a part of the word")
			}
			return nil, &Error{Column: w.column, Token: w.text, Reason: r.text(kernel), Since: r.since}
		}
		p.rule.words = append(p.rule.words, w)
	}
	if w, r := p.validate(); r != nil {
		return nil, &Error{Column: w.column, Token: w.text, Reason: r.text(kernel), Since: r.since}
	}
	return p.rule, nil
}

// split cuts a line at spaces and tabs. Nothing else separates words: not a carriage return.
func split(text string) []word {
	var words []word
	for i := 0; i < len(text); {
		if text[i] == ' ' || text[i] == '\t' {
			i++
			continue
		}
		end := strings.IndexAny(text[i:], " \t")
		if end < 0 {
			end = len(text) - i
		}
		words = append(words, word{i + 1, text[i : i+end]})
		i += end
	}
	return words
}

// refusal is why a kernel does not take a word.
type refusal struct {
	reason string
	since  Version // the first kernel that takes it
}

func refuse(format string, args ...any) *refusal {
	return &refusal{reason: fmt.Sprintf(format, args...)}
}

// text is the reason for a person.
func (r *refusal) text(kernel Version) string {
	switch {
	case r.since == Version{}:
		return r.reason
	case r.reason == "":
		return fmt.Sprintf("Linux %v does not know it, %v is the first that does", kernel, r.since)
	default:
		return fmt.Sprintf("%s before Linux %v, and this is for %v", r.reason, r.since, kernel)
	}
}

// ruleParser is the state of ima_parse_rule.
type ruleParser struct {
	rule   *Rule
	kernel Version
}

// need refuses a word that is newer than the kernel.
func (p *ruleParser) need(since Version) *refusal {
	if p.kernel.Before(since) {
		return &refusal{since: since}
	}
	return nil
}

// word reads one word.
func (p *ruleParser) word(text string) *refusal {
	if a, ok := actions[text]; ok {
		if r := p.need(a.since); r != nil {
			return r
		}
		if p.rule.Action != "" {
			return refuse("the rule has an action already, %s", p.rule.Action)
		}
		p.rule.Action = Action(text)
		return nil
	}
	name, op, value := text, byte(0), ""
	if i := strings.IndexAny(text, "=<>"); i >= 0 {
		name, op, value = text[:i], text[i], text[i+1:]
	}
	c, ok := conditions[name]
	switch {
	case text[0] == '#':
		return &refusal{"a comment needs a line of its own", commentSince}
	case !ok:
		return p.unknown(name)
	case c.ops == "" && op != 0:
		return refuse("%s takes no value", name)
	case c.ops != "" && (op == 0 || value == ""):
		return refuse("%s needs a value: %s%c...", name, name, c.ops[0])
	case c.ops != "" && strings.IndexByte(c.ops, op) < 0:
		return refuse("%s takes no %c", name, op)
	}
	if r := p.need(c.since); r != nil {
		return r
	}
	return c.set(p, op, value)
}

// unknown refuses a word that no kernel knows.
func (p *ruleParser) unknown(name string) *refusal {
	known := slices.AppendSeq(slices.Collect(maps.Keys(actions)), maps.Keys(conditions))
	if s := suggest(name, known); s != "" {
		return refuse("no kernel knows this word: is it %s?", s)
	}
	return refuse("no kernel knows this word")
}
