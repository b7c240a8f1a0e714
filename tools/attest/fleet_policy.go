package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/release"
)

func newFleetPolicy(o *fleetFlags) *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Say what devices are compared with",
		Long: `A policy has versions, each one release: the manifests of its images, and rules. The
active versions are allowed; a device is trusted when all that it ran fits one of them. For
a roll-out both the old and the new one are active; when it is done, the new one alone.`,
		Example: `  attest fleet policy put image --manifest v2.attest.json --cert ima.crt --activate beside
  attest fleet policy activate image 2
  attest fleet change gateway-17 --policy image`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newPolicyPut(o), newFleetPolicyList(o), newFleetPolicyShow(o), newPolicyActivate(o), newPolicyDelete(o))
	return c
}

// fleetPolicy is a version of a policy.
type fleetPolicy struct {
	Name    string    `json:"name"`
	Version int64     `json:"version"`
	Active  bool      `json:"active"`
	Digest  string    `json:"digest"`
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
}

type fleetPolicies struct {
	Policies []fleetPolicy `json:"policies"`
}

func (p *fleetPolicies) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, "attest.fleet.policies/v1", "policies", p.Policies)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "POLICY\tACTIVE\tCREATED\tBYTES\tSHA-256")
	for _, one := range p.Policies {
		active := "-"
		if one.Active {
			active = "active"
		}
		fmt.Fprintf(tw, "%s@%d\t%s\t%s\t%d\t%s\n", showText(one.Name), one.Version, active, when(&one.Created), one.Size, showText(one.Digest))
	}
	return tw.Flush()
}

func (p *fleetPolicies) active() (versions []int64) {
	for _, one := range p.Policies {
		if one.Active {
			versions = append(versions, one.Version)
		}
	}
	return versions
}

// policyPutFlags are the flags of attest fleet policy put.
type policyPutFlags struct {
	releaseFlags
	version  int64
	activate string
	dryRun   bool
	replay   []string
	json     bool
}

const (
	activateAlone  = "alone"
	activateBeside = "beside"
)

