// Package manifest writes and reads the statement of what an image holds: an in-toto
// Statement v1 with one entry per line, in a DSSE envelope (FORMAT.md beside this file).
//
// Neither side holds the entries in memory: [Writer] streams them into a file that takes
// the target's name when it is complete and signed, [Manifest] streams them out of a file
// whose signature was verified first. There is one form for each statement; whatever
// writes back to other bytes is refused, so what one reader sees every reader sees.
package manifest

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// ErrNotAuthentic means that no signature of the envelope was made by a trusted key.
// Nothing of the statement has been parsed.
var ErrNotAuthentic = errors.New("not signed by a trusted certificate")

const (
	maxFile   = 1 << 30 // bytes of an envelope
	maxPath   = 4096    // Linux PATH_MAX, for paths and symlink targets
	maxString = 256     // bytes of a free-text field
	maxLine   = 64 << 10
)

// Header is what a statement says of the whole image. Strings are UTF-8 of at most 256
// bytes; empty ones are left out.
type Header struct {
	Name      string    // name of the in-toto subject; empty means "rootfs" to [Create]
	Created   time.Time // in whole seconds, from SOURCE_DATE_EPOCH; zero is left out
	Target    string    // architecture that the image is for, such as "x86_64"
	Generator string    // program and version that made the statement
}

func (h Header) validate() error {
	for _, f := range []struct{ name, value string }{
		{"subject name", h.Name}, {"target", h.Target}, {"generator", h.Generator},
	} {
		if err := checkText(f.name, f.value); err != nil {
			return err
		}
	}
	if h.Name == "" {
		return errors.New("subject name is empty")
	}
	if y := h.Created.UTC().Year(); y < 0 || y > 9999 {
		return fmt.Errorf("created in year %d, which RFC 3339 cannot write", y)
	}
	return nil
}

// Type is the kind of a file.
type Type string

// The kinds of file that Linux knows.
const (
	File    Type = "file"
	Dir     Type = "dir"
	Symlink Type = "symlink"
	Char    Type = "char"
	Block   Type = "block"
	FIFO    Type = "fifo"
	Socket  Type = "socket"
)

// Digests are of a file's content, in lower-case hex; empty means not computed.
type Digests struct {
	SHA256 string `json:"sha256,omitempty"`
	SHA384 string `json:"sha384,omitempty"`
	SHA512 string `json:"sha512,omitempty"`
}

// digestKind gives one algorithm of [Digests] its name in the statement.
type digestKind struct {
	name string
	size int // bytes
	of   func(*Digests) *string
}

// digestKinds is in the order in which a statement lists them.
var digestKinds = [...]digestKind{
	{"sha256", 32, func(d *Digests) *string { return &d.SHA256 }},
	{"sha384", 48, func(d *Digests) *string { return &d.SHA384 }},
	{"sha512", 64, func(d *Digests) *string { return &d.SHA512 }},
}

// Entry is one file of the image. Fields that its type does not have are zero.
type Entry struct {
	Path         string // relative to the root, slash-separated; any bytes but NUL
	Type         Type
	Mode         uint32 // permission bits with setuid, setgid and sticky: at most 07777
	UID, GID     uint32
	Size         int64   // files: bytes
	Digests      Digests // files: of the content
	Target       string  // symlinks: where to; any bytes but NUL
	Major, Minor uint32  // char and block devices
	Label        string  // files: what security.ima holds: "sigv2", "sigv3", "hash" or ""
	KeyID        string  // files with a signature: 8 hex digits, as evmctl shows them
	EVM          string  // files: what security.evm holds: "portable" or ""
	Verity       string  // files: fs-verity digest as "sha256:hex" or "sha512:hex"
	Capability   string  // files: hex of security.capability
	Package      string  // package that brought the file
}

// Compare orders paths by component and components bytewise, as a walk that sorts each
// directory meets them: '/' comes before every other byte. It returns -1, 0 or 1.
func Compare(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		if b[i] != '/' && (a[i] == '/' || a[i] < b[i]) {
			return -1
		}
		return 1
	}
	switch {
	case len(a) < len(b):
		return -1
	case len(a) > len(b):
		return 1
	}
	return 0
}

