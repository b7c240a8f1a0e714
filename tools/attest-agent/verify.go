package main

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

// usualMounts are where a running system has filesystems of the kernel or of this boot, and
// the id that systemd makes for it where the image has an empty one (machine-id(5)).
var usualMounts = []string{"dev", "etc/machine-id", "proc", "run", "sys", "tmp", "var/volatile"}

// verifyFlags are the flags of attest-agent verify.
type verifyFlags struct {
	root          string
	certs         []string
	mounts, skip  []string
	evm, all      bool
	json          bool
	manifest, cas string
}

func (o *verifyFlags) add(fs *flag.FlagSet) {
	list := func(to *[]string, name, help string) {
		fs.Func(name, help, func(s string) error { *to = append(*to, s); return nil })
	}
	fs.StringVar(&o.root, "root", "/", "check the system below `DIR`")
	list(&o.certs, "cert", "signatures by the certificate in `FILE` count; may be repeated (default: those of /etc/keys)")
	list(&o.mounts, "mount", "check the labels of what is mounted at `DIR` too; may be repeated")
	list(&o.skip, "except", "something else may be mounted at `DIR`; may be repeated (always: /"+strings.Join(usualMounts, " /")+")")
	fs.BoolVar(&o.evm, "evm", false, "every labelled file must have an EVM signature")
	fs.BoolVar(&o.all, "all", false, "every regular file must be signed; with a manifest, as the manifest says")
	fs.BoolVar(&o.json, "json", false, "print one JSON document (schema attest.verify/v1)")
}

func runVerify(ctx context.Context, in *invocation) error {
	fs := newFlags("verify", `Checks every file of the running system against its label, and against the manifest of the image
where there is one, without a network. It finds what attest verify finds, and other-mount where
something is mounted over the system: the exit code is then 4.

It asks the system about itself: who has taken over the kernel can make it lie, and only a verifier
that the TPM's quotes go to would notice.`)
	cf := addConfigFlags(fs)
	var o verifyFlags
	o.add(fs.FlagSet)
	if err := fs.parse(in); err != nil {
		return err
	}
	c, err := cf.load(os.Environ())
	if err != nil {
		return err
	}
	o.manifest, o.cas = c.get("manifest"), c.get("manifest_ca")
	v := &verification{verifyFlags: o, in: in, warnings: []string{}}
	return v.run(ctx)
}

// verification is verify at work.
type verification struct {
	verifyFlags
	in       *invocation
	doc      *json.Encoder // nil for text
	base     string        // of the tree that is being checked, in the root
	total    rootfs.CheckReport
	warnings []string
	hidden   map[string]bool // regular files of the manifest below what may be mounted over
	own      string          // the manifest itself, where it lies in the tree
	failed   error           // of writing
}

func (v *verification) warn(format string, args ...any) {
	v.warnings = append(v.warnings, printable(fmt.Sprintf(format, args...), maxShown))
}

func (v *verification) run(ctx context.Context) error {
	for i := range v.skip {
		v.skip[i] = strings.Trim(path.Clean("/"+v.skip[i]), "/")
	}
	for i := range v.mounts {
		v.mounts[i] = strings.Trim(path.Clean("/"+v.mounts[i]), "/")
	}
	v.skip = slices.Concat(usualMounts, v.skip, v.mounts)
	if v.json {
		v.doc = json.NewEncoder(v.in.stdout)
		fmt.Fprint(v.in.stdout, `{"schema":"attest.verify/v1","findings":[`)
	}
	err := v.checkAll(ctx)
	return v.end(errors.Join(err, v.failed))
}

func (v *verification) checkAll(ctx context.Context) error {
	tree, err := rootfs.Open(v.root, rootfs.Direct{})
	if err != nil {
		return err
	}
	defer tree.Close()
	o := rootfs.CheckOptions{EVM: v.evm, All: v.all, Jobs: runtime.NumCPU(), Progress: new(rootfs.Progress), Find: v.find}
	if o.Trust, err = v.trust(tree); err != nil {
		return err
	}
	o.Layout = sync.OnceValues(kernelLayout)
	o.Verity = ima.VerityParams{Hash: ima.SHA256, BlockSize: 4096}
	if v.manifest != "" {
		m, err := manifest.Open(v.manifest, o.Trust.Certificates())
		if errors.Is(err, manifest.ErrNotAuthentic) {
			return &exitCode{exitNotAuthentic, err}
		}
		if err != nil {
			return err
		}
		defer m.Close()
		if err := v.findHidden(m); err != nil {
			return err
		}
		o.Manifest = m
		if own, err := filepath.Rel(v.root, v.manifest); err == nil {
			v.own = own
		}
	}
	if err := v.check(ctx, tree, o); err != nil {
		return err
	}
	o.Manifest = nil
	for _, dir := range v.mounts {
		if err := v.checkMount(ctx, dir, o); err != nil {
			return err
		}
	}
	return nil
}

func (v *verification) checkMount(ctx context.Context, dir string, o rootfs.CheckOptions) error {
	tree, err := rootfs.Open(path.Join(v.root, dir), rootfs.Direct{})
	if err != nil {
		return err
	}
	defer tree.Close()
	v.base = dir
	return v.check(ctx, tree, o)
}

func (v *verification) check(ctx context.Context, tree *rootfs.Tree, o rootfs.CheckOptions) error {
	r, err := rootfs.Check(ctx, tree, o)
	v.total.Files += r.Files
	v.total.Signed += r.Signed
	v.total.Hashed += r.Hashed
	v.total.Unsigned += r.Unsigned
	v.total.Bytes += r.Bytes
	return err
}

