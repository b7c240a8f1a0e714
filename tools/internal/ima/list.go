package ima

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Errors of [ListReader] and [Replay].
var (
	// ErrList means that bytes are not what Linux writes.
	ErrList = errors.New("malformed measurement list")
	// ErrTemplateDigest means that an entry's digest is not that of its data: one of the
	// two was changed, or the list was read in the wrong [Form].
	ErrTemplateDigest = errors.New("template digest does not match the template data")
)

// Sizes beyond which a list is refused. The longest data that Linux measures is a key of
// 1 MiB (add_key(2)) beside a path.
const (
	maxTemplateData = 2 << 20
	maxLine         = 2*maxTemplateData + 4096 // in hexadecimal
	legacyDigest    = 20
	maxLegacyName   = 255 // IMA_EVENT_NAME_LEN_MAX
)

// Form is the encoding of a measurement list: which file of securityfs it was read from,
// and on what machine.
type Form struct {
	ASCII bool // ascii_runtime_measurements
	// Order is the byte order of the integers: the device's own, little-endian where it
	// booted with ima_canonical_fmt. It matters to ASCII too, for what was hashed.
	Order binary.ByteOrder
	// Hash is the algorithm of the template digests: SHA1, but in the files
	// *_runtime_measurements_<algo> of Linux 6.10 and later <algo>.
	Hash HashAlgo
}

// ListReader reads the entries of a measurement list one after the other. It allocates
// nothing for an entry.
type ListReader struct {
	form  Form
	src   io.Reader
	buf   []byte
	pos   int   // of the next entry in buf
	base  int64 // of buf in the list
	index int
	entry Entry
	last  *Template // custom one
	ascii []byte    // template data made of a line
	err   error     // of the last call, for good
}

// NewListReader reads list, whose first entry is number first of the boot's: a verifier
// is sent but the entries that it has not seen.
func NewListReader(list []byte, form Form, first int) *ListReader {
	return &ListReader{form: form, buf: list, index: first}
}

// StreamList is [NewListReader] for a list that comes in pieces; it holds one entry.
func StreamList(src io.Reader, form Form, first int) *ListReader {
	return &ListReader{form: form, src: src, index: first}
}

// Next returns the next entry, or [io.EOF] after the last. Any other error is an
// [ErrList], or comes from the source, and stays.
func (r *ListReader) Next() (*Entry, error) {
	if r.err != nil {
		return nil, r.err
	}
	switch r.err = r.checkForm(); {
	case r.err != nil:
	case r.form.ASCII:
		r.err = r.nextASCII()
	default:
		r.err = r.nextBinary()
	}
	if r.err != nil {
		return nil, r.err
	}
	r.index++
	return &r.entry, nil
}

// Skip passes over n entries without looking into them. A list with fewer is an
// [io.ErrUnexpectedEOF].
func (r *ListReader) Skip(n int) error {
	for ; n > 0 && r.err == nil; n-- {
		var size int
		if r.err = r.checkForm(); r.err != nil {
			break
		}
		if r.form.ASCII {
			size, r.err = r.lineSize()
		} else {
			size, _, r.err = r.binarySize()
		}
		if errors.Is(r.err, io.EOF) {
			r.err = r.fail(io.ErrUnexpectedEOF)
		}
		r.pos += size
		r.index++
	}
	return r.err
}

// Offset is the number of bytes before the next entry.
func (r *ListReader) Offset() int64 { return r.base + int64(r.pos) }

// Index is the number of the next entry.
func (r *ListReader) Index() int { return r.index }

func (r *ListReader) checkForm() error {
	if r.form.Order == nil || r.form.Hash.Size() == 0 {
		return fmt.Errorf("read measurement list: its form has no byte order or no hash: %+v", r.form)
	}
	return nil
}

func (r *ListReader) fail(err error) error {
	return fmt.Errorf("%w: entry %d at byte %d: %w", ErrList, r.index, r.Offset(), err)
}

// need sees to it that n bytes from r.pos on are in the buffer: io.EOF means that there is
// not one, io.ErrUnexpectedEOF that there are fewer. The buffer grows with what was read,
// never with what was promised.
func (r *ListReader) need(n int) error {
	for len(r.buf)-r.pos < n {
		if err := r.fill(); err == io.EOF {
			if len(r.buf) == r.pos {
				return io.EOF
			}
			return r.fail(io.ErrUnexpectedEOF)
		} else if err != nil {
			return fmt.Errorf("read measurement list: %w", err)
		}
	}
	return nil
}

