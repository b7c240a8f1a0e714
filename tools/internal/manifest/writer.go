package manifest

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Writer makes a manifest. Its use is Create, Add for each entry, Commit; and Abort at
// any moment, which after Commit does nothing.
type Writer struct {
	path    string
	tmp     string
	f       *os.File // tmp, locked
	out     *bufio.Writer
	payload io.WriteCloser // base64 into out
	sum     hash.Hash      // of the payload
	enc     *encoder
	err     error // what made the file unusable, or that it is done
}

var errDone = errors.New("manifest is committed or aborted")

// Create starts a manifest that will take the name path when it is committed. Until then
// it grows in the file .NAME.tmp beside it; one that a killed process left is used again,
// one that a living process writes is an error.
func Create(path string, h Header) (*Writer, error) {
	if h.Name == "" {
		h.Name = "rootfs"
	}
	w := &Writer{path: path, tmp: filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp"), sum: sha256.New()}
	if err := w.create(h); err != nil {
		if w.f != nil {
			w.discard()
		}
		return nil, fmt.Errorf("create manifest %s: %w", path, err)
	}
	return w, nil
}

func (w *Writer) create(h Header) error {
	// A rename would replace a link or /dev/stdout, not write to it.
	if st, err := os.Lstat(w.path); err == nil && !st.Mode().IsRegular() {
		return errors.New("exists and is not a regular file")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := lockFile(w.tmp)
	if err != nil {
		return err
	}
	w.f = f
	if err := f.Truncate(0); err != nil {
		return err
	}
	w.out = bufio.NewWriterSize(f, 64<<10)
	if _, err := w.out.WriteString(envelopeHead); err != nil {
		return err
	}
	w.payload = base64.NewEncoder(base64.StdEncoding, w.out)
	w.enc, err = newEncoder(io.MultiWriter(w.payload, w.sum), h)
	return err
}

// lockFile opens or makes name for the caller alone. The lock goes with the process.
func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errors.New("another process is writing it")
	}
	if err == nil {
		err = checkLocked(f, name)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return f, nil
}

// checkLocked makes sure that name still is f: between open and lock another process may
// have renamed f over its target, and to truncate it would be to destroy a manifest.
func checkLocked(f *os.File, name string) error {
	got, err := f.Stat()
	if err != nil {
		return err
	}
	want, err := os.Lstat(name)
	if err == nil && !os.SameFile(got, want) || errors.Is(err, fs.ErrNotExist) {
		return errors.New("another process is writing it")
	}
	if err == nil && !got.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	return err
}

// Add appends e. Entries come in the order of [Compare], each path once. A refused entry
// is an error here and in every later call.
func (w *Writer) Add(e Entry) error {
	if w.err != nil {
		return w.err
	}
	if err := w.enc.add(e); err != nil {
		w.err = fmt.Errorf("add entry %d %q to manifest %s: %w", w.enc.count+1, e.Path, w.path, err)
	}
	return w.err
}

// Commit signs what was added and gives it the name that Create was told. The signature
// is of the digest that sigstore takes by default for the key (see newVerifier), made by
// signer without randomness (RFC 6979, PKCS#1 v1.5) where it can, and it must verify with
// cert. After an error the file that was there before is still there, unless the error is
// that of flushing the directory.
func (w *Writer) Commit(signer crypto.Signer, cert *x509.Certificate) error {
	if w.err != nil {
		return w.err
	}
	if err := w.commit(signer, cert); err != nil {
		return errors.Join(fmt.Errorf("write manifest %s: %w", w.path, err), w.Abort())
	}
	w.err = errDone
	return w.f.Close()
}

func (w *Writer) commit(signer crypto.Signer, cert *x509.Certificate) error {
	if err := w.enc.end(); err != nil {
		return err
	}
	if err := w.payload.Close(); err != nil {
		return err
	}
	if err := w.out.Flush(); err != nil {
		return err
	}
	sig, err := w.sign(signer, cert)
	if err != nil {
		return err
	}
	if _, err := w.f.Write(append(appendTail(nil, []dsseSignature{*sig}), '\n')); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(w.tmp, w.path); err != nil {
		return err
	}
	w.tmp = ""
	return syncDir(filepath.Dir(w.path))
}

// sign reads the payload back: DSSE puts its length before it, which is known only now.
func (w *Writer) sign(signer crypto.Signer, cert *x509.Certificate) (*dsseSignature, error) {
	v, err := newVerifier(cert)
	if err != nil {
		return nil, err
	}
	from := int64(len(envelopeHead))
	st, err := w.f.Stat()
	if err != nil {
		return nil, err
	}
	signed, read := v.hash.New(), sha256.New()
	pae(signed, w.enc.size)
	back := base64.NewDecoder(base64.StdEncoding, io.NewSectionReader(w.f, from, st.Size()-from))
	if _, err := io.Copy(io.MultiWriter(signed, read), back); err != nil {
		return nil, fmt.Errorf("read back %s: %w", w.tmp, err)
	}
	if !bytes.Equal(read.Sum(nil), w.sum.Sum(nil)) {
		return nil, fmt.Errorf("read back %s: it is not what was written", w.tmp)
	}
	digest := signed.Sum(nil)
	// Not through sigstore's Signer: its ECDSA one wants an *ecdsa.PrivateKey and takes
	// randomness, and no two builds would be alike.
	// A copy, lest it be verified against what a signer made of it.
	sig, err := signer.Sign(nil, bytes.Clone(digest), v.hash)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if err := v.verify(digest, sig); err != nil {
		return nil, fmt.Errorf("verify signature just made with certificate %q: %w", cert.Subject, err)
	}
	// sigstore's verifiers pass over signatures whose key id is neither empty nor this.
	id, err := keyID(cert.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("compute key id: %w", err)
	}
	return &dsseSignature{KeyID: id, Sig: sig}, nil
}

// Abort gives up and removes what was written. After Commit it does nothing.
func (w *Writer) Abort() error {
	if errors.Is(w.err, errDone) {
		return nil
	}
	w.err = errDone
	return w.discard()
}

// discard removes the temporary file before its lock goes.
func (w *Writer) discard() error {
	var err error
	if w.tmp != "" {
		err = os.Remove(w.tmp)
	}
	return errors.Join(err, w.f.Close())
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
