package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

func newKeysRenew() *cobra.Command {
	var o issueFlags
	var newKey bool
	c := &cobra.Command{
		Use:   "renew --ceremony FILE --out DIR NAME...",
		Short: "Make new certificates for keys that have one",
		Long: `renew makes a new certificate for the key of NAME.crt, valid from now for the
days that the ceremony says. Key and SubjectKeyIdentifier stay, and so signatures
that were made stay good. The old certificate is kept as NAME.crt.UNTIL, where
UNTIL is the end of its validity. NAME may be the CA.

With --new-key it makes another key, too, and keeps the old one as NAME.key.UNTIL:
files have to be signed again, and the device needs the new certificate.`,
		Example: `  attest keys renew --ceremony ceremony.toml --out keys ima
  attest keys renew --ceremony ceremony.toml --out keys ima --new-key`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.renew(c.Context(), args, newKey, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	o.makeFlags.addFlags(c.Flags())
	o.addCAFlags(c.Flags())
	c.Flags().BoolVar(&newKey, "new-key", false, "make a new key as well")
	return c
}

func (o *issueFlags) renew(ctx context.Context, names []string, newKey bool, stdout, stderr io.Writer) error {
	if o.encrypt && !newKey {
		return errors.New("--encrypt is for new keys: --new-key")
	}
	if err := o.start(); err != nil {
		return err
	}
	if len(names) == 1 && names[0] == o.plan.CA.Name {
		return o.renewCA(ctx, newKey, stdout, stderr)
	}
	specs, err := o.plan.Find(names)
	if err != nil {
		return fmt.Errorf("%s: %w", o.ceremony, err)
	}
	ca, done, err := o.authority(ctx, o.now, stderr)
	if err != nil {
		return err
	}
	defer done()
	for i := range specs {
		if err := o.renewLeaf(ca, &specs[i], newKey); err != nil {
			return err
		}
	}
	return o.finish(stdout, stderr)
}

func (o *issueFlags) renewCA(ctx context.Context, newKey bool, stdout, stderr io.Writer) error {
	if newKey {
		return errors.New("a CA with a new key is another CA: attest keys init with another --out")
	}
	ca, done, err := o.authority(ctx, time.Time{}, stderr) // it may have expired
	if err != nil {
		return err
	}
	defer done()
	s := &o.plan.CA
	cert, err := s.SelfSign(ca.Signer, ca.Certificate.SubjectKeyId, o.now)
	if err != nil {
		return err
	}
	if err := o.replaceCertificate(s, ca.Certificate, cert, cert); err != nil {
		return err
	}
	return o.finish(stdout, stderr)
}

// renewLeaf needs no private key but the CA's: the public one is in the old certificate,
// which the CA vouches for.
func (o *issueFlags) renewLeaf(ca *keys.Authority, s *keys.Spec, newKey bool) error {
	file := o.path(s.Name + ".crt")
	old, err := readOne(file)
	if err != nil {
		return err
	}
	if err := old.CheckSignatureFrom(ca.Certificate); err != nil {
		return fmt.Errorf("%s: not a certificate of %q: %w", file, ca.Certificate.Subject, err)
	}
	public, skid := old.PublicKey, old.SubjectKeyId
	if newKey {
		if s.KeyURI != "" {
			return fmt.Errorf("--new-key: key %q is at %s: make a new one there and change key_uri", s.Name, s.KeyURI)
		}
		key, err := s.Generate()
		if err != nil {
			return err
		}
		text, err := o.encode(key)
		if err != nil {
			return err
		}
		if err := o.replace(s.Name+".key", old, 0o600, text); err != nil {
			return err
		}
		public, skid = key.Public(), nil
	}
	cert, err := s.Issue(ca, public, skid, o.now)
	if err != nil {
		return err
	}
	return o.replaceCertificate(s, old, cert, ca.Certificate)
}

func (o *issueFlags) replaceCertificate(s *keys.Spec, old, cert, ca *x509.Certificate) error {
	o.report(s, cert, ca)
	return errors.Join(
		o.replace(s.Name+".crt", old, 0o644, certificatePEM(cert)),
		o.replace(s.Name+".der", old, 0o644, cert.Raw))
}

// replace adds a file, and keeps one that is there under the date of old's end.
func (o *issueFlags) replace(name string, old *x509.Certificate, mode fs.FileMode, content []byte) error {
	_, err := os.Lstat(o.path(name))
	switch {
	case err == nil:
		o.files.Replace(name, name+"."+old.NotAfter.UTC().Format("20060102T150405Z"), mode, content)
	case errors.Is(err, fs.ErrNotExist):
		o.files.Add(name, mode, content)
	default:
		return err
	}
	return nil
}
