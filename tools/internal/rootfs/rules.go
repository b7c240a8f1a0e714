package rootfs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/meta-attest/meta-attest/tools/internal/config"
	"github.com/meta-attest/meta-attest/tools/internal/findexpr"
)

// Action is what a rule does with a regular file.
type Action string

// Actions of a rule.
const (
	ActionSign Action = "sign" // a signature in security.ima
	ActionHash Action = "hash" // a digest in security.ima, which the kernel lets a process change
	ActionSkip Action = "skip" // no label
)

// UnmarshalText reads the name of an action.
func (a *Action) UnmarshalText(text []byte) error {
	switch v := Action(text); v {
	case ActionSign, ActionHash, ActionSkip:
		*a = v
		return nil
	}
	return fmt.Errorf("action %q is unknown: use sign, hash or skip", text)
}

// Rule selects the files whose path matches.
type Rule struct {
	// Path is a glob anchored at the root of the image: * and ? stop at a slash, ** does
	// not, and a folder's own name does not select what is in it: "/var/**" does.
	Path   Glob   `toml:"path"`
	Action Action `toml:"action"`
	// Find selects what find(1) would print, instead of Path, if it is not nil.
	Find *findexpr.Expr `toml:"-"`
}

// FindRules are the rules of meta-integrity's variables: files that the expression hashed
// prints get a digest, others that signed prints a signature, and the rest nothing. nil is
// what that layer has for it: every file is signed, none is hashed.
func FindRules(signed, hashed *findexpr.Expr) Rules {
	var rules Rules
	if hashed != nil {
		rules = append(rules, Rule{Find: hashed, Action: ActionHash})
	}
	if signed != nil {
		rules = append(rules, Rule{Find: signed, Action: ActionSign}, Rule{Path: everything, Action: ActionSkip})
	}
	return rules
}

// everything is the pattern "/**": of a rule for whatever is left.
const everything Glob = "**/*"

// Glob is a pattern that starts with a slash; kept without it, as paths of a walk are.
type Glob string

// UnmarshalText reads a pattern.
func (g *Glob) UnmarshalText(text []byte) error {
	pattern, anchored := strings.CutPrefix(string(text), "/")
	if !anchored {
		return fmt.Errorf("path %q must start with a slash: it is anchored at the root of the image", text)
	}
	if pattern == "" || !doublestar.ValidatePattern(pattern) {
		return fmt.Errorf("path %q is not a valid pattern", text)
	}
	if strings.HasSuffix(pattern, "/**") {
		pattern += "/*" // for doublestar a/** is also a itself
	}
	*g = Glob(pattern)
	return nil
}

// Rules are looked at in order; the first that matches decides.
type Rules []Rule

// Action says what to do with the regular file path, relative to the root. A file that
// no rule selects is signed.
func (r Rules) Action(path string) Action {
	if i := r.match(path); i >= 0 {
		return r[i].Action
	}
	return ActionSign
}

// match returns the index of the rule that decides over path, -1 if there is none.
func (r Rules) match(path string) int {
	return slices.IndexFunc(r, func(rule Rule) bool {
		if rule.Find != nil {
			return rule.Find.Match(path)
		}
		return doublestar.MatchUnvalidated(string(rule.Path), path)
	})
}

// Pattern is the rule's path as a person wrote it.
func (r Rule) Pattern() string {
	if r.Find != nil {
		return "find " + r.Find.String()
	}
	if strings.HasSuffix(string(r.Path), "/**/*") {
		return "/" + strings.TrimSuffix(string(r.Path), "/*")
	}
	return "/" + string(r.Path)
}

// ParseRule reads the form that the command line has: "skip:/var/**".
func ParseRule(s string) (Rule, error) {
	var r Rule
	action, path, ok := strings.Cut(s, ":")
	if !ok {
		return r, fmt.Errorf("rule %q has not the form ACTION:PATH", s)
	}
	if err := r.Action.UnmarshalText([]byte(action)); err != nil {
		return r, err
	}
	return r, r.Path.UnmarshalText([]byte(path))
}

// rulesFile is the layout of attest.toml.
type rulesFile struct {
	Rules Rules `toml:"rule"`
}

// ReadRules reads path and its drop-in files. The rules of a later file stand before
// those of an earlier one, so that a drop-in can overrule what it adds to.
func ReadRules(path string) (Rules, error) {
	files, err := config.Files(path)
	if err != nil {
		return nil, err
	}
	var all Rules
	for _, name := range slices.Backward(files) {
		var f rulesFile
		if err := config.ReadFile(name, &f); err != nil {
			return nil, err
		}
		if err := f.Rules.complete(name); err != nil {
			return nil, err
		}
		all = append(all, f.Rules...)
	}
	return all, nil
}

// complete refuses a rule of which a half is missing.
func (r Rules) complete(file string) error {
	for i, rule := range r {
		if rule.Path == "" || rule.Action == "" {
			return fmt.Errorf("%s: rule %d needs both path and action", file, i+1)
		}
	}
	return nil
}
