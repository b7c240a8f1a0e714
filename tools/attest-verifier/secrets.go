package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/server"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

var errNoSecretKey = errors.New("no key for secrets")

const maxSecretKeys = 4 << 10 // bytes of the file

// readSecretKeys reads the keys that secrets are kept with; nil where none are configured.
func readSecretKeys(path string) (*server.SecretKeys, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not hang the start
	if err != nil {
		return nil, fmt.Errorf("secrets.key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("secrets.key: %w", err)
	}
	others := fs.FileMode(0o077)
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && filepath.Dir(path) == filepath.Clean(dir) {
		others = 0o037 // systemd lets the service read it by an ACL: its mask is what the group seems to have
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&others != 0 {
		return nil, fmt.Errorf("secrets.key: %s: others may read or change this key (mode %04o), or it is no file: chmod 600 it", path, info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretKeys))
	if err != nil {
		return nil, fmt.Errorf("secrets.key: %w", err)
	}
	k, err := server.ParseSecretKeys(b)
	if err != nil {
		return nil, fmt.Errorf("secrets.key: %s: %w", path, err)
	}
	return k, nil
}

func newSecrets() *cobra.Command {
	parent := &cobra.Command{
		Use:   "secrets",
		Short: "Look after the key that secrets are kept with",
		Long: `Secrets that operators give to devices (attest fleet secret) are encrypted in the database
with the newest key of the file that [secrets] key names: keys of 32 random bytes, one
after the other, the newest last.

    umask 077; head -c 32 /dev/urandom >secrets.key     # the first
    head -c 32 /dev/urandom >>secrets.key               # a newer one

To exchange the key: append the newer one, restart all verifiers, run secrets rekey, then
take the older one out of the file and restart them again.`,
	}
	parent.AddCommand(newRekey())
	return parent
}

func newRekey() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "rekey",
		Short:   "Encrypt all secrets with the newest key",
		Example: "  attest-verifier secrets rekey",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, _, err := readSettings(c)
			if err != nil {
				return err
			}
			keys, err := readSecretKeys(s.Secrets.Key)
			if err != nil {
				return err
			}
			if keys == nil {
				return errNoSecretKey
			}
			return withStore(c, func(ctx context.Context, st *store.Store) error {
				n, err := server.RekeySecrets(ctx, st, keys, actor(), time.Now())
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(c.OutOrStdout()).Encode(map[string]any{"schema": "attest.rekeyed/v1", "rekeyed": n})
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "%d secrets are encrypted with the newest key now, and were not\n", n)
				return err
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
