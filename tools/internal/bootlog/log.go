package bootlog

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/meta-attest/meta-attest/tools/internal/wire"
)

const (
	lastPCR   = 23        // PFP 2.3.4, table 1
	anyPCR    = 1<<32 - 1 // of an EV_NO_ACTION (PFP 10.4.5)
	maxEvents = 1 << 16   // some hundreds in a real log
	maxAlgs   = 16
	maxSize   = 1<<31 - 1 // stands for every larger one, on 32-bit machines too
)

// Digest is what was extended into one bank.
type Digest struct {
	Alg Alg
	Sum []byte
}

// Event is TCG_PCR_EVENT2 (PFP 10.2.2), or TCG_PCClientPCREvent (PFP 10.2.1) with the one
// SHA-1 digest that it has. Its slices point into the log.
type Event struct {
	Index   int // in the log, from 0
	Offset  int // in bytes
	PCR     uint32
	Type    Type
	Digests []Digest
	Data    []byte
}

// Digest returns what e extended into the bank of a, or nil.
func (e *Event) Digest(a Alg) []byte {
	for _, d := range e.Digests {
		if d.Alg == a {
			return d.Sum
		}
	}
	return nil
}

// Spec is TCG_EfiSpecIDEvent (PFP 10.4.5.1), the first event of a crypto-agile log.
type Spec struct {
	PlatformClass        uint32 // 0: client, 1: server
	Major, Minor, Errata uint8
	Algs                 []Alg // the digests that an event may have
	Vendor               []byte
	uintnSize            uint8
	sizes                []int // of Algs
}

func (s *Spec) size(a Alg) (int, bool) {
	for i := range s.Algs {
		if s.Algs[i] == a {
			return s.sizes[i], true
		}
	}
	return 0, false
}

// Log is a parsed event log.
type Log struct {
	Spec   *Spec // nil: a log of SHA-1 digests only
	Events []Event
}

// Parse reads a log to its last byte. Every error is an [ErrMalformed]. The result points
// into b, and is at most some times as large.
func Parse(b []byte) (*Log, error) {
	l, r := &Log{}, wire.NewReader(b, binary.LittleEndian)
	for r.Len() > 0 && r.Err() == nil {
		e := Event{Index: len(l.Events), Offset: r.Offset()}
		if e.Index == maxEvents {
			return nil, fmt.Errorf("%w: more than %d events", ErrMalformed, maxEvents)
		}
		if err := l.event(r, &e); err != nil {
			return nil, fmt.Errorf("%w: event %d at byte %d: %w", ErrMalformed, e.Index, e.Offset, err)
		}
		l.Events = append(l.Events, e)
	}
	if len(l.Events) == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrMalformed)
	}
	return l, nil
}

func (l *Log) event(r *wire.Reader, e *Event) error {
	e.PCR, e.Type = r.Uint32(), Type(r.Uint32())
	if l.Spec == nil {
		e.Digests = []Digest{{SHA1, r.Bytes(SHA1.Size())}}
	} else if err := l.digests(r, e); err != nil {
		return err
	}
	size := r.Uint32()
	e.Data = r.Bytes(int(min(size, maxSize)))
	if err := r.Err(); err != nil {
		return err
	}
	if e.PCR > lastPCR && !(e.PCR == anyPCR && e.Type == NoAction) {
		return fmt.Errorf("PCR %d does not exist", e.PCR)
	}
	if e.Index == 0 && e.Type == NoAction && bytes.HasPrefix(e.Data, []byte(specAgile)) {
		s, err := parseSpec(e.Data)
		l.Spec = s
		return err
	}
	return nil
}

// digests reads TPML_DIGEST_VALUES.
func (l *Log) digests(r *wire.Reader, e *Event) error {
	n := r.Uint32()
	if r.Err() == nil && n > uint32(len(l.Spec.Algs)) {
		return fmt.Errorf("%d digests; the log has %d algorithms", n, len(l.Spec.Algs))
	}
	for range n {
		a := Alg(r.Uint16())
		size, ok := l.Spec.size(a)
		if r.Err() == nil && !ok {
			return fmt.Errorf("a digest of %v, which the first event does not name", a)
		}
		if e.Digest(a) != nil {
			return fmt.Errorf("two digests of %v", a)
		}
		e.Digests = append(e.Digests, Digest{a, r.Bytes(size)})
		if r.Err() != nil {
			break
		}
	}
	return nil
}

// Signatures of EV_NO_ACTION events, with their NUL.
const (
	specAgile       = "Spec ID Event03\x00"
	startupLocality = "StartupLocality\x00"
)

func parseSpec(b []byte) (*Spec, error) {
	r := wire.NewReader(b, binary.LittleEndian)
	r.Bytes(len(specAgile))
	s := &Spec{PlatformClass: r.Uint32(), Minor: r.Uint8(), Major: r.Uint8(), Errata: r.Uint8(), uintnSize: r.Uint8()}
	n := r.Uint32()
	if n == 0 || n > maxAlgs {
		return nil, fmt.Errorf("%d algorithms", n)
	}
	for range n {
		a, size := Alg(r.Uint16()), int(r.Uint16())
		if r.Err() != nil {
			break
		}
		if _, twice := s.size(a); twice || size == 0 || size > 128 || a.Size() != 0 && a.Size() != size {
			return nil, fmt.Errorf("%v with digests of %d bytes, or named twice", a, size)
		}
		s.Algs, s.sizes = append(s.Algs, a), append(s.sizes, size)
	}
	s.Vendor = r.Bytes(int(r.Uint8()))
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("first event: %w", err)
	}
	return s, nil
}

// Append appends the encoding of l to b. It is the inverse of [Parse].
func (l *Log) Append(b []byte) []byte {
	for i, e := range l.Events {
		b = binary.LittleEndian.AppendUint32(b, e.PCR)
		b = binary.LittleEndian.AppendUint32(b, uint32(e.Type))
		if l.Spec != nil && i > 0 {
			b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Digests)))
		}
		for _, d := range e.Digests {
			if l.Spec != nil && i > 0 {
				b = binary.LittleEndian.AppendUint16(b, uint16(d.Alg))
			}
			b = append(b, d.Sum...)
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Data)))
		b = append(b, e.Data...)
	}
	return b
}