// follows reports why e may not come right after prev in a statement.
func (e *Entry) follows(prev *Entry) error {
	if prev.Path == "" {
		return nil
	}
	switch Compare(prev.Path, e.Path) {
	case 0:
		return errors.New("path is listed twice")
	case 1:
		return fmt.Errorf("path is not in order: it comes before %q", prev.Path)
	}
	// A path sorts right before those below it, so the neighbour is the only candidate.
	if prev.Type != Dir && strings.HasPrefix(e.Path, prev.Path+"/") {
		return fmt.Errorf("path lies below %q, which is a %s", prev.Path, prev.Type)
	}
	return nil
}

func (e *Entry) validate() error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	if e.Mode > 0o7777 {
		return fmt.Errorf("mode %#o has more than permission bits", e.Mode)
	}
	if err := checkText("package", e.Package); err != nil {
		return err
	}
	if err := e.checkFields(); err != nil {
		return err
	}
	switch e.Type {
	case File:
		return e.validateFile()
	case Symlink:
		if e.Target == "" || len(e.Target) > maxPath || strings.IndexByte(e.Target, 0) >= 0 {
			return fmt.Errorf("symlink target of %d bytes: want 1 to %d and no NUL", len(e.Target), maxPath)
		}
	case Dir, Char, Block, FIFO, Socket:
	default:
		return fmt.Errorf("type %.40q is unknown", e.Type)
	}
	return nil
}

// checkFields reports a field that a file of e's type cannot have.
func (e *Entry) checkFields() error {
	has := Entry{Path: e.Path, Type: e.Type, Mode: e.Mode, UID: e.UID, GID: e.GID, Package: e.Package}
	switch e.Type {
	case File:
		has = *e
		has.Target, has.Major, has.Minor = "", 0, 0
	case Symlink:
		has.Target = e.Target
	case Char, Block:
		has.Major, has.Minor = e.Major, e.Minor
	}
	if has != *e {
		return fmt.Errorf("has a field that a %s cannot have", e.Type)
	}
	return nil
}

func (e *Entry) validateFile() error {
	if e.Size < 0 {
		return fmt.Errorf("size %d is negative", e.Size)
	}
	for _, k := range digestKinds {
		if s := *k.of(&e.Digests); s != "" && !isHex(s, k.size) {
			return fmt.Errorf("%s digest %.140q is not %d hex digits", k.name, s, 2*k.size)
		}
	}
	switch e.Label {
	case "sigv2", "sigv3":
		if !isHex(e.KeyID, 4) {
			return fmt.Errorf("key id %.40q is not 8 hex digits", e.KeyID)
		}
	case "hash", "":
		if e.KeyID != "" {
			return errors.New("has a key id, but no signature")
		}
	default:
		return fmt.Errorf("label %.40q is unknown", e.Label)
	}
	if e.EVM != "" && e.EVM != "portable" {
		return fmt.Errorf("evm label %.40q is unknown", e.EVM)
	}
	if err := checkVerity(e.Verity); err != nil {
		return err
	}
	// Linux writes 12, 20 or 24 bytes (uapi/linux/capability.h); leave room for a fourth revision.
	if n := len(e.Capability) / 2; e.Capability != "" && (n > 64 || !isHex(e.Capability, n)) {
		return fmt.Errorf("capability %.140q is not hex of at most 64 bytes", e.Capability)
	}
	return nil
}

func checkVerity(s string) error {
	alg, digest, _ := strings.Cut(s, ":")
	switch {
	case s == "", alg == "sha256" && isHex(digest, 32), alg == "sha512" && isHex(digest, 64):
		return nil
	}
	return fmt.Errorf("fs-verity digest %.150q is neither sha256:hex nor sha512:hex", s)
}

func checkPath(p string) error {
	if p == "" || len(p) > maxPath {
		return fmt.Errorf("path of %d bytes: want 1 to %d", len(p), maxPath)
	}
	if strings.IndexByte(p, 0) >= 0 {
		return errors.New("path has a NUL byte")
	}
	for c := range strings.SplitSeq(p, "/") {
		if c == "" || c == "." || c == ".." {
			return fmt.Errorf("path has the component %q", c)
		}
	}
	return nil
}

func checkText(name, s string) error {
	if len(s) > maxString || !utf8.ValidString(s) {
		return fmt.Errorf("%s is not UTF-8 of at most %d bytes", name, maxString)
	}
	return nil
}

// isHex reports whether s is n bytes in lower-case hex.
func isHex(s string, n int) bool {
	if len(s) != 2*n {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
