package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/keys"
	"github.com/meta-attest/meta-attest/tools/internal/vmlinux"
)

// kernelCAFlags are the flags of attest kernel ca.
type kernelCAFlags struct {
	output       string
	allowDebug   bool
	allowExpired bool
}

func newKernelCA() *cobra.Command {
	var o kernelCAFlags
	c := &cobra.Command{
		Use:   "ca FILE... --output PEM",
		Short: "Make the file for CONFIG_SYSTEM_TRUSTED_KEYS",
		Long: `ca copies the certificates of each FILE, PEM or DER, into one PEM file for
CONFIG_SYSTEM_TRUSTED_KEYS. Nothing else of a FILE, such as a private key, gets there.

Linux lets each certificate in that file issue others for the keyrings .ima and .evm,
whether or not it is a CA, and whatever its date. So one that is no CA is refused, as are
those whose private key is published, and expired ones.`,
		Example: `  attest kernel ca keys/root.crt --output linux/ca.pem`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(args, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringVar(&o.output, "output", "", "write the certificates to `PEM`, - for standard output")
	f.BoolVar(&o.allowDebug, "allow-debug-keys", false, "take certificates whose private key is published, such as those of keys-debug")
	f.BoolVar(&o.allowExpired, "allow-expired", false, "take a certificate that has expired (the kernel does not look at the date)")
	c.MarkFlagRequired("output")
	return c
}

var errNotCA = errors.New("is not a CA, and Linux would let its key issue certificates all the same")

func (o *kernelCAFlags) run(files []string, stdout, stderr io.Writer) error {
	var text bytes.Buffer
	for _, file := range files {
		certs, err := keys.ReadCertificates(file)
		if err != nil {
			return err
		}
		for _, cert := range certs {
			if err := o.check(file, cert, stderr); err != nil {
				return err
			}
			if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
				return err
			}
		}
	}
	if o.output == "-" {
		_, err := stdout.Write(text.Bytes())
		return err
	}
	return os.WriteFile(o.output, text.Bytes(), 0o644)
}

func (o *kernelCAFlags) check(file string, cert *x509.Certificate, stderr io.Writer) error {
	name := cert.Subject.String()
	if !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("%s: certificate %q %w", file, name, errNotCA)
	}
	if err := keys.CheckStrength(cert.PublicKey); err != nil {
		return fmt.Errorf("%s: certificate %q: %w", file, name, err)
	}
	if debug, ok := keys.DebugName(cert.PublicKey); ok {
		if !o.allowDebug {
			return &keys.DebugKeyError{Key: file, Name: debug}
		}
		fmt.Fprintf(stderr, "attest: warning: %s is published as %s: everybody has this private key\n", file, debug)
	}
	if cert.NotAfter.Before(time.Now()) && !o.allowExpired {
		return fmt.Errorf("%s: %w: %q on %s", file, keys.ErrExpired, name, cert.NotAfter.Format(time.DateOnly))
	}
	return nil
}

// kernelCertificatesFlags are the flags of attest kernel certificates.
type kernelCertificatesFlags struct {
	ca   []string
	json bool
}

func newKernelCertificates() *cobra.Command {
	var o kernelCertificatesFlags
	c := &cobra.Command{
		Use:   "certificates VMLINUX --ca FILE...",
		Short: "See that a kernel trusts these certificates and no others",
		Long: `certificates reads the list that is compiled into VMLINUX, the ELF file that the
build of a kernel leaves in its folder (not bzImage), and compares it with --ca. Lines of
the result are "PLACE SHA256 SUBJECT: verdict". A place is trusted, for the keyring
.builtin_trusted_keys, or module, for the key that the build signs modules with: with
CONFIG_IMA_APPRAISE_MODSIG Linux puts that into .ima, too.

A certificate that is missing, and one that --ca does not have, is a finding: exit code 4.`,
		Example: `  attest kernel certificates build/vmlinux --ca keys/root.crt`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(args[0], c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringArrayVar(&o.ca, "ca", nil, "certificates that have to be in it, `FILE` in PEM or DER; may be repeated")
	f.BoolVar(&o.json, "json", false, "print one JSON document (schema attest.kernel.certificates/v1)")
	c.MarkFlagRequired("ca")
	return c
}

// kernelCertificate is one that is, or should be, in a kernel.
type kernelCertificate struct {
	Place   string `json:"place"` // module, trusted
	SHA256  string `json:"sha256"`
	Subject string `json:"subject"`
	Verdict string `json:"verdict"` // good, missing, unknown
}

func (o *kernelCertificatesFlags) run(file string, stdout io.Writer) error {
	var wanted []*x509.Certificate
	for _, name := range o.ca {
		certs, err := keys.ReadCertificates(name)
		if err != nil {
			return err
		}
		wanted = append(wanted, certs...)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	in, err := vmlinux.Read(f)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	list, bad := judgeCertificates(in, wanted)
	if o.json {
		err = json.NewEncoder(stdout).Encode(struct {
			Schema       string              `json:"schema"`
			Certificates []kernelCertificate `json:"certificates"`
			Good         bool                `json:"good"`
		}{"attest.kernel.certificates/v1", list, bad == 0})
	} else {
		for _, c := range list {
			fmt.Fprintf(stdout, "%s %s %s: %s\n", c.Place, c.SHA256, showText(c.Subject), c.Verdict)
		}
	}
	if err == nil && bad > 0 {
		err = &exitError{exitFindings, fmt.Errorf("%s: %d %s: the kernel does not trust what it should, and that alone", file, bad, plural(bad, "certificate"))}
	}
	return err
}

// judgeCertificates lists what is in a kernel and what is missing, and counts what is wrong.
func judgeCertificates(in *vmlinux.Certificates, wanted []*x509.Certificate) (list []kernelCertificate, bad int64) {
	add := func(place string, cert *x509.Certificate, verdict string) {
		digest := sha256.Sum256(cert.Raw)
		list = append(list, kernelCertificate{place, hex.EncodeToString(digest[:]), cert.Subject.String(), verdict})
		if verdict != "good" {
			bad++
		}
	}
	known := func(certs []*x509.Certificate, cert *x509.Certificate) bool {
		return slices.ContainsFunc(certs, cert.Equal)
	}
	for _, cert := range in.Module {
		add("module", cert, "unknown")
	}
	for _, cert := range in.Trusted {
		if known(wanted, cert) {
			add("trusted", cert, "good")
		} else {
			add("trusted", cert, "unknown")
		}
	}
	for _, cert := range wanted {
		if !known(in.Trusted, cert) {
			add("trusted", cert, "missing")
		}
	}
	return list, bad
}
