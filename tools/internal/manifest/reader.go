package manifest

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
)

// Manifest is an authentic statement. Its entries stay in the file.
type Manifest struct {
	Header
	SignedBy   *x509.Certificate // the first trusted certificate whose key signed it
	Count      int               // entries
	Algorithms []string          // digests that entries have: "sha256", "sha384", "sha512"

	path string
	f    *os.File
	s    *snapshot
	e    *envelope
}

// Open verifies the envelope in the file path against trusted, and only then parses it,
// to the end: a later error of [Manifest.Entries] can only come from the file itself. It
// does not look at the certificates' validity, chain or key usage. It returns
// [ErrNotAuthentic] when no trusted key signed the envelope, and another error when path
// is no envelope or what was signed is not in canonical form. The caller closes it.
func Open(path string, trusted []*x509.Certificate) (*Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open manifest: %w", err)
	}
	m := &Manifest{path: path, f: f}
	if err := m.open(trusted); err != nil {
		f.Close()
		return nil, fmt.Errorf("open manifest %s: %w", path, err)
	}
	return m, nil
}

func (m *Manifest) open(trusted []*x509.Certificate) error {
	vs := make([]*verifier, len(trusted))
	for i, cert := range trusted {
		var err error
		if vs[i], err = newVerifier(cert); err != nil {
			return err
		}
	}
	st, err := m.f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	if st.Size() > maxFile {
		return fmt.Errorf("file of %d bytes: at most %d are read", st.Size(), maxFile)
	}
	if m.s, err = newSnapshot(m.f, st.Size()); err != nil {
		return err
	}
	if m.e, err = parseEnvelope(m.s); err != nil {
		return err
	}
	v, err := m.e.authenticate(m.s, vs)
	if err != nil {
		return err
	}
	m.SignedBy = v.cert
	return m.survey()
}

// survey reads the whole statement once.
func (m *Manifest) survey() error {
	d, err := newDecoder(m.e.payload(m.s))
	if err != nil {
		return err
	}
	for {
		e, err := d.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, k := range digestKinds {
			if *k.of(&e.Digests) != "" && !slices.Contains(m.Algorithms, k.name) {
				m.Algorithms = append(m.Algorithms, k.name)
			}
		}
	}
	slices.Sort(m.Algorithms)
	m.Header, m.Count = d.header, d.count
	return nil
}

// Entries yields the entries in path order; after an error it stops.
func (m *Manifest) Entries() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		d, err := newDecoder(m.e.payload(m.s))
		for err == nil {
			var e Entry
			if e, err = d.next(); err == nil && !yield(e, nil) {
				return
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(Entry{}, fmt.Errorf("read manifest %s: %w", m.path, err))
		}
	}
}

// Close closes the file that the entries come from.
func (m *Manifest) Close() error { return m.f.Close() }
