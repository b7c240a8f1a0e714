package ima

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/wire"
)

// FileDigest is what a measurement says of the content of a file.
type FileDigest struct {
	Hash   HashAlgo
	Verity bool   // Sum is the fs-verity digest, not the digest of the content
	Sum    []byte // as long as Hash says; 20 zero bytes in a violation of older kernels
}

// Entry is one measurement. Its slices point into the bytes that it was read from or into
// memory of the [ListReader], and hold until the reader's next call.
//
// PCR and Template are not hashed by the kernel (see [Template]): a PCR value proves an
// entry's Data, and of a violation nothing but that it happened.
type Entry struct {
	Index    int // position in the list of the boot, from 0
	PCR      int
	Digest   []byte // of the template data, as the list has it
	Template *Template
	Data     []byte // template data, as a binary list has it

	// Violation says that the file was changed while it was measured, or was open for
	// writing: Linux writes a digest of zeros and extends the PCR with ones. No digest
	// protects the rest of the entry, so that Path is a rumour.
	Violation bool

	File FileDigest
	Path []byte // not empty, without NUL; see [ListPath]

	Signature []byte // field sig: security.ima, or a portable security.evm; see [Entry.Label]
	// Buffer is what was measured when that was no file: a kernel command line, a key, an
	// SELinux policy; Path is then the event's name. File is the digest of Buffer.
	Buffer       []byte
	Modsig       []byte     // PKCS#7 appended to the file
	ModsigDigest FileDigest // of the file without Modsig; no Sum if there is no Modsig
	EVMSignature []byte     // security.evm, where it is a portable signature

	hasInode                              bool
	uid, gid                              uint32
	mode                                  uint16
	xattrNames, xattrLengths, xattrValues []byte
	order                                 binary.ByteOrder
	hash                                  HashAlgo // of Digest
}

// ListPath is path as a measurement list has it: Linux writes an underscore for every
// space before it hashes (ima_write_template_field_data of ima_template_lib.c), so that
// two paths may share a name. Other bytes, a line feed among them, stay as they are.
func ListPath(path string) string { return strings.ReplaceAll(path, " ", "_") }

// Label reads Signature or, where the template has none, EVMSignature. It is nil where the
// file carried neither.
func (e *Entry) Label() (*Xattr, error) {
	b := e.Signature
	if len(b) == 0 {
		b = e.EVMSignature
	}
	switch {
	case len(b) == 0:
		return nil, nil
	case XattrType(b[0]) == PortableSignature:
		return ParseEVM(b)
	}
	return ParseIMA(b)
}

// Inode is the metadata that the fields of template evm-sig hold, for [EVMDigest]; false
// where the template has them not, or no file was measured. An error means that they contradict one another.
func (e *Entry) Inode() (Inode, bool, error) {
	if !e.hasInode {
		return Inode{}, false, nil
	}
	in := Inode{UID: e.uid, GID: e.gid, Mode: e.mode, Xattrs: map[string][]byte{}}
	lengths := wire.NewReader(e.xattrLengths, e.order)
	values := wire.NewReader(e.xattrValues, e.order)
	names, _ := strings.CutSuffix(string(e.xattrNames), "\x00")
	for name := range strings.SplitSeq(names, "|") {
		if name == "" {
			break
		}
		if _, twice := in.Xattrs[name]; twice {
			return Inode{}, false, fmt.Errorf("%w: attribute %q is there twice", ErrList, name)
		}
		n := lengths.Uint32()
		in.Xattrs[name] = values.Bytes(int(min(n, math.MaxInt32)))
	}
	if err := errors.Join(lengths.Close(), values.Close()); err != nil {
		return Inode{}, false, fmt.Errorf("%w: names, lengths and values of attributes do not fit: %w", ErrList, err)
	}
	return in, true, nil
}

// decode reads e.Data.
func (e *Entry) decode() error {
	rest := e.Data
	if e.Template.legacy() {
		if err := e.set(fieldD, rest[:legacyDigest]); err != nil {
			return fmt.Errorf("field d: %w", err)
		}
		e.Path = rest[legacyDigest+4:]
		return checkString(e.Path)
	}
	for _, f := range e.Template.fields {
		if len(rest) < 4 {
			return fmt.Errorf("field %v: its length is missing", f)
		}
		n := e.order.Uint32(rest)
		rest = rest[4:]
		if uint64(n) > uint64(len(rest)) {
			return fmt.Errorf("field %v: %d bytes wanted, %d left", f, n, len(rest))
		}
		if err := e.set(f, rest[:n:n]); err != nil {
			return fmt.Errorf("field %v: %w", f, err)
		}
		rest = rest[n:]
	}
	if len(rest) != 0 {
		return fmt.Errorf("%d bytes after the last field", len(rest))
	}
	return e.checkBuffer()
}

