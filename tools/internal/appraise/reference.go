package appraise

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
)

// imaPCR is where IMA measures files unless the rules say otherwise, the default of
// CONFIG_IMA_MEASURE_PCR_IDX.
const imaPCR = 10

// Release is one state of the software that is allowed.
type Release struct {
	Name string // in verdicts, at most 256 bytes
	// Files are the entries of manifests: of the root file system, of an initramfs.
	Files     []iter.Seq2[manifest.Entry, error]
	Keylime   []byte // runtime policy of Keylime, JSON version 1; nil: none
	TPMPolicy []byte // tpm_policy of Keylime, JSON; nil: none
	MBPolicy  []byte // reference state of Keylime's measured boot policy "example", JSON; nil: none
}

// Reference is what devices are compared with. It never changes, and may be used by many
// goroutines at once.
type Reference struct {
	digest   [sha256.Size]byte
	rules    Rules
	bank     ima.HashAlgo
	names    []string // of the releases, sorted
	all      mask
	table    *table
	required [][]byte // as a list has the paths

	patterns []pattern // Keylime's excludes
	signed   []signed
	any      map[string]mask // names of buffers
	anyKey   map[string]mask // names of keyrings of Keylime's policies; "*" is any
	pins     []pin
	boots    []boot // in the order of the releases
	warnings []string
}

// boot is how a release has to be booted.
type boot struct {
	release int
	state   *refstate
}

type pattern struct {
	regexp   *regexp.Regexp
	releases mask
}

// pin says what values a PCR may have, by bank.
type pin struct {
	index    int
	values   map[ima.HashAlgo][]string
	releases mask
}

// Compile makes a Reference. The order of the releases is of no importance. Errors name the
// rule, or the release and the place in its policy.
func Compile(rules Rules, releases ...Release) (*Reference, error) {
	releases = slices.SortedFunc(slices.Values(releases), func(a, b Release) int { return cmp.Compare(a.Name, b.Name) })
	if len(releases) > maxReleases {
		return nil, fmt.Errorf("compile policy: %d releases: at most %d may be allowed at once", len(releases), maxReleases)
	}
	if err := rules.check(); err != nil {
		return nil, fmt.Errorf("compile policy: %w", err)
	}
	c := &compiler{
		Reference: &Reference{rules: rules, any: map[string]mask{}, anyKey: map[string]mask{}},
		files:     &tableBuilder{packages: map[string]uint32{}},
		identity:  sha256.New(),
	}
	for i, r := range releases {
		if r.Name == "" || len(r.Name) > 256 || i > 0 && r.Name == releases[i-1].Name {
			return nil, fmt.Errorf("compile policy: release %.256q has no name, or another has the same", r.Name)
		}
		c.names = append(c.names, r.Name)
		c.all |= 1 << i
	}
	c.write(struct {
		Schema   string
		Rules    Rules
		Releases []string
	}{"attest.reference/v1", rules, c.names})
	for i, r := range releases {
		if err := c.release(i, r); err != nil {
			return nil, fmt.Errorf("compile policy: release %s: %w", r.Name, err)
		}
	}
	if err := c.finish(); err != nil {
		return nil, fmt.Errorf("compile policy: %w", err)
	}
	return c.Reference, nil
}

// Digest is the address of r by its content: the same rules and releases have the same.
func (r *Reference) Digest() [sha256.Size]byte { return r.digest }

// Releases are the names, sorted.
func (r *Reference) Releases() []string { return slices.Clone(r.names) }

// Warnings say what the rules allow that a person should look at.
func (r *Reference) Warnings() []string { return slices.Clone(r.warnings) }

// Size is about the memory in bytes that r holds.
func (r *Reference) Size() int { return r.table.size() }

// Firmware says whether a quote of each boot has to come with the firmware's log.
func (r *Reference) Firmware() bool { return r.rules.Firmware.SecureBoot || len(r.boots) > 0 }

// Terms are what evidence is held against beside the [Reference.Selection].
func (r *Reference) Terms() evidence.Terms {
	t, err := r.rules.terms()
	if err != nil {
		return evidence.Terms{} // the strictest; Compile has read them, so this cannot be
	}
	return t
}

// Selection is the PCRs that have to be quoted, given the names of the banks that the
// device has; without any, those that are needed whatever it has.
func (r *Reference) Selection(available ...string) evidence.Selection {
	s := evidence.Selection{}
	want := func(bank string, pcr int) {
		if !slices.Contains(s[bank], pcr) {
			s[bank] = append(s[bank], pcr)
		}
	}
	for pcr := range imaPCR + 1 {
		want(r.bank.String(), pcr)
	}
	for _, pcr := range r.rules.imaPCRs() {
		want(r.bank.String(), pcr)
	}
	if r.rules.WeakDigests && r.bank != ima.SHA1 && slices.Contains(available, "sha1") {
		s["sha1"] = []int{0, 1, 2, 3, 4, 5, 6, 7} // for a boot_aggregate of that kind
	}
	if len(r.boots) > 0 {
		s[r.bank.String()] = append(s[r.bank.String()], mokPCR)
	}
	for _, p := range r.pins {
		for hash := range p.values {
			want(hash.String(), p.index)
			if hash.Weak() {
				want(r.bank.String(), p.index) // alone it would prove nothing
			}
		}
	}
	for _, pcrs := range s {
		slices.Sort(pcrs)
	}
	return s
}

