package ima

import (
	"bytes"
	"crypto"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
)

const (
	maxPCR    = 31 // no TPM has more; TCG PC Client has 23 as its last
	maxDigest = 64
)

// Errors of [Replay.Run].
var (
	// ErrNotReached means that no prefix of the list leads to the quoted values.
	ErrNotReached = errors.New("measurement list does not lead to the quoted PCR values")
	// ErrUnquotedPCR means that an entry was extended into a PCR, or the list into a bank,
	// whose value is not quoted: nothing proves that entry.
	ErrUnquotedPCR = errors.New("measurement of a PCR that is not quoted")
)

// Padding says in which banks Linux extends SHA-1 template digests filled up with zeros
// instead of digests of the bank's own hash. Such a bank is as weak as SHA-1: a caller
// must have been told to take it.
type Padding uint8

const (
	Unpadded Padding = iota
	// PaddedUnknown is what Linux since 5.8 does where it was built without the bank's
	// hash, or that is a module: violations are ones all over.
	PaddedUnknown
	// PaddedOld is what Linux before 5.8 does in every bank but SHA-1: violations are the
	// twenty ones of SHA-1, filled up too.
	PaddedOld
)

// Bank is a bank of PCRs as Linux extends it.
type Bank struct {
	Hash    HashAlgo
	Padding Padding
}

// PCRValue is the value of one PCR in one bank.
type PCRValue struct {
	PCR   int
	Bank  Bank
	Value []byte // as long as a digest of Bank
}

// Replay computes what the entries of a list make of PCRs, and compares it with a quote.
// It allocates nothing for an entry.
type Replay struct {
	pcrs []replayed
}

type replayed struct {
	pcr    int
	bank   Bank
	value  []byte
	quoted []byte
}

// NewReplay returns a Replay that looks for the values quoted, all of them at once. It
// goes out from the values start (see [Replay.Values]); a PCR that is not in start goes out
// from zeros, as after a boot.
func NewReplay(start, quoted []PCRValue) (*Replay, error) {
	if len(quoted) == 0 {
		return nil, errors.New("replay measurement list: no PCR is quoted")
	}
	r := &Replay{}
	for _, q := range quoted {
		if err := q.check(); err != nil {
			return nil, fmt.Errorf("replay measurement list: quoted %w", err)
		}
		if r.find(q) != nil {
			return nil, fmt.Errorf("replay measurement list: PCR %d of %v is quoted twice", q.PCR, q.Bank.Hash)
		}
		r.pcrs = append(r.pcrs, replayed{q.PCR, q.Bank, make([]byte, len(q.Value)), bytes.Clone(q.Value)})
	}
	for _, s := range start {
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("replay measurement list: start of %w", err)
		}
		p := r.find(s)
		if p == nil || p.bank != s.Bank {
			return nil, fmt.Errorf("replay measurement list: start of PCR %d of %v: %w", s.PCR, s.Bank.Hash, ErrUnquotedPCR)
		}
		copy(p.value, s.Value)
	}
	return r, nil
}

func (v PCRValue) check() error {
	var sum [maxDigest]byte
	if v.PCR < 0 || v.PCR > maxPCR {
		return fmt.Errorf("PCR %d does not exist", v.PCR)
	}
	if n, err := hashSum(&sum, v.Bank.Hash, nil); err != nil {
		return fmt.Errorf("PCR %d: %w", v.PCR, err)
	} else if n != len(v.Value) || n < SHA1.Size() {
		return fmt.Errorf("PCR %d has %d bytes; %v has %d", v.PCR, len(v.Value), v.Bank.Hash, n)
	}
	return nil
}

func (r *Replay) find(v PCRValue) *replayed {
	for i := range r.pcrs {
		if p := &r.pcrs[i]; p.pcr == v.PCR && p.bank.Hash == v.Bank.Hash {
			return p
		}
	}
	return nil
}

// Reached says whether every PCR has its quoted value.
func (r *Replay) Reached() bool {
	for i := range r.pcrs {
		if !bytes.Equal(r.pcrs[i].value, r.pcrs[i].quoted) {
			return false
		}
	}
	return true
}

// Values are the values reached, for the next [NewReplay] of the same boot.
func (r *Replay) Values() []PCRValue {
	var values []PCRValue
	for _, p := range r.pcrs {
		values = append(values, PCRValue{p.pcr, p.bank, bytes.Clone(p.value)})
	}
	return values
}

