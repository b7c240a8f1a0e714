package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/labellist"
	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

// errNoControl means that a folder is no package that is about to be built.
var errNoControl = errors.New("has neither DEBIAN/control nor CONTROL/control")

func newPackage() *cobra.Command {
	c := &cobra.Command{
		Use:   "package",
		Short: "Sign the files of packages, for a package manager to label on the device",
		Args:  cobra.NoArgs,
	}
	c.AddCommand(newPackageBuild(), newPackageSign())
	return c
}

func newPackageBuild() *cobra.Command {
	o := signFlags{labels: rootfs.LabelsAuto}
	c := &cobra.Command{
		Use:   "build --key URI --cert FILE -- COMMAND... ROOT DESTINATION",
		Short: "Sign the files of a deb or an ipk while it is built",
		Long: `build stands before the command that makes a deb or an ipk of the folder ROOT. It
signs every file of the folder and its maintainer scripts, writes the labels, signed as a
whole, into the control file attest-labels, and executes the command. Files get no
attribute: a tar keeps none, and the label list travels in the package.

attest-labels, on the device, sets the labels while the package is installed.

Rules are those of attest sign. A file that a rule skips is in the list, without a label.`,
		Example: `  attest package build --key ima.key --cert ima.crt -- dpkg-deb --build hello out
  attest package build --key ima.key --cert ima.crt -- opkg-build hello out`,
		Args: cobra.MinimumNArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.signPackage(c.Context(), args[len(args)-2], c.ErrOrStderr()); err != nil {
				return err
			}
			return execute(c.Context(), args, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	o.addPackageFlags(c)
	f := c.Flags()
	f.StringVar(&o.evmKey, "evm-key", "", "sign metadata with another key at `URI`")
	f.StringVar(&o.evmCert, "evm-cert", "", "certificate of --evm-key, PEM or DER `FILE`")
	f.StringVar(&o.hash, "hash", "sha256", "hash `ALGORITHM`: sha256, sha384 or sha512")
	f.BoolVar(&o.evm, "evm", false, "add an EVM portable signature of owner and mode")
	f.StringVar(&o.target, "target", "", "`ARCH` of the kernel that checks EVM signatures")
	c.MarkFlagsRequiredTogether("evm", "target")
	c.MarkFlagsRequiredTogether("evm-key", "evm-cert")
	return c
}

// addPackageFlags adds what is common to all kinds of package.
func (o *signFlags) addPackageFlags(c *cobra.Command) {
	f := c.Flags()
	o.pairFlags.addFlags(f)
	f.StringVar(&o.key, "key", "", "sign with the private key at `URI`: a PEM file, pkcs11:..., hashivault://..., ...")
	f.StringVar(&o.cert, "cert", "", "certificate of the key, PEM or DER `FILE`")
	f.StringVar(&o.config, "config", "", "read rules from `FILE`, and FILE's folder of drop-ins")
	f.StringArrayVar(&o.rules, "rule", nil, "`ACTION:PATH`, before the rules of --config; may be repeated")
	f.StringVar(&o.findSigned, "find-signed", "", "after all rules, sign only what 'find `EXPR`' prints (IMA_EVM_ROOTFS_SIGNED of meta-integrity)")
	f.StringVar(&o.findHashed, "find-hashed", "", "after all rules, write a digest, no signature, for what 'find `EXPR`' prints (IMA_EVM_ROOTFS_HASHED)")
	c.MarkFlagRequired("key")
	c.MarkFlagRequired("cert")
}

// signPackage writes the label list of the folder root.
func (o *signFlags) signPackage(ctx context.Context, root string, stderr io.Writer) error {
	control, err := findControl(root)
	if err != nil {
		return err
	}
	list := filepath.Join(root, control, labellist.ControlFile)
	if err := os.Remove(list); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	rules, err := o.readRules()
	if err != nil {
		return err
	}
	var dump bytes.Buffer
	out := newSignOutput(o, io.Discard, stderr)
	opts := rootfs.SignOptions{Dump: &dump, Progress: new(rootfs.Progress), Note: func(n rootfs.Note) {
		if n.Kind.Bad() { // a rule for the image may well match nothing of one package
			out.note(n)
		}
	}}
	if opts.Rules, err = controlRules(control, rules); err != nil {
		return err
	}
	tree, err := o.openTree(root)
	if err != nil {
		return err
	}
	defer tree.Close()
	closeKeys, err := o.openSigners(ctx, &opts, stderr)
	if err != nil {
		return err
	}
	defer closeKeys()
	if o.evm {
		if opts.Layout, err = findLayout(ctx, tree, o.target); err != nil {
			return err
		}
	}
	report, err := rootfs.Sign(ctx, tree, opts)
	if err == nil && !report.Complete() {
		err = &exitError{exitFindings, fmt.Errorf("%s: %w", root, errIncomplete)}
	}
	if err != nil {
		return err
	}
	body, err := addSkipped(ctx, tree, control, dump.Bytes())
	if err != nil {
		return err
	}
	sig, err := opts.Signer.SignContent(body)
	if err != nil {
		return err
	}
	return os.WriteFile(list, labellist.List{Signature: sig, Body: body}.Append(nil), 0o644)
}

// findControl returns the folder of control files: opkg-build prefers CONTROL, too.
func findControl(root string) (string, error) {
	found := ""
	for _, dir := range labellist.ControlDirs {
		if st, err := os.Stat(filepath.Join(root, dir, "control")); err == nil && st.Mode().IsRegular() {
			found = dir
		}
	}
	if found == "" {
		return "", fmt.Errorf("%s: %w", root, errNoControl)
	}
	return found, nil
}

// controlRules put the maintainer scripts, which are executed, before all rules, and conffiles, which
// exempts what it names; they leave other control files alone.
func controlRules(control string, rules rootfs.Rules) (rootfs.Rules, error) {
	var all rootfs.Rules
	for _, text := range []string{"sign:/" + control + "/{" + labellist.Conffiles + "," + strings.Join(labellist.Scripts, ",") + "}", "skip:/" + control + "/**"} {
		r, err := rootfs.ParseRule(text)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return append(all, rules...), nil
}

// addSkipped adds the files that have no label to the records of those that have. A further
// name of a file has the labels of the first.
func addSkipped(ctx context.Context, tree *rootfs.Tree, control string, dump []byte) ([]byte, error) {
	entries, err := labellist.Parse(dump)
	if err != nil {
		return nil, err
	}
	known := map[string]labellist.Entry{}
	for _, e := range entries {
		known[e.Path] = e
	}
	first := map[[2]uint64]labellist.Entry{}
	var body []byte
	err = tree.Look(ctx, func(l rootfs.Look, err error) error {
		if err != nil {
			return err
		}
		e, labelled := known[l.Path]
		if !labelled && filepath.Dir(l.Path) == control {
			return nil
		}
		dev, ino := l.ID()
		id := [2]uint64{dev, ino}
		if _, ok := first[id]; !ok {
			first[id] = e
		}
		e = first[id]
		e.Path = l.Path
		body = e.Append(body)
		return nil
	})
	return body, err
}

// execute runs the command that makes the package.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Stdout, c.Stderr = stdout, stderr
	if err := c.Run(); err != nil {
		return fmt.Errorf("execute %s: %w", args[0], err)
	}
	return nil
}
