package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// fleetDevice is what a verifier says of a device. With --json its answer is printed as it
// came.
type fleetDevice struct {
	ID         string            `json:"id"`
	State      string            `json:"state"`
	Attest     bool              `json:"attest"`
	Group      string            `json:"group"`
	Labels     map[string]string `json:"labels"`
	Policies   []string          `json:"policies"`
	Created    time.Time         `json:"created"`
	Activated  *time.Time        `json:"activated"`
	Registered int64             `json:"registrations"`
	Alarm      string            `json:"alarm"`
	Model      string            `json:"model"`
	Poll       *fleetPoll        `json:"poll"`
	Verdict    fleetVerdict      `json:"verdict"`
}

// fleetPoll is how a device is polled.
type fleetPoll struct {
	Contact  string    `json:"contact"`
	Version  string    `json:"api_version"`
	Next     time.Time `json:"next"`
	Failures int64     `json:"failures"`
	Error    string    `json:"error"`
	Share    string    `json:"payload_key"`
}

// lines are for a person.
func (p *fleetPoll) lines() [][2]string {
	if p == nil {
		return nil
	}
	contact, problem := p.Contact, ""
	if contact == "" {
		contact = "what it registers with"
	}
	if p.Error != "" {
		problem = fmt.Sprintf("%s (%d %s)", p.Error, p.Failures, plural(p.Failures, "failure"))
	}
	return [][2]string{{"polled at", contact}, {"polled next", when(&p.Next)}, {"poll failed", problem}, {"payload key", p.Share}}
}

// fleetVerdict is what a device is known to be.
type fleetVerdict struct {
	Status   string          `json:"status"`
	Since    time.Time       `json:"since"`
	Codes    string          `json:"codes"`
	Release  string          `json:"release"`
	Attested *time.Time      `json:"attested"`
	Due      *time.Time      `json:"due"`
	Total    int64           `json:"attestations"`
	Event    int64           `json:"event"`
	Detail   json.RawMessage `json:"detail"` // attest.verdict/v1
}

// withFleet calls do with a client.
func withFleet(c *cobra.Command, o *fleetFlags, do func(context.Context, *fleetClient, io.Writer) error) error {
	client, err := o.dial(c.Context())
	if err != nil {
		return err
	}
	defer client.close()
	return do(c.Context(), client, c.OutOrStdout())
}

// printJSON prints {"schema": ..., MEMBER: v}.
func printJSON(w io.Writer, schema, member string, v any) error {
	return json.NewEncoder(w).Encode(map[string]any{"schema": schema, member: v})
}

// when is a moment for a person.
func when(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "never"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// orDash is text from the verifier, or a dash.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return showText(s)
}

