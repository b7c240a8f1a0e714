package policies

import (
	"errors"
	"io/fs"
	"testing"
)

func TestText(t *testing.T) {
	for _, name := range []string{"", "nothing", "../go", "/etc/passwd", "measure-only.ima", "a/b"} {
		if text, err := Text(name); !errors.Is(err, fs.ErrNotExist) || text != nil {
			t.Errorf("%q: got %d bytes, %v", name, len(text), err)
		}
	}
}

func TestParseHeader(t *testing.T) {
	h, err := ParseHeader([]byte("# In short.\n#\n# protects: a,\n#           b: c\n# breaks:   Nothing.\n# kernel:   5.3\n\n# proc\nmeasure\n"))
	if want := (Header{"In short.", "a, b: c", "Nothing.", "5.3"}); h != want || err != nil {
		t.Errorf("got %+v, %v", h, err)
	}
	for _, text := range []string{"", "measure\n", "# protects: a\n# breaks: b\n", "# protects: a\n# breaks: b\n\n# kernel: 5.3\n"} {
		if h, err := ParseHeader([]byte(text)); err == nil {
			t.Errorf("%q: got %+v", text, h)
		}
	}
}