// Run extends the entries of list until the quoted values are reached, which may be before
// the first, and calls visit for each, which may not keep it. What list has left then is
// pending: it was measured after the quote, or never. With an error, nothing that visit
// saw is proven: it is an [ErrNotReached], [ErrTemplateDigest], [ErrUnquotedPCR], an error
// of [ListReader.Next], or of visit.
func (r *Replay) Run(list *ListReader, visit func(*Entry) error) error {
	for !r.Reached() {
		e, err := list.Next()
		if err == io.EOF {
			return fmt.Errorf("%w: not after any of its %d entries", ErrNotReached, list.Index())
		}
		if err != nil {
			return err
		}
		if err := r.Extend(e); err != nil {
			return err
		}
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

// Extend checks the template digest of e and does what Linux and the TPM did with it
// (ima_add_template_entry of ima_queue.c).
func (r *Replay) Extend(e *Entry) error {
	var own [maxDigest]byte
	if err := e.checkDigest(&own); err != nil {
		return err
	}
	known := false
	for i := range r.pcrs {
		p := &r.pcrs[i]
		if p.pcr != e.PCR {
			continue
		}
		known = true
		var in [2 * maxDigest]byte // the value, then what extends it
		size := copy(in[:], p.value)
		if err := e.measured((*[maxDigest]byte)(in[size:]), p.bank, &own); err != nil {
			return err
		}
		var sum [maxDigest]byte
		if _, err := hashSum(&sum, p.bank.Hash, in[:2*size]); err != nil {
			return err
		}
		copy(p.value, sum[:])
	}
	if !known {
		return fmt.Errorf("entry %d: %w: PCR %d", e.Index, ErrUnquotedPCR, e.PCR)
	}
	return nil
}

// measured writes to d what Linux extended for e; own is the digest in e.hash.
func (e *Entry) measured(d *[maxDigest]byte, bank Bank, own *[maxDigest]byte) error {
	digest, ones := bank.Hash, bank.Hash.Size()
	if bank.Padding != Unpadded {
		digest = SHA1
	}
	if bank.Padding == PaddedOld {
		ones = SHA1.Size()
	}
	switch {
	case e.Violation:
		for i := range ones {
			d[i] = 0xff
		}
	case digest == e.hash:
		copy(d[:digest.Size()], own[:])
	default:
		var sum [maxDigest]byte
		if err := e.templateDigest(&sum, digest); err != nil {
			return err
		}
		copy(d[:digest.Size()], sum[:])
	}
	return nil
}

// CheckDigest recomputes the template digest of e; a difference is an [ErrTemplateDigest].
// A violation has none.
func (e *Entry) CheckDigest() error {
	var own [maxDigest]byte
	return e.checkDigest(&own)
}

func (e *Entry) checkDigest(own *[maxDigest]byte) error {
	if e.Violation {
		return nil
	}
	if err := e.templateDigest(own, e.hash); err != nil {
		return err
	}
	if !bytes.Equal(own[:len(e.Digest)], e.Digest) {
		return fmt.Errorf("entry %d (%.200q): %w: it is %x, not %x; a line feed in a path does this to the ASCII form",
			e.Index, e.Path, ErrTemplateDigest, bytes.Clone(own[:len(e.Digest)]), e.Digest)
	}
	return nil
}

// templateDigest is ima_calc_field_array_hash_tfm of ima_crypto.c.
func (e *Entry) templateDigest(sum *[maxDigest]byte, a HashAlgo) error {
	data := e.Data
	if e.Template.legacy() {
		var fixed [legacyDigest + maxLegacyName + 1]byte
		copy(fixed[copy(fixed[:], e.Data[:legacyDigest]):], e.Path)
		data = fixed[:]
	}
	if _, err := hashSum(sum, a, data); err != nil {
		return fmt.Errorf("entry %d: template digest: %w", e.Index, err)
	}
	return nil
}

// hashSum writes the digest of data to sum and returns its length. Unlike a [hash.Hash] it
// leaves nothing on the heap.
func hashSum(sum *[maxDigest]byte, a HashAlgo, data []byte) (int, error) {
	switch a.Hash() {
	case crypto.MD5:
		s := md5.Sum(data)
		return copy(sum[:], s[:]), nil
	case crypto.SHA1:
		s := sha1.Sum(data)
		return copy(sum[:], s[:]), nil
	case crypto.SHA224:
		s := sha256.Sum224(data)
		return copy(sum[:], s[:]), nil
	case crypto.SHA256:
		s := sha256.Sum256(data)
		return copy(sum[:], s[:]), nil
	case crypto.SHA384:
		s := sha512.Sum384(data)
		return copy(sum[:], s[:]), nil
	case crypto.SHA512:
		s := sha512.Sum512(data)
		return copy(sum[:], s[:]), nil
	case crypto.SHA3_256:
		s := sha3.Sum256(data)
		return copy(sum[:], s[:]), nil
	case crypto.SHA3_384:
		s := sha3.Sum384(data)
		return copy(sum[:], s[:]), nil
	case crypto.SHA3_512:
		s := sha3.Sum512(data)
		return copy(sum[:], s[:]), nil
	}
	return 0, fmt.Errorf("cannot compute %v", a)
}
