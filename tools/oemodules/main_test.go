package main

import "testing"

// TestIncludes fails when go.mod, go.sum or an import changed and the recipe does not know.
func TestIncludes(t *testing.T) {
	if err := run("../..", "", true); err != nil {
		t.Fatal(err)
	}
}

func TestLicenseName(t *testing.T) {
	const isc = `Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby granted, provided that the above copyright notice and this permission notice appear in all copies.

THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.`
	const ours = "You may look at this, on Sundays, and must forget it on Mondays: see https://opensource.org/licenses/MIT."
	for _, c := range []struct {
		text, want string
		fails      bool
	}{
		{text: "Copyright 2026 Somebody\n\n" + isc, want: "ISC"},
		{text: ours, fails: true},
		{text: isc + ours + ours + ours + ours + ours, fails: true},
		{text: "", fails: true},
	} {
		got, err := licenseName([]byte(c.text))
		if got != c.want || (err != nil) != c.fails {
			t.Errorf("%.40q: got %q, %v, want %q", c.text, got, err, c.want)
		}
	}
}

func TestUnescape(t *testing.T) {
	// From the Go Modules Reference, "Module proxy".
	if got, want := unescape("github.com/!azure/azure-sdk-for-go"), "github.com/Azure/azure-sdk-for-go"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