// findHidden collects the files of the manifest that a mount may hide, if there is anything
// in them.
func (v *verification) findHidden(m *manifest.Manifest) error {
	v.hidden = map[string]bool{}
	for e, err := range m.Entries() {
		if err != nil {
			return err
		}
		if e.Type == manifest.File && e.Size > 0 && v.below(e.Path) {
			v.hidden[e.Path] = true
		}
	}
	return nil
}

// below says whether something may be mounted at name or above it.
func (v *verification) below(name string) bool {
	return slices.ContainsFunc(v.skip, func(dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") })
}

// find takes a finding, unless it is about a mount that a running system is expected to
// have. A file of the manifest that such a mount hides stays a finding.
func (v *verification) find(f rootfs.Finding) {
	if v.base == "" && v.below(f.Path) && (f.Code == rootfs.CodeOtherMount || f.Code == rootfs.CodeMissing && !v.hidden[f.Path]) {
		return
	}
	if v.base == "" && f.Code == rootfs.CodeAdded && f.Path == v.own {
		return // it lists all but itself, and was verified
	}
	f.Path = path.Join(v.base, f.Path)
	if v.doc == nil {
		_, err := fmt.Fprintf(v.in.stdout, "%s: %s: %s\n", printable(f.Path, 4096), f.Code, printable(f.Message, maxShown))
		v.failed = errors.Join(v.failed, err)
	} else {
		if v.total.Findings > 0 {
			fmt.Fprint(v.in.stdout, ",")
		}
		j := jsonFinding{Code: f.Code, Path: f.Path, Message: f.Message}
		if !utf8.ValidString(f.Path) {
			j.Path, j.Base64 = "", base64.StdEncoding.EncodeToString([]byte(f.Path))
		}
		v.failed = errors.Join(v.failed, v.doc.Encode(j))
	}
	v.total.Findings++
}

// jsonFinding is a finding as attest verify --json has it.
type jsonFinding struct {
	Code    rootfs.Code `json:"code"`
	Path    string      `json:"path,omitempty"`
	Base64  string      `json:"path_base64,omitempty"` // instead of Path, when that is not UTF-8
	Message string      `json:"message"`
}

// verifySummary is the end of the document, as attest verify has it.
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

var errFindings = errors.New("the system is not what was signed")

// end prints the summary and returns the error that the program ends with.
func (v *verification) end(err error) error {
	r := v.total
	switch {
	case err != nil:
	case r.Findings > 0:
		err = &exitCode{exitFindings, fmt.Errorf("%w: %d findings", errFindings, r.Findings)}
	case r.Signed+r.Hashed == 0:
		err = &exitCode{exitFindings, fmt.Errorf("%w: none of %d files has a label", errFindings, r.Files)}
	}
	for _, w := range v.warnings {
		fmt.Fprintf(v.in.stderr, "attest-agent: warning: %s\n", w)
	}
	if v.doc != nil {
		fmt.Fprint(v.in.stdout, `],"summary":`)
		s := verifySummary{r.Files, r.Signed, r.Hashed, r.Unsigned, r.Findings, r.Bytes, v.warnings, err == nil}
		err = errors.Join(err, v.doc.Encode(s))
		_, printed := fmt.Fprintln(v.in.stdout, "}")
		return errors.Join(err, printed)
	}
	if err != nil && r.Files == 0 {
		return err // nothing was looked at, and nothing is to look as if it had been
	}
	_, printed := fmt.Fprintf(v.in.stdout, "verified %d of %d files (hashed only %d, unlabelled %d), %d findings\n",
		r.Signed+r.Hashed, r.Files, r.Hashed, r.Unsigned, r.Findings)
	return errors.Join(err, printed)
}

var errNoTrust = errors.New("no certificate to check signatures with")

// trust collects the certificates whose signatures count: those given, and those that a
// kernel with the CAs built in would load from /etc/keys.
func (v *verification) trust(tree *rootfs.Tree) (*rootfs.Trust, error) {
	var cas, certs []*x509.Certificate
	var err error
	if v.cas != "" {
		if cas, err = readCertificates(v.cas); err != nil {
			return nil, err
		}
	}
	for _, file := range v.certs {
		more, err := readCertificates(file)
		if err != nil {
			return nil, err
		}
		certs = append(certs, more...)
	}
	if len(v.certs) == 0 || v.cas != "" {
		found, rejected, err := tree.Certificates(cas)
		if err != nil {
			return nil, err
		}
		for _, r := range rejected {
			v.warn("the kernel would not load %s", r)
		}
		if v.cas == "" && len(found) > 0 {
			v.warn("the certificates of /etc/keys are taken without asking who signed them: set manifest_ca")
		}
		certs = append(certs, found...)
	}
	if len(certs) == 0 {
		return nil, errNoTrust
	}
	trust, err := rootfs.NewTrust(cas, certs)
	if errors.Is(err, rootfs.ErrUntrusted) {
		return nil, &exitCode{exitNotAuthentic, err}
	}
	return trust, err
}

// readCertificates reads PEM or DER.
func readCertificates(file string) ([]*x509.Certificate, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCA))
	if err != nil {
		return nil, err
	}
	var der []byte
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			der = append(der, block.Bytes...)
		}
	}
	if der == nil {
		der = text
	}
	certs, err := x509.ParseCertificates(der)
	if err == nil && len(certs) == 0 {
		err = errors.New("no certificate in it")
	}
	if err != nil {
		return nil, fmt.Errorf("read certificates: %s: %w", file, err)
	}
	return certs, nil
}

// kernelLayout is that of the kernel that runs, which need not be that of its programs.
func kernelLayout() (ima.Layout, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ima.Layout{}, err
	}
	return ima.ParseTarget(unix.ByteSliceToString(u.Machine[:]))
}
