package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/tpm"
)

// device is what the agent proves with: the TPM, its attestation key, and the logs that
// only root may open.
type device struct {
	config *Config
	folder *folder
	tpm    *tpm.TPM
	// mu is held by the listener while it uses what follows, and by the main loop, which
	// alone exchanges it, while it does so or counts the lists.
	mu     sync.Mutex
	ak     *tpm.AK
	public *evidence.AK
	next   bool // ak is the candidate, not the saved key
	banks  evidence.Selection

	binary, ascii *list    // nil where they are missing
	firmware      *os.File // likewise
}

// openDevice opens all that later, as another user, could not be opened.
func openDevice(c *Config, f *folder) (*device, error) {
	d := &device{config: c, folder: f}
	if err := d.open(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *device) open() error {
	if err := d.openTPM(); err != nil {
		return err
	}
	var err error
	path := d.config.get("ima_list")
	if d.binary, err = openList(path, false); err != nil {
		return err
	}
	// Keylime's own verifier wants text; it lies beside, or this kernel has none.
	dir, name := filepath.Split(path)
	d.ascii, err = openList(filepath.Join(dir, strings.Replace(name, "binary", "ascii", 1)), true)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d.firmware, err = os.Open(d.config.get("firmware_log"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open firmware log: %w", err)
	}
	return nil
}

func (d *device) openTPM() error {
	var err error
	if d.tpm, err = tpm.Open(d.config.get("tpm")); err != nil {
		return err
	}
	info, err := d.tpm.Info()
	if err != nil {
		d.closeTPM()
		return err
	}
	d.banks = evidence.SelectionOf(info.Banks)
	return nil
}

func (d *device) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closeTPM()
	for _, l := range []*list{d.binary, d.ascii} {
		if l != nil {
			l.file.Close()
		}
	}
	if d.firmware != nil {
		d.firmware.Close()
	}
}

func (d *device) closeTPM() {
	if d.ak != nil {
		d.ak.Close()
		d.ak = nil
	}
	if d.tpm != nil {
		_ = d.tpm.Close() // nothing was written that could be lost
		d.tpm = nil
	}
}

// reopen begins again with the TPM, after an error that it was not asked for: an emulator
// that was restarted, or a resume from suspend that lost the loaded key.
func (d *device) reopen() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closeTPM()
	if err := d.openTPM(); err != nil {
		return err
	}
	return d.loadKey()
}

// loadKey loads the saved attestation key. Its error wraps [fs.ErrNotExist] where there is
// none, and [tpm.ErrForeign] where it is another TPM's.
func (d *device) loadKey() error {
	blob, err := d.folder.read(keyFile)
	if err != nil {
		return fmt.Errorf("read attestation key: %w", err)
	}
	ak, err := d.tpm.LoadAK(blob)
	if err != nil {
		return err
	}
	return d.use(ak)
}

func (d *device) use(ak *tpm.AK) error {
	public, err := evidence.ParseAK(ak.Public())
	if err != nil {
		ak.Close()
		return err
	}
	d.ak, d.public = ak, public
	return nil
}

// makeKey makes an attestation key and saves it before anybody hears of it.
func (d *device) makeKey(name string) error {
	ak, err := d.tpm.CreateAK(d.config.get("ak"))
	if err != nil {
		return err
	}
	if err := d.folder.write(name, ak.Blob()); err != nil {
		ak.Close()
		return err
	}
	return d.use(ak)
}

// candidateKey has a key loaded that is to replace the saved one, which stays until
// [folder.adoptKey]: the same one after each attempt that failed.
func (d *device) candidateKey() error {
	d.next = true
	if blob, err := d.folder.read(nextKeyFile); err == nil {
		if ak, err := d.tpm.LoadAK(blob); err == nil {
			return d.use(ak)
		}
	}
	return d.makeKey(nextKeyFile)
}