func newFleetList(o *fleetFlags) *cobra.Command {
	var group, status, state string
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List devices and what they are known to be",
		Long: `list prints a line for each device, in the order of their ids. A device is trusted,
untrusted (it ran what no release has), broken (what it sent is not authentic), unverified
(nothing to compare with, or not enough proven) or overdue (it has not attested in time).`,
		Example: `  attest fleet list
  attest fleet list --status untrusted --group paris --json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				q := url.Values{"limit": {"1000"}}
				for name, value := range map[string]string{"group": group, "status": status, "state": state} {
					if value != "" {
						q.Set(name, value)
					}
				}
				return client.list(ctx, q, stdout, asJSON)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&group, "group", "", "only devices of group `NAME`")
	f.StringVar(&status, "status", "", "only trusted, untrusted, broken, unverified or overdue devices: `STATUS`")
	f.StringVar(&state, "state", "", "only devices that are expected, or active: `STATE`")
	f.BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.fleet.devices/v1)")
	_ = c.RegisterFlagCompletionFunc("status", cobra.FixedCompletions([]string{"trusted", "untrusted", "broken", "unverified", "overdue"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("state", cobra.FixedCompletions([]string{"expected", "active"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// list prints all pages.
func (c *fleetClient) list(ctx context.Context, q url.Values, stdout io.Writer, asJSON bool) error {
	var doc *document
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	if asJSON {
		doc = newDocument(stdout, "attest.fleet.devices/v1", "devices")
	} else {
		fmt.Fprintln(w, "DEVICE\tSTATUS\tSINCE\tATTESTED\tGROUP\tRELEASE OR REASON")
	}
	counts, total := map[string]int{}, 0
	for after := ""; ; {
		var page struct {
			Devices []json.RawMessage `json:"devices"`
			Next    string            `json:"next"`
		}
		if after != "" {
			q.Set("after", after)
		}
		if err := c.get(ctx, "/devices", q, &page); err != nil {
			return err
		}
		for _, raw := range page.Devices {
			var d fleetDevice
			if err := decodeAnswer(raw, &d); err != nil {
				return err
			}
			counts[d.Verdict.Status]++
			total++
			if doc != nil {
				if err := doc.add(raw); err != nil {
					return err
				}
				continue
			}
			d.line(w)
		}
		if page.Next == "" || page.Next <= after {
			break
		}
		after = page.Next
	}
	if doc != nil {
		return doc.end(map[string]any{"devices": total, "status": counts})
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stdout, "%d %s%s\n", total, plural(int64(total), "device"), countsOf(counts))
	return err
}

func countsOf(counts map[string]int) string {
	var parts []string
	for status, n := range counts {
		parts = append(parts, fmt.Sprintf("%d %s", n, orDash(status)))
	}
	if parts == nil {
		return ""
	}
	slices.Sort(parts)
	return ": " + strings.Join(parts, ", ")
}

func (d *fleetDevice) line(w io.Writer) {
	status, reason := d.Verdict.Status, d.Verdict.Release
	if reason == "" {
		reason = d.Verdict.Codes
	}
	if d.State == "expected" {
		status = "not enrolled"
	} else if !d.Attest {
		status += " (stopped)"
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", showText(d.ID), orDash(status), when(&d.Verdict.Since), when(d.Verdict.Attested), orDash(d.Group), orDash(reason))
}

func newFleetShow(o *fleetFlags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "show DEVICE",
		Short:   "Show a device",
		Example: "  attest fleet show gateway-17",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				var raw json.RawMessage
				if err := client.get(ctx, apiPath("devices", args[0]), nil, &raw); err != nil {
					return err
				}
				return printDevice(stdout, raw, asJSON)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.fleet.device/v1)")
	return c
}

func printDevice(w io.Writer, raw json.RawMessage, asJSON bool) error {
	if asJSON {
		return printJSON(w, "attest.fleet.device/v1", "device", raw)
	}
	var d fleetDevice
	if err := decodeAnswer(raw, &d); err != nil {
		return err
	}
	var labels []string
	for name, value := range d.Labels {
		labels = append(labels, name+"="+value)
	}
	slices.Sort(labels)
	may := "yes"
	if !d.Attest {
		may = "no: stopped by an operator"
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	lines := [][2]string{
		{"device", d.ID}, {"state", d.State}, {"status", d.Verdict.Status}, {"since", when(&d.Verdict.Since)}, {"reasons", d.Verdict.Codes},
		{"release", d.Verdict.Release}, {"attested", when(d.Verdict.Attested)}, {"due", when(d.Verdict.Due)}, {"attestations", fmt.Sprint(d.Verdict.Total)},
		{"may attest", may}, {"group", d.Group}, {"labels", strings.Join(labels, " ")}, {"policies", strings.Join(d.Policies, " ")},
		{"enrolled", when(d.Activated)}, {"alarm", d.Alarm},
	}
	for _, line := range append(lines, d.Poll.lines()...) {
		if line[1] != "" {
			fmt.Fprintf(tw, "%s\t%s\n", line[0], showText(line[1]))
		}
	}
	return tw.Flush()
}

// deviceFlags are what an operator says of a device.
type deviceFlags struct {
	group    string
	labels   map[string]string
	policies []string
	pull     string
	json     bool
}

// registered stands for the address that a device registers with.
const registered = "registered"

// modelOf is what --pull says.
func (o *deviceFlags) modelOf() (model, contact string) {
	switch o.pull {
	case "":
		return "", ""
	case "off":
		return "push", ""
	case registered:
		return "pull", ""
	}
	return "pull", o.pull
}

func (o *deviceFlags) addFlags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.group, "group", "", "group `NAME`")
	f.StringToStringVar(&o.labels, "label", nil, "label `NAME=VALUE`; may be repeated")
	f.StringArrayVar(&o.policies, "policy", nil, "compare with policy `NAME`; may be repeated: the first is preferred, any that fits suffices")
	f.StringVar(&o.pull, "pull", "", "the verifier polls the agent at `IP:PORT`, or where it registered (\"registered\"); \"off\": the agent attests by itself")
	f.BoolVar(&o.json, "json", false, "print one JSON document (schema attest.fleet.device/v1)")
}

// newDevice is the body of POST devices.
type newDevice struct {
	ID       string            `json:"id,omitempty"`
	EK       string            `json:"ek,omitempty"`
	EKHash   string            `json:"ek_hash,omitempty"`
	Group    string            `json:"group,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Policies []string          `json:"policies,omitempty"`
	Model    string            `json:"model,omitempty"`
	Contact  string            `json:"contact,omitempty"`
}

