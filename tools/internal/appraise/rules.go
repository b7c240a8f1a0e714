package appraise

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/meta-attest/meta-attest/tools/internal/config"
	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// Rules are what an operator says about all releases, or with a "release" about one. The
// zero Rules are the strictest:
//
//	weak_digests = true               # MD5 and SHA-1 digests of files count, a SHA-1 boot_aggregate too;
//	                                  # bank = "sha1" and padding need it
//	kexec = true                      # boot_aggregate may come again
//	bank = "sha256"                   # the bank of PCRs to ask for; sha256 is the default
//	ima_pcrs = [10]                   # the PCRs that IMA measures into: CONFIG_IMA_MEASURE_PCR_IDX, and pcr= of its policy
//	padding = "before-5.8"            # Linux before 5.8 extends SHA-1 filled up with zeros into every bank; "no-hash":
//	                                  # later ones do that in a bank whose hash they were built without
//	violations = "warn"               # instead of "fail"
//	required = ["/usr/sbin/init"]     # unverified until they were measured
//	relocated = ["/sysroot/**"]       # a file that a release has at another path counts here too
//
//	[[exclude]]                       # counts for nothing; globs as in attest.toml
//	path = "/var/lib/app/**"
//
//	[[violation]]                     # a weakness: no PCR proves the path of a violation
//	path = "/var/log/**"
//	action = "warn"
//
//	[[signature]]                     # what is signed so counts without being listed
//	path = "/opt/apps/**"
//	certificates = ["""-----BEGIN CERTIFICATE----- ..."""]
//
//	[[buffer]]                        # what was measured that is no file: keys, kexec-cmdline, dm_table_load ...
//	name = ".ima"
//	certificates = ["""..."""]        # keys of a keyring
//	digests = ["sha256:..."]
//	any = false                       # whatever it is
//	release = ""                      # all
//
//	[[pcr]]                           # one of the values, in each bank that values are of
//	index = 7
//	values = ["sha256:..."]
//	release = ""
//
//	[firmware]
//	secure_boot = true                # the firmware's log proves that Secure Boot was on
type Rules struct {
	WeakDigests bool            `toml:"weak_digests" json:"weak_digests"`
	Kexec       bool            `toml:"kexec" json:"kexec"`
	Bank        string          `toml:"bank" json:"bank"`
	IMAPCRs     []int           `toml:"ima_pcrs" json:"ima_pcrs,omitempty"`
	Padding     string          `toml:"padding" json:"padding,omitempty"`
	Violations  Action          `toml:"violations" json:"violations"`
	Required    []string        `toml:"required" json:"required"`
	Relocated   []Glob          `toml:"relocated" json:"relocated"`
	Excludes    []Exclude       `toml:"exclude" json:"exclude"`
	Violation   []ViolationRule `toml:"violation" json:"violation"`
	Signatures  []SignatureRule `toml:"signature" json:"signature"`
	Buffers     []BufferRule    `toml:"buffer" json:"buffer"`
	PCRs        []PCRRule       `toml:"pcr" json:"pcr"`
	Firmware    FirmwareRule    `toml:"firmware" json:"firmware"`
}

// Exclude takes files out of the judgement. They are counted and shown.
type Exclude struct {
	Path Glob `toml:"path" json:"path"`
}

// ViolationRule says what a violation of a path does; the first that matches decides.
type ViolationRule struct {
	Path   Glob   `toml:"path" json:"path"`
	Action Action `toml:"action" json:"action"`
}

// SignatureRule says whose signatures of content count for which files.
type SignatureRule struct {
	Path         Glob     `toml:"path" json:"path"`
	Certificates []string `toml:"certificates" json:"certificates"` // PEM
}

// BufferRule allows measurements of what is no file, by the name of the event: of a keyring
// for its keys.
type BufferRule struct {
	Name         string   `toml:"name" json:"name"`
	Certificates []string `toml:"certificates" json:"certificates"` // PEM
	Digests      []string `toml:"digests" json:"digests"`
	Any          bool     `toml:"any" json:"any"`
	Release      string   `toml:"release" json:"release"`
}

// PCRRule names the values that a PCR may have.
type PCRRule struct {
	Index   int      `toml:"index" json:"index"`
	Values  []string `toml:"values" json:"values"`
	Release string   `toml:"release" json:"release"`
}

// FirmwareRule is about the firmware's event log.
type FirmwareRule struct {
	SecureBoot bool `toml:"secure_boot" json:"secure_boot"`
}

// Action is what a violation does. The zero Action fails.
type Action string

// Actions of a rule.
const (
	Fail Action = "fail"
	Warn Action = "warn"
)

