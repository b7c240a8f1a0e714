package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/labellist"
)

// keysDir is where the kernel, an initramfs and attest-init load certificates from.
const keysDir = "/etc/keys"

const maxCertificate = 64 << 10

// trust are certificates by the key id of their signatures.
type trust struct {
	ima, evm map[uint32][]*x509.Certificate
}

// loadTrust reads the certificates of a folder. Files that are none are passed over, as the
// kernel does.
func loadTrust(dir string) (*trust, error) {
	t := &trust{}
	var err error
	if t.ima, err = readCertificates(dir, "x509_ima*.der"); err != nil {
		return nil, err
	}
	if len(t.ima) == 0 {
		return nil, fmt.Errorf("no certificate in %s/x509_ima*.der", dir)
	}
	t.evm, err = readCertificates(dir, "x509_evm*.der")
	return t, err
}

func readCertificates(dir, pattern string) (map[uint32][]*x509.Certificate, error) {
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		return nil, err
	}
	byID := map[uint32][]*x509.Certificate{}
	for _, file := range files {
		der, err := readFile(file, maxCertificate)
		if err != nil {
			return nil, err
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			continue
		}
		if id, err := ima.KeyID(cert); err == nil {
			byID[id] = append(byID[id], cert)
		}
	}
	return byID, nil
}

// readFile reads a file of at most most bytes.
func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, most)
}

func readAll(f *os.File, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("more than %d bytes", most)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return b, nil
}

// verify checks a signature with the certificates of its key id.
func verify(certs map[uint32][]*x509.Certificate, x *ima.Xattr, digest []byte) error {
	err := fmt.Errorf("no certificate in %s has key id %08x", keysDir, x.KeyID)
	for _, c := range certs[x.KeyID] {
		if err = x.Verify(c.PublicKey, digest); err == nil {
			if weak := x.Weakness(c.PublicKey); weak != "" {
				return errors.New(weak)
			}
			return nil
		}
	}
	return err
}

// open verifies a label list and parses it.
func (t *trust) open(text []byte) ([]labellist.Entry, error) {
	l, err := labellist.Split(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotAuthentic, err)
	}
	x, err := ima.ParseIMA(l.Signature)
	if err == nil && x.Type != ima.Signature {
		err = fmt.Errorf("type %d is no signature", x.Type)
	}
	if err == nil {
		h, hashErr := x.Hash.New()
		if err = hashErr; err == nil {
			h.Write(l.Body)
			err = verify(t.ima, x, h.Sum(nil))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: signature of the label list: %w", errNotAuthentic, err)
	}
	return labellist.Parse(l.Body)
}
