package manifest

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const sum256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

var (
	sum384 = strings.Repeat("3a", 48)
	sum512 = strings.Repeat("5c", 64)
)

// example has every type, every field and names that need care, in path order.
var example = []Entry{
	{Path: "bin", Type: Symlink, Mode: 0o777, Target: "usr/bin"},
	{Path: "dev", Type: Dir, Mode: 0o755},
	{Path: "dev/log", Type: Socket, Mode: 0o666},
	{Path: "dev/null", Type: Char, Mode: 0o666, Major: 1, Minor: 3},
	{Path: "dev/vda", Type: Block, Mode: 0o660, GID: 6, Major: 254},
	{Path: "run", Type: Dir, Mode: 0o1777},
	{Path: "run/initctl", Type: FIFO, Mode: 0o600},
	{Path: "usr", Type: Dir, Mode: 0o755},
	{Path: "usr/bin", Type: Dir, Mode: 0o755},
	{
		Path: "usr/bin/ping", Type: File, Mode: 0o4755, Size: 90568, Digests: Digests{SHA256: sum256, SHA384: sum384, SHA512: sum512},
		Label: "sigv2", KeyID: "6aa320f1", EVM: "portable", Verity: "sha256:" + sum256,
		Capability: "0100000200200000000000000000000000000000", Package: "iputils-ping",
	},
	{Path: "usr/bin.cfg", Type: File, Mode: 0o644, UID: 4294967295, Label: "hash", Digests: Digests{SHA256: sum256}},
	{Path: "usr/caf\xe9\n", Type: File},
	{Path: "usr/l", Type: Symlink, Mode: 0o777, Target: "\xff\"\\"},
	{Path: "usr/ü\t\"<&>", Type: File, Mode: 0o600, Size: 1},
}