func newPolicyPut(o *fleetFlags) *cobra.Command {
	var p policyPutFlags
	c := &cobra.Command{
		Use:   "put NAME {--manifest FILE... --cert FILE | --runtime-policy FILE}",
		Short: "Add a version of a policy: one release, and its rules",
		Long: `put verifies the manifests and compiles the policy here, prints what a person should look
at as warnings, and uploads it; the verifier does the same with the certificates of its own
configuration. Nothing is compared with a new version before it is active: --activate
alone makes it the only one that is allowed, beside allows those that are active too.

Rules are TOML; without any, all that was measured has to be of the release:

    required = ["/usr/sbin/init"]    # unverified until they were measured
    violations = "warn"              # instead of "fail"
    [[exclude]]                      # counts for nothing; globs as in attest.toml
    path = "/var/lib/app/**"
    [[pcr]]                          # one of the values
    index = 7
    values = ["sha256:..."]
    [firmware]
    secure_boot = true               # the firmware's log proves it

go doc ./tools/internal/appraise Rules, in the source, has all of them.

With --dry-run nothing is uploaded. --replay judges the evidence that the verifier kept of a
device's last change of verdict by the new version alone: what would happen. Then the exit
code is 3 if a device would not be trusted.`,
		Example: `  attest fleet policy put image --manifest v2.attest.json --cert ima.crt --rules rules.toml --activate beside
  attest fleet policy put image --manifest v2.attest.json --cert ima.crt --dry-run --replay gateway-17
  attest fleet policy put legacy --runtime-policy keylime.json --activate alone`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if !p.given() {
				return errNoRelease
			}
			if p.activate != "" && p.activate != activateAlone && p.activate != activateBeside {
				return fmt.Errorf("--activate %q is neither %s nor %s", p.activate, activateAlone, activateBeside)
			}
			if len(p.replay) > 0 && !p.dryRun {
				return errors.New("--replay is for --dry-run")
			}
			return p.run(c, o, args[0])
		},
	}
	f := c.Flags()
	p.addFlags(f)
	f.Int64Var(&p.version, "version", 0, "number of the version, `N` (default: the next)")
	f.StringVar(&p.activate, "activate", "", "allow the new version: `HOW` is alone or beside")
	f.BoolVar(&p.dryRun, "dry-run", false, "check and compile only")
	f.StringArrayVar(&p.replay, "replay", nil, "with --dry-run: judge the last evidence of `DEVICE`; may be repeated; \"all\" is each")
	f.BoolVar(&p.json, "json", false, "print one JSON document (schema attest.fleet.policy/v1)")
	_ = c.RegisterFlagCompletionFunc("activate", cobra.FixedCompletions([]string{activateAlone, activateBeside}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// putResult is the document of attest fleet policy put.
type putResult struct {
	Schema   string   `json:"schema"`
	Name     string   `json:"name"`
	Version  int64    `json:"version,omitempty"` // 0: nothing was uploaded
	Digest   string   `json:"digest,omitempty"`
	Warnings []string `json:"warnings"`
	Active   []int64  `json:"active,omitempty"`
	Replayed []replay `json:"replayed,omitempty"`
}

// replay is what would become of a device.
type replay struct {
	Device  string            `json:"device"`
	Verdict *appraise.Verdict `json:"verdict,omitempty"`
	Error   string            `json:"error,omitempty"` // there is no evidence, or it cannot be used
}

// run does what the flags say.
func (p *policyPutFlags) run(c *cobra.Command, o *fleetFlags, name string) error {
	ctx, stdout, stderr := c.Context(), c.OutOrStdout(), c.ErrOrStderr()
	r, err := p.read()
	if err != nil {
		return err
	}
	trusted, err := p.trusted()
	if err != nil {
		return err
	}
	ref, err := compile(trusted, release.Named{Name: name, Policy: r})
	if err != nil {
		files := p.manifests
		if p.runtime != "" {
			files = append(files, p.runtime)
		}
		return fmt.Errorf("%s: %w", strings.Join(files, ", "), err)
	}
	out := &putResult{Schema: "attest.fleet.policy/v1", Name: name, Warnings: append([]string{}, ref.Warnings()...)}
	for _, w := range out.Warnings {
		fmt.Fprintf(stderr, "attest: warning: %s\n", showText(w))
	}
	if p.dryRun && len(p.replay) == 0 {
		return out.print(stdout, p.json)
	}
	client, err := o.dial(ctx)
	if err != nil {
		return err
	}
	defer client.close()
	if p.dryRun {
		if out.Replayed, err = client.replay(ctx, p.replay, ref); err != nil {
			return err
		}
		return errors.Join(out.print(stdout, p.json), out.err())
	}
	if err := p.upload(ctx, client, name, r, out); err != nil {
		return err
	}
	return out.print(stdout, p.json)
}

// upload puts the release, and makes it active if that is asked for.
func (p *policyPutFlags) upload(ctx context.Context, client *fleetClient, name string, r *release.Policy, out *putResult) error {
	var before fleetPolicies
	if p.activate == activateBeside {
		if err := client.get(ctx, apiPath("policies", name), nil, &before); err != nil && !errors.Is(err, errNoDevice) {
			return err
		}
	}
	q := url.Values{}
	if p.version > 0 {
		q.Set("version", strconv.FormatInt(p.version, 10))
	}
	var answer struct {
		Version int64  `json:"version"`
		Digest  string `json:"digest"`
	}
	if err := client.send(ctx, http.MethodPost, apiPath("policies", name)+"?"+q.Encode(), r, &answer); err != nil {
		return err
	}
	out.Version, out.Digest = answer.Version, answer.Digest
	if p.activate == "" {
		return nil
	}
	versions := before.active()
	if !slices.Contains(versions, answer.Version) {
		versions = append(versions, answer.Version)
	}
	after, err := client.activate(ctx, name, versions, false)
	if err != nil {
		return fmt.Errorf("%s@%d is stored and not active: %w", name, answer.Version, err)
	}
	out.Active = after.active()
	return nil
}

// replay judges the last evidence of devices by ref.
func (c *fleetClient) replay(ctx context.Context, devices []string, ref *appraise.Reference) ([]replay, error) {
	if slices.Equal(devices, []string{"all"}) {
		var err error
		if devices, err = c.devicesOf(ctx, url.Values{"state": {"active"}}); err != nil {
			return nil, err
		}
	}
	all := []replay{}
	for _, id := range devices {
		one := replay{Device: id}
		text, err := c.lastEvidence(ctx, id)
		if err != nil && !errors.Is(err, errNoDevice) {
			return nil, err
		}
		if err != nil || text == nil {
			one.Error = "the verifier has no evidence of it"
		} else if b, err := evidence.DecodeBody[evidence.Bundle](bytes.NewReader(text)); err != nil {
			one.Error = err.Error()
		} else if e, err := explain(b, ref); err != nil {
			one.Error = err.Error()
		} else {
			one.Verdict = &e.Verdict
		}
		all = append(all, one)
	}
	return all, nil
}

func (out *putResult) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(out)
	}
	for _, r := range out.Replayed {
		if r.Verdict == nil {
			fmt.Fprintf(w, "%s: %s\n", showText(r.Device), showText(r.Error))
			continue
		}
		fmt.Fprintf(w, "%s: ", showText(r.Device))
		if err := printVerdict(w, *r.Verdict); err != nil {
			return err
		}
	}
	if out.Version == 0 {
		_, err := fmt.Fprintf(w, "%s compiles, %d %s; not uploaded\n", showText(out.Name), len(out.Warnings), plural(int64(len(out.Warnings)), "warning"))
		return err
	}
	fmt.Fprintf(w, "stored %s@%d\n", showText(out.Name), out.Version)
	if len(out.Active) > 0 {
		fmt.Fprintf(w, "active: %s\n", versionsOf(out.Name, out.Active))
	}
	return nil
}

func versionsOf(name string, versions []int64) string {
	var all []string
	for _, v := range versions {
		all = append(all, fmt.Sprintf("%s@%d", showText(name), v))
	}
	return strings.Join(all, ", ")
}

// err is an error if a device would not be trusted. What a device proved before its last
// change of verdict is not kept, so evidence of a part is good when nothing speaks against it.
func (out *putResult) err() error {
	bad := 0
	for _, r := range out.Replayed {
		part := r.Verdict != nil && r.Verdict.Status == appraise.Unverified && len(r.Verdict.Reasons) == 1 && r.Verdict.Reasons[0].Code == appraise.CodeNeedWhole
		if r.Verdict == nil || r.Verdict.Status != appraise.Trusted && !part {
			bad++
		}
	}
	if bad == 0 {
		return nil
	}
	return &exitError{exitNotAcceptable, fmt.Errorf("%d of %d %s would not be trusted", bad, len(out.Replayed), plural(int64(len(out.Replayed)), "device"))}
}
