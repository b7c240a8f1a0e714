package rootfs

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
)

// Code names a kind of finding.
type Code string

// Codes of findings.
const (
	CodeUnsigned    Code = "unsigned"     // no security.ima, or a digest that nobody signed
	CodeChanged     Code = "changed"      // the content is not what the label is for
	CodeWrongKey    Code = "wrong-key"    // signed, but not by a trusted certificate
	CodeMalformed   Code = "malformed"    // not a label that a kernel could read
	CodeTooNew      Code = "too-new"      // right, but only to kernels newer than 6.12
	CodeWeak        Code = "weak"         // right, but by a hash or key that is broken
	CodeEVMMissing  Code = "evm-missing"  // no security.evm
	CodeEVMMismatch Code = "evm-mismatch" // owner, mode or an attribute is not what was signed
	CodeUnreadable  Code = "unreadable"   // could not be checked
	CodeOtherMount  Code = "other-mount"  // something else is mounted there
	CodeAdded       Code = "added"        // not in the manifest
	CodeMissing     Code = "missing"      // in the manifest only
	CodeDiffers     Code = "differs"      // not what the manifest says
)

// Finding is something wrong with one file.
type Finding struct {
	Code    Code
	Path    string
	Message string
}

// CheckOptions say how [Check] checks a tree.
type CheckOptions struct {
	Trust    *Trust
	EVM      bool                       // every labelled file must have a security.evm
	Layout   func() (ima.Layout, error) // of the kernel that security.evm is for; asked when there is one
	Verity   ima.VerityParams           // block size and salt of fs-verity digests; the label names the hash
	All      bool                       // files that nobody signed are findings; a manifest says itself which have no signature
	Manifest *manifest.Manifest         // every name of the tree must be as it says; may be nil
	Jobs     int
	Progress *Progress
	Find     func(Finding) // called in the order of the walk
}

// CheckReport counts files, each inode once.
type CheckReport struct {
	Files    int64 // regular files
	Signed   int64 // with a signature that verifies
	Hashed   int64 // with a digest that is right
	Unsigned int64 // without a label
	Findings int64
	Bytes    int64
}

// checked is what the work on one file came to.
type checked struct {
	report   CheckReport
	findings []Finding
	contents
}

// Check checks every label of the tree.
func Check(ctx context.Context, t *Tree, o CheckOptions) (*CheckReport, error) {
	c := &checking{tree: t, CheckOptions: o, report: &CheckReport{}, links: linked{}}
	files, bytes, err := t.survey(ctx, func(File) (label, read bool) { return true, true })
	if err != nil {
		return c.report, err
	}
	o.Progress.TotalFiles.Store(files)
	o.Progress.TotalBytes.Store(bytes)
	if o.Manifest != nil {
		if err := c.compare(o.Manifest); err != nil {
			return c.report, err
		}
	}
	newWork := func() func(context.Context, File) checked {
		w := &checker{c, reader{t, make([]byte, bufSize), o.Progress}, map[ima.HashAlgo]hash.Hash{}}
		return w.check
	}
	err = process(ctx, t, o.Jobs, names{}.first, newWork, c.emit)
	if err == nil && c.differ != nil {
		err = c.differ.Finish()
	}
	c.report.Bytes = o.Progress.Bytes.Load()
	if err == nil && c.report.Files != files {
		err = fmt.Errorf("%s: %w: %d files, then %d", t.root, errChanged, files, c.report.Files)
	}
	return c.report, err
}

// compare sets up the comparison with a manifest.
func (c *checking) compare(m *manifest.Manifest) (err error) {
	for _, name := range m.Algorithms {
		a, err := ima.ParseSigningHash(name)
		if err != nil {
			return err
		}
		c.digests = append(c.digests, a)
	}
	c.differ, err = m.Diff(func(f manifest.Finding) error {
		switch f.Kind {
		case manifest.Added:
			if f.Path == lostFound && c.lostFound {
				break
			}
			c.find(Finding{CodeAdded, f.Path, "not in the manifest"})
		case manifest.Missing:
			c.find(Finding{CodeMissing, f.Path, "in the manifest only"})
		default:
			var texts []string
			for _, d := range f.Differences {
				texts = append(texts, d.String())
			}
			c.find(Finding{CodeDiffers, f.Path, "from the manifest: " + strings.Join(texts, "; ")})
		}
		return nil
	})
	return err
}

