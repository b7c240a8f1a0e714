package manifest

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
)

// The envelope is DSSE's (github.com/secure-systems-lab/dsse, envelope.md), in the very
// bytes that its Go implementation marshals. sigstore's own dsse package is not used
// outside tests: it holds payload, base64 and PAE in memory at once, three times a file
// that may have 1 GiB and that nobody has authenticated yet. What it wraps, sigstore's
// signature.Verifier, takes a digest, and that can be computed from a stream (see key.go).
const (
	payloadType  = "application/vnd.in-toto+json"
	envelopeHead = `{"payloadType":"` + payloadType + `","payload":"`

	maxSignatures = 16
	maxKeyID      = 256
	maxSignature  = 2048 // bytes, decoded
	maxTail       = 128 << 10
	// maxPayload leaves room for the footer line and the tail in a file of maxFile bytes.
	maxPayload = (maxFile-maxTail-256)/4*3 - maxLine
)

// envelope is what of a DSSE envelope is not payload.
type envelope struct {
	encoded    int64 // bytes of the payload in base64, from len(envelopeHead)
	size       int64 // bytes of the payload
	signatures []dsseSignature
}

// dsseSignature is one signature; its key id is a hint by whoever wrote it.
type dsseSignature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// parseEnvelope looks at both ends of s. What lies between is read through payload.
func parseEnvelope(s *snapshot) (*envelope, error) {
	head := make([]byte, len(envelopeHead))
	if _, err := io.ReadFull(s.section(0, s.size), head); err != nil {
		return nil, fmt.Errorf("read envelope: %w", err)
	}
	if string(head) != envelopeHead {
		return nil, fmt.Errorf("not a DSSE envelope of type %s", payloadType)
	}
	from := max(int64(len(head)), s.size-maxTail)
	tail, err := io.ReadAll(s.section(from, s.size))
	if err != nil {
		return nil, fmt.Errorf("read envelope: %w", err)
	}
	quote := bytes.IndexByte(tail, '"') // base64 has none, so this one ends the payload
	if quote < 0 {
		return nil, errors.New("parse envelope: payload does not end")
	}
	e := &envelope{encoded: from + int64(quote) - int64(len(head))}
	if e.encoded%4 != 0 {
		return nil, fmt.Errorf("parse envelope: %d bytes of payload are not padded base64", e.encoded)
	}
	pad := bytes.Count(tail[max(0, quote-2):quote], []byte("="))
	e.size = max(0, e.encoded/4*3-int64(pad))
	if e.signatures, err = parseTail(tail[quote:]); err != nil {
		return nil, fmt.Errorf("parse envelope: %w", err)
	}
	return e, nil
}

func parseTail(tail []byte) ([]dsseSignature, error) {
	var p struct {
		Signatures []dsseSignature `json:"signatures"`
	}
	if err := json.Unmarshal(append([]byte(`{"":"`), tail...), &p); err != nil {
		return nil, err
	}
	if n := len(p.Signatures); n > maxSignatures {
		return nil, fmt.Errorf("%d signatures, at most %d are read", n, maxSignatures)
	}
	for i, s := range p.Signatures {
		if len(s.KeyID) > maxKeyID || len(s.Sig) > maxSignature {
			return nil, fmt.Errorf("signature %d: key id of %d or signature of %d bytes is too long", i+1, len(s.KeyID), len(s.Sig))
		}
	}
	if !bytes.Equal(appendTail(nil, p.Signatures), bytes.TrimSuffix(tail, []byte("\n"))) {
		return nil, errNotCanonical
	}
	return p.Signatures, nil
}

func appendTail(b []byte, sigs []dsseSignature) []byte {
	b = append(b, `","signatures":[`...)
	for i, s := range sigs {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(append(b, `{"keyid":`...), s.KeyID)
		b = base64.StdEncoding.AppendEncode(append(b, `,"sig":"`...), s.Sig)
		b = append(b, `"}`...)
	}
	return append(b, `]}`...)
}