// UnmarshalText reads the name of an action.
func (a *Action) UnmarshalText(text []byte) error {
	switch v := Action(text); v {
	case Fail, Warn:
		*a = v
		return nil
	}
	return fmt.Errorf("action %.20q is unknown: use fail or warn", text)
}

// Glob is a pattern anchored at the root: * and ? stop at a slash, ** does not, and a
// folder's own name does not select what is in it: "/var/**" does. Spaces are underscores,
// as in a measurement list.
type Glob string

// UnmarshalText reads a pattern.
func (g *Glob) UnmarshalText(text []byte) error {
	pattern := ima.ListPath(string(text))
	if !strings.HasPrefix(pattern, "/") {
		return fmt.Errorf("path %.200q must start with a slash: it is anchored at the root", text)
	}
	if pattern == "/" || len(pattern) > maxPath || !doublestar.ValidatePattern(pattern) {
		return fmt.Errorf("path %.200q is not a valid pattern", text)
	}
	if strings.HasSuffix(pattern, "/**") {
		pattern += "/*" // for doublestar a/** is also a itself
	}
	*g = Glob(pattern)
	return nil
}

// String is the pattern as a person wrote it.
func (g Glob) String() string {
	if strings.HasSuffix(string(g), "/**/*") {
		return strings.TrimSuffix(string(g), "/*")
	}
	return string(g)
}

// matches is false for a path that is not in the form that Linux gives to all.
func (g Glob) matches(path string) bool {
	return doublestar.MatchUnvalidated(string(g), path) && !strings.Contains(path, "//") &&
		!strings.Contains(path+"/", "/../") && !strings.Contains(path+"/", "/./")
}

func matchAny(globs []Glob, path []byte) bool {
	return len(globs) > 0 && slices.ContainsFunc(globs, func(g Glob) bool { return g.matches(string(path)) })
}

// Ceilings of policies.
const (
	maxPath  = 4096
	maxRules = 4096 // of each sort
	maxPCR   = 23

	firstIMAPCR, lastIMAPCR = 8, 15 // the operating system's, which only a boot resets
)

