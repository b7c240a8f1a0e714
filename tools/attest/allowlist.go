package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
	"github.com/meta-attest/meta-attest/tools/internal/release"
)

// Forms of lists.
const (
	formatKeylime = "keylime"
	formatSums    = "sums"

	maxAllowlist = 512 << 20
)

var (
	errAllowlistsDiffer = errors.New("the lists differ")
	errLossy            = errors.New("the other form cannot hold all of it")
)

func newAllowlist() *cobra.Command {
	c := &cobra.Command{
		Use:   "allowlist",
		Short: "Turn manifests into the lists of other programs",
		Long: `Our own verifier takes manifests as they are. For others there are two forms:

  keylime   runtime policy of Keylime, JSON version 1
  sums      lines as sha256sum writes and checks them`,
		Example: `  attest allowlist create image.attest.json --cert ima.crt > policy.json
  attest allowlist diff old.json new.json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newAllowlistCreate(), newAllowlistConvert(), newAllowlistDiff())
	return c
}

// allowlistFlags are the flags of attest allowlist create and convert.
type allowlistFlags struct {
	releaseFlags
	format, hash, output string
	excludes             []string
	lossy                bool
}

func (o *allowlistFlags) addFlags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.format, "format", formatKeylime, "write `FORM`: keylime or sums")
	f.StringArrayVar(&o.excludes, "exclude", nil, "keylime: do not judge paths that begin like the regular expression `RE`; may be repeated")
	f.StringVar(&o.output, "output", "-", "write to `FILE`, which must not exist")
	_ = c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{formatKeylime, formatSums}, cobra.ShellCompDirectiveNoFileComp))
}

func (o *allowlistFlags) addTrust(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&o.certs, "cert", nil, "certificate whose manifests count, PEM or DER `FILE`; may be repeated")
	f.StringArrayVar(&o.cas, "ca", nil, "each --cert has to be signed by a CA of `FILE`; may be repeated")
	f.StringVar(&o.hash, "hash", "sha256", "take digests of `ALGORITHM`: sha256, sha384 or sha512")
}

func newAllowlistCreate() *cobra.Command {
	var o allowlistFlags
	c := &cobra.Command{
		Use:   "create MANIFEST... --cert FILE",
		Short: "Make a list of the files of manifests",
		Long: `create writes the files of manifests as a runtime policy of Keylime, or as sha256sum does.

Keylime's verifier judges boot_aggregate, too, which no manifest has: it computes the digest
where the device has a measured boot policy; for others give --exclude 'boot_aggregate$'.
attest-verifier computes it always.`,
		Example: `  attest allowlist create image.attest.json --cert ima.crt --exclude '/var/log/' --output policy.json
  attest allowlist create image.attest.json --cert ima.crt --format sums | (cd rootfs && sed 's,  /,  ./,' | sha256sum --check)`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			all := &appraise.Allowlist{}
			for _, path := range args {
				if err := o.addManifest(all, path); err != nil {
					return err
				}
			}
			return o.write(all, c.OutOrStdout())
		},
	}
	o.addFlags(c)
	o.addTrust(c)
	return c
}

// addManifest adds the manifest in a file.
func (o *allowlistFlags) addManifest(to *appraise.Allowlist, path string) error {
	trusted, err := o.trusted()
	if err != nil {
		return err
	}
	if len(trusted) == 0 {
		return fmt.Errorf("%s: %w", path, release.ErrNoCertificates)
	}
	m, err := manifest.Open(path, trusted)
	if errors.Is(err, manifest.ErrNotAuthentic) {
		return &exitError{exitNotAuthentic, err}
	}
	if err != nil {
		return err
	}
	defer m.Close()
	if err := to.AddManifest(iter.Seq2[manifest.Entry, error](m.Entries()), o.hash); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (o *allowlistFlags) write(a *appraise.Allowlist, stdout io.Writer) error {
	for _, re := range o.excludes {
		if _, err := regexp.Compile(re); err != nil {
			return fmt.Errorf("--exclude %q: %w", re, err)
		}
	}
	var text bytes.Buffer
	switch o.format {
	case formatKeylime:
		a.Excludes = append(a.Excludes, o.excludes...)
		created, err := sourceDate()
		if err != nil {
			return err
		}
		if err := a.WriteRuntimePolicy(&text, created); err != nil {
			return err
		}
		if _, _, err := appraise.ReadRuntimePolicy(text.Bytes()); err != nil {
			return err // such as an exclude that leaves nothing to be judged
		}
	case formatSums:
		if len(o.excludes) > 0 {
			return fmt.Errorf("--exclude: %w", errLossy)
		}
		if err := a.WriteSums(&text); err != nil {
			return err
		}
	default:
		return fmt.Errorf("--format %q is neither %s nor %s", o.format, formatKeylime, formatSums)
	}
	return writeFile(o.output, text.Bytes(), stdout)
}

func newAllowlistConvert() *cobra.Command {
	var o allowlistFlags
	c := &cobra.Command{
		Use:   "convert FILE",
		Short: "Turn a list of one form into the other",
		Long: `convert reads a runtime policy of Keylime or lines of sha256sum; which of them it finds out
itself. What the other form cannot hold, such as excludes and keys, is an error unless
--lossy says to leave it out.`,
		Example: `  find . -type f -exec sha256sum {} + > sums; attest allowlist convert sums > policy.json
  attest allowlist convert policy.json --format sums`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			a, lost, err := o.read(args[0])
			if err != nil {
				return err
			}
			if o.format == formatSums && len(a.Excludes) > 0 {
				lost = append(lost, fmt.Sprintf("%d excludes", len(a.Excludes)))
			}
			if len(lost) > 0 && !o.lossy {
				return fmt.Errorf("%s: %w: %s", args[0], errLossy, strings.Join(lost, ", "))
			}
			for _, what := range lost {
				fmt.Fprintf(c.ErrOrStderr(), "attest: warning: left out: %s\n", what)
			}
			return o.write(a, c.OutOrStdout())
		},
	}
	o.addFlags(c)
	c.Flags().BoolVar(&o.lossy, "lossy", false, "leave out what the other form cannot hold")
	return c
}

// read reads a list of any form; lost is what an allowlist has no place for.
func (o *allowlistFlags) read(path string) (a *appraise.Allowlist, lost []string, err error) {
	text, err := readBounded(path, maxAllowlist)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(text, []byte(`{"payloadType"`)):
		a = &appraise.Allowlist{}
		return a, nil, o.addManifest(a, path)
	case bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")):
		a, lost, err = appraise.ReadRuntimePolicy(text)
	default:
		a, err = appraise.ReadSums(text)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return a, lost, nil
}

func newAllowlistDiff() *cobra.Command {
	var o allowlistFlags
	var asJSON bool
	c := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Say what files two lists have differently",
		Long: `diff takes manifests, runtime policies of Keylime and lines of sha256sum, and prints a line
for each path that one of them has alone (added, removed) or with other digests (changed).
The exit code is then 4. Keys and excludes are not compared.`,
		Example: `  attest allowlist diff v1.attest.json v2.attest.json --cert ima.crt
  attest allowlist diff policy.json sums --json`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			before, _, err := o.read(args[0])
			if err != nil {
				return err
			}
			after, _, err := o.read(args[1])
			if err != nil {
				return err
			}
			return printAllowlistDiff(c.OutOrStdout(), before, after, asJSON)
		},
	}
	o.addTrust(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.allowlist.diff/v1)")
	return c
}

// allowlistChange is a path that two lists have differently.
type allowlistChange struct {
	jsonPath
	Kind string   `json:"kind"` // added, removed, changed
	Old  []string `json:"old,omitempty"`
	New  []string `json:"new,omitempty"`
}

func printAllowlistDiff(w io.Writer, before, after *appraise.Allowlist, asJSON bool) error {
	all := maps.Clone(before.Digests)
	maps.Copy(all, after.Digests)
	changes := []allowlistChange{}
	for _, path := range slices.Sorted(maps.Keys(all)) {
		old, now := before.Digests[path], after.Digests[path]
		kind := "changed"
		switch {
		case slices.Equal(old, now):
			continue
		case old == nil:
			kind = "added"
		case now == nil:
			kind = "removed"
		}
		changes = append(changes, allowlistChange{newJSONPath(path), kind, old, now})
		if !asJSON {
			fmt.Fprintf(w, "%s: %s\n", showPath(path), kind)
		}
	}
	var err error
	if asJSON {
		err = json.NewEncoder(w).Encode(map[string]any{"schema": "attest.allowlist.diff/v1", "changes": changes, "files": len(all)})
	} else {
		_, err = fmt.Fprintf(w, "%d of %d %s differ\n", len(changes), len(all), plural(int64(len(all)), "file"))
	}
	if err == nil && len(changes) > 0 {
		err = &exitError{exitFindings, errAllowlistsDiffer}
	}
	return err
}
