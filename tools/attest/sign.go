package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meta-attest/meta-attest/tools/internal/findexpr"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

// remoteJobs is how many signatures are asked for at once where each is a round trip.
const remoteJobs = 32

// signFlags are the flags of attest sign.
type signFlags struct {
	pairFlags
	key, cert       string
	evmKey, evmCert string
	hash            string
	config          string
	rules           []string
	findSigned      string
	findHashed      string
	evm             bool
	target          string
	verity          bool
	verityFlags     verityFlags
	labels, output  string
	manifest, name  string
	jobs            int
	dryRun, force   bool
	clearSkipped    bool
	progress        string
	json, verbose   bool
}

func newSign() *cobra.Command {
	var o signFlags
	c := &cobra.Command{
		Use:   "sign ROOTFS --key URI --cert FILE",
		Short: "Sign every file of a root filesystem",
		Long: `sign walks ROOTFS and writes a label into security.ima of every regular file:
a signature, or what the first matching rule says. It ends with "signed N of M";
anything but N = M is an error, with the name of each file that could not be
labelled or what ended the run. Signing again writes nothing that is right already.
Without --evm a security.evm that is there is removed: it could not be vouched for.

Rules come from --rule and from the file of --config (attest.toml):

    [[rule]]
    path = "/var/**"     # glob, anchored at the root of the image
    action = "skip"      # sign | hash | skip

Each of NAME.d/*.toml beside a NAME.toml is read too; the rules of later files stand
before those of earlier ones, and those of --rule before all.`,
		Example: `  attest sign rootfs --key ima.key --cert ima.crt
  attest sign rootfs --key ima.key --cert ima.crt --evm --target aarch64 --manifest image.attest.json
  attest sign rootfs --key 'pkcs11:token=build;object=ima' --cert ima.crt --rule skip:/var/**`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.check(c.Flags()); err != nil {
				return err
			}
			return o.run(c.Context(), args[0], c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	o.pairFlags.addFlags(f)
	f.StringVar(&o.key, "key", "", "sign with the private key at `URI`: a PEM file, pkcs11:..., hashivault://..., ...")
	f.StringVar(&o.cert, "cert", "", "certificate of the key, PEM or DER `FILE`")
	f.StringVar(&o.evmKey, "evm-key", "", "sign metadata with another key at `URI`")
	f.StringVar(&o.evmCert, "evm-cert", "", "certificate of --evm-key, PEM or DER `FILE`")
	f.StringVar(&o.hash, "hash", "sha256", "hash `ALGORITHM`: sha256, sha384 or sha512")
	f.StringVar(&o.config, "config", "", "read rules from `FILE`, and FILE's folder of drop-ins")
	f.StringArrayVar(&o.rules, "rule", nil, "`ACTION:PATH`, before the rules of --config; may be repeated")
	f.StringVar(&o.findSigned, "find-signed", "", "after all rules, sign only what 'find `EXPR`', run in ROOTFS, prints (IMA_EVM_ROOTFS_SIGNED of meta-integrity)")
	f.StringVar(&o.findHashed, "find-hashed", "", "after all rules, write a digest, no signature, for what 'find `EXPR`' prints (IMA_EVM_ROOTFS_HASHED)")
	f.BoolVar(&o.evm, "evm", false, "write an EVM portable signature into security.evm too")
	f.StringVar(&o.target, "target", "", "`ARCH` of the kernel that checks EVM signatures (default: that of all ELF files in the tree, if they agree)")
	f.BoolVar(&o.verity, "verity", false, "sign the fs-verity digest instead of the digest of the content; the device needs fs-verity on these files and digest_type=verity in its policy")
	o.verityFlags.addFlags(f)
	f.StringVar(&o.labels, "labels", rootfs.LabelsAuto, "write labels through `WAY`: auto, libc (pseudo), direct, or dump (a file for setfattr)")
	f.StringVar(&o.output, "output", "-", "`FILE` for --labels dump; restore it with: cd ROOTFS && setfattr -h --restore=FILE")
	f.StringVar(&o.manifest, "manifest", "", "write what the image holds, signed, to `FILE`")
	f.StringVar(&o.name, "name", "", "`NAME` of the image in the manifest")
	f.IntVar(&o.jobs, "jobs", 0, "hash and sign `N` files at once (default: one for each processor, 32 for a remote key)")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would be written, and write nothing")
	f.BoolVar(&o.force, "force", false, "write labels that are right already, too")
	f.BoolVar(&o.clearSkipped, "clear-skipped", false, "remove labels from files that a rule skips")
	f.StringVar(&o.progress, "progress", "auto", "show progress as `KIND`: auto, bar, plain or none")
	f.BoolVar(&o.json, "json", false, "print one JSON document (schema attest.sign/v1)")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print hard links and what is told of skipped files, too")
	c.MarkFlagRequired("key")
	c.MarkFlagRequired("cert")
	c.MarkFlagsRequiredTogether("evm-key", "evm-cert")
	completeTreeFlags(c, labelsDump)
	return c
}

// check refuses flags that would have no effect.
func (o *signFlags) check(f *pflag.FlagSet) error {
	for _, rule := range []struct {
		flag, needs string
		met         bool
	}{
		{"evm-key", "--evm", o.evm},
		{"verity-block-size", "--verity", o.verity},
		{"verity-salt", "--verity", o.verity},
		{"output", "--labels dump", o.labels == labelsDump},
		{"name", "--manifest", o.manifest != ""},
		{"clear-skipped", "--labels auto, libc or direct", o.labels != labelsDump},
		{"target", "--evm", o.evm},
	} {
		if f.Changed(rule.flag) && !rule.met {
			return fmt.Errorf("--%s has no effect without %s", rule.flag, rule.needs)
		}
	}
	if o.dryRun && (o.manifest != "" || o.labels == labelsDump) {
		return errors.New("--dry-run writes nothing: leave --manifest and --labels dump out")
	}
	return checkJobs(o.jobs)
}

// checkOutputs refuses results in the tree, and warns of owners that are not the image's.
func (o *signFlags) checkOutputs(tree *rootfs.Tree, stderr io.Writer) error {
	if err := refuseInside(tree, "--manifest", o.manifest); err != nil {
		return err
	}
	if o.labels == labelsDump {
		if err := refuseInside(tree, "--output", o.output); err != nil {
			return err
		}
		if os.Getuid() != 0 && (o.evm || o.manifest != "") {
			fmt.Fprintln(stderr, "attest: warning: owners are signed as this user sees them; if they are others in the image, run under pseudo")
		}
	}
	return nil
}

// run does what the flags say.
func (o *signFlags) run(ctx context.Context, root string, stdout, stderr io.Writer) (err error) {
	out := newSignOutput(o, stdout, stderr)
	opts := rootfs.SignOptions{Jobs: o.jobs, DryRun: o.dryRun, Force: o.force, ClearSkipped: o.clearSkipped,
		Progress: new(rootfs.Progress), Note: out.note}
	if opts.Rules, err = o.readRules(); err != nil {
		return err
	}
	tree, err := o.openTree(root)
	if err != nil {
		return err
	}
	defer tree.Close()
	closeKeys, err := o.openSigners(ctx, &opts, stderr)
	if err != nil {
		return err
	}
	defer closeKeys()
	if err := o.checkOutputs(tree, stderr); err != nil {
		return err
	}
	if o.evm {
		if opts.Layout, err = findLayout(ctx, tree, o.target); err != nil {
			return err
		}
		fmt.Fprintf(stderr, "attest: EVM signatures for a %v kernel\n", opts.Layout)
	}
	dump, err := o.openDump(stdout)
	if err != nil {
		return err
	}
	defer dump.abort()
	if dump != nil {
		opts.Dump = dump
	}
	if err := o.openManifest(tree, &opts); err != nil {
		return err
	}
	if opts.Manifest != nil {
		defer opts.Manifest.Abort() // does nothing after Commit
	}
	stop, err := showProgress(o.progress, "signing", stderr, opts.Progress)
	if err != nil {
		return err
	}
	report, err := rootfs.Sign(ctx, tree, opts)
	stop()
	if err == nil && report.Empty() {
		err = fmt.Errorf("%s: %w", root, errEmpty)
	}
	if err == nil && report.Complete() {
		err = errors.Join(o.commitManifest(&opts), dump.commit())
	}
	return out.end(report, err)
}

// openTree opens the root with the labels that the flags ask for.
func (o *signFlags) openTree(root string) (*rootfs.Tree, error) {
	kind := o.labels
	if kind == labelsDump {
		kind = rootfs.LabelsAuto
	}
	labels, err := rootfs.OpenLabels(kind)
	if err != nil {
		return nil, err
	}
	return rootfs.Open(root, labels)
}

// readRules joins the rules of the flags and of the file, and then of the expressions.
func (o *signFlags) readRules() (rootfs.Rules, error) {
	var rules rootfs.Rules
	for _, text := range o.rules {
		r, err := rootfs.ParseRule(text)
		if err != nil {
			return nil, fmt.Errorf("--rule: %w", err)
		}
		rules = append(rules, r)
	}
	if o.config != "" {
		more, err := rootfs.ReadRules(o.config)
		if err != nil {
			return nil, err
		}
		rules = append(rules, more...)
	}
	signed, err := findFlag("--find-signed", o.findSigned)
	if err != nil {
		return nil, err
	}
	hashed, err := findFlag("--find-hashed", o.findHashed)
	if err != nil {
		return nil, err
	}
	return append(rules, rootfs.FindRules(signed, hashed)...), nil
}

// findFlag parses the expression of a flag, nil if there is none.
func findFlag(flag, text string) (*findexpr.Expr, error) {
	if text == "" {
		return nil, nil
	}
	e, err := findexpr.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return e, nil
}

// openSigners opens the keys and tries them.
func (o *signFlags) openSigners(ctx context.Context, opts *rootfs.SignOptions, stderr io.Writer) (closeAll func(), err error) {
	hash, err := ima.ParseSigningHash(o.hash)
	if err != nil {
		return nil, err
	}
	if o.verity {
		if opts.Verity, err = o.verityFlags.params(hash); err != nil {
			return nil, err
		}
	}
	var opened []*keys.Key
	closeAll = func() {
		for _, k := range opened {
			k.Close()
		}
	}
	open := func(uri, cert string) (*rootfs.Signer, error) {
		key, c, err := o.openPair(ctx, uri, cert, stderr)
		if err != nil {
			return nil, err
		}
		opened = append(opened, key)
		if opts.Jobs == 0 && key.Remote {
			opts.Jobs = remoteJobs
		}
		s, err := rootfs.NewSigner(key, key.Deterministic && !key.Remote, c, hash)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", key.URI, err)
		}
		return s, nil
	}
	opts.Signer, err = open(o.key, o.cert)
	if err == nil && o.evm {
		opts.EVM = opts.Signer
		if o.evmKey != "" {
			opts.EVM, err = open(o.evmKey, o.evmCert)
		}
	}
	if opts.Jobs == 0 {
		opts.Jobs = runtime.NumCPU()
	}
	if err != nil {
		closeAll()
		return nil, err
	}
	return closeAll, nil
}

// openManifest starts the manifest, which replaces an older one when it is complete.
func (o *signFlags) openManifest(tree *rootfs.Tree, opts *rootfs.SignOptions) error {
	if o.manifest == "" || o.dryRun {
		return nil
	}
	created, err := sourceDate()
	if err != nil {
		return err
	}
	if opts.Packages, err = tree.ReadPackages(); err != nil {
		return fmt.Errorf("read the package lists of the tree: %w", err)
	}
	opts.Manifest, err = manifest.Create(o.manifest, manifest.Header{
		Name: o.name, Created: created, Target: o.targetName(opts), Generator: "attest " + version(),
	})
	return err
}

// targetName is the target as the manifest tells it; nothing where nothing depends on it.
func (o *signFlags) targetName(opts *rootfs.SignOptions) string {
	if o.evm && o.target == "" {
		return opts.Layout.String()
	}
	return o.target
}

func (o *signFlags) commitManifest(opts *rootfs.SignOptions) error {
	if opts.Manifest == nil {
		return nil
	}
	return opts.Signer.Commit(opts.Manifest)
}

// sourceDate is the time that a reproducible build gives its results: the zero time when
// SOURCE_DATE_EPOCH is not set (reproducible-builds.org/specs/source-date-epoch).
func sourceDate() (time.Time, error) {
	text, ok := os.LookupEnv("SOURCE_DATE_EPOCH")
	if !ok || text == "" {
		return time.Time{}, nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH=%q is not a number of seconds", text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}
