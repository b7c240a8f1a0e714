package rootfs

import (
	"encoding/base64"
	"fmt"
	"io"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// writeDump writes the labels of one file in the form that setfattr --restore reads,
// with the path relative to the root of the tree.
func writeDump(w io.Writer, path string, imaLabel, evmLabel []byte) error {
	text := append([]byte("# file: "), quotePath(path)...)
	text = append(text, '\n')
	for _, l := range []struct {
		name  string
		value []byte
	}{{ima.XattrEVM, evmLabel}, {ima.XattrIMA, imaLabel}} {
		if l.value != nil {
			text = fmt.Appendf(text, "%s=0s%s\n", l.name, base64.StdEncoding.EncodeToString(l.value))
		}
	}
	_, err := w.Write(append(text, '\n'))
	return err
}

// quotePath writes a path as getfattr does: setfattr takes a backslash and three octal
// digits for any byte.
func quotePath(path string) []byte {
	var b []byte
	for i := range len(path) {
		switch c := path[i]; {
		case c == '\\' || c < ' ' || c == 0x7f:
			b = fmt.Appendf(b, `\%03o`, c)
		default:
			b = append(b, c)
		}
	}
	return b
}
