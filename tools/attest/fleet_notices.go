package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// fleetNotice is a notice that is not delivered.
type fleetNotice struct {
	ID       string     `json:"id"`
	Target   string     `json:"target"`
	Event    int64      `json:"event"`
	Attempts int64      `json:"attempts"`
	Error    string     `json:"error"`
	Created  time.Time  `json:"created"`
	Next     *time.Time `json:"next"`
}

func newFleetNotices(o *fleetFlags) *cobra.Command {
	c := &cobra.Command{
		Use:   "notices",
		Short: "See notices that could not be delivered, and send them again",
		Long: `When the verdict of a device turns bad, or good again, the verifier tells its webhooks. A
notice that cannot be delivered is tried again for three days; then it is a dead letter,
which stays until somebody retries or drops it, or the verifier's keep_others is over.`,
		Example: `  attest fleet notices list
  attest fleet notices retry Q5QK...`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newFleetNoticesList(o),
		newFleetNoticesSettle(o, "retry", "Deliver dead letters again", func(ctx context.Context, client *fleetClient, id string) error {
			_, err := client.do(ctx, http.MethodPost, apiPath("notices", id, "retry"), nil)
			return err
		}),
		newFleetNoticesSettle(o, "drop", "Delete notices, dead letters or not", func(ctx context.Context, client *fleetClient, id string) error {
			_, err := client.do(ctx, http.MethodDelete, apiPath("notices", id), nil)
			return err
		}))
	return c
}

func newFleetNoticesList(o *fleetFlags) *cobra.Command {
	var waiting, asJSON bool
	var limit int
	c := &cobra.Command{
		Use:     "list",
		Short:   "List dead letters, oldest first",
		Example: "  attest fleet notices list --waiting",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				q := url.Values{"dead": {strconv.FormatBool(!waiting)}, "limit": {strconv.Itoa(limit)}}
				return client.notices(ctx, q, stdout, asJSON)
			})
		},
	}
	c.Flags().BoolVar(&waiting, "waiting", false, "list those that are still tried, the next first")
	c.Flags().IntVar(&limit, "limit", 100, "print `N` notices, at most 1000")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.fleet.notices/v1)")
	return c
}

func (c *fleetClient) notices(ctx context.Context, q url.Values, stdout io.Writer, asJSON bool) error {
	var page struct {
		Notices []json.RawMessage `json:"notices"`
	}
	if err := c.get(ctx, "/notices", q, &page); err != nil {
		return err
	}
	if asJSON {
		return printJSON(stdout, "attest.fleet.notices/v1", "notices", page.Notices)
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NOTICE\tTO\tEVENT\tSINCE\tTRIED\tNEXT\tERROR")
	for _, raw := range page.Notices {
		var n fleetNotice
		if err := decodeAnswer(raw, &n); err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%d\t%s\t%s\n", orDash(n.ID), orDash(n.Target), n.Event, when(&n.Created), n.Attempts, when(n.Next), orDash(n.Error))
	}
	return w.Flush()
}

// newFleetNoticesSettle is a command that does one thing to each notice that is named.
func newFleetNoticesSettle(o *fleetFlags, verb, short string, settle func(context.Context, *fleetClient, string) error) *cobra.Command {
	return &cobra.Command{
		Use:     verb + " NOTICE...",
		Short:   short,
		Example: "  attest fleet notices " + verb + " Q5QKOQ7ZB6VZ3TPNRXH4LWIMSA",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, _ io.Writer) error {
				for _, id := range args {
					if err := settle(ctx, client, id); err != nil {
						return fmt.Errorf("notice %s: %w", showText(id), err)
					}
				}
				return nil
			})
		},
	}
}
