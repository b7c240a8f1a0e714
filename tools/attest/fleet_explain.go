package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
)

// fleetExplanation is what a verifier knows of a verdict.
type fleetExplanation struct {
	Device   string       `json:"device"`
	Verdict  fleetVerdict `json:"verdict"`
	Policies []string     `json:"policies"` // NAME@VERSION
	Event    *fleetEvent  `json:"event"`
	Alarm    string       `json:"alarm"`
}

func newFleetExplain(o *fleetFlags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "explain DEVICE",
		Short: "Say why a device is not trusted, and what to do",
		Long: `explain prints the verdict with its reasons in the order of the measurement list: what
came first is first. Each has the path, the digest that was expected and the one that was
seen, the package that the file is of, and what to do about it.

Exit code 0: the device is trusted; 2: what it sent is not authentic; 3: it is not trusted,
not verified or overdue.`,
		Example: `  attest fleet explain gateway-17
  attest fleet explain gateway-17 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				var raw json.RawMessage
				if err := client.get(ctx, apiPath("devices", args[0], "verdict"), nil, &raw); err != nil {
					return err
				}
				var e fleetExplanation
				if err := decodeAnswer(raw, &e); err != nil {
					return err
				}
				if asJSON {
					if err := printJSON(stdout, "attest.fleet.explain/v1", "explanation", raw); err != nil {
						return err
					}
				} else if err := e.print(stdout); err != nil {
					return err
				}
				return e.err()
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.fleet.explain/v1)")
	return c
}

func (e *fleetExplanation) print(w io.Writer) error {
	v := e.Verdict
	since := &v.Since
	if v.Status == "overdue" {
		since = v.Due // of what it was before, the verdict itself tells
	}
	fmt.Fprintf(w, "%s: %s since %s, attested %d %s, last %s\n", showText(e.Device), showText(v.Status), when(since), v.Total, plural(v.Total, "time"), when(v.Attested))
	if len(e.Policies) > 0 {
		fmt.Fprintf(w, "compared with %s\n", showText(strings.Join(e.Policies, ", ")))
	}
	if e.Alarm != "" {
		fmt.Fprintf(w, "alarm: %s\n", showText(e.Alarm))
	}
	if v.Status == "overdue" {
		fmt.Fprintf(w, "it was due at %s, and nothing came: look whether it is on, and reaches the verifier: attest-agent status and attest-agent doctor on the device\n", when(v.Due))
	} else if v.Due != nil && v.Attested != nil {
		fmt.Fprintf(w, "it has to attest again by %s\n", when(v.Due))
	}
	if v.Attested == nil {
		fmt.Fprintln(w, "it has not attested yet, so nothing is known of what it runs: attest-agent doctor on the device says what it lacks")
	} else if err := e.printDetail(w); err != nil {
		return err
	}
	if e.Event == nil {
		return nil
	}
	fmt.Fprintf(w, "\nevent %d of %s", e.Event.Seq, when(&e.Event.At))
	if e.Event.Evidence != "" {
		fmt.Fprintf(w, "; its evidence: attest fleet evidence %s", showText(e.Event.Evidence))
	}
	_, err := fmt.Fprintln(w)
	return err
}

// printDetail prints the last verdict that evidence came to.
func (e *fleetExplanation) printDetail(w io.Writer) error {
	var detail appraise.Verdict
	if err := decodeAnswer(e.Verdict.Detail, &detail); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if e.Verdict.Status == "overdue" {
		fmt.Fprintln(w, "the last that is known:")
	}
	return printVerdict(w, detail)
}

// err is the error that the program ends with.
func (e *fleetExplanation) err() error {
	switch e.Verdict.Status {
	case string(appraise.Trusted):
		return nil
	case "broken":
		return &exitError{exitNotAuthentic, fmt.Errorf("%s: %w", e.Device, errEvidence)}
	}
	return &exitError{exitNotAcceptable, fmt.Errorf("%s: %w: it is %s", e.Device, errVerdict, e.Verdict.Status)}
}

// lastEvidence downloads the evidence of a device's verdict; nil if there is none.
func (c *fleetClient) lastEvidence(ctx context.Context, device string) ([]byte, error) {
	var e fleetExplanation
	if err := c.get(ctx, apiPath("devices", device, "verdict"), nil, &e); err != nil {
		return nil, err
	}
	if e.Event == nil || e.Event.Evidence == "" {
		return nil, nil
	}
	return c.evidence(ctx, e.Event.Evidence)
}

// devicesOf are the ids of the devices that q selects.
func (c *fleetClient) devicesOf(ctx context.Context, q url.Values) (ids []string, err error) {
	q.Set("limit", "1000")
	for after := ""; ; {
		var page struct {
			Devices []fleetDevice `json:"devices"`
			Next    string        `json:"next"`
		}
		if after != "" {
			q.Set("after", after)
		}
		if err := c.get(ctx, "/devices", q, &page); err != nil {
			return nil, err
		}
		for _, d := range page.Devices {
			ids = append(ids, d.ID)
		}
		if page.Next == "" || page.Next <= after {
			return ids, nil
		}
		after = page.Next
	}
}