// compiler is a Reference in the making.
type compiler struct {
	*Reference
	files    *tableBuilder
	identity interface{ Write([]byte) (int, error) }
}

// write makes v a part of the identity.
func (c *compiler) write(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only structures of this package are written
	}
	c.hash(b)
}

func (c *compiler) hash(b []byte) {
	c.identity.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(b))))
	c.identity.Write(b)
}

func (c *compiler) release(i int, r Release) error {
	before := len(c.files.offsets)
	for _, files := range r.Files {
		for e, err := range files {
			if err == nil {
				err = c.file(i, &e)
			}
			if err != nil {
				return err
			}
		}
	}
	keys := 0
	if r.Keylime != nil {
		p, err := parseKeylime(r.Keylime, func(k kind, sum []byte, path string) error { return c.files.add(i, k, sum, path, "") })
		if err != nil {
			return fmt.Errorf("runtime policy: %w", err)
		}
		keys = len(p.keys)
		c.keylime(i, p)
	}
	if len(c.files.offsets) == before && keys == 0 {
		return errors.New("it has no digest of any file, so that nothing could fit it")
	}
	if r.MBPolicy != nil {
		state, err := parseRefstate(r.MBPolicy)
		if err != nil {
			return err
		}
		c.boots = append(c.boots, boot{i, state})
		sum := sha256.Sum256(r.MBPolicy)
		c.write(hex.EncodeToString(sum[:]))
	}
	if r.TPMPolicy != nil {
		pins, err := parseTPMPolicy(r.TPMPolicy)
		if err != nil {
			return err
		}
		for _, p := range pins {
			if err := c.pin(p, 1<<i); err != nil {
				return fmt.Errorf("tpm_policy: %w", err)
			}
		}
	}
	return nil
}

func (c *compiler) file(release int, e *manifest.Entry) error {
	if e.Type != manifest.File {
		return nil
	}
	path := "/" + ima.ListPath(e.Path)
	add := func(k kind, digits string) error {
		if digits == "" {
			return nil
		}
		sum, err := hex.DecodeString(digits)
		if err == nil {
			err = c.files.add(release, k, sum, path, e.Package)
		}
		if err != nil {
			return fmt.Errorf("%.200q: %w", e.Path, err)
		}
		return nil
	}
	algo, verity, _ := strings.Cut(e.Verity, ":")
	k := kind(ima.SHA256)
	if algo == "sha512" {
		k = kind(ima.SHA512)
	}
	return errors.Join(add(kind(ima.SHA256), e.Digests.SHA256), add(kind(ima.SHA384), e.Digests.SHA384),
		add(kind(ima.SHA512), e.Digests.SHA512), add(k|verityKind, verity))
}

func (c *compiler) keylime(i int, p *keylimePolicy) {
	id := struct {
		Excludes, Ignored []string
		Keys              []string
	}{Ignored: p.ignored}
	for _, re := range p.excludes {
		c.patterns = append(c.patterns, pattern{re, 1 << i})
		id.Excludes = append(id.Excludes, re.String())
	}
	for _, name := range p.ignored {
		c.anyKey[ima.ListPath(name)] |= 1 << i
	}
	for _, k := range p.keys {
		id.Keys = append(id.Keys, k.String())
	}
	if len(p.keys) > 0 {
		c.signed = append(c.signed, signed{releases: 1 << i, signers: p.keys})
	}
	c.write(id)
}

// finish compiles the rules, now that the releases are known.
func (c *compiler) finish() (err error) {
	if c.bank, err = c.rules.bank(); err != nil {
		return err
	}
	for i, s := range c.rules.Signatures {
		signers, err := readSigners(s.Certificates)
		if err != nil {
			return fmt.Errorf("signature %d: %w", i+1, err)
		}
		c.signed = append(c.signed, signed{path: s.Path, releases: c.all, signers: signers})
	}
	for i, b := range c.rules.Buffers {
		if err := c.buffer(b); err != nil {
			return fmt.Errorf("buffer %d (%s): %w", i+1, b.Name, err)
		}
	}
	for i, p := range c.rules.PCRs {
		releases, err := c.named(p.Release)
		if err == nil {
			err = c.pin(p, releases)
		}
		if err != nil {
			return fmt.Errorf("pcr %d: %w", i+1, err)
		}
	}
	if c.table, err = c.files.build(); err != nil {
		return err
	}
	for _, path := range c.rules.Required {
		c.required = append(c.required, []byte(ima.ListPath(path)))
	}
	c.identify()
	return c.lint()
}

