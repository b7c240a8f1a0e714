package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

// inspectFlags are the flags of attest keys inspect.
type inspectFlags struct {
	keyFlags
	ca   []string
	json bool
}

func newKeysInspect() *cobra.Command {
	var o inspectFlags
	c := &cobra.Command{
		Use:   "inspect FILE...",
		Short: "Say what keys and certificates are, and what Linux does with them",
		Long: `inspect reads certificates (PEM, DER), certificate requests and private keys, also
by a key URI, and says: key and key id, validity, usage, the CA that signed it, and
which keyrings of Linux take it.

A finding is a reason not to use it: expired, not-yet-valid, weak, unsupported, debug
(the private key is published), unusable (Linux takes it neither as CA nor as signer),
chain (no CA of --ca signed it). Exit code 4: findings; 2: a chain among them.`,
		Example: `  attest keys inspect --ca keys/root.crt keys/ima.crt
  attest keys inspect --json /etc/keys/x509_ima.der`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(c.Context(), args, c.OutOrStdout())
		},
	}
	f := c.Flags()
	o.addPassphrase(f)
	f.StringArrayVar(&o.ca, "ca", nil, "certificates must be signed by one in `FILE`, PEM or DER; may be repeated")
	f.BoolVar(&o.json, "json", false, "print one JSON document (schema attest.keys.inspect/v1)")
	return c
}

func (o *inspectFlags) run(ctx context.Context, args []string, stdout io.Writer) error {
	var roots []*x509.Certificate
	for _, file := range o.ca {
		certs, err := keys.ReadCertificates(file)
		if err != nil {
			return err
		}
		roots = append(roots, certs...)
	}
	var reports []*keys.Report
	for _, arg := range args {
		found, err := keys.Inspect(ctx, arg, roots, time.Now(), o.Options())
		if err != nil {
			return err
		}
		reports = append(reports, found...)
	}
	if o.json {
		err := json.NewEncoder(stdout).Encode(struct {
			Schema string         `json:"schema"`
			Keys   []*keys.Report `json:"keys"`
		}{"attest.keys.inspect/v1", reports})
		if err != nil {
			return err
		}
	} else {
		for _, r := range reports {
			printReport(stdout, r)
		}
	}
	return judge(reports)
}

// judge turns findings into the exit code.
func judge(reports []*keys.Report) error {
	findings, code := 0, exitFindings
	for _, r := range reports {
		findings += len(r.Findings)
		if slices.ContainsFunc(r.Findings, func(f keys.Finding) bool { return f.Code == keys.FindingChain }) {
			code = exitNotAuthentic
		}
	}
	switch findings {
	case 0:
		return nil
	case 1:
		return &exitError{code, errors.New("1 finding")}
	default:
		return &exitError{code, fmt.Errorf("%d findings", findings)}
	}
}

func printReport(w io.Writer, r *keys.Report) {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "  %-22s %s\n", name, value)
		}
	}
	fmt.Fprintf(w, "%s: %s\n", r.File, r.Kind)
	line("subject", r.Subject)
	line("issuer", r.Issuer)
	line("serial", r.Serial)
	line("key", r.Key)
	line("key id", r.KeyID)
	line("SKID", r.SKID)
	line("spki sha256", r.Fingerprint)
	if r.NotAfter != nil {
		line("valid", fmt.Sprintf("%s to %s, %d days left", r.NotBefore.Format(time.DateOnly), r.NotAfter.Format(time.DateOnly), *r.DaysLeft))
		line("usage", strings.Join(r.Usage, " "))
	}
	line("signed by", r.Chain)
	for _, k := range r.Keyrings {
		verdict := "refused: "
		if k.Accepted {
			verdict = "taken: "
		}
		line(k.Name, verdict+k.Reason)
	}
	for _, n := range r.Notes {
		line("note", n)
	}
	for _, f := range r.Findings {
		line("FINDING", f.Code+": "+f.Text)
	}
}
