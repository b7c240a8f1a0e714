package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/server"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

func newToken() *cobra.Command {
	parent := &cobra.Command{
		Use:   "token",
		Short: "Make and revoke the tokens of operators",
		Long: `A token lets whoever has it use the API for operators. The role operator reads, names
devices and puts policies; admin may also delete, go back to an older policy, and make
tokens. The database has only the hash of a token.

These commands need the database, not the server: they make the first token.`,
	}
	parent.AddCommand(newTokenCreate(), newTokenList(), newTokenRevoke())
	return parent
}

// withStore opens the database of the configuration for one command.
func withStore(c *cobra.Command, do func(context.Context, *store.Store) error) error {
	s, _, err := readSettings(c)
	if err != nil {
		return err
	}
	st, err := store.Open(c.Context(), s.Database)
	if err != nil {
		return err
	}
	defer st.Close()
	return do(c.Context(), st)
}

// actor is who events say it was.
func actor() string { return fmt.Sprintf("local:uid-%d", os.Getuid()) }

func newTokenCreate() *cobra.Command {
	var role string
	var days int
	var asJSON bool
	c := &cobra.Command{
		Use:     "create NAME",
		Short:   "Make a token and print it, once",
		Example: "  attest-verifier token create alice --role operator --days 90",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(c, func(ctx context.Context, st *store.Store) error {
				token, k, err := server.AddToken(ctx, st, args[0], server.Role(role), days, actor(), time.Now())
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(c.OutOrStdout()).Encode(map[string]any{"schema": "attest.token/v1", "name": k.Name, "role": k.Role, "token": token})
				}
				fmt.Fprintln(c.OutOrStdout(), token)
				return nil
			})
		},
	}
	c.Flags().StringVar(&role, "role", string(server.Operator), "operator or admin")
	c.Flags().IntVar(&days, "days", 90, "valid for so many days; 0 for ever")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newTokenList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List tokens by their names",
		Example: "  attest-verifier token list",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c, func(ctx context.Context, st *store.Store) error {
				all, err := st.Tokens(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(c.OutOrStdout()).Encode(map[string]any{"schema": "attest.tokens/v1", "tokens": all})
				}
				w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "NAME\tROLE\tCREATED\tEXPIRES")
				for _, k := range all {
					expires := "never"
					if !k.Expires.IsZero() {
						expires = k.Expires.UTC().Format(time.DateOnly)
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", k.Name, k.Role, k.Created.UTC().Format(time.DateOnly), expires)
				}
				return w.Flush()
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newTokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke NAME",
		Short:   "Forget a token",
		Example: "  attest-verifier token revoke alice",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(c, func(ctx context.Context, st *store.Store) error {
				return st.DeleteToken(ctx, args[0], actor(), time.Now())
			})
		},
	}
}
