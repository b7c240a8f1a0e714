// Package findexpr reads the expressions of find(1) with which meta-integrity selects
// files (IMA_EVM_ROOTFS_SIGNED, IMA_EVM_ROOTFS_HASHED), and says of a path whether find,
// run in the root of the image, would print it. The words are those of GNU find that can
// be answered from the path of a regular file; any other is an error that names it.
package findexpr

import (
	"fmt"
	"path"
	"strings"
)

// maxText bounds an expression; those that people write have a few hundred bytes.
const maxText = 64 << 10

// Expr is an expression and the paths that it starts from.
type Expr struct {
	text     string
	starts   []string
	root     node
	implicit bool // no -print: true means print
	min, max int  // levels below the start; max is -1 for no limit
	postfix  bool // -depth: a folder comes after what is in it, and -prune is too late
}

// String is the text that was parsed.
func (e *Expr) String() string { return e.text }

// Parse reads text as the arguments of find in a shell: quotes and backslashes keep,
// what else a shell would replace is an error.
func Parse(text string) (*Expr, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("find expression: longer than %d bytes", maxText)
	}
	args, err := words(text)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", text, err)
	}
	p := &parser{Expr: &Expr{text: text, implicit: true, max: -1}, rest: args}
	if err := p.parse(); err != nil {
		return nil, fmt.Errorf("find %s: %w", text, err)
	}
	return p.Expr, nil
}

// Match says whether find, run in the root of the image, would print the regular file at
// name: a path relative to the root, without "./".
func (e *Expr) Match(name string) bool {
	for _, start := range e.starts {
		if e.below(start, name) {
			return true
		}
	}
	return false
}

// below walks from start down to name, as find does, and says whether name is printed.
func (e *Expr) below(start, name string) bool {
	shown, rest := start, name
	if top := path.Clean(start); top != "." {
		if name == top {
			return e.visit(visited{path: start, kind: 'f'}).printed
		}
		after, ok := strings.CutPrefix(name, top+"/")
		if !ok {
			return false
		}
		rest = after
	}
	for level := 0; ; level++ {
		if e.visit(visited{path: shown, kind: 'd', level: level}).pruned && !e.postfix {
			return false
		}
		step, more, deeper := strings.Cut(rest, "/")
		if !strings.HasSuffix(shown, "/") {
			shown += "/"
		}
		shown += step
		if !deeper {
			return e.visit(visited{path: shown, kind: 'f', level: level + 1}).printed
		}
		rest = more
	}
}

// visited is a file or folder that find looks at, and what the expression did to it.
type visited struct {
	path            string // as find prints it
	kind            byte   // as -type names it
	level           int    // below the start
	printed, pruned bool
}

// visit evaluates the expression.
func (e *Expr) visit(v visited) visited {
	if v.level < e.min || e.max >= 0 && v.level > e.max {
		return v
	}
	if e.root(&v) && e.implicit {
		v.printed = true
	}
	return v
}

// node is an expression: its truth for one file, and what it does to it.
type node func(*visited) bool
