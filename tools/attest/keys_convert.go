package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

func newKeysConvert() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "convert CERT --output DER",
		Short: "Write a certificate in the form that Linux loads",
		Long: `convert writes the first certificate of CERT, PEM or DER, in DER: what Linux
(CONFIG_IMA_LOAD_X509, CONFIG_EVM_LOAD_X509) and attest-init load from /etc/keys. A private
key that stands in the same file stays there.`,
		Example: `  attest keys convert ima.crt --output rootfs/etc/keys/x509_ima.der`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return convertCertificate(args[0], output, c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&output, "output", "", "write the certificate to `DER`, - for standard output")
	c.MarkFlagRequired("output")
	return c
}

func convertCertificate(file, output string, stdout io.Writer) error {
	certs, err := keys.ReadCertificates(file)
	if err != nil {
		return err
	}
	if output == "-" {
		_, err = stdout.Write(certs[0].Raw)
	} else {
		err = os.WriteFile(output, certs[0].Raw, 0o644)
	}
	if err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	return nil
}
