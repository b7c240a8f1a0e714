package appraise

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
)

// Allowlist is what files may contain, in the forms of other programs: a runtime policy of
// Keylime, or a list as sha256sum writes it. A manifest says more, and is signed.
type Allowlist struct {
	Digests  map[string][]string // by absolute path: lower-case hexadecimal, sorted
	Excludes []string            // regular expressions of Keylime
}

// add adds a digest, once.
func (a *Allowlist) add(path, digest string) {
	if a.Digests == nil {
		a.Digests = map[string][]string{}
	}
	at, found := slices.BinarySearch(a.Digests[path], digest)
	if !found {
		a.Digests[path] = slices.Insert(a.Digests[path], at, digest)
	}
}

// AddManifest adds the files of a manifest, with digests of the named algorithm: "sha256",
// "sha384" or "sha512". A file that has none is an error.
func (a *Allowlist) AddManifest(entries iter.Seq2[manifest.Entry, error], algorithm string) error {
	for e, err := range entries {
		if err != nil {
			return err
		}
		if e.Type != manifest.File {
			continue
		}
		digest := map[string]string{"sha256": e.Digests.SHA256, "sha384": e.Digests.SHA384, "sha512": e.Digests.SHA512}[algorithm]
		if digest == "" {
			return fmt.Errorf("%.200q: the manifest has no digest %.20q of it", e.Path, algorithm)
		}
		a.add("/"+e.Path, digest)
	}
	return nil
}

// ReadRuntimePolicy reads a runtime policy of Keylime, as [Compile] does. lost says what it
// has that an Allowlist has not.
func ReadRuntimePolicy(text []byte) (a *Allowlist, lost []string, err error) {
	a = &Allowlist{}
	buffers := 0
	p, err := parseKeylime(text, func(k kind, sum []byte, path string) error {
		if k&bufferKind != 0 {
			buffers++
			return nil
		}
		a.add(path, hex.EncodeToString(sum))
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("runtime policy: %w", err)
	}
	for _, re := range p.excludes {
		a.Excludes = append(a.Excludes, strings.TrimSuffix(strings.TrimPrefix(re.String(), `\A(?:`), ")"))
	}
	for _, part := range []struct {
		n    int
		name string
	}{{buffers, "digests in keyrings and ima-buf"}, {len(p.keys), "verification-keys"}, {len(p.ignored), "ignored_keyrings"}} {
		if part.n > 0 {
			lost = append(lost, fmt.Sprintf("%d %s", part.n, part.name))
		}
	}
	return a, lost, nil
}

// ReadSums reads lines as sha1sum, sha256sum, sha384sum and sha512sum write them. Paths are taken as
// from the root, with or without "/" or "./" before them.
func ReadSums(text []byte) (*Allowlist, error) {
	if len(text) > maxPolicy {
		return nil, fmt.Errorf("%d bytes: at most %d are read", len(text), maxPolicy)
	}
	a := &Allowlist{}
	n := 0
	for line := range bytes.Lines(text) {
		n++
		path, digest, err := sumLine(string(bytes.TrimSuffix(line, []byte("\n"))))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		a.add(path, digest)
	}
	if n == 0 {
		return nil, errors.New("it is empty")
	}
	return a, nil
}

var sumEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`)

// sumLine reads "HEX  PATH" or "HEX *PATH". A line with escapes has a backslash before it.
func sumLine(line string) (path, digest string, err error) {
	rest, escaped := strings.CutPrefix(line, `\`)
	digest, path, ok := strings.Cut(rest, " ")
	_, err = hex.DecodeString(digest)
	known := slices.ContainsFunc(digestAlgos, func(h ima.HashAlgo) bool { return h != ima.MD5 && 2*h.Size() == len(digest) })
	if !ok || len(path) < 2 || path[0] != ' ' && path[0] != '*' || err != nil || !known || digest != strings.ToLower(digest) {
		return "", "", fmt.Errorf("%.100q is not a SHA-1 or SHA-2 digest in lower-case hexadecimal, two spaces and a path", line)
	}
	path = path[1:]
	if escaped {
		if path, err = unescape(path); err != nil {
			return "", "", err
		}
	}
	path = "/" + strings.TrimPrefix(strings.TrimPrefix(path, "./"), "/")
	for part := range strings.SplitSeq(path[1:], "/") {
		if part == "" || part == "." || part == ".." {
			return "", "", fmt.Errorf("path %.200q has the component %q", path, part)
		}
	}
	if len(path) > maxPath || strings.IndexByte(path, 0) >= 0 {
		return "", "", fmt.Errorf("path has %d bytes, or a NUL", len(path))
	}
	return path, digest, nil
}

func unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++
		c, ok := map[byte]byte{'\\': '\\', 'n': '\n', 'r': '\r'}[(s + "\x00")[i]]
		if !ok {
			return "", fmt.Errorf("path %.200q has an unknown escape", s)
		}
		b.WriteByte(c)
	}
	return b.String(), nil
}

// WriteSums writes a in the order of paths, as sha256sum writes it and checks it from the root.
func (a *Allowlist) WriteSums(w io.Writer) error {
	b := bufio.NewWriter(w)
	for _, path := range slices.Sorted(maps.Keys(a.Digests)) {
		escaped := sumEscapes.Replace(path)
		mark := ""
		if escaped != path {
			mark = `\`
		}
		for _, digest := range a.Digests[path] {
			fmt.Fprintf(b, "%s%s  %s\n", mark, digest, escaped)
		}
	}
	return b.Flush()
}

// WriteRuntimePolicy writes a as a runtime policy of Keylime. Its verifier compares paths as
// they stand in measurement lists, so they are written like that: spaces are underscores.
// A zero time is left out.
//
// Keylime's verifier looks at no measurement list for a policy whose generator is 0 or 1
// (RUNTIME_POLICY_GENERATOR of keylime/ima/ima.py, expects_ima_log of its tpm_engine.py); 3 is
// what keylime-policy writes.
func (a *Allowlist) WriteRuntimePolicy(w io.Writer, created time.Time) error {
	digests := map[string][]string{}
	for path, sums := range a.Digests {
		if !utf8.ValidString(path) {
			return fmt.Errorf("path %.200q is not UTF-8, and a runtime policy cannot hold it", path)
		}
		listed := ima.ListPath(path)
		all := slices.Concat(digests[listed], sums)
		slices.Sort(all)
		digests[listed] = slices.Compact(all)
	}
	meta := map[string]any{"version": 1, "generator": 3}
	if !created.IsZero() {
		meta["timestamp"] = created.UTC().Format("2006-01-02 15:04:05+00:00")
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	return e.Encode(map[string]any{"meta": meta, "release": 0, "digests": digests, "excludes": append([]string{}, a.Excludes...),
		"keyrings": map[string]any{}, "ima": map[string]any{"ignored_keyrings": []string{}, "log_hash_alg": "sha1", "dm_policy": nil},
		"ima-buf": map[string]any{}, "verification-keys": ""})
}
