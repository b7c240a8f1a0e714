package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/payload"
)

func newFleetSecret(o *fleetFlags) *cobra.Command {
	c := &cobra.Command{
		Use:   "secret",
		Short: "Give files to devices while they are trusted",
		Long: `A secret is a set of files. The verifier keeps it encrypted, and gives it to the devices and
groups it is assigned to, one by one, right after an attestation that found the device
trusted, encrypted to a key that the device's TPM made in this boot and never gives away.
The device keeps it in memory only, and erases it as soon as it is not trusted any more.
Each release is an event: attest fleet events --device ID.

Nobody, you included, gets a secret back from the verifier. Its configuration has to name
the key that secrets are kept with: [secrets] key.`,
		Example: `  attest fleet secret add web --file tls.key --file tls.crt
  attest fleet secret assign web --group edge
  attest fleet secret list`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newSecretAdd(o), newSecretAssign(o), newSecretList(o), newSecretShow(o), newSecretDelete(o))
	return c
}

// fleetSecret is a secret without what it holds.
type fleetSecret struct {
	Name     string    `json:"name"`
	Revision int64     `json:"revision"`
	Run      string    `json:"run,omitempty"`
	Size     int64     `json:"size"`
	Created  time.Time `json:"created"`
	Devices  []string  `json:"devices"`
	Groups   []string  `json:"groups"`
}

func newSecretAdd(o *fleetFlags) *cobra.Command {
	var files []string
	var run string
	var asJSON bool
	c := &cobra.Command{
		Use:   "add NAME --file [AS=]FILE...",
		Short: "Add a secret, or another revision in the place of the last",
		Long: `add uploads files, 1 MiB together at most, under a name; a device holds 16 MiB. It finds them in
/run/attest-agent/secrets/NAME, closed to all but the agent's user. A new revision reaches a
device at its next attestation.

--run names one of the files, which the agent executes then, as its own user, if the
device's configuration allows that (secrets_execute = "1").`,
		Example: `  attest fleet secret add web --file tls.key --file conf/site.toml=site.toml
  attest fleet secret add unlock --file unlock.sh --file key --run unlock.sh`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			body, err := secretArchive(args[0], run, files)
			if err != nil {
				return err
			}
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				return client.addSecret(ctx, stdout, args[0], run, body, asJSON)
			})
		},
	}
	f := c.Flags()
	f.StringArrayVar(&files, "file", nil, "`FILE` to give, under its own name or as AS=FILE; may be repeated")
	f.StringVar(&run, "run", "", "execute `NAME`, one of the files, on the device")
	f.BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.fleet.secret/v1)")
	_ = c.MarkFlagRequired("file")
	return c
}

// secretArchive makes the archive of a secret, of files that a device would take.
func secretArchive(name, run string, files []string) ([]byte, error) {
	p := &payload.Payload{Name: name, Run: run}
	for _, f := range files {
		one, err := secretFile(f)
		if err != nil {
			return nil, err
		}
		p.Files = append(p.Files, one)
	}
	if err := p.Check(); err != nil {
		return nil, err
	}
	return p.Zip()
}

func (c *fleetClient) addSecret(ctx context.Context, w io.Writer, name, run string, body []byte, asJSON bool) error {
	path := apiPath("secrets", name)
	if run != "" {
		path += "?" + url.Values{"run": {run}}.Encode()
	}
	text, err := c.request(ctx, http.MethodPost, path, "application/zip", body)
	if err != nil {
		return err
	}
	var added struct {
		Name     string `json:"name"`
		Revision int64  `json:"revision"`
		Size     int64  `json:"size"`
		Files    int    `json:"files"`
	}
	if err := decodeAnswer(text, &added); err != nil {
		return err
	}
	if asJSON {
		return printJSON(w, "attest.fleet.secret/v1", "secret", added)
	}
	_, err = fmt.Fprintf(w, "%s revision %d: %d files\n", showText(added.Name), added.Revision, added.Files)
	return err
}

