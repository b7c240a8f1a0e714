package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
	"github.com/meta-attest/meta-attest/tools/internal/rpmfile"
)

func newPackageSign() *cobra.Command {
	o := signFlags{hash: "sha256"}
	c := &cobra.Command{
		Use:   "sign --key URI --cert FILE RPM...",
		Short: "Put signatures of files into rpm packages",
		Long: `sign puts a signature of each file into the signature header of rpm packages, as
rpmsign --signfiles does, and replaces those that are there. rpm's plugin ima sets them as
labels on install. The package's own digests and OpenPGP signatures stay good.

Rules are those of attest sign; there is no "hash": rpm has no place for it.`,
		Example: `  attest package sign --key ima.key --cert ima.crt *.rpm`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.signRPMs(c.Context(), args, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	o.addPackageFlags(c)
	return c
}

// signRPMs signs one package after the other.
func (o *signFlags) signRPMs(ctx context.Context, paths []string, stdout, stderr io.Writer) error {
	rules, err := o.readRules()
	if err != nil {
		return err
	}
	var opts rootfs.SignOptions
	closeKeys, err := o.openSigners(ctx, &opts, stderr)
	if err != nil {
		return err
	}
	defer closeKeys()
	for _, path := range paths {
		n, err := signRPM(path, rules, opts.Signer)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if _, err := fmt.Fprintf(stdout, "signed %d files of %s\n", n, showPath(path)); err != nil {
			return err
		}
	}
	return nil
}

// signRPM replaces a package by one with signatures, and says how many.
func signRPM(path string, rules rootfs.Rules, signer *rootfs.Signer) (n int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	front, err := io.ReadAll(io.LimitReader(f, rpmfile.MaxHeaders))
	if err != nil {
		return 0, err
	}
	p, err := rpmfile.Parse(front)
	if err != nil {
		return 0, err
	}
	signatures := make([][]byte, len(p.Files))
	for i, file := range p.Files {
		switch action := rules.Action(strings.TrimPrefix(file.Path, "/")); {
		case file.Digest == nil || action == rootfs.ActionSkip:
			continue
		case action == rootfs.ActionHash:
			return 0, fmt.Errorf("a rule says hash for %q, and rpm keeps signatures only", file.Path)
		}
		if signatures[i], err = signer.SignDigest(file.Digest); err != nil {
			return 0, err
		}
		n++
	}
	signed, err := p.Sign(signatures)
	if err != nil {
		return 0, err
	}
	if _, err := f.Seek(p.Size, io.SeekStart); err != nil {
		return 0, err
	}
	return n, replaceFile(path, st.Mode().Perm(), signed, f)
}

// replaceFile gives a file a new content: what is in front, and what is left to read of rest.
func replaceFile(path string, mode os.FileMode, front []byte, rest io.Reader) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	defer f.Close()
	if _, err := f.Write(front); err != nil {
		return err
	}
	if _, err := io.Copy(f, rest); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