// fill reads some more.
func (r *ListReader) fill() error {
	if r.src == nil {
		return io.EOF
	}
	const chunk = 32 << 10
	if r.pos > 0 {
		r.base += int64(r.pos)
		r.buf = r.buf[:copy(r.buf, r.buf[r.pos:])]
		r.pos = 0
	}
	if cap(r.buf)-len(r.buf) < chunk {
		grown := make([]byte, len(r.buf), 2*cap(r.buf)+2*chunk)
		copy(grown, r.buf)
		r.buf = grown
	}
	for range 100 { // as io.ErrNoProgress has it in bufio
		n, err := r.src.Read(r.buf[len(r.buf):cap(r.buf)])
		r.buf = r.buf[:len(r.buf)+n]
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// binarySize measures the next entry and brings all of it into the buffer
// (ima_measurements_show of ima_fs.c); name is the offset behind the template's name.
func (r *ListReader) binarySize() (size, name int, err error) {
	u32 := func(at int) uint32 { return r.form.Order.Uint32(r.buf[r.pos+at:]) }
	head := 4 + r.form.Hash.Size() + 4
	if err := r.need(head); err != nil {
		return 0, 0, err
	}
	n := u32(head - 4)
	if n == 0 || n > maxTemplateName {
		return 0, 0, r.fail(fmt.Errorf("name of the template has %d bytes", n))
	}
	name = head + int(n)
	if err := r.need(name); err != nil {
		return 0, 0, err
	}
	at, limit := name, uint32(maxTemplateData)
	if string(r.buf[r.pos+head:r.pos+name]) == "ima" {
		at, limit = name+legacyDigest, maxLegacyName
	}
	if err := r.need(at + 4); err != nil {
		return 0, 0, err
	}
	if n = u32(at); n > limit {
		return 0, 0, r.fail(fmt.Errorf("template data of %d bytes; it is %d at most", n, limit))
	}
	size = at + 4 + int(n)
	return size, name, r.need(size)
}

func (r *ListReader) nextBinary() error {
	size, name, err := r.binarySize()
	if err != nil {
		return err
	}
	b := r.buf[r.pos : r.pos+size : r.pos+size]
	digest := r.form.Hash.Size()
	t, err := r.template(b[4+digest+4 : name])
	if err != nil {
		return r.fail(err)
	}
	data := b[name:]
	if !t.legacy() {
		data = data[4:]
	}
	if err := r.begin(r.form.Order.Uint32(b), b[4:4+digest], t, data); err != nil {
		return err
	}
	r.pos += size
	return nil
}

// begin makes the entry of its parts.
func (r *ListReader) begin(pcr uint32, digest []byte, t *Template, data []byte) error {
	if pcr > maxPCR {
		return r.fail(fmt.Errorf("PCR %d does not exist", pcr))
	}
	e := &r.entry
	*e = Entry{Index: r.index, PCR: int(pcr), Digest: digest, Template: t, Data: data, order: r.form.Order, hash: r.form.Hash}
	e.Violation = allZero(digest)
	if err := e.decode(); err != nil {
		return r.fail(err)
	}
	return nil
}

// template looks name up. Of the custom ones it remembers the last: Linux has but one.
func (r *ListReader) template(name []byte) (*Template, error) {
	if t, ok := builtinTemplates[string(name)]; ok {
		return t, nil
	}
	if r.last != nil && r.last.Name == string(name) {
		return r.last, nil
	}
	t, err := ParseTemplate(string(name))
	if err == nil {
		r.last = t
	}
	return t, err
}

// Append appends the encoding of e in f to b. It is the inverse of [ListReader], which
// must have read e in a form of the same byte order and hash. In ASCII a line feed in a
// path stays one, as Linux has it; no reader takes such a line again.
func (f Form) Append(b []byte, e *Entry) []byte {
	if f.ASCII {
		return appendASCII(b, e)
	}
	order := f.Order.(binary.AppendByteOrder)
	b = order.AppendUint32(b, uint32(e.PCR))
	b = append(b, e.Digest...)
	b = order.AppendUint32(b, uint32(len(e.Template.Name)))
	b = append(b, e.Template.Name...)
	if !e.Template.legacy() {
		b = order.AppendUint32(b, uint32(len(e.Data)))
	}
	return append(b, e.Data...)
}

// DetectForm looks at the first entry of list for the form in which it has the digest of
// its data.
func DetectForm(list []byte) (Form, error) {
	ascii := len(list) > 2 && list[2] == ' '
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for _, hash := range []HashAlgo{SHA1, SHA256, SHA384, SHA512} {
			form := Form{ASCII: ascii, Order: order, Hash: hash}
			if e, err := NewListReader(list, form, 0).Next(); err == nil && e.CheckDigest() == nil {
				return form, nil
			}
		}
	}
	return Form{}, fmt.Errorf("%w: its first entry is in no form that Linux has", ErrList)
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
