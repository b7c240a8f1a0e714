// Package config reads the TOML files of this project: a file and the drop-in files
// of the folder beside it. A key that nobody reads is an error, because a typing error
// in a file that says what is signed must not pass for a default.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// maxSize bounds a file; those that people write have a few kilobytes.
const maxSize = 1 << 20

// Files returns path and, in the order of their names, the files x.d/*.toml for a path
// x.toml. Only path itself has to exist.
func Files(path string) ([]string, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	dir := strings.TrimSuffix(path, ".toml") + ".d"
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	files := []string{path}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".toml") {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

// ReadFile decodes the file path into v, a pointer to a struct. See [Decode].
func ReadFile(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return err
	}
	if len(text) > maxSize {
		return fmt.Errorf("%s: larger than %d bytes", path, maxSize)
	}
	return Decode(path, string(text), v)
}

// wrongType turns what the TOML package says of a value that does not fit, which has no type
// of its own, into LINE: KEY: TEXT. A regular expression is 250 kilobytes in the agent.
func wrongType(text string) (string, bool) {
	rest, isOne := strings.CutPrefix(text, "toml: line ")
	line, rest, hasLine := strings.Cut(rest, ` (last key "`)
	key, what, hasKey := strings.Cut(rest, `"): `)
	return line + ": " + key + ": " + what, isOne && hasLine && hasKey
}

// Decode decodes text, which came from the file name, into v. Every error starts with
// the name and, where it can be known, the line.
func Decode(name, text string, v any) error {
	md, err := toml.Decode(text, v)
	if err != nil {
		var parse toml.ParseError
		if errors.As(err, &parse) {
			if parse.LastKey != "" {
				return fmt.Errorf("%s:%d: %s: %s", name, parse.Position.Line, parse.LastKey, parse.Message)
			}
			return fmt.Errorf("%s:%d: %s", name, parse.Position.Line, parse.Message)
		}
		if text, ok := wrongType(err.Error()); ok {
			return fmt.Errorf("%s:%s", name, text)
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	if unknown := md.Undecoded(); len(unknown) > 0 {
		if line := lineOf(text, unknown[0]); line > 0 {
			name = fmt.Sprintf("%s:%d", name, line)
		}
		return fmt.Errorf("%s: unknown key %q", name, unknown[0].String())
	}
	return nil
}

// lineOf finds the line of a key, which the TOML package does not tell; 0 if the key is
// written in a way that this simple reading does not see, such as an inline table.
func lineOf(text string, key toml.Key) int {
	var table []string
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		var name []string
		if head, ok := strings.CutPrefix(line, "["); ok {
			head, _, _ = strings.Cut(strings.TrimPrefix(head, "["), "]")
			table = split(head)
			name = table
		} else if left, _, ok := strings.Cut(line, "="); ok {
			name = slices.Concat(table, split(left))
		}
		if slices.Equal(name, key) {
			return n
		}
	}
	return 0
}

func split(dotted string) []string {
	parts := strings.Split(dotted, ".")
	for i, p := range parts {
		parts[i] = strings.Trim(strings.TrimSpace(p), `"'`)
	}
	return parts
}
