package rootfs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// ErrUntrusted means that the kernel would not load a certificate under the CAs.
var ErrUntrusted = errors.New("the kernel would not load this certificate")

// Trust are the certificates whose signatures count, by the key id of signatures.
type Trust struct {
	byID  map[uint32][]*x509.Certificate
	certs []*x509.Certificate
}

// NewTrust trusts certs; if there are CAs, each of certs must be one that the kernel's
// keyrings .ima and .evm take when these CAs are built in. Validity periods do not count,
// because the kernel does not look at them; see [Trust.Expired].
func NewTrust(cas, certs []*x509.Certificate) (*Trust, error) {
	t := &Trust{byID: map[uint32][]*x509.Certificate{}}
	for _, c := range certs {
		id, err := ima.KeyID(c)
		if err != nil {
			return nil, err
		}
		if fault := ima.LinkFault(c, cas); len(cas) > 0 && fault != "" {
			return nil, fmt.Errorf("%q: %w: %s", c.Subject, ErrUntrusted, fault)
		}
		t.byID[id] = append(t.byID[id], c)
		t.certs = append(t.certs, c)
	}
	return t, nil
}

// Certificates are the trusted certificates.
func (t *Trust) Certificates() []*x509.Certificate { return t.certs }

// Expired returns the certificates that are not valid at now.
func (t *Trust) Expired(now time.Time) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range t.certs {
		if now.After(c.NotAfter) || now.Before(c.NotBefore) {
			out = append(out, c)
		}
	}
	return out
}

// errWrongKey means that no certificate has the key id of a signature.
var errWrongKey = errors.New("no trusted certificate has this key id")

// verify checks a signature with every certificate of its key id.
func (t *Trust) verify(x *ima.Xattr, digest []byte) (*x509.Certificate, error) {
	err := errWrongKey
	for _, c := range t.byID[x.KeyID] {
		if err = x.Verify(c.PublicKey, digest); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// certificateDir is where the kernel (CONFIG_IMA_X509_PATH, CONFIG_EVM_X509_PATH) and
// initramfs scripts load certificates from.
const certificateDir = "etc/keys"

// maxCertificate bounds a file there: the kernel reads one certificate from each.
const maxCertificate = 64 << 10

// Certificates returns the certificates in etc/keys of the tree that the kernel would load
// under the CAs, and why it would not load the other files there.
func (t *Tree) Certificates(cas []*x509.Certificate) (certs []*x509.Certificate, rejected []string, err error) {
	dir, err := t.openInside(certificateDir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer dir.Close()
	names, err := readNames(int(dir.Fd()))
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", certificateDir, err)
	}
	for _, name := range names {
		rel := path.Join(certificateDir, name)
		cert, err := t.certificate(rel)
		if err == nil {
			if fault := ima.LinkFault(cert, cas); fault != "" {
				err = errors.New(fault)
			}
		}
		if err != nil {
			rejected = append(rejected, fmt.Sprintf("%q: %v", rel, err))
			continue
		}
		certs = append(certs, cert)
	}
	return certs, rejected, nil
}

// certificate reads one file as the kernel does: DER, and one certificate.
func (t *Tree) certificate(rel string) (*x509.Certificate, error) {
	f, err := t.openInside(rel)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() > maxCertificate {
		return nil, errors.New("not a regular file of the size of a certificate")
	}
	der, err := io.ReadAll(io.LimitReader(f, maxCertificate))
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
