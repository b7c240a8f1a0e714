package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/keys"
	"github.com/meta-attest/meta-attest/tools/internal/server"
)

func newCertificate() *cobra.Command {
	parent := &cobra.Command{
		Use:   "certificate",
		Short: "Make TLS certificates for the verifier and its operators",
		Long: `These commands make a small certification authority for TLS: devices trust ca.crt
(ATTEST_VERIFIER_CA in the image), the server has server.crt, operators have a certificate
each. A CA that you have already does as well.

It is not the CA of the image: whatever that one signs, the kernels of your devices would
take as a key for files.`,
		Example: `  attest-verifier certificate init --host verifier.example.com --out /etc/attest/tls
  attest-verifier certificate client alice --role admin --ca /etc/attest/tls --out .
  attest-verifier certificate notices --out /etc/attest/tls`,
	}
	parent.AddCommand(newCertificateInit(), newCertificateClient(), newCertificateNotices())
	return parent
}

// tlsAuthority signs certificates for TLS.
type tlsAuthority struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func newCertificateInit() *cobra.Command {
	var hosts []string
	var out string
	var days int
	c := &cobra.Command{
		Use:     "init",
		Short:   "Make a CA and the server's certificate",
		Example: "  attest-verifier certificate init --host verifier.example.com --host 192.0.2.1 --out /etc/attest/tls",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if len(hosts) == 0 {
				return errors.New("give the name or the address by which devices reach the server: --host NAME")
			}
			for _, h := range hosts {
				if net.ParseIP(h) == nil && strings.ContainsAny(h, ":/ ") {
					return fmt.Errorf("--host %q: give the name or the address alone, without scheme and port", h)
				}
			}
			if days < 1 {
				return fmt.Errorf("--days %d: less than a day", days)
			}
			now := time.Now()
			key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			if err != nil {
				return err
			}
			files := keys.NewFiles(out)
			template := certificateTemplate(pkix.Name{CommonName: "attest-verifier CA"}, now, 10*365)
			template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero, template.KeyUsage = true, true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
			ca := &tlsAuthority{key: key, cert: template}
			if ca.cert, err = ca.issue(files, "ca", key, template); err != nil {
				return err
			}
			if err := ca.leaf(files, "server", serverTemplate(hosts, now, days)); err != nil {
				return err
			}
			return writeFiles(c, files, out)
		},
	}
	c.Flags().StringArrayVar(&hosts, "host", nil, "name or address of the server; several times for several")
	c.Flags().StringVar(&out, "out", ".", "write to `DIR`")
	c.Flags().IntVar(&days, "days", 825, "validity of the server's certificate")
	return c
}

func newCertificateClient() *cobra.Command {
	var role, from, out string
	var days int
	c := &cobra.Command{
		Use:   "client NAME",
		Short: "Make the certificate of an operator, or of a verifier that polls agents",
		Long: `client makes a certificate by which somebody proves who he is to the verifier. With
--role pull it is the verifier's own ([pull] cert and key): by it agents that wait to be
polled know the verifier, and it opens nothing else.`,
		Example: `  attest-verifier certificate client alice --role operator --ca /etc/attest/tls --out .
  attest-verifier certificate client poller --role pull --ca /etc/attest/tls --out /etc/attest/tls`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if r := server.Role(role); r != server.Operator && r != server.Admin && role != "pull" {
				return fmt.Errorf("--role %s: operator or admin (pull: the verifier's own)", role)
			}
			if days < 1 {
				return fmt.Errorf("--days %d: less than a day", days)
			}
			ca, err := readAuthority(c, from)
			if err != nil {
				return err
			}
			template := certificateTemplate(pkix.Name{CommonName: args[0], OrganizationalUnit: []string{role}}, time.Now(), days)
			template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
			files := keys.NewFiles(out)
			if err := ca.leaf(files, args[0], template); err != nil {
				return err
			}
			return writeFiles(c, files, out)
		},
	}
	c.Flags().StringVar(&role, "role", string(server.Operator), "operator, admin or pull")
	c.Flags().StringVar(&from, "ca", ".", "`DIR` that certificate init wrote")
	c.Flags().StringVar(&out, "out", ".", "write to `DIR`")
	c.Flags().IntVar(&days, "days", 365, "validity")
	return c
}

func readAuthority(c *cobra.Command, dir string) (*tlsAuthority, error) {
	certs, err := keys.ReadCertificates(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("--ca: %w", err)
	}
	key, err := keys.Open(c.Context(), filepath.Join(dir, "ca.key"), keys.Options{})
	if err != nil {
		return nil, fmt.Errorf("--ca: %w", err)
	}
	return &tlsAuthority{key, certs[0]}, nil
}

func certificateTemplate(subject pkix.Name, now time.Time, days int) *x509.Certificate {
	// A device without a clock of its own starts with the time of its image.
	return &x509.Certificate{Subject: subject, NotBefore: now.AddDate(0, 0, -1), NotAfter: now.AddDate(0, 0, days), KeyUsage: x509.KeyUsageDigitalSignature}
}

func serverTemplate(hosts []string, now time.Time, days int) *x509.Certificate {
	t := certificateTemplate(pkix.Name{CommonName: hosts[0]}, now, days)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	return t
}

// leaf makes a key and its certificate.
func (a *tlsAuthority) leaf(files *keys.Files, name string, template *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	_, err = a.issue(files, name, key, template)
	return err
}

// issue certifies key, and adds NAME.key and NAME.crt to files.
func (a *tlsAuthority) issue(files *keys.Files, name string, key crypto.Signer, template *x509.Certificate) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("certify %s: %w", name, err)
	}
	private, err := keys.MarshalPrivate(key, nil)
	if err != nil {
		return nil, err
	}
	files.Add(name+".key", 0o600, private)
	files.Add(name+".crt", 0o644, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return x509.ParseCertificate(der)
}

// writeFiles writes to dir, in which others may look: a server that is no root reads the
// certificates there, and each key is closed.
func writeFiles(c *cobra.Command, files *keys.Files, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := files.Write(); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: keys are never overwritten", err)
		}
		return err
	}
	for _, path := range files.Paths() {
		fmt.Fprintln(c.OutOrStdout(), path)
	}
	return nil
}