func TestEntryValidate(t *testing.T) {
	file := Entry{Path: "a", Type: File}
	with := func(f func(*Entry)) Entry { e := file; f(&e); return e }
	tests := []struct {
		name string
		e    Entry
		want string // part of the error; "" accepts
	}{
		{"plain file", file, ""},
		{"longest path", with(func(e *Entry) { e.Path = strings.Repeat("a", maxPath) }), ""},
		{"three dots", with(func(e *Entry) { e.Path = ".../..a" }), ""},
		{"sha512 verity", with(func(e *Entry) { e.Verity = "sha512:" + sum512 }), ""},
		{"no path", with(func(e *Entry) { e.Path = "" }), "path of 0 bytes"},
		{"path too long", with(func(e *Entry) { e.Path = strings.Repeat("a", maxPath+1) }), "path of 4097 bytes"},
		{"absolute path", with(func(e *Entry) { e.Path = "/a" }), `component ""`},
		{"trailing slash", with(func(e *Entry) { e.Path = "a/" }), `component ""`},
		{"double slash", with(func(e *Entry) { e.Path = "a//b" }), `component ""`},
		{"dot", with(func(e *Entry) { e.Path = "./a" }), `component "."`},
		{"dot dot", with(func(e *Entry) { e.Path = "a/../b" }), `component ".."`},
		{"NUL in path", with(func(e *Entry) { e.Path = "a\x00" }), "NUL"},
		{"no type", with(func(e *Entry) { e.Type = "" }), `type ""`},
		{"unknown type", with(func(e *Entry) { e.Type = "File" }), `type "File"`},
		{"mode with file type", with(func(e *Entry) { e.Mode = 0o100644 }), "mode 0100644"},
		{"negative size", with(func(e *Entry) { e.Size = -1 }), "size -1"},
		{"short digest", with(func(e *Entry) { e.Digests.SHA256 = sum256[2:] }), "sha256 digest"},
		{"upper-case digest", with(func(e *Entry) { e.Digests.SHA256 = strings.ToUpper(sum256) }), "sha256 digest"},
		{"digest of another size", with(func(e *Entry) { e.Digests.SHA384 = sum256 }), "sha384 digest"},
		{"digest not hex", with(func(e *Entry) { e.Digests.SHA512 = strings.Repeat("gg", 64) }), "sha512 digest"},
		{"unknown label", with(func(e *Entry) { e.Label = "sigv1"; e.KeyID = "00000000" }), `label "sigv1"`},
		{"signature without key id", with(func(e *Entry) { e.Label = "sigv2" }), "key id"},
		{"upper-case key id", with(func(e *Entry) { e.Label = "sigv3"; e.KeyID = "0000000A" }), "key id"},
		{"key id with a hash", with(func(e *Entry) { e.Label = "hash"; e.KeyID = "00000000" }), "no signature"},
		{"key id without label", with(func(e *Entry) { e.KeyID = "00000000" }), "no signature"},
		{"unknown evm", with(func(e *Entry) { e.EVM = "hmac" }), `evm label "hmac"`},
		{"verity without algorithm", with(func(e *Entry) { e.Verity = sum256 }), "fs-verity"},
		{"verity of another size", with(func(e *Entry) { e.Verity = "sha512:" + sum256 }), "fs-verity"},
		{"odd capability", with(func(e *Entry) { e.Capability = "010" }), "capability"},
		{"long capability", with(func(e *Entry) { e.Capability = strings.Repeat("00", 65) }), "capability"},
		{"package not UTF-8", with(func(e *Entry) { e.Package = "\xff" }), "package is not"},
		{"package too long", with(func(e *Entry) { e.Package = strings.Repeat("p", 257) }), "package is not"},
		{"target of a file", with(func(e *Entry) { e.Target = "b" }), "a file cannot have"},
		{"device of a file", with(func(e *Entry) { e.Major = 1 }), "a file cannot have"},
		{"size of a dir", Entry{Path: "a", Type: Dir, Size: 1}, "a dir cannot have"},
		{"digest of a symlink", Entry{Path: "a", Type: Symlink, Target: "b", Digests: Digests{SHA256: sum256}}, "a symlink cannot have"},
		{"label of a fifo", Entry{Path: "a", Type: FIFO, Label: "hash"}, "a fifo cannot have"},
		{"device of a socket", Entry{Path: "a", Type: Socket, Minor: 1}, "a socket cannot have"},
		{"evm of a device", Entry{Path: "a", Type: Char, EVM: "portable"}, "a char cannot have"},
		{"target of a device", Entry{Path: "a", Type: Block, Target: "b"}, "a block cannot have"},
		{"no target", Entry{Path: "a", Type: Symlink}, "symlink target of 0"},
		{"long target", Entry{Path: "a", Type: Symlink, Target: strings.Repeat("t", maxPath+1)}, "symlink target of 4097"},
		{"NUL in target", Entry{Path: "a", Type: Symlink, Target: "\x00"}, "no NUL"},
	}
	for _, e := range example {
		tests = append(tests, struct {
			name string
			e    Entry
			want string
		}{"example " + e.Path, e, ""})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { checkErr(t, tt.e.validate(), tt.want) })
	}
}

// checkErr wants an error that contains want, or none when want is "".
func checkErr(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("unexpected error: %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("got error %v, want one with %q", err, want)
	}
}

func TestEntryFollows(t *testing.T) {
	for _, tt := range []struct {
		name, prev string
		typ        Type
		path, want string
	}{
		{"first", "", "", "a", ""},
		{"child", "a", Dir, "a/b", ""},
		{"sibling", "a", File, "b", ""},
		{"name that starts alike", "a", File, "a.b", ""},
		{"twice", "a", File, "a", "twice"},
		{"backwards", "b", File, "a", "not in order"},
		{"after its children", "a/b", File, "a", "not in order"},
		{"bytewise but not by components", "a.b", File, "a/b", "not in order"},
		{"below a file", "a", File, "a/b", "lies below"},
		{"below a symlink", "a", Symlink, "a/b/c", "lies below"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := Entry{Path: tt.path, Type: File}
			checkErr(t, e.follows(&Entry{Path: tt.prev, Type: tt.typ}), tt.want)
		})
	}
}