// replaceKey puts the saved key aside and makes another.
func (d *device) replaceKey() error {
	blob, err := d.folder.read(keyFile)
	if err != nil {
		return err
	}
	if err := d.folder.retireKey(blob); err != nil {
		return err
	}
	return d.makeKey(keyFile)
}

// openKey has the TPM open and a key loaded; see ensureKey.
func (d *device) openKey() (changed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tpm == nil {
		if err := d.openTPM(); err != nil {
			return false, err
		}
	}
	if changed, err = d.ensureKey(); err != nil {
		if _, lost := d.tpm.Clock(); lost != nil {
			d.closeTPM() // for the next attempt to open it again
		}
	}
	return changed, err
}

// probe looks whether the TPM answers and still has the key, and begins again if not.
func (d *device) probe() error {
	if _, _, err := d.ak.Certify(make([]byte, evidence.MinNonce)); err != nil {
		return d.reopen()
	}
	return nil
}

// ensureKey has a key loaded: the saved one, or a new one where none was saved or the TPM
// is not the one that made it. changed says that it is new.
func (d *device) ensureKey() (changed bool, err error) {
	err = d.loadKey()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, d.makeKey(keyFile)
	case errors.Is(err, tpm.ErrForeign):
		return true, d.replaceKey()
	}
	return false, err
}

// keyName is the TPM's name of the loaded key.
func (d *device) keyName() string { return hex.EncodeToString(d.public.Name()) }

// quote is the TPM's signed statement.
func (d *device) quote(p evidence.Parameters) (evidence.Data, error) {
	selection, err := evidence.Selection(p.Selected).TPM()
	if err != nil {
		return evidence.Data{}, err
	}
	if len(p.Challenge) < evidence.MinNonce {
		return evidence.Data{}, fmt.Errorf("quote: a challenge of %d bytes proves nothing", len(p.Challenge))
	}
	q, err := d.ak.Quote(p.Challenge, selection)
	if err != nil {
		return evidence.Data{}, &tpmError{err}
	}
	blob, err := evidence.AppendPCRBlob(nil, selection, q.Values)
	return evidence.Data{Message: q.Message, Signature: q.Signature, PCRs: blob}, err
}

// tpmError is an error of the TPM's in what it does every time.
type tpmError struct{ err error }

func (e *tpmError) Error() string { return e.err.Error() }
func (e *tpmError) Unwrap() error { return e.err }

// keyKind is the algorithm and the size in bits of a key, as Keylime has them.
func keyKind(key crypto.PublicKey) (string, int) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return "rsa", k.N.BitLen()
	case *ecdsa.PublicKey:
		return "ecc", k.Curve.Params().BitSize
	}
	return "", 0 // evidence.ParseAK takes no other
}

// capabilities are what this device can send.
func (d *device) capabilities(boot time.Time) (evidence.Capabilities, error) {
	hashes := []string{}
	for _, h := range []string{ima.SHA256.String(), ima.SHA384.String(), ima.SHA512.String(), ima.SHA1.String()} {
		if len(d.banks[h]) > 0 {
			hashes = append(hashes, h)
		}
	}
	algorithm, size := keyKind(d.public.Key())
	c := evidence.Capabilities{System: evidence.SystemInfo{BootTime: boot.UTC()}}
	c.Supported = append(c.Supported, evidence.Supported{Class: evidence.ClassCertification, Type: evidence.TypeQuote, Capabilities: evidence.Capability{
		Version: "2.0", Hashes: hashes, Schemes: []string{d.public.Scheme()}, AvailablePC: d.banks,
		Keys: []evidence.Key{{
			Class: "asymmetric", Algorithm: algorithm, Size: size, Server: "ak",
			Name:   base64.StdEncoding.EncodeToString(d.public.Name()),
			Public: base64.StdEncoding.EncodeToString(d.public.Public()), Schemes: []string{d.public.Scheme()}, Hashes: []string{d.public.Hash()},
		}},
	}})
	yes, no := true, false
	if d.firmware != nil {
		c.Supported = append(c.Supported, evidence.Supported{Class: evidence.ClassLog, Type: evidence.TypeFirmware, Capabilities: evidence.Capability{
			Format: "2.1", Partial: &no, Appendable: &no, Formats: []string{evidence.FormatBinary}}})
	}
	list, formats, err := d.lists()
	if err != nil {
		return c, err
	}
	c.Supported = append(c.Supported, evidence.Supported{Class: evidence.ClassLog, Type: evidence.TypeIMA, Capabilities: evidence.Capability{
		Entries: &list.entries, Partial: &yes, Appendable: &yes, Formats: formats}})
	return c, nil
}

