package findexpr

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// fnmatch compiles a pattern of -name and -path: POSIX pattern matching notation without
// FNM_PATHNAME and FNM_PERIOD, so that * and ? match a slash and a leading dot, too.
func fnmatch(pattern string, fold bool) (*regexp.Regexp, error) {
	var re strings.Builder
	re.WriteString("(?s")
	if fold {
		re.WriteString("i")
	}
	re.WriteString(`)\A`)
	for rest := pattern; rest != ""; {
		switch rest[0] {
		case '*':
			re.WriteString(".*")
			rest = rest[1:]
		case '?':
			re.WriteString(".")
			rest = rest[1:]
		case '[':
			class, n, err := bracket(rest)
			if err != nil {
				return nil, fmt.Errorf("pattern %q: %w", pattern, err)
			}
			re.WriteString(class)
			rest = rest[n:]
		case '\\':
			if rest = rest[1:]; rest == "" {
				return nil, fmt.Errorf("pattern %q: backslash at the end", pattern)
			}
			fallthrough
		default:
			_, n := utf8.DecodeRuneInString(rest)
			re.WriteString(regexp.QuoteMeta(rest[:n]))
			rest = rest[n:]
		}
	}
	re.WriteString(`\z`)
	compiled, err := regexp.Compile(re.String())
	if err != nil {
		return nil, fmt.Errorf("pattern %q: %w", pattern, err)
	}
	return compiled, nil
}

// bracket turns the bracket expression at the start of text into a class of a regular
// expression, and returns its length; without a closing bracket, [ stands for itself.
func bracket(text string) (class string, length int, err error) {
	var re strings.Builder
	i := 1
	re.WriteByte('[')
	if i < len(text) && (text[i] == '!' || text[i] == '^') {
		re.WriteByte('^')
		i++
	}
	for first := true; i < len(text); first = false {
		switch {
		case text[i] == ']' && !first:
			return re.String() + "]", i + 1, nil
		case text[i] == '[' && i+1 < len(text) && strings.IndexByte(":.=", text[i+1]) >= 0:
			return "", 0, fmt.Errorf("%q is not supported in brackets", text[i:i+2])
		}
		low, n := member(text[i:])
		i += n
		re.WriteString(classQuote(low))
		if i+1 < len(text) && text[i] == '-' && text[i+1] != ']' {
			high, n := member(text[i+1:])
			i += 1 + n
			if high < low {
				return "", 0, fmt.Errorf("range %c-%c is empty", low, high)
			}
			re.WriteString("-" + classQuote(high))
		}
	}
	return `\[`, 1, nil
}

// member reads one character of a bracket expression, in which a backslash quotes.
func member(text string) (rune, int) {
	escape := 0
	if text[0] == '\\' && len(text) > 1 {
		escape = 1
	}
	r, n := utf8.DecodeRuneInString(text[escape:])
	return r, escape + n
}

func classQuote(r rune) string { return fmt.Sprintf(`\x{%x}`, r) }
