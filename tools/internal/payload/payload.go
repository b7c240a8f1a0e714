// Package payload holds the files that a verifier gives to a device it trusts: it reads and
// writes them as the ZIP archive that Keylime's tenant makes, and keeps them on the device
// in a [Folder] that is in memory only.
//
// An archive is taken for hostile: names, counts and sizes are bounded, and whatever is no
// plain file under a plain name is refused, not skipped.
package payload

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Bounds of a payload, in bytes unless said otherwise.
const (
	// MaxSize is the size of all files together, and of the archive: Keylime's
	// max_payload_size.
	MaxSize  = 1 << 20
	maxFiles = 64 // in number

	maxName  = 128 // of a payload
	maxPath  = 255 // of a file
	maxDepth = 8   // in folders
)

// Payload is a set of files under one name.
type Payload struct {
	Name     string // 1 to 128 of A-Z a-z 0-9 _ . -, no dot first
	Revision int64  // of the files under this name: the larger is the newer
	Files    []File
	// Run is the name of one of Files, which a device executes where its own configuration
	// allows that; "" for none.
	Run string
}

// File is one file of a payload.
type File struct {
	Name string      // a relative path with slashes, see [fs.ValidPath]
	Mode fs.FileMode // permissions; those of group and others never reach the device
	Data []byte
}

// checkName says why name cannot be that of a payload: it is also that of a folder, and the
// names of hidden ones are this package's own.
func checkName(name string) error {
	if name == "" || len(name) > maxName || name[0] == '.' || strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_.-", r)
	}) {
		return fmt.Errorf("payload %.40q: a name is 1 to %d of A-Z a-z 0-9 _ . - and begins with no dot", name, maxName)
	}
	return nil
}

// Check says what of p no device would take.
func (p *Payload) Check() error {
	if err := checkName(p.Name); err != nil {
		return err
	}
	if p.Revision < 0 {
		return fmt.Errorf("payload %s: revision %d is negative", p.Name, p.Revision)
	}
	if err := checkFiles(p.Files); err != nil {
		return fmt.Errorf("payload %s: %w", p.Name, err)
	}
	if p.Run != "" && !slices.ContainsFunc(p.Files, func(f File) bool { return f.Name == p.Run }) {
		return fmt.Errorf("payload %s: %.40q is to be run and is not in it", p.Name, p.Run)
	}
	return nil
}

func checkFiles(files []File) error {
	if len(files) == 0 || len(files) > maxFiles {
		return fmt.Errorf("%d files, not 1 to %d", len(files), maxFiles)
	}
	size := 0
	names := map[string]bool{} // true for a file, false for a folder
	for _, f := range files {
		if err := checkFile(f); err != nil {
			return err
		}
		if _, twice := names[f.Name]; twice {
			return fmt.Errorf("file %.40q is there twice", f.Name)
		}
		names[f.Name] = true
		for dir := path.Dir(f.Name); dir != "."; dir = path.Dir(dir) {
			if names[dir] {
				return fmt.Errorf("file %.40q is in %.40q, which is a file", f.Name, dir)
			}
			names[dir] = false
		}
		if size += len(f.Data); size > MaxSize {
			return fmt.Errorf("more than %d bytes of files", MaxSize)
		}
	}
	return nil
}

func checkFile(f File) error {
	control := func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }
	switch {
	case !fs.ValidPath(f.Name) || f.Name == "." || len(f.Name) > maxPath || strings.ContainsFunc(f.Name, control):
		return fmt.Errorf("file %.40q: no relative path of at most %d bytes without steps and control characters", f.Name, maxPath)
	case strings.Count(f.Name, "/") >= maxDepth:
		return fmt.Errorf("file %.40q: more than %d folders deep", f.Name, maxDepth)
	case f.Mode&^fs.ModePerm != 0:
		return fmt.Errorf("file %.40q: %v is no plain file", f.Name, f.Mode)
	}
	return nil
}

// ParseZip reads an archive. Name, Revision and Run of the result are for the caller to set.
func ParseZip(b []byte) (*Payload, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("read payload: more than %d bytes", MaxSize)
	}
	r, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, fmt.Errorf("read payload: %w", err)
	}
	p := &Payload{}
	left := int64(MaxSize)
	for _, f := range r.File {
		// Folders come by the names of the files in them; those of an archive hold nothing.
		if strings.HasSuffix(f.Name, "/") && f.UncompressedSize64 == 0 && f.Mode()&fs.ModeType == fs.ModeDir {
			continue
		}
		if len(p.Files) == maxFiles {
			return nil, fmt.Errorf("read payload: more than %d files", maxFiles)
		}
		file, err := readFile(f, left)
		if err != nil {
			return nil, fmt.Errorf("read payload: %w", err)
		}
		left -= int64(len(file.Data))
		p.Files = append(p.Files, file)
	}
	if err := checkFiles(p.Files); err != nil {
		return nil, fmt.Errorf("read payload: %w", err)
	}
	return p, nil
}

// readFile reads one file; what the archive says of its size is only believed to refuse it.
func readFile(f *zip.File, most int64) (File, error) {
	file := File{Name: f.Name, Mode: f.Mode()}
	if err := checkFile(file); err != nil {
		return File{}, err
	}
	const encrypted = 1 // of the general purpose flags (APPNOTE 4.4.4)
	if f.Flags&encrypted != 0 {
		return File{}, fmt.Errorf("file %.40q is encrypted", f.Name)
	}
	if f.UncompressedSize64 > uint64(most) {
		return File{}, fmt.Errorf("more than %d bytes of files", MaxSize)
	}
	r, err := f.Open()
	if err != nil {
		return File{}, fmt.Errorf("file %.40q: %w", f.Name, err)
	}
	// The reader compares size and checksum at the end of the file.
	file.Data, err = io.ReadAll(io.LimitReader(r, most+1))
	if err = errors.Join(err, r.Close()); err != nil {
		return File{}, fmt.Errorf("file %.40q: %w", f.Name, err)
	}
	if int64(len(file.Data)) > most {
		return File{}, fmt.Errorf("more than %d bytes of files", MaxSize)
	}
	return file, nil
}

// Zip writes the files as an archive that [ParseZip] reads; the same files make the same
// bytes. Nothing is compressed: a length would say something of what is encrypted.
func (p *Payload) Zip() ([]byte, error) {
	if err := checkFiles(p.Files); err != nil {
		return nil, fmt.Errorf("write payload: %w", err)
	}
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, f := range p.Files {
		h := &zip.FileHeader{Name: f.Name, Method: zip.Store}
		h.SetMode(f.Mode)
		to, err := w.CreateHeader(h)
		if err == nil {
			_, err = to.Write(f.Data)
		}
		if err != nil {
			return nil, fmt.Errorf("write payload: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("write payload: %w", err)
	}
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("write payload: its archive has more than %d bytes", MaxSize)
	}
	return b.Bytes(), nil
}
