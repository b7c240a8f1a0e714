package findexpr

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// maxNesting bounds parentheses and negations.
const maxNesting = 100

type parser struct {
	*Expr
	rest    []string
	nesting int
}

// parse reads: starts, then the expression. An empty expression is true.
func (p *parser) parse() error {
	for len(p.rest) > 0 && !expression(p.rest[0]) {
		if err := p.start(p.next()); err != nil {
			return err
		}
	}
	if p.starts == nil {
		p.starts = []string{"."}
	}
	p.root = always(true)
	if len(p.rest) == 0 {
		return nil
	}
	var err error
	if p.root, err = p.or(); err == nil && len(p.rest) > 0 {
		err = fmt.Errorf("%q is not expected here", p.rest[0])
	}
	return err
}

// expression says whether a word ends the starting points.
func expression(word string) bool {
	return strings.HasPrefix(word, "-") || word == "(" || word == ")" || word == "!" || word == ","
}

// start takes a starting point. The root of the image is where find runs: a path that
// leads out of it is one of the build host.
func (p *parser) start(word string) error {
	clean := path.Clean(word)
	if word == "" || path.IsAbs(word) || clean == ".." || strings.HasPrefix(clean, "../") {
		return fmt.Errorf("%q does not lie in the image: name a folder relative to its root, such as ./usr", word)
	}
	p.starts = append(p.starts, word)
	return nil
}

func (p *parser) next() string {
	word := p.rest[0]
	p.rest = p.rest[1:]
	return word
}

// is takes the next word if it is one of words.
func (p *parser) is(words ...string) bool {
	for _, word := range words {
		if len(p.rest) > 0 && p.rest[0] == word {
			p.rest = p.rest[1:]
			return true
		}
	}
	return false
}

func (p *parser) or() (node, error) {
	left, err := p.and()
	for err == nil && p.is("-o", "-or") {
		a := left
		var b node
		b, err = p.and()
		left = func(v *visited) bool { return a(v) || b(v) }
	}
	return left, err
}

func (p *parser) and() (node, error) {
	left, err := p.not()
	for err == nil && len(p.rest) > 0 {
		explicit := p.is("-a", "-and")
		if word := p.rest; !explicit && (word[0] == ")" || word[0] == "-o" || word[0] == "-or") {
			break
		}
		a := left
		var b node
		b, err = p.not()
		left = func(v *visited) bool { return a(v) && b(v) }
	}
	return left, err
}

func (p *parser) not() (node, error) {
	if p.nesting++; p.nesting > maxNesting {
		return nil, fmt.Errorf("more than %d parentheses and negations", maxNesting)
	}
	defer func() { p.nesting-- }()
	switch {
	case p.is("!", "-not"):
		a, err := p.not()
		return func(v *visited) bool { return !a(v) }, err
	case p.is("("):
		a, err := p.or()
		if err == nil && !p.is(")") {
			err = errors.New("no closing )")
		}
		return a, err
	case len(p.rest) == 0:
		return nil, errors.New("the expression ends too early")
	}
	return p.primary(p.next())
}

func always(value bool) node { return func(*visited) bool { return value } }

// primary reads a test, an option or an action.
func (p *parser) primary(word string) (node, error) {
	switch word {
	case "-true", "-xdev", "-mount": // an image is one filesystem
		return always(true), nil
	case "-false":
		return always(false), nil
	case "-print":
		p.implicit = false
		return func(v *visited) bool { v.printed = true; return true }, nil
	case "-prune":
		return func(v *visited) bool { v.pruned = true; return true }, nil
	case "-depth":
		if len(p.rest) == 0 || expression(p.rest[0]) {
			p.postfix = true
			return always(true), nil
		}
		n, err := p.number(word) // BSD's test; meta-integrity's default is "-depth 0 -false"
		return func(v *visited) bool { return v.level == n }, err
	case "-maxdepth", "-mindepth":
		limit := &p.max
		if word == "-mindepth" {
			limit = &p.min
		}
		var err error
		*limit, err = p.number(word)
		return always(true), err
	case "-type":
		return p.kind(word)
	case "-name", "-iname", "-path", "-ipath", "-wholename", "-iwholename":
		return p.pattern(word)
	}
	return nil, fmt.Errorf("%q cannot be translated: only -type, -name, -path, -prune, -maxdepth, -mindepth, -print and ! -a -o ( ) can; "+
		"write the selection as rules of an attest.toml", word)
}

// argument returns the word that the test needs.
func (p *parser) argument(word string) (string, error) {
	if len(p.rest) == 0 {
		return "", fmt.Errorf("%q needs an argument", word)
	}
	return p.next(), nil
}

func (p *parser) number(word string) (int, error) {
	text, err := p.argument(word)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%s %q: not a number", word, text)
	}
	return int(n), nil
}

// kind reads -type f, also -type f,d. Only regular files are labelled; of the other kinds
// only folders are met, on the way to them.
func (p *parser) kind(word string) (node, error) {
	text, err := p.argument(word)
	if err != nil {
		return nil, err
	}
	for kind := range strings.SplitSeq(text, ",") {
		if len(kind) != 1 || !strings.Contains("bcdpflsD", kind) {
			return nil, fmt.Errorf("-type %q is unknown", text)
		}
	}
	return func(v *visited) bool { return strings.IndexByte(text, v.kind) >= 0 }, nil
}

// pattern reads -name and -path, and their relatives.
func (p *parser) pattern(word string) (node, error) {
	text, err := p.argument(word)
	if err != nil {
		return nil, err
	}
	fold := strings.HasPrefix(word, "-i")
	re, err := fnmatch(text, fold)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", word, err)
	}
	if strings.HasSuffix(word, "path") || strings.HasSuffix(word, "wholename") {
		return func(v *visited) bool { return re.MatchString(v.path) }, nil
	}
	return func(v *visited) bool { return matchBase(re, v.path) }, nil
}

// matchBase matches the last part of a path, as -name does.
func matchBase(re *regexp.Regexp, name string) bool { return re.MatchString(path.Base(name)) }
