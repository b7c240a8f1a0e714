package rootfs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
)

// SignOptions say how [Sign] labels a tree.
type SignOptions struct {
	Signer *Signer // of file content
	EVM    *Signer // of metadata; nil for no EVM signatures
	Layout ima.Layout
	// Verity makes signatures stand for the fs-verity digest with these parameters
	// instead of the digest of the content.
	Verity *ima.VerityParams
	Rules  Rules

	Manifest     *manifest.Writer // may be nil
	Packages     Packages         // which package brought a file, for the manifest
	Dump         io.Writer        // takes the labels instead of the files, as the body of a label list, if not nil
	Jobs         int              // goroutines that hash and sign
	DryRun       bool             // find out what would be written, and write nothing
	Force        bool             // write labels that are there already
	ClearSkipped bool             // remove labels from files that a rule skips
	Progress     *Progress
	Note         func(Note) // called in the order of the walk
}

// Progress counts while a walk goes on; it may be read at any time.
type Progress struct {
	TotalFiles, TotalBytes atomic.Int64 // zero until they are known
	Files, Bytes           atomic.Int64
}

// NoteKind says what a [Note] is about.
type NoteKind string

// Kinds of note. Those that [NoteKind.Bad] names leave a file without its label.
const (
	NoteFailed     NoteKind = "failed"        // the file was not labelled, Message says why
	NoteOtherMount NoteKind = "other-mount"   // something else is mounted there
	NoteSkipped    NoteKind = "skipped-mount" // the same, where a rule skips what is below
	NoteLinks      NoteKind = "links"         // Other are further names of the file
	NoteOutside    NoteKind = "outside"       // further names of the file are not in the tree
	NoteStale      NoteKind = "stale"         // skipped, but it has a label
	NoteNoEVM      NoteKind = "no-evm"        // skipped: will be refused where EVM is on and the policy appraises it
	NoteUnusedRule NoteKind = "unused-rule"   // Path is the pattern of a rule
)

// Bad says whether a note of this kind means that the tree is not labelled as its rules demand.
func (k NoteKind) Bad() bool { return k == NoteFailed || k == NoteOtherMount }

// Note is something to tell about one file.
type Note struct {
	Kind    NoteKind
	Path    string
	Other   []string
	Message string
}

// SignReport counts files, each inode once.
type SignReport struct {
	Files     int64 // that the rules want labelled, counted by a walk of its own
	Signed    int64 // of those, that have the label that they should have; includes hashed ones
	Hashed    int64 // of those, that have a digest and no signature
	Unchanged int64 // of Signed: had it before
	Written   int64 // of Signed: got it now
	Skipped   int64 // by a rule
	Cleared   int64 // files from which a label was removed
	Links     int64 // further names of files
	Failed    int64 // notes that are bad
	Bytes     int64 // content read
}

// Complete says whether every file has the label that the rules demand.
func (r *SignReport) Complete() bool { return r.Failed == 0 && r.Signed == r.Files }

// Empty says whether there was no regular file at all, which is more often a mistake in
// the path than a root filesystem.
func (r *SignReport) Empty() bool { return r.Files+r.Skipped+r.Failed == 0 }

// labelled is what the work on one file came to.
type labelled struct {
	action     Action
	digests    digests
	ima, evm   []byte // what the attributes should hold
	capability []byte
	changed    bool // they held something else
	stale      bool // a skipped file had labels
	evmStale   bool // it has a security.evm that this run does not make
	cleared    bool // labels that should not be there were removed
	err        error
}