// checkBuffer sees to it that a file is not passed off as a buffer: Linux fills the digest
// of a buffer's measurement with the hash of just what it puts into the field
// (process_buffer_measurement of ima_main.c).
func (e *Entry) checkBuffer() error {
	if len(e.Buffer) == 0 {
		return nil
	}
	var sum [maxDigest]byte
	n, err := hashSum(&sum, e.File.Hash, e.Buffer)
	if err != nil {
		return fmt.Errorf("field buf: %w", err)
	}
	if !bytes.Equal(sum[:n], e.File.Sum) {
		return fmt.Errorf("field buf: its %v digest is %x, not %x", e.File.Hash, sum[:n], e.File.Sum)
	}
	return nil
}

func (e *Entry) set(f field, v []byte) (err error) {
	switch f {
	case fieldD:
		switch len(v) {
		case SHA1.Size():
			e.File = FileDigest{Hash: SHA1, Sum: v}
		case MD5.Size():
			e.File = FileDigest{Hash: MD5, Sum: v}
		default:
			return fmt.Errorf("%d bytes are neither a SHA-1 nor an MD5 digest", len(v))
		}
	case fieldDNG:
		e.File, err = e.digest(v, false)
	case fieldDNGv2:
		e.File, err = e.digest(v, true)
	case fieldN, fieldNNG:
		e.Path, err = cString(v)
	case fieldSig:
		e.Signature = v
	case fieldBuf:
		e.Buffer = v
	case fieldDModsig:
		if len(v) > 0 {
			e.ModsigDigest, err = e.digest(v, false)
		}
	case fieldModsig:
		e.Modsig = v
	case fieldEVMSig:
		e.EVMSignature = v
	default:
		err = e.setInode(f, v)
	}
	return err
}

// setInode reads the fields of a file's metadata; all are empty where no file was measured.
func (e *Entry) setInode(f field, v []byte) error {
	want := 4
	switch f {
	case fieldXattrNames:
		e.xattrNames = v
		if len(v) == 0 {
			return nil
		}
		_, err := cString(v)
		return err
	case fieldXattrLengths:
		e.xattrLengths = v
		if len(v)%4 != 0 {
			return fmt.Errorf("%d bytes are not a list of lengths", len(v))
		}
		return nil
	case fieldXattrValues:
		e.xattrValues = v
		return nil
	case fieldIMode:
		want = 2
	}
	if len(v) != 0 && len(v) != want {
		return fmt.Errorf("%d bytes, not %d", len(v), want)
	}
	if len(v) == 0 {
		return nil
	}
	switch f {
	case fieldIUID:
		e.uid = e.order.Uint32(v)
	case fieldIGID:
		e.gid = e.order.Uint32(v)
	case fieldIMode:
		e.mode, e.hasInode = e.order.Uint16(v), e.Template.inode
	}
	return nil
}

// digest reads "sha256:\0" and a digest, or with a type "ima:sha256:\0" or "verity:sha256:\0".
func (e *Entry) digest(v []byte, typed bool) (d FileDigest, err error) {
	name, sum, ok := bytes.Cut(v, []byte{':', 0})
	if !ok {
		return d, errors.New("no name of an algorithm")
	}
	if typed {
		kind, rest, _ := bytes.Cut(name, []byte{':'})
		switch string(kind) {
		case "ima":
		case "verity":
			d.Verity = true
		default:
			return d, fmt.Errorf("digest type %.20q is neither ima nor verity", kind)
		}
		name = rest
	}
	if d.Hash, ok = hashByName(name); !ok {
		return d, fmt.Errorf("hash algorithm %.20q is unknown", name)
	}
	// Older kernels leave room for a SHA-1 digest in every violation.
	if len(sum) != d.Hash.Size() && !(e.Violation && len(sum) == SHA1.Size()) {
		return d, fmt.Errorf("a %v digest has %d bytes, not %d", d.Hash, d.Hash.Size(), len(sum))
	}
	d.Sum = sum
	return d, nil
}

func hashByName(name []byte) (HashAlgo, bool) {
	if string(name) == "sha256" {
		return SHA256, true
	}
	for i := range hashAlgos {
		if string(name) == hashAlgos[i].name {
			return HashAlgo(i), true
		}
	}
	return 0, false
}

// cString cuts the NUL that must end v.
func cString(v []byte) ([]byte, error) {
	if len(v) == 0 || v[len(v)-1] != 0 {
		return nil, errors.New("no NUL at its end")
	}
	v = v[:len(v)-1]
	return v, checkString(v)
}

func checkString(v []byte) error {
	if len(v) == 0 {
		return errors.New("it is empty")
	}
	if i := bytes.IndexByte(v, 0); i >= 0 {
		return fmt.Errorf("a NUL at byte %d", i)
	}
	if bytes.IndexByte(v, ' ') >= 0 {
		return errors.New("a space, for which Linux writes an underscore")
	}
	return nil
}
