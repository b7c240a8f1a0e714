package findexpr

import (
	"fmt"
	"strings"
)

// words splits text as a POSIX shell does (Shell Command Language, section 2.2): blanks
// separate, quotes and backslashes keep. What the shell would replace or run is refused,
// because here no shell does.
func words(text string) ([]string, error) {
	var all []string
	var word strings.Builder
	started := false
	end := func() {
		if started {
			all = append(all, word.String())
		}
		word.Reset()
		started = false
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case ' ', '\t', '\n':
			end()
		case '\'', '"':
			started = true
			n, err := quoted(&word, text[i+1:], c)
			if err != nil {
				return nil, err
			}
			i += n
		case '\\':
			if i++; i == len(text) {
				return nil, fmt.Errorf("backslash at the end")
			}
			if text[i] != '\n' {
				started = true
				word.WriteByte(text[i])
			}
		case '*', '?', '[':
			return nil, fmt.Errorf("%q outside of quotes: a shell would replace it with names of files", c)
		case '$', '`', ';', '&', '|', '<', '>', '(', ')', '#', '~', '\r':
			return nil, fmt.Errorf("%q outside of quotes means something else to a shell", c)
		default:
			started = true
			word.WriteByte(c)
		}
	}
	end()
	return all, nil
}

// quoted adds what stands before the closing quote, and returns how many bytes it has
// read, that quote included.
func quoted(word *strings.Builder, text string, quote byte) (int, error) {
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == quote:
			return i + 1, nil
		case quote == '"' && (c == '$' || c == '`'):
			return 0, fmt.Errorf("%q in double quotes means something else to a shell", c)
		case quote == '"' && c == '\\' && i+1 < len(text) && strings.IndexByte("$`\"\\", text[i+1]) >= 0:
			i++
			word.WriteByte(text[i])
		case quote == '"' && c == '\\' && i+1 < len(text) && text[i+1] == '\n':
			i++
		default:
			word.WriteByte(c)
		}
	}
	return 0, fmt.Errorf("no closing %c", quote)
}
