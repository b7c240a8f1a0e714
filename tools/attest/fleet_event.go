package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// fleetEvent is a line of the history.
type fleetEvent struct {
	Seq      int64           `json:"seq"`
	At       time.Time       `json:"at"`
	Kind     string          `json:"kind"`
	Device   string          `json:"device"`
	Actor    string          `json:"actor"`
	Status   string          `json:"status"`
	Detail   json.RawMessage `json:"detail"`
	Evidence string          `json:"evidence"`
	Hash     string          `json:"hash"`
}

func newFleetEvents(o *fleetFlags) *cobra.Command {
	var device, since string
	var limit int
	var check, asJSON bool
	c := &cobra.Command{
		Use:   "events",
		Short: "Show what happened, newest first",
		Long: `events prints enrolments, changes of verdicts, and what operators did. Each event has a
hash over itself and the one before, so that nobody can change the history unseen: --check
has the verifier compute all of them, and prints the head. Keep that, and give it as --since
the next time: then a verifier that forgets the end of its history is found out, too.`,
		Example: `  attest fleet events --device gateway-17
  attest fleet events --check --since 1041:9f6c...`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if limit < 1 || limit > 1000 {
				return fmt.Errorf("--limit %d is not from 1 to 1000", limit)
			}
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				if check {
					return client.checkEvents(ctx, since, stdout, asJSON)
				}
				q := url.Values{"limit": {strconv.Itoa(limit)}}
				if device != "" {
					q.Set("device", device)
				}
				return client.events(ctx, q, stdout, asJSON)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&device, "device", "", "only those of the device `ID`")
	f.IntVar(&limit, "limit", 50, "print `N` events, at most 1000")
	f.BoolVar(&check, "check", false, "check that nobody changed the history")
	f.StringVar(&since, "since", "", "with --check: begin at the head `SEQ:HASH` that was printed earlier")
	f.BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.fleet.events/v1, with --check attest.fleet.history/v1)")
	c.MarkFlagsMutuallyExclusive("check", "device")
	return c
}

func (c *fleetClient) events(ctx context.Context, q url.Values, stdout io.Writer, asJSON bool) error {
	var page struct {
		Events []json.RawMessage `json:"events"`
	}
	if err := c.get(ctx, "/events", q, &page); err != nil {
		return err
	}
	if asJSON {
		return printJSON(stdout, "attest.fleet.events/v1", "events", page.Events)
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "EVENT\tAT\tKIND\tSTATUS\tDEVICE\tBY\tEVIDENCE")
	for _, raw := range page.Events {
		var e fleetEvent
		if err := decodeAnswer(raw, &e); err != nil {
			return err
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Seq, when(&e.At), orDash(e.Kind), orDash(e.Status), orDash(e.Device), orDash(e.Actor), orDash(e.Evidence))
	}
	return w.Flush()
}

func (c *fleetClient) checkEvents(ctx context.Context, since string, stdout io.Writer, asJSON bool) error {
	q := url.Values{}
	if since != "" {
		seq, hash, ok := strings.Cut(since, ":")
		if _, err := strconv.ParseUint(seq, 10, 63); err != nil || !ok {
			return fmt.Errorf("--since %.100q is not of the form SEQ:HASH", since)
		}
		q.Set("seq", seq)
		q.Set("hash", hash)
	}
	var answer struct {
		Head struct {
			Seq  int64  `json:"seq"`
			Hash string `json:"hash"`
		} `json:"head"`
	}
	err := c.get(ctx, "/events/check", q, &answer)
	if errors.Is(err, errChain) {
		return &exitError{exitNotAuthentic, err}
	}
	if err != nil {
		return err
	}
	head := fmt.Sprintf("%d:%s", answer.Head.Seq, answer.Head.Hash)
	if asJSON {
		return printJSON(stdout, "attest.fleet.history/v1", "head", head)
	}
	_, err = fmt.Fprintln(stdout, showText(head))
	return err
}

var errOtherEvidence = errors.New("it is not what was asked for: its SHA-256 differs")

// evidence downloads evidence, and holds it against its digest.
func (c *fleetClient) evidence(ctx context.Context, digest string) ([]byte, error) {
	text, err := c.do(ctx, "GET", apiPath("evidence", digest), nil)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != strings.ToLower(digest) {
		return nil, fmt.Errorf("evidence %.64s: %w", digest, errOtherEvidence)
	}
	return text, nil
}

func newFleetEvidence(o *fleetFlags) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "evidence DIGEST",
		Short: "Download evidence, for attest explain",
		Long: `evidence writes what a device sent, what it was asked and its attestation key. DIGEST is
that of an event (attest fleet explain, attest fleet events).`,
		Example: `  attest fleet evidence 5f3c... --output evidence.json`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				text, err := client.evidence(ctx, args[0])
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
