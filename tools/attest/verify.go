package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

// verifyFlags are the flags of attest verify.
type verifyFlags struct {
	cas, certs []string
	manifest   string
	evm, all   bool
	target     string
	verity     verityFlags
	labels     string
	jobs       int
	progress   string
	json       bool
}

func newVerify() *cobra.Command {
	var o verifyFlags
	c := &cobra.Command{
		Use:   "verify ROOTFS {--ca FILE... | --cert FILE...}",
		Short: "Check every label of a root filesystem",
		Long: `verify checks the labels of every regular file below ROOTFS against its content,
owner, mode and attributes, and the manifest if there is one. Signatures count when
they are made by a certificate of --cert. With --ca each certificate must be one that a
kernel with that CA built in loads, and those in etc/keys of the tree count too.

Findings, one a line as "path: code: reason", make the exit code 4: unsigned, changed,
wrong-key, malformed, weak, too-new, evm-missing, evm-mismatch, unreadable,
other-mount; with a manifest also added, missing, differs. An expired certificate is a warning: the kernel
does not look at the date.`,
		Example: `  attest verify rootfs --ca root.crt --all
  attest verify rootfs --cert ima.crt --evm --manifest image.attest.json --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(c.Context(), args[0], c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringArrayVar(&o.cas, "ca", nil, "CA certificates, PEM or DER `FILE`; may be repeated")
	f.StringArrayVar(&o.certs, "cert", nil, "signing certificates, PEM or DER `FILE`; may be repeated")
	f.StringVar(&o.manifest, "manifest", "", "compare the tree with the manifest in `FILE`")
	f.BoolVar(&o.evm, "evm", false, "every labelled file must have an EVM signature")
	f.BoolVar(&o.all, "all", false, "every regular file must be signed; with --manifest, as the manifest says")
	f.StringVar(&o.target, "target", "", "`ARCH` of the kernel that checks EVM signatures (default: that of all ELF files in the tree, if they agree)")
	o.verity.addFlags(f)
	f.StringVar(&o.labels, "labels", rootfs.LabelsAuto, "read labels through `WAY`: auto, libc (pseudo) or direct")
	f.IntVar(&o.jobs, "jobs", 0, "check `N` files at once (default: one for each processor)")
	f.StringVar(&o.progress, "progress", "auto", "show progress as `KIND`: auto, bar, plain or none")
	f.BoolVar(&o.json, "json", false, "print one JSON document (schema attest.verify/v1)")
	c.MarkFlagsOneRequired("ca", "cert")
	completeTreeFlags(c)
	return c
}

// run does what the flags say.
func (o *verifyFlags) run(ctx context.Context, root string, stdout, stderr io.Writer) error {
	if err := checkJobs(o.jobs); err != nil {
		return err
	}
	if o.jobs == 0 {
		o.jobs = runtime.NumCPU()
	}
	if st, err := os.Stat(root); err == nil && st.Mode().IsRegular() {
		return fmt.Errorf("%s: %w", root, errIsImage)
	}
	labels, err := rootfs.OpenLabels(o.labels)
	if err != nil {
		return err
	}
	tree, err := rootfs.Open(root, labels)
	if err != nil {
		return err
	}
	defer tree.Close()
	out := &verifyOutput{stdout: stdout, warnings: []string{}}
	if o.json {
		out.doc = newDocument(stdout, "attest.verify/v1", "findings")
	}
	opts := rootfs.CheckOptions{EVM: o.evm, All: o.all, Jobs: o.jobs, Progress: new(rootfs.Progress), Find: out.find}
	if opts.Trust, err = o.trust(tree, out); err != nil {
		return err
	}
	opts.Layout = sync.OnceValues(func() (ima.Layout, error) { return findLayout(ctx, tree, o.target) })
	verity, err := o.verity.params(ima.SHA256)
	if err != nil {
		return err
	}
	opts.Verity = *verity
	if o.manifest != "" {
		m, err := manifest.Open(o.manifest, opts.Trust.Certificates())
		if errors.Is(err, manifest.ErrNotAuthentic) {
			return &exitError{exitNotAuthentic, err}
		}
		if err != nil {
			return err
		}
		defer m.Close()
		opts.Manifest = m
	}
	stop, err := showProgress(o.progress, "verifying", stderr, opts.Progress)
	if err != nil {
		return err
	}
	report, err := rootfs.Check(ctx, tree, opts)
	stop()
	return out.end(report, err, stderr)
}

// trust collects the certificates whose signatures count.
func (o *verifyFlags) trust(tree *rootfs.Tree, out *verifyOutput) (*rootfs.Trust, error) {
	cas, err := readAll(o.cas)
	if err != nil {
		return nil, err
	}
	certs, err := readAll(o.certs)
	if err != nil {
		return nil, err
	}
	if len(cas) > 0 {
		found, rejected, err := tree.Certificates(cas)
		if err != nil {
			return nil, err
		}
		certs = append(certs, found...)
		for _, path := range rejected {
			out.warn("the kernel would not load " + path)
		}
	}
	if len(certs) == 0 {
		return nil, errNoTrust
	}
	trust, err := rootfs.NewTrust(cas, certs)
	if errors.Is(err, rootfs.ErrUntrusted) {
		return nil, &exitError{exitNotAuthentic, err}
	}
	if err != nil {
		return nil, err
	}
	for _, c := range trust.Expired(time.Now()) {
		out.warn(fmt.Sprintf("certificate %q is valid from %s to %s only", c.Subject,
			c.NotBefore.Format(time.DateOnly), c.NotAfter.Format(time.DateOnly)))
	}
	for _, c := range trust.Certificates() {
		if name, ok := keys.DebugName(c.PublicKey); ok {
			out.warn(fmt.Sprintf("certificate %q is for a published key, %s: anybody can sign with it", c.Subject, name))
		}
	}
	return trust, nil
}

func readAll(files []string) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for _, file := range files {
		certs, err := keys.ReadCertificates(file)
		if err != nil {
			return nil, err
		}
		all = append(all, certs...)
	}
	return all, nil
}

// verifyOutput says what attest verify found.
type verifyOutput struct {
	stdout   io.Writer
	doc      *document // nil for text
	warnings []string
}

// jsonFinding is a [rootfs.Finding] in the document.
type jsonFinding struct {
	Code rootfs.Code `json:"code"`
	jsonPath
	Message string `json:"message"`
}

func (out *verifyOutput) warn(text string) { out.warnings = append(out.warnings, text) }

func (out *verifyOutput) find(f rootfs.Finding) {
	if out.doc != nil {
		out.doc.add(jsonFinding{f.Code, newJSONPath(f.Path), f.Message})
		return
	}
	fmt.Fprintf(out.stdout, "%s: %s: %s\n", showPath(f.Path), f.Code, showText(f.Message))
}

// verifySummary is the end of the document.
type verifySummary struct {
	Files    int64    `json:"files"`
	Signed   int64    `json:"signed"`
	Hashed   int64    `json:"hashed"`
	Unsigned int64    `json:"unsigned"`
	Findings int64    `json:"findings"`
	Bytes    int64    `json:"bytes"`
	Warnings []string `json:"warnings"`
	Good     bool     `json:"good"`
}

// end prints the summary, and returns the error that the program ends with.
func (out *verifyOutput) end(r *rootfs.CheckReport, err error, stderr io.Writer) error {
	for _, w := range out.warnings {
		fmt.Fprintf(stderr, "attest: warning: %s\n", showText(w))
	}
	if err == nil && r.Findings == 0 && r.Files == 0 {
		err = errEmpty
	}
	if err == nil && r.Findings == 0 && r.Signed+r.Hashed == 0 {
		err = &exitError{exitFindings, fmt.Errorf("none of %d files has a label: %w", r.Files, errFindings)}
	}
	if err == nil && r.Findings > 0 {
		err = &exitError{exitFindings, fmt.Errorf("%w: %d %s", errFindings, r.Findings, plural(r.Findings, "finding"))}
	}
	if out.doc != nil {
		s := verifySummary{r.Files, r.Signed, r.Hashed, r.Unsigned, r.Findings, r.Bytes, out.warnings, err == nil}
		return errors.Join(err, out.doc.end(s))
	}
	_, printed := fmt.Fprintf(out.stdout, "verified %d of %d files (hashed only %d, unlabelled %d), %d %s\n",
		r.Signed+r.Hashed, r.Files, r.Hashed, r.Unsigned, r.Findings, plural(r.Findings, "finding"))
	return errors.Join(err, printed)
}