// Sign labels every regular file of t as the rules say. The returned error is of the run;
// errors of single files are notes. The report is valid in either case.
func Sign(ctx context.Context, t *Tree, o SignOptions) (*SignReport, error) {
	run := &signing{tree: t, SignOptions: o, report: &SignReport{}, links: map[inode]*links{}}
	unlock, err := t.lock()
	if err != nil {
		return run.report, err
	}
	defer unlock()
	if err := run.probe(); err != nil {
		return run.report, err
	}
	if err := run.survey(ctx); err != nil {
		return run.report, err
	}
	newWork := func() func(context.Context, File) labelled {
		h, err := newHasher(t, o.Progress, o.Signer.hash, o.Verity)
		return func(ctx context.Context, f File) labelled {
			if err != nil {
				return labelled{err: err}
			}
			return run.label(ctx, h, f)
		}
	}
	err = process(ctx, t, o.Jobs, names{}.first, newWork, run.emit)
	run.outside()
	run.report.Bytes = o.Progress.Bytes.Load()
	return run.report, err
}

// signing is the state of one call of [Sign].
type signing struct {
	SignOptions
	tree   *Tree
	report *SignReport
	links  map[inode]*links // files with several names, some of which are still to come
}

// survey counts what the rules select, before anything is done, and notes rules that
// select nothing, but for one that takes whatever is left: they are more often typing
// errors than wishes.
func (s *signing) survey(ctx context.Context) error {
	used := make([]bool, len(s.Rules))
	files, bytes, err := s.tree.survey(ctx, func(f File) (label, read bool) {
		rule := s.Rules.match(f.Path)
		if rule >= 0 {
			used[rule] = true
		}
		label = rule < 0 || s.Rules[rule].Action != ActionSkip
		return label, label || s.Manifest != nil
	})
	if err != nil {
		return err
	}
	s.report.Files = files
	s.Progress.TotalFiles.Store(files)
	s.Progress.TotalBytes.Store(bytes)
	for i, rule := range s.Rules {
		if !used[i] && rule.Path != everything {
			s.note(Note{Kind: NoteUnusedRule, Path: rule.Pattern(), Message: "this rule decides over no file"})
		}
	}
	return nil
}

// probe makes a label of each kind and asks whether the tree could hold them.
func (s *signing) probe() error {
	kind := ima.Signature
	if s.Verity != nil {
		kind = ima.VeritySignature
	}
	value, err := s.Signer.probe(kind)
	if err != nil {
		return err
	}
	values := map[string][]byte{ima.XattrIMA: value}
	if s.EVM != nil {
		if values[ima.XattrEVM], err = s.EVM.probe(ima.PortableSignature); err != nil {
			return err
		}
	}
	if s.Dump != nil {
		return nil
	}
	if err := s.tree.labels.Probe(s.tree.dir, values); err != nil {
		return fmt.Errorf("%s: %w", s.tree.root, err)
	}
	return nil
}

// label does the work on one file.
func (s *signing) label(ctx context.Context, h *hasher, f File) labelled {
	l := labelled{action: s.Rules.Action(f.Path)}
	file, err := h.open(f)
	if err != nil {
		l.err = err
		return l
	}
	defer file.Close()
	if l.action != ActionSkip || s.Manifest != nil {
		if l.digests, l.err = h.digest(ctx, file, f); l.err != nil {
			return l
		}
	}
	if s.Manifest != nil {
		if l.capability, l.err = s.tree.labels.Get(file, ima.XattrCapability); l.err != nil {
			return l
		}
	}
	if l.action == ActionSkip {
		l.err = s.clear(file, &l, s.ClearSkipped, ima.XattrEVM, ima.XattrIMA)
	} else {
		l.err = s.write(file, f, &l)
		s.Progress.Files.Add(1)
	}
	return l
}

// clear looks for labels that a file should not have, and removes them if told to.
func (s *signing) clear(file *os.File, l *labelled, remove bool, unwanted ...string) error {
	names, err := s.tree.labels.List(file)
	if err != nil {
		return err
	}
	for _, name := range unwanted {
		if !slices.Contains(names, name) {
			continue
		}
		if remove && !s.DryRun && s.Dump == nil {
			l.cleared = true
			if err := s.tree.labels.Remove(file, name); err != nil {
				return err
			}
			continue
		}
		l.stale = true
		l.evmStale = l.evmStale || name == ima.XattrEVM
	}
	return nil
}

