package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
	"github.com/meta-attest/meta-attest/tools/internal/modsig"
)

// kernelModulesFlags are the flags of attest kernel modules.
type kernelModulesFlags struct {
	pairFlags
	key, cert, hash string
	ca              []string
	json            bool
}

func newKernelModules() *cobra.Command {
	var o kernelModulesFlags
	c := &cobra.Command{
		Use:   "modules DIR... --key URI --cert FILE --ca FILE",
		Short: "Sign the modules of a kernel",
		Long: `modules appends a signature to each kernel module (*.ko) in DIR, in place; one that a
module has already is replaced. Symbolic links are not followed.

Unlike those of the kernel's sign-file, these signatures carry the certificate, and the
kernel accepts it because a CA of --ca, which is compiled in, has issued it. The
certificate must not be compiled in itself: Linux would let its key issue certificates for
the keyring .ima. A kernel with CONFIG_MODULE_SIG and CONFIG_MODULE_SIG_FORCE then refuses
every module without such a signature, from an initramfs, too, where IMA sees no labels.

Modules have to be stripped, and not yet compressed.`,
		Example: `  attest kernel modules rootfs/lib/modules --key modsign.key --cert modsign.crt --ca root.crt`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(c.Context(), args, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	o.addFlags(f)
	f.StringVar(&o.key, "key", "", "sign with the private key at `URI`: a PEM file, pkcs11:..., hashivault://..., ...")
	f.StringVar(&o.cert, "cert", "", "certificate of the key, PEM or DER `FILE`")
	f.StringArrayVar(&o.ca, "ca", nil, "certificates that are compiled into the kernel, `FILE` in PEM or DER; may be repeated")
	f.StringVar(&o.hash, "hash", "sha256", "hash `ALGORITHM`: sha256, sha384 or sha512; the kernel needs it built in")
	f.BoolVar(&o.json, "json", false, "print one JSON document (schema attest.kernel.modules/v1)")
	for _, name := range []string{"key", "cert", "ca"} {
		c.MarkFlagRequired(name)
	}
	completeTreeFlags(c)
	return c
}

// maxModule is the size in bytes of the largest module that is read; with debugging
// information some have 100 MB.
const maxModule = 1 << 30

var (
	errModuleChain = errors.New("the kernel would not take its signatures")
	errNoModule    = errors.New("is neither a kernel module (*.ko) nor a folder")
	errCompressed  = errors.New("is compressed, and only what is inside can be signed")
)

// moduleSigner signs modules.
type moduleSigner struct {
	key  crypto.Signer
	cert *x509.Certificate
	hash crypto.Hash
}

func (o *kernelModulesFlags) run(ctx context.Context, dirs []string, stdout, stderr io.Writer) error {
	signer, closeKey, err := o.signer(ctx, stderr)
	if err != nil {
		return err
	}
	defer closeKey()
	var modules []string
	for _, dir := range dirs {
		found, err := findModules(dir)
		if err != nil {
			return err
		}
		modules = append(modules, found...)
	}
	for i, file := range modules {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("signed %d of %d modules: %w", i, len(modules), err)
		}
		if err := signer.sign(file); err != nil {
			return fmt.Errorf("signed %d of %d modules: sign %s: %w", i, len(modules), file, err)
		}
	}
	if o.json {
		return json.NewEncoder(stdout).Encode(struct {
			Schema string `json:"schema"`
			Signed int    `json:"signed"`
		}{"attest.kernel.modules/v1", len(modules)})
	}
	_, err = fmt.Fprintf(stdout, "signed %d %s\n", len(modules), plural(int64(len(modules)), "module"))
	return err
}

// signer opens the key and says why the kernel would not take what it signs.
func (o *kernelModulesFlags) signer(ctx context.Context, stderr io.Writer) (*moduleSigner, func() error, error) {
	hash, err := ima.ParseSigningHash(o.hash)
	if err != nil {
		return nil, nil, err
	}
	var roots []*x509.Certificate
	for _, file := range o.ca {
		found, err := keys.ReadCertificates(file)
		if err != nil {
			return nil, nil, err
		}
		roots = append(roots, found...)
	}
	key, cert, err := o.openPair(ctx, o.key, o.cert, stderr)
	if err != nil {
		return nil, nil, err
	}
	if fault := ima.LinkFault(cert, roots); fault != "" {
		err := &exitError{exitNotAuthentic, fmt.Errorf("certificate %s: %w: %s", o.cert, errModuleChain, fault)}
		return nil, nil, errors.Join(err, key.Close())
	}
	return &moduleSigner{key, cert, hash.Hash()}, key.Close, nil
}

// findModules lists the modules of a folder, or the one file that dir is. A folder may have
// none: that of a kernel all of whose drivers are built in.
func findModules(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		compressed := slices.ContainsFunc([]string{".ko.gz", ".ko.xz", ".ko.zst"}, func(s string) bool { return strings.HasSuffix(path, s) })
		switch {
		case d.Type().IsRegular() && strings.HasSuffix(path, ".ko"):
			files = append(files, path)
		case d.Type().IsRegular() && compressed:
			return fmt.Errorf("%s: %w", path, errCompressed)
		case path == dir && !d.IsDir():
			return fmt.Errorf("%s: %w", path, errNoModule)
		}
		return nil
	})
	return files, err
}

// sign writes into the file as it is: under pseudo, whose database knows files by their
// inode, a new one would belong to the builder.
func (s *moduleSigner) sign(file string) error {
	module, err := readBounded(file, maxModule)
	if err != nil {
		return err
	}
	content, _, err := modsig.Split(module)
	if err != nil {
		return err
	}
	signature, err := modsig.Sign(content, s.key, s.cert, s.hash)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(signature, int64(len(content)))
	return errors.Join(err, f.Truncate(int64(len(content)+len(signature))), f.Close())
}
