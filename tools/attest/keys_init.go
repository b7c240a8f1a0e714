package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

//go:embed keys_ceremony.toml
var exampleCeremony string

func newKeysInit() *cobra.Command {
	var m makeFlags
	var example bool
	c := &cobra.Command{
		Use:   "init --ceremony FILE --out DIR",
		Short: "Make the root CA of a ceremony",
		Long: `init makes the CA that a ceremony describes: NAME.key (mode 0600), NAME.crt (PEM)
and NAME.der in DIR. Its certificate belongs into the kernel
(CONFIG_SYSTEM_TRUSTED_KEYS); its key is needed only to issue and renew
certificates, and is best kept off line. A key that is in a token or a service
already is used where it is: key_uri in [ca].`,
		Example: `  attest keys init --print-ceremony > ceremony.toml
  attest keys init --ceremony ceremony.toml --out keys --encrypt --passphrase-file secret`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if example {
				_, err := io.WriteString(c.OutOrStdout(), exampleCeremony)
				return err
			}
			return runKeysInit(c.Context(), &m, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	m.addFlags(c.Flags())
	c.Flags().BoolVar(&example, "print-ceremony", false, "print a ceremony to start from, and make nothing")
	return c
}

func runKeysInit(ctx context.Context, m *makeFlags, stdout, stderr io.Writer) error {
	if err := m.start(); err != nil {
		return err
	}
	ca := &m.plan.CA
	key, done, err := m.privateKey(ctx, ca, stderr)
	if err != nil {
		return err
	}
	defer done()
	cert, err := ca.SelfSign(key, nil, m.now)
	if err != nil {
		return err
	}
	if err := m.addKey(ca, key); err != nil {
		return err
	}
	m.addCertificate(ca, cert, cert)
	if err := m.finish(stdout, stderr); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "attest: next, put the CA into the kernel: CONFIG_SYSTEM_TRUSTED_KEYS=%q\n", m.path(ca.Name+".crt"))
	fmt.Fprintf(stderr, "attest: and make keys under it: attest keys issue --ceremony %s --out %s\n", m.ceremony, m.out)
	return nil
}
