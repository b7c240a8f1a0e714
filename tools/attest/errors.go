package main

import "errors"

// hints maps the errors that a person can mend to the command that mends them. They
// stand here and not beside the errors because they speak of the command line.
var hints = []struct {
	err  error
	hint string
}{}

// hintFor returns the hint for the first known error in err's tree, or "".
func hintFor(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.hint
		}
	}
	return ""
}