// ParseRules reads the TOML document text, which came from the file name. An error says
// where, and an unknown key is one.
func ParseRules(name, text string) (Rules, error) {
	var r Rules
	if err := config.Decode(name, text, &r); err != nil {
		return Rules{}, err
	}
	if err := r.check(); err != nil {
		return Rules{}, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

// check looks at what the types do not say. Digests and certificates are read by [Compile].
func (r *Rules) check() error {
	for _, n := range []int{len(r.Relocated), len(r.Excludes), len(r.Violation), len(r.Signatures), len(r.Buffers), len(r.PCRs)} {
		if n > maxRules {
			return fmt.Errorf("%d rules of one sort: at most %d are read", n, maxRules)
		}
	}
	if len(r.Required) > maxReleases {
		return fmt.Errorf("%d required files: at most %d are read", len(r.Required), maxReleases)
	}
	if _, err := r.terms(); err != nil {
		return err
	}
	for _, path := range r.Required {
		if !strings.HasPrefix(path, "/") || len(path) > maxPath {
			return fmt.Errorf("required %.200q must start with a slash", path)
		}
	}
	for i, x := range r.Excludes {
		if x.Path == "" {
			return fmt.Errorf("exclude %d has no path", i+1)
		}
		if x.Path.matches("/sbin/init") && x.Path.matches("/usr/lib/systemd/systemd") {
			return fmt.Errorf("exclude %s leaves nothing to be judged", x.Path)
		}
	}
	for i, v := range r.Violation {
		if v.Path == "" || v.Action == "" {
			return fmt.Errorf("violation %d needs both path and action", i+1)
		}
	}
	for i, s := range r.Signatures {
		if s.Path == "" || len(s.Certificates) == 0 {
			return fmt.Errorf("signature %d needs both path and certificates", i+1)
		}
	}
	for i, b := range r.Buffers {
		if err := b.check(); err != nil {
			return fmt.Errorf("buffer %d: %w", i+1, err)
		}
	}
	for _, p := range r.PCRs {
		if p.Index < 0 || p.Index > maxPCR || slices.Contains(r.imaPCRs(), p.Index) || len(p.Values) == 0 {
			return fmt.Errorf("pcr %d: an index of 0 to %d other than IMA's %v is wanted, and values", p.Index, maxPCR, r.imaPCRs())
		}
	}
	return nil
}

func (b *BufferRule) check() error {
	switch {
	case b.Name == "" || len(b.Name) > maxPath || strings.HasPrefix(b.Name, "/"):
		return fmt.Errorf("name %.40q is not that of an event, such as .ima or kexec-cmdline", b.Name)
	case b.Any == (len(b.Digests)+len(b.Certificates) > 0):
		return errors.New("either any = true is wanted, or digests or certificates")
	}
	return nil
}

// bank is the bank of PCRs that has to be quoted.
func (r *Rules) bank() (ima.HashAlgo, error) {
	switch r.Bank {
	case "", "sha256":
		return ima.SHA256, nil
	case "sha384":
		return ima.SHA384, nil
	case "sha512":
		return ima.SHA512, nil
	case "sha1":
		if r.WeakDigests {
			return ima.SHA1, nil
		}
		return 0, errors.New("bank sha1 is weak: weak_digests = true takes it")
	}
	return 0, fmt.Errorf("bank %.20q is unknown: use sha256, sha384 or sha512", r.Bank)
}

func (r *Rules) imaPCRs() []int {
	if len(r.IMAPCRs) == 0 {
		return []int{imaPCR}
	}
	return r.IMAPCRs
}

// terms are what the rules say about the PCRs that IMA measures into.
func (r *Rules) terms() (evidence.Terms, error) {
	bank, err := r.bank()
	if err != nil {
		return evidence.Terms{}, err
	}
	t := evidence.Terms{SHA1Bank: bank == ima.SHA1, IMAPCRs: r.IMAPCRs}
	for i, pcr := range r.IMAPCRs {
		if pcr < firstIMAPCR || pcr > lastIMAPCR || slices.Contains(r.IMAPCRs[:i], pcr) {
			return t, fmt.Errorf("ima_pcrs %v: each of %d to %d once is wanted: others are the firmware's, or can be reset", r.IMAPCRs, firstIMAPCR, lastIMAPCR)
		}
	}
	switch r.Padding {
	case "":
	case "before-5.8":
		t.Padding = ima.PaddedOld
	case "no-hash":
		t.Padding = ima.PaddedUnknown
	default:
		return t, fmt.Errorf("padding %.20q is unknown: use before-5.8 or no-hash", r.Padding)
	}
	if t.Padding != ima.Unpadded && !r.WeakDigests {
		return t, errors.New("padding makes a bank as weak as SHA-1: weak_digests = true takes it")
	}
	return t, nil
}

// digestAlgos are those whose digests a policy may hold.
var digestAlgos = []ima.HashAlgo{ima.MD5, ima.SHA1, ima.SHA256, ima.SHA384, ima.SHA512}

// parseDigest reads "sha256:hex".
func parseDigest(s string) (ima.HashAlgo, []byte, error) {
	name, digits, _ := strings.Cut(s, ":")
	for _, a := range digestAlgos {
		if name != a.String() {
			continue
		}
		sum, err := hex.DecodeString(digits)
		if err != nil || len(sum) != a.Size() {
			return 0, nil, fmt.Errorf("digest %.140q is not %d hexadecimal digits", s, 2*a.Size())
		}
		return a, sum, nil
	}
	return 0, nil, fmt.Errorf("digest %.140q has not the form sha256:HEX, sha384:HEX or sha512:HEX", s)
}

// parseCertificate reads one certificate in PEM.
func parseCertificate(text string) (*x509.Certificate, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" || strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("not one certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	return cert, nil
}

// lint names what is legal and dangerous.
func (r *Rules) lint() (warnings []string) {
	for _, x := range r.Excludes {
		for _, dir := range []string{"/bin", "/sbin", "/lib", "/lib64", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/libexec", "/usr/local/bin", "/opt/app", "/etc", "/boot"} {
			if x.Path.matches(dir + "/a") {
				warnings = append(warnings, fmt.Sprintf("exclude %s: what runs from %s is not judged", x.Path, dir))
			}
		}
		for _, dir := range []string{"/tmp", "/var/tmp", "/var/lib/app", "/home/user", "/root", "/run", "/dev/shm", "/mnt", "/media"} {
			if x.Path.matches(dir + "/a") {
				warnings = append(warnings, fmt.Sprintf("exclude %s: whoever may write to %s runs programs unseen", x.Path, dir))
			}
		}
	}
	for _, v := range r.Violation {
		if v.Action == Warn {
			warnings = append(warnings, fmt.Sprintf("violation %s: no PCR proves the path of a violation, so that any may claim this one", v.Path))
		}
	}
	if r.Violations == Warn {
		warnings = append(warnings, "violations = \"warn\": files that change while they are measured are not judged")
	}
	if r.WeakDigests {
		warnings = append(warnings, "weak_digests = true: two files can be made that have the same digest")
	}
	if r.Bank == "sha1" || r.Padding != "" {
		warnings = append(warnings, "bank = \"sha1\" or padding: two measurement lists can be made that lead to the same PCR")
	}
	for _, b := range r.Buffers {
		if b.Any && strings.HasPrefix(b.Name, ".") {
			warnings = append(warnings, fmt.Sprintf("buffer %s: any key may be added to the keyring, and sign files", b.Name))
		}
	}
	return warnings
}
