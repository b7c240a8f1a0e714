package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/policy"
	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

// policySignFlags are the flags of attest policy sign.
type policySignFlags struct {
	signFlags
	kernel string
	beside bool
}

func newPolicySign() *cobra.Command {
	var o policySignFlags
	c := &cobra.Command{
		Use:   "sign FILE --key URI --cert FILE",
		Short: "Write the label with which the kernel loads a policy by its path",
		Long: `sign writes a signature into security.ima of the policy FILE, as attest sign does
for the files of a tree. A kernel that demands signed policies takes the path only:

    echo /etc/ima/ima-policy > /sys/kernel/security/ima/policy

A policy that the kernel refuses is not signed. The file must keep its label on its way
into the image: attest sign of the whole tree labels it, too. An archive of cpio, which an
initramfs is, keeps none: with --beside the labels go to FILE.sig and FILE.evm, where
attest-init looks for them.`,
		Example: `  attest policy sign rootfs/etc/ima/ima-policy --key ima.key --cert ima.crt --kernel 6.1
  attest policy sign initramfs/etc/ima/ima-policy --key ima.key --cert ima.crt --beside`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(c.Context(), args[0], c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	o.AddFlags(f)
	f.StringVar(&o.key, "key", "", "sign with the private key at `URI`: a PEM file, pkcs11:..., hashivault://..., ...")
	f.StringVar(&o.cert, "cert", "", "certificate of the key, PEM or DER `FILE`")
	f.BoolVar(&o.allowExpired, "allow-expired", false, "sign although the certificate has expired (the kernel does not look at the date)")
	f.StringVar(&o.hash, "hash", "sha256", "hash `ALGORITHM`: sha256, sha384 or sha512")
	f.BoolVar(&o.evm, "evm", false, "write an EVM portable signature into security.evm too")
	f.StringVar(&o.target, "target", "", "`ARCH` of the kernel that checks it, for --evm")
	f.StringVar(&o.labels, "labels", rootfs.LabelsAuto, "write the label through `WAY`: auto, libc (pseudo, fakeroot) or direct")
	f.StringVar(&o.kernel, "kernel", "", "the policy is for Linux `VERSION`, such as 6.1 (default: "+policy.Newest.String()+", the newest known)")
	f.BoolVar(&o.beside, "beside", false, "write the labels to FILE.sig and FILE.evm, for an initramfs")
	f.BoolVar(&o.force, "force", false, "write the label although it is right already")
	f.BoolVar(&o.json, "json", false, "print one JSON document (schema attest.policy.sign/v1)")
	c.MarkFlagRequired("key")
	c.MarkFlagRequired("cert")
	c.MarkFlagsRequiredTogether("evm", "target")
	c.MarkFlagsMutuallyExclusive("beside", "labels")
	return c
}

// run does what the flags say.
func (o *policySignFlags) run(ctx context.Context, file string, stdout, stderr io.Writer) error {
	kernel, err := parseKernel(o.kernel)
	if err != nil {
		return err
	}
	text, err := readPolicy(file)
	if err != nil {
		return err
	}
	p, err := policy.Parse(text, kernel)
	if err == nil && p.Unterminated {
		err = errors.New("the last line does not end in a newline, and so the kernel refuses the file")
	}
	if err != nil {
		return &exitError{exitFindings, fmt.Errorf("%s: not signed: %w", file, err)}
	}
	beside := besideLabels{}
	var labels rootfs.Labels = beside
	if !o.beside {
		if labels, err = rootfs.OpenLabels(o.labels); err != nil {
			return err
		}
	}
	opts := rootfs.SignOptions{Force: o.force}
	if o.evm {
		if opts.Layout, err = ima.ParseTarget(o.target); err != nil {
			return err
		}
	}
	closeKeys, err := o.openSigners(ctx, &opts, stderr)
	if err != nil {
		return err
	}
	defer closeKeys()
	written, err := rootfs.SignFile(ctx, file, labels, opts)
	if err == nil && o.beside {
		err = beside.write(file)
	}
	if err != nil {
		return err
	}
	if o.json {
		return json.NewEncoder(stdout).Encode(policySigned{"attest.policy.sign/v1", newJSONPath(file), written})
	}
	verb := "unchanged"
	if written {
		verb = "signed"
	}
	_, err = fmt.Fprintf(stdout, "%s %s\n", verb, showPath(file))
	return err
}

// policySigned is the document of attest policy sign.
type policySigned struct {
	Schema string `json:"schema"`
	jsonPath
	Written bool `json:"written"`
}