func newFleetAdd(o *fleetFlags) *cobra.Command {
	var flags deviceFlags
	var ek, hash string
	c := &cobra.Command{
		Use:   "add [ID]",
		Short: "Name a device before it enrols",
		Long: `add tells the verifier which TPM a device has, by the endorsement key (EK) or its hash,
so that no other can enrol in its name. Without an ID it is the hash of the EK, which
is what an agent calls itself (attest-agent doctor prints it); with an ID, write
id = "ID" into the agent.toml of the device.`,
		Example: `  attest fleet add gateway-17 --ek gateway-17-ek.crt --group paris --policy image
  attest fleet add --ek-hash 0f4c... --policy image
  attest fleet add --ek-hash 77aa... --policy image --pull 10.1.2.3:9002`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m := newDevice{EKHash: hash, Group: flags.group, Labels: flags.labels, Policies: flags.policies}
			m.Model, m.Contact = flags.modelOf()
			if len(args) > 0 {
				m.ID = args[0]
			}
			if ek != "" {
				text, err := readBounded(ek, 32<<10)
				if err != nil {
					return err
				}
				if m.EK, err = pemOfEK(text); err != nil {
					return fmt.Errorf("%s: %w", ek, err)
				}
			}
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				var raw json.RawMessage
				if err := client.send(ctx, http.MethodPost, "/devices", m, &raw); err != nil {
					return err
				}
				return printDevice(stdout, raw, flags.json)
			})
		},
	}
	flags.addFlags(c)
	c.Flags().StringVar(&ek, "ek", "", "the TPM's endorsement key: public key or certificate, PEM or DER `FILE`")
	c.Flags().StringVar(&hash, "ek-hash", "", "the hash of the EK in `HEX`, as attest-agent doctor prints it")
	c.MarkFlagsMutuallyExclusive("ek", "ek-hash")
	return c
}

// pemOfEK returns a public key or a certificate, PEM or DER, as PEM.
func pemOfEK(text []byte) (string, error) {
	if block, _ := pem.Decode(text); block != nil {
		return string(text), nil
	}
	kind := "PUBLIC KEY"
	if _, err := x509.ParsePKIXPublicKey(text); err != nil {
		if _, err := x509.ParseCertificate(text); err != nil {
			return "", errors.New("neither a certificate nor a public key")
		}
		kind = "CERTIFICATE"
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: text})), nil
}

var errNoChange = errors.New("nothing to change was given")

func newFleetChange(o *fleetFlags) *cobra.Command {
	var flags deviceFlags
	var attest bool
	c := &cobra.Command{
		Use:   "change DEVICE",
		Short: "Change a device's group, labels, policies, whether it may attest, or whether it is polled",
		Long: `change replaces what is given and leaves the rest. Another policy makes the device prove
its whole boot again. A device that may not attest becomes overdue.`,
		Example: `  attest fleet change gateway-17 --policy image --policy image-beta
  attest fleet change gateway-17 --attest=false
  attest fleet change gateway-17 --pull registered`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m := map[string]any{}
			for name, value := range map[string]any{"group": flags.group, "labels": flags.labels, "policies": flags.policies, "attest": attest} {
				flag := map[string]string{"labels": "label", "policies": "policy"}[name]
				if flag == "" {
					flag = name
				}
				if c.Flags().Changed(flag) {
					m[name] = value
				}
			}
			if c.Flags().Changed("pull") {
				m["model"], m["contact"] = flags.modelOf()
			}
			if len(m) == 0 {
				return errNoChange
			}
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				var raw json.RawMessage
				if err := client.send(ctx, http.MethodPatch, apiPath("devices", args[0]), m, &raw); err != nil {
					return err
				}
				return printDevice(stdout, raw, flags.json)
			})
		},
	}
	flags.addFlags(c)
	c.Flags().BoolVar(&attest, "attest", true, "the device may attest; --attest=false stops it")
	return c
}

func newFleetDelete(o *fleetFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "delete DEVICE...",
		Short: "Forget devices; their TPMs may enrol anew",
		Long: `delete needs the role admin. The history keeps what is known of the device. It has to
enrol again before it can attest: that is the way out when its attestation key was lost.`,
		Example: "  attest fleet delete gateway-17",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withFleet(c, o, func(ctx context.Context, client *fleetClient, stdout io.Writer) error {
				for _, id := range args {
					if _, err := client.do(ctx, http.MethodDelete, apiPath("devices", id), nil); err != nil {
						return fmt.Errorf("delete %s: %w", id, err)
					}
					fmt.Fprintf(stdout, "deleted %s\n", showText(id))
				}
				return nil
			})
		},
	}
}

// writeFile writes a file that did not exist, or standard output for "-" and "".
func writeFile(name string, text []byte, stdout io.Writer) error {
	if name == "" || name == "-" {
		_, err := stdout.Write(text)
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}
