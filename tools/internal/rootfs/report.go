package rootfs

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/labellist"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
)

// links is a file with several names, until all of them have been seen.
type links struct {
	labelled
	path  string   // its first name
	other []string // the further ones
	left  uint32
}

// emit takes the result of one name, in the order of the walk.
func (s *signing) emit(f File, l labelled, err error) error {
	if err != nil {
		kind := NoteFailed
		if errors.Is(err, errOtherMount) {
			kind = NoteOtherMount
			if s.Rules.Action(f.Path) == ActionSkip || s.Rules.Action(f.Path+"/any") == ActionSkip {
				kind = NoteSkipped
			}
		}
		s.note(Note{Kind: kind, Path: f.Path, Message: err.Error()})
		return nil
	}
	if !f.Regular() {
		return s.record(f, labelled{})
	}
	if f.Nlink > 1 {
		first := s.links[f.inode()]
		if first != nil {
			return s.further(f, first)
		}
		s.links[f.inode()] = &links{labelled: l, path: f.Path, left: f.Nlink - 1}
	}
	if errors.Is(l.err, context.Canceled) {
		return l.err
	}
	if l.err != nil {
		s.note(Note{Kind: NoteFailed, Path: f.Path, Message: message(f, l.err)})
		if fatal(l.err) {
			return fmt.Errorf("%q: %w", f.Path, l.err)
		}
		return nil
	}
	s.count(f, l)
	if s.Dump != nil && l.action != ActionSkip {
		entry := labellist.Entry{Path: f.Path, IMA: l.ima, EVM: l.evm}
		if _, err := s.Dump.Write(entry.Append(nil)); err != nil {
			return fmt.Errorf("write labels: %w", err)
		}
	}
	return s.record(f, l)
}

// further takes another name of a file that has been emitted.
func (s *signing) further(f File, first *links) error {
	s.report.Links++
	first.other = append(first.other, f.Path)
	if a := s.Rules.Action(f.Path); a != first.action {
		s.note(Note{Kind: NoteFailed, Path: f.Path, Message: fmt.Sprintf(
			"a rule says %s, but it is the same file as %q, for which a rule says %s", a, first.path, first.action)})
	}
	if first.left--; first.left == 0 {
		s.note(Note{Kind: NoteLinks, Path: first.path, Other: first.other})
		delete(s.links, f.inode())
	}
	if first.err != nil {
		return nil
	}
	if err := s.sharesLabel(f, first); err != nil {
		s.note(Note{Kind: NoteFailed, Path: f.Path, Message: err.Error()})
	}
	return s.record(f, first.labelled)
}

// sharesLabel looks whether the label of a file's first name is seen at another one. On an
// overlayfs writing to one name of a file in a lower layer makes it a file of its own.
func (s *signing) sharesLabel(f File, first *links) error {
	if first.ima == nil || s.DryRun || s.Dump != nil {
		return nil
	}
	file, err := s.tree.open(f.Path)
	if err != nil {
		return err
	}
	defer file.Close()
	value, err := s.tree.labels.Get(file, ima.XattrIMA)
	if err == nil && !bytes.Equal(value, first.ima) {
		err = fmt.Errorf("was the same file as %q, and is not any more since that got its label: sign again", first.path)
	}
	return err
}

// outside notes the files of which names were not found in the tree.
func (s *signing) outside() {
	left := slices.SortedFunc(maps.Values(s.links), func(a, b *links) int { return manifest.Compare(a.path, b.path) })
	for _, l := range left {
		if len(l.other) > 0 {
			s.note(Note{Kind: NoteLinks, Path: l.path, Other: l.other})
		}
		s.note(Note{Kind: NoteOutside, Path: l.path, Message: fmt.Sprintf(
			"has %d names outside of the tree: they share the label", l.left)})
	}
}

// count adds one labelled or skipped file to the report.
func (s *signing) count(f File, l labelled) {
	r := s.report
	if l.cleared {
		r.Cleared++
	}
	if l.action == ActionSkip {
		r.Skipped++
		if l.stale {
			s.note(Note{Kind: NoteStale, Path: f.Path, Message: "has a label although a rule skips it"})
		}
		if s.EVM != nil && !l.evmStale {
			s.note(Note{Kind: NoteNoEVM, Path: f.Path, Message: "has no security.evm"})
		}
		return
	}
	if l.evmStale && s.Dump != nil {
		s.note(Note{Kind: NoteFailed, Path: f.Path, Message: "has a security.evm, which setfattr --restore would leave there: sign it too, or remove it"})
		return
	}
	r.Signed++
	if l.action == ActionHash {
		r.Hashed++
	}
	if l.changed {
		r.Written++
	} else {
		r.Unchanged++
	}
}

// note passes a note on and counts it.
func (s *signing) note(n Note) {
	if n.Kind.Bad() {
		s.report.Failed++
	}
	if s.Note != nil {
		s.Note(n)
	}
}

// fatal says whether an error will meet every other file too.
func fatal(err error) bool {
	var sign *signError
	return errors.As(err, &sign) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EMFILE)
}

// message words the errors that mean something else than they say.
func message(f File, err error) string {
	switch {
	case errors.Is(err, unix.ENOSPC):
		return "no room for the label on the filesystem or in the inode: " + err.Error()
	case errors.Is(err, unix.EACCES) && f.Mode&0o400 == 0:
		return fmt.Sprintf("%v: its mode is %04o and only root may read it", err, f.Mode&0o7777)
	}
	return err.Error()
}

// record adds a name to the manifest.
func (s *signing) record(f File, l labelled) error {
	if s.Manifest == nil {
		return nil
	}
	c := contents{ima: l.ima, evm: l.evm, capability: l.capability}
	if l.digests.content != nil {
		c.digests = map[ima.HashAlgo][]byte{s.Signer.hash: l.digests.content}
	}
	if s.Verity != nil && l.action == ActionSign {
		c.verity = s.Verity.Hash.String() + ":" + hex.EncodeToString(l.digests.verity)
	}
	e, err := s.tree.entry(f, c)
	if err != nil {
		return err
	}
	e.Package = s.Packages[f.Path]
	return s.Manifest.Add(e)
}
