package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

// issueFlags are the flags of attest keys issue; renew has some of them.
type issueFlags struct {
	makeFlags
	caKey, caCert string
	caPassphrase  string
	request       bool
	fromRequest   string
}

func (o *issueFlags) addCAFlags(f *pflag.FlagSet) {
	f.StringVar(&o.caKey, "ca-key", "", "sign with the private key at `URI` (default: that of the ceremony's [ca] in DIR)")
	f.StringVar(&o.caPassphrase, "ca-passphrase-file", "", "the first line of `FILE` is the passphrase or PIN of the CA's key (default: as for other keys)")
	f.StringVar(&o.caCert, "ca-cert", "", "certificate of the CA, PEM or DER `FILE` (default: that of [ca] in DIR)")
}

func newKeysIssue() *cobra.Command {
	var o issueFlags
	c := &cobra.Command{
		Use:   "issue --ceremony FILE --out DIR [NAME...]",
		Short: "Make keys and certificates under a CA, or requests for one",
		Long: `issue makes the leaves that a ceremony describes, or those named: NAME.key
(mode 0600), NAME.crt (PEM) and NAME.der in DIR. The CA is that of attest keys
init in DIR, or any other: --ca-key and --ca-cert.

With --csr it makes NAME.key and NAME.csr, a request for a CA elsewhere. With
--from-csr it signs such a request: only the key is taken from it, all else must
be what the ceremony says.`,
		Example: `  attest keys issue --ceremony ceremony.toml --out keys
  attest keys issue --ceremony ceremony.toml --out keys ima --ca-key 'pkcs11:token=ca;object=root?module-name=softhsm2' --ca-cert root.crt
  attest keys issue --ceremony ceremony.toml --out keys ima --csr
  attest keys issue --ceremony ceremony.toml --out keys ima --from-csr ima.csr`,
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(c.Context(), args, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	o.makeFlags.addFlags(c.Flags())
	o.addCAFlags(c.Flags())
	c.Flags().BoolVar(&o.request, "csr", false, "make a certificate request (PKCS#10) instead of a certificate")
	c.Flags().StringVar(&o.fromRequest, "from-csr", "", "make a certificate for the key of the request in `FILE`")
	c.MarkFlagsMutuallyExclusive("csr", "from-csr")
	c.MarkFlagsMutuallyExclusive("csr", "ca-key")
	c.MarkFlagsMutuallyExclusive("csr", "ca-cert")
	return c
}

func (o *issueFlags) run(ctx context.Context, names []string, stdout, stderr io.Writer) error {
	if err := o.start(); err != nil {
		return err
	}
	specs, err := o.plan.Find(names)
	if err != nil {
		return fmt.Errorf("%s: %w", o.ceremony, err)
	}
	produce := o.newRequest
	if !o.request {
		ca, done, err := o.authority(ctx, o.now, stderr)
		if err != nil {
			return err
		}
		defer done()
		produce = func(ctx context.Context, s *keys.Spec, stderr io.Writer) error {
			return o.newCertificate(ctx, ca, s, stderr)
		}
	}
	if o.fromRequest != "" && len(specs) != 1 {
		return errors.New("--from-csr needs one NAME")
	}
	for i := range specs {
		if err := produce(ctx, &specs[i], stderr); err != nil {
			return err
		}
	}
	return o.finish(stdout, stderr)
}

// authority opens the CA, which must not have expired at the time at.
func (o *issueFlags) authority(ctx context.Context, at time.Time, stderr io.Writer) (*keys.Authority, func() error, error) {
	uri, file := o.caKey, o.caCert
	if uri == "" {
		uri = o.plan.CA.KeyURI
	}
	if uri == "" {
		uri = o.path(o.plan.CA.Name + ".key")
	}
	if file == "" {
		file = o.path(o.plan.CA.Name + ".crt")
	}
	cert, err := readOne(file)
	if err != nil {
		return nil, nil, fmt.Errorf("read CA: %w", err)
	}
	flags := o.keyFlags
	if o.caPassphrase != "" {
		flags.passphraseFile = o.caPassphrase
	}
	key, err := flags.open(ctx, uri, stderr)
	if err != nil {
		return nil, nil, fmt.Errorf("open CA: %w", err)
	}
	ca := &keys.Authority{Signer: key, Certificate: cert}
	if err := ca.Check(at); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", file, err), key.Close())
	}
	return ca, key.Close, nil
}

// newCertificate makes a key, or takes one from a request, and its certificate.
func (o *issueFlags) newCertificate(ctx context.Context, ca *keys.Authority, s *keys.Spec, stderr io.Writer) error {
	public, err := o.public(ctx, s, stderr)
	if err != nil {
		return err
	}
	cert, err := s.Issue(ca, public, nil, o.now)
	if err != nil {
		return err
	}
	o.addCertificate(s, cert, ca.Certificate)
	return nil
}

// public returns the public half of the leaf's key, and adds the private half if it is new.
func (o *issueFlags) public(ctx context.Context, s *keys.Spec, stderr io.Writer) (crypto.PublicKey, error) {
	if o.fromRequest != "" {
		request, err := keys.ReadRequest(o.fromRequest)
		if err != nil {
			return nil, err
		}
		public, err := s.FromRequest(request, o.allowDebug)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.fromRequest, err)
		}
		return public, nil
	}
	key, done, err := o.privateKey(ctx, s, stderr)
	if err != nil {
		return nil, err
	}
	defer done()
	return key.Public(), o.addKey(s, key)
}

// newRequest makes a key and a request for a certificate.
func (o *issueFlags) newRequest(ctx context.Context, s *keys.Spec, stderr io.Writer) error {
	key, done, err := o.privateKey(ctx, s, stderr)
	if err != nil {
		return err
	}
	defer done()
	der, err := s.Request(key)
	if err != nil {
		return err
	}
	if err := o.addKey(s, key); err != nil {
		return err
	}
	o.files.Add(s.Name+".csr", 0o644, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	return nil
}

// readOne reads the first certificate of a file.
func readOne(file string) (*x509.Certificate, error) {
	certs, err := keys.ReadCertificates(file)
	if err != nil {
		return nil, err
	}
	return certs[0], nil
}