// write finds out what the attributes of file should hold, and writes them.
func (s *signing) write(file *os.File, f File, l *labelled) error {
	current, err := s.tree.labels.Get(file, ima.XattrIMA)
	if err != nil {
		return err
	}
	if l.ima, err = s.imaLabel(l, s.keep(current)); err != nil {
		return err
	}
	changed := map[string][]byte{}
	if s.Force || !bytes.Equal(l.ima, current) {
		changed[ima.XattrIMA] = l.ima
	}
	if s.EVM != nil {
		current, err := s.evmLabel(file, f, l)
		if err != nil {
			return err
		}
		if s.Force || !bytes.Equal(l.evm, current) {
			changed[ima.XattrEVM] = l.evm
		}
	}
	l.changed = len(changed) > 0
	// Without a key for it no security.evm can be vouched for: it covers a security.ima
	// that was written over, or an owner that was changed since.
	if s.EVM == nil {
		if err := s.clear(file, l, true, ima.XattrEVM); err != nil {
			return err
		}
	}
	if s.DryRun || s.Dump != nil || !l.changed && !l.cleared {
		return nil
	}
	// security.ima first: security.evm covers it, and until both are written EVM
	// refuses the file rather than accepting a mixture.
	for _, name := range []string{ima.XattrIMA, ima.XattrEVM} {
		if value := changed[name]; value != nil {
			if err := s.tree.labels.Set(file, name, value); err != nil {
				return err
			}
		}
	}
	return s.sameOwner(f)
}

// sameOwner looks again after writing: a record of owners such as fakeroot's has been seen
// to take over the real one of a file when an attribute is written, after EVM signed the other.
func (s *signing) sameOwner(f File) error {
	now := f
	if err := s.tree.labels.Stat(s.tree.root+"/"+f.Path, &now); err != nil {
		return err
	}
	if now.UID != f.UID || now.GID != f.GID || now.Mode != f.Mode {
		return fmt.Errorf("owner and mode became %d:%d %06o by writing a label", now.UID, now.GID, now.Mode)
	}
	return nil
}

// keep is the label that may stay if it is right: none, when all are made anew.
func (s *signing) keep(current []byte) []byte {
	if s.Force {
		return nil
	}
	return current
}

// imaLabel makes the value of security.ima.
func (s *signing) imaLabel(l *labelled, current []byte) ([]byte, error) {
	switch {
	case l.action == ActionHash:
		x := ima.Xattr{Type: ima.DigestNG, Hash: s.Signer.hash, Digest: l.digests.content}
		return x.Append(nil), nil
	case s.Verity != nil:
		return s.Signer.label(ima.VeritySignature, l.digests.verity, current)
	default:
		return s.Signer.label(ima.Signature, l.digests.content, current)
	}
}

// evmLabel makes the value of security.evm, and returns the one that is there.
func (s *signing) evmLabel(file *os.File, f File, l *labelled) (current []byte, err error) {
	in, current, err := s.tree.inode(file, f)
	if err != nil {
		return nil, err
	}
	in.Xattrs[ima.XattrIMA] = l.ima
	digest, err := ima.EVMDigest(s.EVM.hash, s.Layout, in)
	if err != nil {
		return nil, err
	}
	l.evm, err = s.EVM.label(ima.PortableSignature, digest, s.keep(current))
	return current, err
}

// inode reads what EVM covers, and security.evm itself.
func (t *Tree) inode(file *os.File, f File) (in ima.Inode, evm []byte, err error) {
	in = ima.Inode{UID: f.UID, GID: f.GID, Mode: f.Mode, Xattrs: map[string][]byte{}}
	names, err := t.labels.List(file)
	if err != nil {
		return in, nil, err
	}
	for _, name := range names {
		switch {
		case name == ima.XattrEVM:
			evm, err = t.labels.Get(file, name)
		case slices.Contains(ima.EVMXattrs, name):
			in.Xattrs[name], err = t.labels.Get(file, name)
		}
		if err != nil {
			return in, nil, err
		}
	}
	return in, evm, nil
}
