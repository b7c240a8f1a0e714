package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

func newFleetPolicyList(o *fleetFlags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list [NAME]",
		Short:   "List the versions of policies",
		Example: "  attest fleet policy list",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				var all fleetPolicies
				if err := client.get(ctx, apiPath(append([]string{"policies"}, args...)...), nil, &all); err != nil {
					return err
				}
				return all.print(stdout, asJSON)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.fleet.policies/v1)")
	return c
}

func newFleetPolicyShow(o *fleetFlags) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "show NAME@VERSION",
		Short: "Print a version of a policy as it was put",
		Long: `show prints JSON (schema attest.policy/v1, or the runtime policy of Keylime that was put)
with the manifests as attest sign wrote them. attest explain --policy takes it.`,
		Example: "  attest fleet policy show image@2 --output image@2.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			name, version, ok := strings.Cut(args[0], "@")
			if !ok {
				return fmt.Errorf("%q is not of the form NAME@VERSION", args[0])
			}
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				text, err := client.do(ctx, http.MethodGet, apiPath("policies", name, "versions", version), nil)
				if err != nil {
					return err
				}
				return writeFile(output, text, stdout)
			})
		},
	}
	c.Flags().StringVar(&output, "output", "-", "write to `FILE`, which must not exist")
	return c
}

// activate makes just these versions the allowed ones.
func (c *fleetClient) activate(ctx context.Context, name string, versions []int64, downgrade bool) (*fleetPolicies, error) {
	var all fleetPolicies
	body := map[string]any{"versions": versions, "downgrade": downgrade}
	if err := c.send(ctx, http.MethodPut, apiPath("policies", name, "active"), body, &all); err != nil {
		return nil, err
	}
	return &all, nil
}

func newPolicyActivate(o *fleetFlags) *cobra.Command {
	var downgrade, asJSON bool
	c := &cobra.Command{
		Use:   "activate NAME VERSION...",
		Short: "Say which versions are allowed; no other is",
		Long: `activate allows just these versions. Devices that use the policy prove their whole boot
again. To go back to versions that are all older needs --downgrade and the role admin.`,
		Example: `  attest fleet policy activate image 2 3
  attest fleet policy activate image 3`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			var versions []int64
			for _, text := range args[1:] {
				n, err := strconv.ParseInt(text, 10, 64)
				if err != nil || n < 1 {
					return fmt.Errorf("%q is not the number of a version", text)
				}
				versions = append(versions, n)
			}
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				all, err := client.activate(ctx, args[0], versions, downgrade)
				if err != nil {
					return err
				}
				return all.print(stdout, asJSON)
			})
		},
	}
	c.Flags().BoolVar(&downgrade, "downgrade", false, "an older version is meant")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.fleet.policies/v1)")
	return c
}

func newPolicyDelete(o *fleetFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "delete NAME",
		Short:   "Delete a policy that no device is assigned to",
		Long:    "delete removes all versions of a policy. It needs the role admin.",
		Example: "  attest fleet policy delete image-beta",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				if _, err := client.do(ctx, http.MethodDelete, apiPath("policies", args[0]), nil); err != nil {
					return err
				}
				_, err := fmt.Fprintf(stdout, "deleted policy %s\n", showText(args[0]))
				return err
			})
		},
	}
}