// identify makes the digest of everything.
func (c *compiler) identify() {
	for _, p := range c.pins {
		id := struct {
			Index    int
			Values   []string
			Releases mask
		}{p.index, nil, p.releases}
		for _, hash := range slices.Sorted(maps.Keys(p.values)) {
			id.Values = append(id.Values, slices.Sorted(slices.Values(p.values[hash]))...)
		}
		c.write(id)
	}
	for _, offset := range c.table.byPath {
		r := c.table.at(offset)
		c.hash(binary.LittleEndian.AppendUint64([]byte{byte(r.kind)}, uint64(r.mask)))
		c.hash(r.sum)
		c.hash(r.path)
		c.hash([]byte(r.pkg))
	}
	copy(c.digest[:], c.identity.(interface{ Sum([]byte) []byte }).Sum(nil))
}

func (c *compiler) lint() error {
	c.warnings = c.rules.lint()
	if len(c.pins) == 0 && !c.rules.Firmware.SecureBoot {
		c.warnings = append(c.warnings, "no [[pcr]] and no firmware.secure_boot: nothing says which kernel was booted, and another one can make up any list")
	}
	for _, p := range c.patterns {
		for _, path := range []string{"/usr/bin/a", "/usr/lib/a", "/bin/a", "/sbin/a", "/lib/a", "/tmp/a", "/tmpa", "/home/user/a", "/run/a"} {
			if p.regexp.MatchString(path) {
				c.warnings = append(c.warnings, fmt.Sprintf("exclude %s: a program %s is not judged", p.regexp, path))
			}
		}
	}
	for _, path := range c.required {
		var found mask
		for r := range c.table.withPath(path) {
			found |= r.mask
		}
		if missing := c.all &^ found; missing != 0 {
			return fmt.Errorf("required %s is not in release %s, so that nothing could fit it", path, c.first(missing))
		}
	}
	return nil
}

// named is the release of a rule: "" is all.
func (c *compiler) named(name string) (mask, error) {
	if name == "" {
		return c.all, nil
	}
	i, ok := slices.BinarySearch(c.names, name)
	if !ok {
		return 0, fmt.Errorf("release %.256q is not one of the allowed ones", name)
	}
	return 1 << i, nil
}

func (c *compiler) pin(rule PCRRule, releases mask) error {
	p := pin{rule.Index, map[ima.HashAlgo][]string{}, releases}
	for _, other := range c.pins {
		if other.index == p.index && other.releases == p.releases {
			return fmt.Errorf("PCR %d is pinned twice: write all its values into one rule", p.index)
		}
	}
	for _, v := range rule.Values {
		hash, sum, err := parseDigest(v)
		if err != nil {
			return fmt.Errorf("PCR %d: %w", rule.Index, err)
		}
		if hash.Weak() && !c.rules.WeakDigests || hash == ima.MD5 {
			return fmt.Errorf("PCR %d: bank %v is weak: weak_digests = true takes SHA-1", rule.Index, hash)
		}
		p.values[hash] = append(p.values[hash], string(sum))
	}
	c.pins = append(c.pins, p)
	return nil
}

func (c *compiler) buffer(b BufferRule) error {
	releases, err := c.named(b.Release)
	if err != nil {
		return err
	}
	name := ima.ListPath(b.Name)
	if b.Any {
		c.any[name] |= releases
	}
	add := func(k kind, sum []byte) error {
		for i := range c.names {
			if !releases.has(i) {
				continue
			}
			if err := c.files.add(i, k|bufferKind, sum, name, ""); err != nil {
				return err
			}
		}
		return nil
	}
	for _, d := range b.Digests {
		hash, sum, err := parseDigest(d)
		if err == nil {
			err = add(kind(hash), sum)
		}
		if err != nil {
			return err
		}
	}
	for _, text := range b.Certificates {
		cert, err := parseCertificate(text)
		if err != nil {
			return err
		}
		for _, hash := range digestAlgos {
			h := hash.Hash().New()
			h.Write(cert.Raw)
			if err := add(kind(hash), h.Sum(nil)); err != nil {
				return err
			}
		}
	}
	return nil
}

// first is the name of the first release of m, "" of none.
func (r *Reference) first(m mask) string {
	for i, name := range r.names {
		if m.has(i) {
			return name
		}
	}
	return ""
}

// list is the names of all releases of m.
func (r *Reference) list(m mask) (names []string) {
	for i, name := range r.names {
		if m.has(i) {
			names = append(names, name)
		}
	}
	return names
}