// lostFound is the folder that mke2fs adds to what an image is made of. What is in it is
// another matter.
const lostFound = "lost+found"

// checking is the state of one call of [Check].
type checking struct {
	CheckOptions
	tree    *Tree
	report  *CheckReport
	differ  *manifest.Differ
	digests []ima.HashAlgo // that the manifest has of files

	lostFound bool // the tree has a folder of that name
	links     linked
}

// emit takes the result of one name, in the order of the walk.
func (c *checking) emit(f File, r checked, err error) error {
	if err != nil {
		code := CodeUnreadable
		if errors.Is(err, errOtherMount) {
			code = CodeOtherMount
		}
		c.find(Finding{code, f.Path, err.Error()})
		return nil
	}
	c.report.Files += r.report.Files
	c.report.Signed += r.report.Signed
	c.report.Hashed += r.report.Hashed
	c.report.Unsigned += r.report.Unsigned
	for _, finding := range r.findings {
		c.find(finding)
	}
	if c.differ == nil {
		return nil
	}
	if f.Regular() && f.Nlink > 1 {
		r.contents = c.links.contents(f, r.contents)
	}
	e, err := c.tree.entry(f, r.contents)
	if err != nil {
		return err
	}
	c.lostFound = c.lostFound || f.Path == lostFound && f.Dir()
	return c.differ.Add(e)
}

func (c *checking) find(f Finding) {
	c.report.Findings++
	if c.Find != nil {
		c.Find(f)
	}
}

// checker checks files; each goroutine has its own.
type checker struct {
	*checking
	reader
	hashes map[ima.HashAlgo]hash.Hash
}

// check does the work on one file.
func (w *checker) check(ctx context.Context, f File) checked {
	r := checked{report: CheckReport{Files: 1}}
	defer w.Progress.Files.Add(1)
	file, err := w.open(f)
	if err == nil {
		defer file.Close()
		err = w.labels(ctx, file, f, &r)
	}
	if err != nil && ctx.Err() == nil {
		r.find(CodeUnreadable, f, err.Error())
	}
	return r
}

func (r *checked) find(code Code, f File, message string) {
	r.findings = append(r.findings, Finding{code, f.Path, message})
}

// labels checks security.ima and security.evm of one file.
func (w *checker) labels(ctx context.Context, file *os.File, f File, r *checked) error {
	in, evm, err := w.tree.inode(file, f)
	if err != nil {
		return err
	}
	value := in.Xattrs[ima.XattrIMA]
	var x *ima.Xattr
	var malformed error
	if value != nil {
		x, malformed = ima.ParseIMA(value)
	}
	r.ima, r.evm, r.capability = value, evm, in.Xattrs[ima.XattrCapability]
	want := w.digests
	if x != nil && x.Type != ima.VeritySignature && x.Hash.Hash() != 0 && !slices.Contains(want, x.Hash) {
		want = append(want[:len(want):len(want)], x.Hash)
	}
	verity, err := w.hash(ctx, file, f, x, want, r)
	if err != nil {
		return err
	}
	switch {
	case value == nil:
		r.report.Unsigned++
		if w.All && w.Manifest == nil {
			r.find(CodeUnsigned, f, "no security.ima")
		}
	case malformed != nil:
		r.find(CodeMalformed, f, "security.ima: "+malformed.Error())
	default:
		if x.Type == ima.VeritySignature {
			r.verity = x.Hash.String() + ":" + hex.EncodeToString(verity)
		}
		w.content(x, f, verity, r)
	}
	signed, err := w.metadata(in, evm, f, r)
	if err != nil {
		return err
	}
	if w.All && w.Manifest == nil && x != nil && !x.IsSignature() && !signed {
		r.find(CodeUnsigned, f, "security.ima is a digest, which anybody can write, and no security.evm covers it")
	}
	return nil
}

