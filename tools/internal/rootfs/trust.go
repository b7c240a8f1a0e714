package rootfs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

// ErrUntrusted means that a certificate is not signed by any of the CAs.
var ErrUntrusted = errors.New("certificate is not signed by the CA")

// Trust are the certificates whose signatures count, by the key id of signatures.
type Trust struct {
	byID  map[uint32][]*x509.Certificate
	certs []*x509.Certificate
}

// NewTrust trusts certs; if there are CAs, each of certs must be signed by one of them
// directly, as the kernel's .ima keyring demands (restrict_link_by_builtin_trusted).
// Validity periods do not count, because the kernel does not look at them; see
// [Trust.Expired].
func NewTrust(cas, certs []*x509.Certificate) (*Trust, error) {
	t := &Trust{byID: map[uint32][]*x509.Certificate{}}
	for _, c := range certs {
		id, err := ima.KeyID(c)
		if err != nil {
			return nil, err
		}
		if len(cas) > 0 && !signedByAny(c, cas) {
			return nil, fmt.Errorf("%q: %w", c.Subject, ErrUntrusted)
		}
		t.byID[id] = append(t.byID[id], c)
		t.certs = append(t.certs, c)
	}
	return t, nil
}

func signedByAny(c *x509.Certificate, cas []*x509.Certificate) bool {
	return slices.ContainsFunc(cas, func(ca *x509.Certificate) bool { return c.CheckSignatureFrom(ca) == nil })
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

// Certificates returns the certificates in etc/keys of the tree that a CA has signed,
// and the files there that hold none such.
func (t *Tree) Certificates(cas []*x509.Certificate) (certs []*x509.Certificate, rejected []string, err error) {
	entries, err := os.ReadDir(path.Join(t.root, certificateDir))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		rel := path.Join(certificateDir, e.Name())
		f, err := t.open(rel)
		if err != nil {
			continue // a link: the file that it leads to is here under its own name
		}
		f.Close()
		found, err := keys.ReadCertificates(path.Join(t.root, rel))
		signed := slices.DeleteFunc(found, func(c *x509.Certificate) bool { return !signedByAny(c, cas) || c.IsCA })
		if err != nil || len(signed) == 0 {
			rejected = append(rejected, rel)
		}
		certs = append(certs, signed...)
	}
	return certs, rejected, nil
}
