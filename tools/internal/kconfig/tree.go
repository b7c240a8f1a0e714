package kconfig

import (
	"fmt"
	"io/fs"
	"regexp"
	"strings"
)

// Bounds of what is read. Linux 6.12 has 1 700 files, and the deepest lies 7 below the first.
const (
	maxFiles = 20000
	maxDepth = 64
	maxFile  = 4 << 20
)

// definition is one place where a symbol is defined. A symbol may have several.
type definition struct {
	depends []string // all of them have to hold
	prompt  bool     // somebody can set it
	visible []string // conditions of the prompt
	choice  int      // 0: not the member of one
}

// selection is a "select" of a symbol by another.
type selection struct{ by, condition string }

// Tree is what the Kconfig files of a Linux source say about dependencies.
type Tree struct {
	fsys    fs.FS
	arch    string
	files   int
	choices int
	defined map[string][]definition
	selects map[string][]selection
}

// ReadTree reads the Kconfig files of a Linux source for an architecture, such as x86 or arm64.
func ReadTree(fsys fs.FS, arch string) (*Tree, error) {
	if arch == "x86_64" || arch == "i386" {
		arch = "x86"
	}
	t := &Tree{fsys: fsys, arch: arch, defined: map[string][]definition{}, selects: map[string][]selection{}}
	if err := t.read("Kconfig", nil, 0); err != nil {
		return nil, err
	}
	return t, nil
}

// block is an open if, menu or choice.
type block struct {
	word    string
	depends []string
	choice  int
}

// reader is one Kconfig file on its way.
type reader struct {
	t      *Tree
	depth  int
	blocks []block
	symbol string      // that is being defined, or ""
	entry  *definition // of symbol, or of a comment
	help   int         // indentation of a help text; 0: none, -1: its first line is to come
}

var variables = strings.NewReplacer(`"`, "", "'", "")

func (t *Tree) read(file string, outer []block, depth int) error {
	if t.files++; t.files > maxFiles || depth > maxDepth {
		return fmt.Errorf("%s: more than %d Kconfig files, or %d of them below each other", file, maxFiles, maxDepth)
	}
	st, err := fs.Stat(t.fsys, file)
	if err == nil && st.Size() > maxFile {
		err = fmt.Errorf("%s: larger than %d bytes", file, maxFile)
	}
	if err != nil {
		return err
	}
	text, err := fs.ReadFile(t.fsys, file)
	if err != nil {
		return err
	}
	r := &reader{t: t, depth: depth, blocks: append([]block{}, outer...)}
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
		if err := r.line(strings.TrimRight(line, " \t\r\n")); err != nil {
			return err
		}
	}
	r.end()
	return nil
}

// indentation counts columns, with tab stops at 8 as Kconfig does.
func indentation(line string) int {
	n := 0
	for _, c := range line {
		switch c {
		case ' ':
			n++
		case '\t':
			n = n&^7 + 8
		default:
			return n
		}
	}
	return n
}

func (r *reader) line(line string) error {
	trimmed := strings.TrimSpace(line)
	if trimmed == "" {
		return nil
	}
	if r.help != 0 {
		n := indentation(line)
		if r.help < 0 {
			r.help = max(n, 1)
		}
		if n >= r.help {
			return nil
		}
		r.help = 0
	}
	if trimmed[0] == '#' {
		return nil
	}
	word, rest, _ := strings.Cut(trimmed, " ")
	if tab, after, ok := strings.Cut(word, "\t"); ok {
		word, rest = tab, after+" "+rest
	}
	return r.statement(word, strings.TrimSpace(withoutComment(rest)))
}

var comment = regexp.MustCompile(`^((?:[^"#]|"(?:[^"\\]|\\.)*")*)#.*$`)

func withoutComment(s string) string { return comment.ReplaceAllString(s, "$1") }

func (r *reader) statement(word, rest string) error {
	switch word {
	case "config", "menuconfig":
		r.end()
		r.symbol, r.entry = rest, r.open()
	case "comment":
		r.end()
		r.entry = r.open()
	case "if", "menu", "choice":
		r.end()
		b := block{word: word}
		if word == "if" {
			b.depends = []string{rest}
		}
		if word == "choice" {
			r.t.choices++
			b.choice = r.t.choices
		}
		r.blocks = append(r.blocks, b)
	case "endif", "endmenu", "endchoice":
		r.end()
		if len(r.blocks) > 0 {
			r.blocks = r.blocks[:len(r.blocks)-1]
		}
	case "source":
		r.end()
		return r.source(rest)
	case "help", "---help---":
		r.help = -1
	default:
		r.property(word, rest)
	}
	return nil
}

// source reads another file, whose symbols depend on what is open here.
func (r *reader) source(rest string) error {
	name := variables.Replace(rest)
	for _, v := range []string{"$(SRCARCH)", "$SRCARCH", "$(HEADER_ARCH)"} {
		name = strings.ReplaceAll(name, v, r.t.arch)
	}
	if strings.Contains(name, "$") {
		return nil // a file that a build generates
	}
	return r.t.read(name, r.blocks, r.depth+1)
}

// open starts a definition below all open blocks.
func (r *reader) open() *definition {
	d := &definition{}
	for _, b := range r.blocks {
		d.depends = append(d.depends, b.depends...)
		d.choice = max(d.choice, b.choice)
	}
	return d
}

// end ends a definition.
func (r *reader) end() {
	if r.symbol != "" {
		r.t.defined[r.symbol] = append(r.t.defined[r.symbol], *r.entry)
	}
	r.symbol, r.entry, r.help = "", nil, 0
}

// property is a line of a definition, or of a menu or choice.
func (r *reader) property(word, rest string) {
	text, condition, conditional := cutIf(rest)
	switch word {
	case "depends":
		on := strings.TrimSpace(strings.TrimPrefix(rest, "on"))
		if r.entry != nil {
			r.entry.depends = append(r.entry.depends, on)
		} else if n := len(r.blocks); n > 0 {
			r.blocks[n-1].depends = append(r.blocks[n-1].depends, on)
		}
	case "bool", "tristate", "string", "int", "hex", "prompt":
		if r.entry != nil && text != "" {
			r.entry.prompt = true
			if conditional {
				r.entry.visible = append(r.entry.visible, condition)
			}
		}
	case "select":
		if r.symbol != "" {
			r.t.selects[text] = append(r.t.selects[text], selection{r.symbol, condition})
		}
	}
}

var ifWord = regexp.MustCompile(`^((?:[^"]|"(?:[^"\\]|\\.)*")*?)\s+if\s+(.*)$`)

// cutIf splits `"prompt" if EXPRESSION`.
func cutIf(s string) (text, condition string, ok bool) {
	if m := ifWord.FindStringSubmatch(s); m != nil {
		return strings.TrimSpace(m[1]), m[2], true
	}
	return strings.TrimSpace(s), "y", false
}