// lists counts the measurements, and says in which formats they can be sent.
func (d *device) lists() (*list, []string, error) {
	if err := d.binary.count(); err != nil {
		return nil, nil, err
	}
	if d.ascii == nil {
		return d.binary, []string{evidence.FormatBinary}, nil
	}
	return d.binary, []string{evidence.FormatBinary, evidence.FormatText}, nil
}

// collect makes what was asked for. The quote comes first: whatever it says of PCR 10 is
// then in the list that is read after it.
func (d *device) collect(asked evidence.Requests) (*collected, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &collected{}
	var quote evidence.Data
	i := slices.IndexFunc(asked.Requested, func(q evidence.Request) bool { return q.Type == evidence.TypeQuote })
	if i < 0 {
		return nil, errors.New("the verifier asks for no quote")
	}
	quote, err := d.quote(asked.Requested[i].Parameters)
	if err != nil {
		return nil, err
	}
	for _, q := range asked.Requested {
		switch q.Type {
		case evidence.TypeQuote:
			c.Collected.Collected = append(c.Collected.Collected, evidence.Item{Class: q.Class, Type: q.Type, Data: quote})
		case evidence.TypeIMA:
			err = d.addList(c, q)
		case evidence.TypeFirmware:
			err = d.addFirmware(c, q)
		default:
			err = fmt.Errorf("the verifier asks for %.40q, which is unknown", q.Type)
		}
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (d *device) addList(c *collected, q evidence.Request) error {
	l := d.binary
	if q.Parameters.Format == evidence.FormatText {
		l = d.ascii
	}
	if l == nil || q.Parameters.Format != evidence.FormatText && q.Parameters.Format != evidence.FormatBinary {
		return fmt.Errorf("the verifier asks for a measurement list in format %.40q", q.Parameters.Format)
	}
	if err := l.count(); err != nil {
		return err
	}
	offset := 0
	if q.Parameters.Offset != nil {
		offset = *q.Parameters.Offset
	}
	from, err := l.from(offset)
	if err != nil {
		return err
	}
	c.add(q.Class, q.Type, q.Parameters.Format, from, max(0, l.entries-offset))
	return nil
}

// maxFirmware bounds the firmware's log; those of PCs have some ten kilobytes.
const maxFirmware = 8 << 20

func (d *device) addFirmware(c *collected, q evidence.Request) error {
	if d.firmware == nil || q.Parameters.Format != "" && q.Parameters.Format != evidence.FormatBinary {
		return fmt.Errorf("the verifier asks for a firmware log in format %.40q", q.Parameters.Format)
	}
	from, err := d.firmwareLog()
	if err != nil {
		return err
	}
	c.add(q.Class, q.Type, evidence.FormatBinary, from, -1)
	return nil
}

// firmwareLog is the firmware's log as it is now; the kernel's file says no size.
func (d *device) firmwareLog() (*io.SectionReader, error) {
	n, err := io.Copy(io.Discard, io.NewSectionReader(d.firmware, 0, maxFirmware+1))
	if err == nil && n > maxFirmware {
		err = fmt.Errorf("it has more than %d bytes", maxFirmware)
	}
	if err != nil {
		return nil, fmt.Errorf("read firmware log: %w", err)
	}
	return io.NewSectionReader(d.firmware, 0, n), nil
}
