// Package policies holds the ready policies, so that a program that is one file has them.
// Each *.ima begins with a comment that says what it protects, what it breaks and which
// kernel it needs.
package policies

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

//go:embed *.ima
var files embed.FS

const suffix = ".ima"

// Names returns the names of the policies, sorted.
func Names() ([]string, error) {
	paths, err := fs.Glob(files, "*"+suffix)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(paths))
	for i, path := range paths {
		names[i] = strings.TrimSuffix(path, suffix)
	}
	return names, nil
}

// Text returns the policy with a name. An unknown name is an error that is [fs.ErrNotExist].
func Text(name string) ([]byte, error) {
	if !fs.ValidPath(name) {
		return nil, fmt.Errorf("policy %q: %w", name, fs.ErrNotExist)
	}
	return files.ReadFile(name + suffix)
}

// Header is what the comment at the beginning of a policy says.
type Header struct {
	Summary  string // in one line
	Protects string
	Breaks   string
	Kernel   string // the oldest version that takes it, such as "5.3"
}

// ParseHeader reads the comment at the beginning of a policy.
func ParseHeader(text []byte) (Header, error) {
	var h Header
	fields := map[string]*string{"protects": &h.Protects, "breaks": &h.Breaks, "kernel": &h.Kernel}
	at := &h.Summary
	for line := range strings.Lines(string(text)) {
		comment, ok := strings.CutPrefix(line, "#")
		if !ok {
			break
		}
		comment = strings.TrimSpace(comment)
		if name, rest, ok := strings.Cut(comment, ":"); ok && fields[name] != nil {
			at, comment = fields[name], strings.TrimSpace(rest)
		}
		*at = strings.TrimSpace(*at + " " + comment)
	}
	for name, field := range fields {
		if *field == "" {
			return h, fmt.Errorf("header says nothing of %q", name)
		}
	}
	return h, nil
}