func TestCompare(t *testing.T) {
	path := rapid.StringMatching(`[ab.0/\x01\x{ff}]{0,8}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := path.Draw(t, "a"), path.Draw(t, "b")
		want := slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
		if got := Compare(a, b); got != want || Compare(b, a) != -want {
			t.Fatalf("Compare(%q, %q) = %d and %d backwards, by components %d", a, b, got, Compare(b, a), want)
		}
	})
}

// paths draws names that are hostile in every way that a path may be.
func paths() *rapid.Generator[string] {
	component := rapid.OneOf(
		rapid.SampledFrom([]string{"a", "b", "a.b", " ", "\n", "\"", "\\", "\xff", "é", "e\u0301", "\u2028", "\ufffd", "-", "]", "\x1b[31m", "\x7f", "..."}),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 1, 12), func(b []byte) string {
			for i, c := range b {
				if c == '/' || c == 0 {
					b[i] = '_'
				}
			}
			if s := string(b); s != "." && s != ".." {
				return s
			}
			return "dot"
		}),
	)
	return rapid.Map(rapid.SliceOfN(component, 1, 4), func(c []string) string { return strings.Join(c, "/") })
}

// entry draws a valid entry for path.
func entry(t *rapid.T, path string) Entry {
	e := Entry{
		Path: path,
		Type: rapid.SampledFrom([]Type{File, File, File, Dir, Symlink, Char, Block, FIFO, Socket}).Draw(t, "type"),
		Mode: rapid.Uint32Range(0, 0o7777).Draw(t, "mode"),
		UID:  rapid.Uint32().Draw(t, "uid"), GID: rapid.Uint32().Draw(t, "gid"),
		Package: rapid.StringN(0, 20, maxString).Draw(t, "package"),
	}
	hex := func(n int) *rapid.Generator[string] {
		return rapid.OneOf(rapid.Just(""), rapid.StringOfN(rapid.RuneFrom([]rune("0123456789abcdef")), 2*n, 2*n, -1))
	}
	switch e.Type {
	case File:
		e.Size = rapid.Int64Min(0).Draw(t, "size")
		e.Digests = Digests{hex(32).Draw(t, "sha256"), hex(48).Draw(t, "sha384"), hex(64).Draw(t, "sha512")}
		if e.KeyID = hex(4).Draw(t, "keyid"); e.KeyID != "" {
			e.Label = rapid.SampledFrom([]string{"sigv2", "sigv3"}).Draw(t, "label")
		} else {
			e.Label = rapid.SampledFrom([]string{"hash", ""}).Draw(t, "label")
		}
		e.EVM = rapid.SampledFrom([]string{"portable", ""}).Draw(t, "evm")
		e.Verity = rapid.SampledFrom([]string{"", "sha256:" + sum256, "sha512:" + sum512}).Draw(t, "verity")
		e.Capability = hex(20).Draw(t, "capability")
	case Symlink:
		e.Target = rapid.OneOf(paths(), rapid.Just("/abs//../x")).Draw(t, "target")
	case Char, Block:
		e.Major, e.Minor = rapid.Uint32().Draw(t, "major"), rapid.Uint32().Draw(t, "minor")
	}
	return e
}

// entries draws a valid list of entries.
func entries() *rapid.Generator[[]Entry] {
	return rapid.Custom(func(t *rapid.T) []Entry {
		var out []Entry
		ps := rapid.SliceOfNDistinct(paths(), 0, 12, rapid.ID).Draw(t, "paths")
		slices.SortFunc(ps, Compare)
		var prev Entry
		for _, p := range ps {
			e := entry(t, p)
			if e.follows(&prev) == nil {
				out, prev = append(out, e), e
			}
		}
		return out
	})
}
