package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meta-attest/meta-attest/tools/internal/config"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

var (
	errNoCeremony = errors.New("no --ceremony")
	errKeysExist  = errors.New("nothing was written, because keys and certificates are never overwritten")
)

func newKeys() *cobra.Command {
	c := &cobra.Command{
		Use:   "keys",
		Short: "Make, renew and inspect keys and certificates",
		Long: `keys makes private keys and the X.509 certificates that Linux wants for them,
from a ceremony: a text in TOML that people review before any key exists.

  init     makes the root CA, which is compiled into the kernel
  issue    makes keys and certificates under it, or requests for another CA
  renew    makes a new certificate for the same key: signatures stay good
  inspect  says what a key or certificate is, and what Linux does with it
  check    says in one line whether files signed with a key will be good on the device
  convert  writes a certificate in the form that Linux loads`,
		Example: `  attest keys init --print-ceremony > ceremony.toml
  attest keys init --ceremony ceremony.toml --out keys
  attest keys issue --ceremony ceremony.toml --out keys
  attest keys inspect --ca keys/root.crt keys/ima.crt`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newKeysInit(), newKeysIssue(), newKeysRenew(), newKeysInspect(), newKeysCheck(), newKeysConvert())
	return c
}

// makeFlags are the flags of the commands that make something, and what they have made.
type makeFlags struct {
	keyFlags
	ceremony, out string
	encrypt, json bool

	plan    keys.Ceremony
	files   *keys.Files
	reports []*keys.Report
	now     time.Time
}

func (m *makeFlags) addFlags(f *pflag.FlagSet) {
	m.keyFlags.AddFlags(f)
	f.StringVar(&m.ceremony, "ceremony", "", "`FILE` that describes the keys")
	f.StringVar(&m.out, "out", "", "write keys and certificates to the folder `DIR`")
	f.BoolVar(&m.encrypt, "encrypt", false, "encrypt new private keys with the passphrase")
	f.BoolVar(&m.json, "json", false, "print one JSON document (schema attest.keys.made/v1)")
}

// start reads the ceremony.
func (m *makeFlags) start() error {
	if m.ceremony == "" {
		return errNoCeremony
	}
	if m.out == "" {
		return errors.New("no --out")
	}
	if err := config.ReadFile(m.ceremony, &m.plan); err != nil {
		return err
	}
	if err := m.plan.Check(); err != nil {
		return fmt.Errorf("%s: %w", m.ceremony, err)
	}
	m.files, m.reports, m.now = keys.NewFiles(m.out), []*keys.Report{}, time.Now()
	return nil
}

func (m *makeFlags) path(name string) string { return filepath.Join(m.out, name) }

// privateKey makes the key of s, or opens the one that it names. done ends its use.
func (m *makeFlags) privateKey(ctx context.Context, s *keys.Spec, stderr io.Writer) (key crypto.Signer, done func() error, err error) {
	if s.KeyURI != "" {
		key, err := m.open(ctx, s.KeyURI, stderr)
		if err != nil {
			return nil, nil, err
		}
		return key, key.Close, nil
	}
	key, err = s.Generate()
	return key, func() error { return nil }, err
}

// encode writes a new private key in PEM.
func (m *makeFlags) encode(key crypto.Signer) ([]byte, error) {
	if !m.encrypt {
		return keys.MarshalPrivate(key, nil)
	}
	passphrase, err := m.passphrase()
	if err != nil {
		return nil, err
	}
	if len(passphrase) == 0 {
		return nil, fmt.Errorf("--encrypt: %w", keys.ErrNoPassphrase)
	}
	return keys.MarshalPrivate(key, passphrase)
}

// addKey adds NAME.key, unless the key stays where it is.
func (m *makeFlags) addKey(s *keys.Spec, key crypto.Signer) error {
	if s.KeyURI != "" {
		return nil
	}
	text, err := m.encode(key)
	if err != nil {
		return err
	}
	m.files.Add(s.Name+".key", 0o600, text)
	return nil
}

// addCertificate adds NAME.crt, which tools want, and NAME.der, which Linux loads.
func (m *makeFlags) addCertificate(s *keys.Spec, cert, ca *x509.Certificate) {
	m.files.Add(s.Name+".crt", 0o644, certificatePEM(cert))
	m.files.Add(s.Name+".der", 0o644, cert.Raw)
	m.report(s, cert, ca)
}

func certificatePEM(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func (m *makeFlags) report(s *keys.Spec, cert, ca *x509.Certificate) {
	m.reports = append(m.reports, keys.InspectCertificate(m.path(s.Name+".crt"), cert, []*x509.Certificate{ca}, m.now))
}

// finish writes the files and says which.
func (m *makeFlags) finish(stdout, stderr io.Writer) error {
	if err := m.files.Write(); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: %w", errKeysExist, err)
		}
		return err
	}
	if m.json {
		return json.NewEncoder(stdout).Encode(struct {
			Schema       string         `json:"schema"`
			Files        []string       `json:"files"`
			Certificates []*keys.Report `json:"certificates"`
		}{"attest.keys.made/v1", m.files.Paths(), m.reports})
	}
	for _, r := range m.reports {
		fmt.Fprintf(stderr, "attest: %s: %s, key id %s, until %s\n", r.File, r.Key, r.KeyID, r.NotAfter.Format(time.DateOnly))
		for _, n := range r.Notes {
			fmt.Fprintf(stderr, "attest: %s: %s\n", r.File, n)
		}
	}
	for _, path := range m.files.Paths() {
		fmt.Fprintln(stdout, path)
	}
	return nil
}