// secretFile reads what --file names.
func secretFile(text string) (payload.File, error) {
	name, path, ok := strings.Cut(text, "=")
	if !ok {
		name, path = filepath.Base(text), text
	}
	info, err := os.Stat(path)
	if err != nil {
		return payload.File{}, err
	}
	if !info.Mode().IsRegular() {
		return payload.File{}, fmt.Errorf("%s: not a regular file", path)
	}
	data, err := readBounded(path, payload.MaxSize)
	return payload.File{Name: name, Mode: info.Mode().Perm(), Data: data}, err
}

func newSecretAssign(o *fleetFlags) *cobra.Command {
	type grant struct {
		Devices []string `json:"devices"`
		Groups  []string `json:"groups"`
	}
	var g grant
	var remove, asJSON bool
	c := &cobra.Command{
		Use:   "assign NAME {--device ID | --group GROUP}...",
		Short: "Say which devices and groups get a secret",
		Long: `assign adds devices and groups to those that get a secret; --remove takes them away again:
a device erases the secret when it attests next, and what it learned from it stays learned.`,
		Example: `  attest fleet secret assign web --group edge --device gateway-17
  attest fleet secret assign web --device gateway-17 --remove`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(g.Devices)+len(g.Groups) == 0 {
				return errors.New("name those that are meant: --device ID, --group GROUP")
			}
			change := map[string]grant{"add": g}
			if remove {
				change = map[string]grant{"remove": g}
			}
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				var one fleetSecret
				if err := client.send(ctx, http.MethodPatch, apiPath("secrets", args[0]), change, &one); err != nil {
					return err
				}
				return one.print(stdout, asJSON)
			})
		},
	}
	f := c.Flags()
	f.StringArrayVar(&g.Devices, "device", nil, "`ID` of a device; may be repeated")
	f.StringArrayVar(&g.Groups, "group", nil, "`GROUP` of devices, present and future; may be repeated")
	f.BoolVar(&remove, "remove", false, "they are to have it no more")
	f.BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.fleet.secret/v1)")
	return c
}

func (s *fleetSecret) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, "attest.fleet.secret/v1", "secret", s)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "secret\t%s\nrevision\t%d\ncreated\t%s\nbytes\t%d\n", showText(s.Name), s.Revision, when(&s.Created), s.Size)
	if s.Run != "" {
		fmt.Fprintf(tw, "runs\t%s\n", showText(s.Run))
	}
	fmt.Fprintf(tw, "devices\t%s\ngroups\t%s\n", names(s.Devices), names(s.Groups))
	return tw.Flush()
}

func names(all []string) string {
	if len(all) == 0 {
		return "-"
	}
	return showText(strings.Join(all, " "))
}

func newSecretList(o *fleetFlags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List secrets, without what they hold",
		Example: "  attest fleet secret list",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				var all struct {
					Secrets []fleetSecret `json:"secrets"`
				}
				if err := client.get(ctx, "/secrets", nil, &all); err != nil {
					return err
				}
				if asJSON {
					return printJSON(stdout, "attest.fleet.secrets/v1", "secrets", all.Secrets)
				}
				tw := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
				fmt.Fprintln(tw, "SECRET\tREVISION\tCREATED\tBYTES\tDEVICES\tGROUPS")
				for _, s := range all.Secrets {
					fmt.Fprintf(tw, "%s\t%d\t%s\t%d\t%s\t%s\n", showText(s.Name), s.Revision, when(&s.Created), s.Size, names(s.Devices), names(s.Groups))
				}
				return tw.Flush()
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.fleet.secrets/v1)")
	return c
}

func newSecretShow(o *fleetFlags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a secret and who gets it, without what it holds",
		Example: "  attest fleet secret show web",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				var one fleetSecret
				if err := client.get(ctx, apiPath("secrets", args[0]), nil, &one); err != nil {
					return err
				}
				return one.print(stdout, asJSON)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.fleet.secret/v1)")
	return c
}

func newSecretDelete(o *fleetFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "delete NAME",
		Short:   "Delete a secret; devices erase it when they attest next",
		Example: "  attest fleet secret delete web",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				if _, err := client.do(ctx, http.MethodDelete, apiPath("secrets", args[0]), nil); err != nil {
					return err
				}
				_, err := fmt.Fprintf(stdout, "deleted secret %s\n", showText(args[0]))
				return err
			})
		},
	}
}