// payload streams the decoded payload and fails at its end unless it was strict base64.
func (e *envelope) payload(s *snapshot) io.Reader {
	from := int64(len(envelopeHead))
	return &exactReader{
		r:    base64.NewDecoder(base64.StdEncoding.Strict(), s.section(from, from+e.encoded)),
		left: e.size,
	}
}

// exactReader fails unless r has just as many bytes as the length of its base64 calls
// for: Go's decoder skips line breaks, and may stop at padding before the end.
type exactReader struct {
	r    io.Reader
	left int64
}

func (x *exactReader) Read(p []byte) (int, error) {
	n, err := x.r.Read(p)
	x.left -= int64(n)
	if x.left < 0 || x.left > 0 && errors.Is(err, io.EOF) {
		return 0, errors.New("payload is not strict base64")
	}
	return n, err
}

// pae starts h with what DSSE signs before a payload of size bytes (protocol.md, PAE).
func pae(h io.Writer, size int64) {
	fmt.Fprintf(h, "DSSEv1 %d %s %d ", len(payloadType), payloadType, size)
}

// authenticate returns the first of vs that made one of the signatures.
func (e *envelope) authenticate(s *snapshot, vs []*verifier) (*verifier, error) {
	hashes := make(map[crypto.Hash]hash.Hash)
	var all []io.Writer
	for _, v := range vs {
		if hashes[v.hash] == nil {
			hashes[v.hash] = v.hash.New()
			all = append(all, hashes[v.hash])
		}
	}
	w := io.MultiWriter(all...)
	pae(w, e.size)
	if _, err := io.Copy(w, e.payload(s)); err != nil {
		return nil, fmt.Errorf("read payload: %w", err)
	}
	for _, v := range vs {
		digest := hashes[v.hash].Sum(nil)
		for _, sig := range e.signatures {
			if v.verify(digest, sig.Sig) == nil {
				return v, nil
			}
		}
	}
	return nil, fmt.Errorf("%w: %d signatures, %d certificates", ErrNotAuthentic, len(e.signatures), len(vs))
}

const chunkSize = 64 << 10

var errChanged = errors.New("file changed while it was read")

// snapshot makes a file that others may write to read the same each time: its bytes are
// hashed once by chunks, and a chunk that differs later is an error. So what is parsed is
// what was verified, though the file is read for each and never held.
type snapshot struct {
	r    io.ReaderAt
	size int64
	sums [][sha256.Size]byte
}

func newSnapshot(r io.ReaderAt, size int64) (*snapshot, error) {
	s := &snapshot{r: r, size: size}
	buf := make([]byte, chunkSize)
	for off := int64(0); off < size; off += chunkSize {
		b, err := s.read(buf, off)
		if err != nil {
			return nil, err
		}
		s.sums = append(s.sums, sha256.Sum256(b))
	}
	return s, nil
}

// read fills buf from off, or up to the end.
func (s *snapshot) read(buf []byte, off int64) ([]byte, error) {
	buf = buf[:min(int64(len(buf)), s.size-off)]
	n, err := s.r.ReadAt(buf, off)
	if n == len(buf) {
		return buf, nil
	}
	if errors.Is(err, io.EOF) {
		err = errChanged
	}
	return nil, err
}

// section reads the bytes from off to end.
func (s *snapshot) section(off, end int64) io.Reader {
	return &sectionReader{s: s, off: off, end: end, buf: make([]byte, chunkSize)}
}

type sectionReader struct {
	s        *snapshot
	off, end int64
	buf      []byte
	chunk    []byte // what of buf is checked and not consumed
}

func (r *sectionReader) Read(p []byte) (int, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	if len(r.chunk) == 0 {
		if err := r.load(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.chunk)
	r.chunk, r.off = r.chunk[n:], r.off+int64(n)
	return n, nil
}

func (r *sectionReader) load() error {
	i := r.off / chunkSize
	b, err := r.s.read(r.buf, i*chunkSize)
	if err != nil {
		return err
	}
	if sha256.Sum256(b) != r.s.sums[i] {
		return errChanged
	}
	r.chunk = b[r.off-i*chunkSize : min(int64(len(b)), r.end-i*chunkSize)]
	return nil
}
