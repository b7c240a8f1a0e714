package kconfig

import (
	"fmt"
	"slices"
	"strings"
)

// Explain says why a symbol did not get its value in a configuration, in words of Kconfig.
// It is empty if the Kconfig files do not tell.
func (t *Tree) Explain(f Finding, config Config) string {
	definitions := t.defined[f.Want.Symbol]
	if len(definitions) == 0 {
		return "this Linux has no such symbol"
	}
	if f.Want.Value == "n" || f.Want.Value == "m" && f.Got == "y" {
		if by := t.selectors(f.Want.Symbol, config); len(by) > 0 {
			return "selected by " + strings.Join(by, ", ")
		}
	}
	need := yes
	if f.Want.Value == "m" {
		need = mod
	}
	if f.Want.Value == "n" {
		need = no
	}
	var reasons []string
	for _, d := range definitions {
		reason := t.unmet(f.Want.Symbol, d, need, config)
		if reason == "" {
			return ""
		}
		if !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
	}
	return strings.Join(reasons, "; or ")
}

// unmet says why one definition did not come to its value.
func (t *Tree) unmet(symbol string, d definition, need int, config Config) string {
	if reason := unmetConditions("depends on ", d.depends, need, config); reason != "" {
		return reason
	}
	if !d.prompt {
		return "cannot be set: it has no prompt, other symbols decide"
	}
	if reason := unmetConditions("can be set only if ", d.visible, need, config); reason != "" {
		return reason
	}
	if d.choice == 0 {
		return ""
	}
	for other, definitions := range t.defined {
		for _, o := range definitions {
			if o.choice == d.choice && other != symbol && config.Get(other) == "y" {
				return "of this choice CONFIG_" + other + " was taken"
			}
		}
	}
	return ""
}

// unmetConditions names what is worth less than need, and the values that it is made of.
func unmetConditions(verb string, conditions []string, need int, config Config) string {
	var unmet []string
	for _, c := range conditions {
		for _, part := range conjuncts(c) {
			if evaluate(part, config) < need {
				unmet = append(unmet, part+values(part, config))
			}
		}
	}
	slices.Sort(unmet)
	if unmet = slices.Compact(unmet); len(unmet) == 0 {
		return ""
	}
	return verb + strings.Join(unmet, ", and on ")
}

// values lists the symbols of an expression: " (A is n, B is m)".
func values(expression string, config Config) string {
	var list []string
	for _, token := range tokens.FindAllString(expression, -1) {
		if strings.Trim(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") != "" || strings.Trim(token, "ymn0123456789") == "" {
			continue
		}
		if v := fmt.Sprintf("%s is %s", token, config.Get(token)); !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return " (" + strings.Join(list, ", ") + ")"
}

// selectors are the symbols whose "select" forces another one.
func (t *Tree) selectors(symbol string, config Config) []string {
	var by []string
	for _, s := range t.selects[symbol] {
		if config.Get(s.by) != "n" && evaluate(s.condition, config) != no {
			by = append(by, "CONFIG_"+s.by)
		}
	}
	slices.Sort(by)
	return slices.Compact(by)
}
