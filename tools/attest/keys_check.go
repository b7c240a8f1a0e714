package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

// checkKeyFlags are the flags of attest keys check.
type checkKeyFlags struct {
	pairFlags
	key, cert string
	cas       []string
	json      bool
}

func newKeysCheck() *cobra.Command {
	var o checkKeyFlags
	c := &cobra.Command{
		Use:   "check --ca FILE [--key URI --cert FILE]",
		Short: "Check that a key, its certificate and the CA work together",
		Long: `check asks before a long build what would be found after it: can the key be opened,
is the certificate its own, in date and of use to Linux, can the CA be built into a
kernel, and does a kernel with that CA load the certificate? The first fault is the
error, exit code 2 where a kernel would refuse; nothing is signed.

Without --key and --cert only the CA is looked at.`,
		Example: `  attest keys check --key ima.key --cert ima.crt --ca root.crt`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	o.addFlags(f)
	f.StringVar(&o.key, "key", "", "private key at `URI`, as for attest sign")
	f.StringVar(&o.cert, "cert", "", "certificate of the key, PEM or DER `FILE`")
	f.StringArrayVar(&o.cas, "ca", nil, "CA that the kernel has built in, PEM or DER `FILE`; may be repeated")
	f.BoolVar(&o.json, "json", false, "print one JSON document (schema attest.keys.check/v1)")
	c.MarkFlagRequired("ca")
	c.MarkFlagsRequiredTogether("key", "cert")
	return c
}

// keyCheck is what attest keys check prints of a good key.
type keyCheck struct {
	Schema   string     `json:"schema"`
	Subject  string     `json:"subject,omitempty"`
	KeyID    string     `json:"key_id,omitempty"`
	NotAfter *time.Time `json:"not_after,omitempty"`
	CA       []string   `json:"ca"`
}

func (o *checkKeyFlags) run(ctx context.Context, stdout, stderr io.Writer) error {
	result := keyCheck{Schema: "attest.keys.check/v1"}
	var roots []*x509.Certificate
	for _, file := range o.cas {
		certs, err := keys.ReadCertificates(file)
		if err != nil {
			return err
		}
		for _, ca := range certs {
			if err := o.checkCA(file, ca, stderr); err != nil {
				return err
			}
			result.CA = append(result.CA, ca.Subject.String())
		}
		roots = append(roots, certs...)
	}
	if o.key != "" {
		if err := o.checkPair(ctx, roots, &result, stderr); err != nil {
			return err
		}
	}
	if o.json {
		return json.NewEncoder(stdout).Encode(result)
	}
	if o.key == "" {
		_, err := fmt.Fprintln(stdout, "CA good")
		return err
	}
	_, err := fmt.Fprintf(stdout, "key good: %s, key id %s, until %s\n", showText(result.Subject), result.KeyID, result.NotAfter.Format(time.DateOnly))
	return err
}

// checkCA looks at a CA as a kernel does that has it built in. Its validity is of no account
// there; that its key is published is to us.
func (o *checkKeyFlags) checkCA(file string, ca *x509.Certificate, stderr io.Writer) error {
	if fault := keys.AuthorityFault(ca); fault != "" {
		return &exitError{exitNotAuthentic, fmt.Errorf("%s: %q is no CA for a kernel: %s", file, ca.Subject, fault)}
	}
	name, published := keys.DebugName(ca.PublicKey)
	if published && !o.allowDebug {
		return &keys.DebugKeyError{Key: file, Name: name}
	}
	if published {
		fmt.Fprintf(stderr, "attest: warning: %s is published as %s: everybody has this private key\n", file, name)
	}
	return nil
}

// checkPair looks at the key and its certificate.
func (o *checkKeyFlags) checkPair(ctx context.Context, roots []*x509.Certificate, result *keyCheck, stderr io.Writer) error {
	key, cert, err := o.openPair(ctx, o.key, o.cert, stderr)
	if err != nil {
		return err
	}
	if err := key.Close(); err != nil {
		return err
	}
	if fault := ima.LinkFault(cert, roots); fault != "" {
		return &exitError{exitNotAuthentic, fmt.Errorf("%s: %w: %q: %s", o.cert, errNotLoaded, cert.Subject, fault)}
	}
	id, err := ima.KeyID(cert)
	if err != nil {
		return fmt.Errorf("%s: %w", o.cert, err)
	}
	result.Subject, result.KeyID, result.NotAfter = cert.Subject.String(), fmt.Sprintf("%08x", id), &cert.NotAfter
	return nil
}

// errNotLoaded means that files signed with a key would be refused on the device.
var errNotLoaded = errors.New("a kernel with this CA does not load the certificate")