// hash reads the file once, for the digests wanted and the fs-verity digest that x signs.
func (w *checker) hash(ctx context.Context, file *os.File, f File, x *ima.Xattr, want []ima.HashAlgo, r *checked) (verity []byte, err error) {
	var to []io.Writer
	for _, a := range want {
		h := w.hashes[a]
		if h == nil {
			h, _ = a.New() // callers ask for no other
			w.hashes[a] = h
		}
		h.Reset()
		to = append(to, h)
	}
	var v *ima.Verity
	if x != nil && x.Type == ima.VeritySignature {
		p := w.Verity
		p.Hash = x.Hash
		if v, err = ima.NewVerity(p); err != nil {
			return nil, err
		}
		to = append(to, v)
	}
	if len(to) == 0 {
		return nil, nil
	}
	if err := w.read(ctx, file, f, to...); err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	r.digests = map[ima.HashAlgo][]byte{}
	for _, a := range want {
		r.digests[a] = w.hashes[a].Sum(nil)
	}
	if v != nil {
		verity = v.Digest()
	}
	return verity, nil
}

// content checks security.ima against the content.
func (w *checker) content(x *ima.Xattr, f File, verity []byte, r *checked) {
	digest := r.digests[x.Hash]
	if x.Type == ima.VeritySignature {
		digest = verity
	}
	switch {
	case digest == nil:
		r.find(CodeUnreadable, f, fmt.Sprintf("cannot compute %v", x.Hash))
	case !x.IsSignature():
		if !bytes.Equal(x.Digest, digest) {
			r.find(CodeChanged, f, fmt.Sprintf("content has %v %x, security.ima says %x", x.Hash, digest, x.Digest))
			return
		}
		r.report.Hashed++
		if weak := x.Weakness(nil); weak != "" {
			r.find(CodeWeak, f, weak)
		}
	default:
		if w.signature(ima.XattrIMA, CodeChanged, "content is not what was signed, or the signature is damaged", x, digest, f, r) {
			r.report.Signed++
		}
	}
}

// metadata checks security.evm against owner, mode and attributes.
func (w *checker) metadata(in ima.Inode, evm []byte, f File, r *checked) (signed bool, err error) {
	switch {
	case evm == nil && w.EVM && (w.All && w.Manifest == nil || in.Xattrs[ima.XattrIMA] != nil):
		r.find(CodeEVMMissing, f, "no security.evm")
		return false, nil
	case evm == nil:
		return false, nil
	}
	x, err := ima.ParseEVM(evm)
	if err != nil {
		r.find(CodeMalformed, f, "security.evm: "+err.Error())
		return false, nil
	}
	if x.Type != ima.PortableSignature {
		r.find(CodeMalformed, f, fmt.Sprintf("security.evm: type %d is bound to one kernel or inode and cannot be checked here", x.Type))
		return false, nil
	}
	layout, err := w.Layout()
	if err != nil {
		return false, err
	}
	digest, err := ima.EVMDigest(x.Hash, layout, in)
	if err != nil {
		r.find(CodeEVMMismatch, f, err.Error())
		return false, nil
	}
	return w.signature(ima.XattrEVM, CodeEVMMismatch, fmt.Sprintf("owner %d:%d, mode %06o or an attribute is not what was signed for a %v kernel",
		in.UID, in.GID, in.Mode, layout), x, digest, f, r), nil
}

// signature verifies one signature and words the finding.
func (w *checker) signature(name string, mismatch Code, text string, x *ima.Xattr, digest []byte, f File, r *checked) bool {
	cert, err := w.Trust.verify(x, digest)
	switch {
	case errors.Is(err, errWrongKey):
		r.find(CodeWrongKey, f, fmt.Sprintf("%s: key id %s: %v", name, keyID(x.KeyID), err))
	case errors.Is(err, ima.ErrMismatch):
		r.find(mismatch, f, fmt.Sprintf("%s: %s", name, text))
	case err != nil:
		r.find(CodeMalformed, f, fmt.Sprintf("%s: %v", name, err))
	default:
		if weak := x.Weakness(cert.PublicKey); weak != "" {
			r.find(CodeWeak, f, name+": "+weak)
		}
		if x.Version != ima.Version(x.Type) {
			r.find(CodeTooNew, f, fmt.Sprintf("%s: signature version %d, which Linux 6.12 refuses", name, x.Version))
		}
		return true
	}
	return false
}
