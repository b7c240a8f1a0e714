package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/policies"
	"github.com/meta-attest/meta-attest/tools/internal/policy"
)

var (
	errPolicy       = errors.New("the kernel refuses the policy, or it does not do what it says")
	errPolicyBreaks = errors.New("the policy refuses files of the tree")
	errNoPolicy     = errors.New("is neither a file nor the name of a ready policy")
)

func newPolicy() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Check, explain and sign IMA policies",
		Long: `policy reads IMA policies as the kernel does, before one boots with them.

  list     names the ready policies
  show     prints one
  check    finds what a kernel refuses in a policy, and what does not do what it says
  explain  says what a policy measures, appraises and refuses in a root filesystem
  sign     writes the label with which the kernel loads a policy by its path

A POLICY is a file or the name of a ready policy. With --json there is a document for
every POLICY that can be read: of one that a kernel refuses, show and explain give an
empty list and the reason, and check gives the findings. The exit code is then 4.`,
		Example: `  attest policy list
  attest policy check policy.ima --kernel 6.1
  attest policy explain appraise-executables --rootfs rootfs
  attest policy show appraise-executables > rootfs/etc/ima/ima-policy
  attest policy sign rootfs/etc/ima/ima-policy --key ima.key --cert ima.crt`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newPolicyList(), newPolicyShow(), newPolicyCheck(), newPolicyExplain(), newPolicySign())
	return c
}

// readPolicy reads a file, or a ready policy when there is no such file.
func readPolicy(name string) ([]byte, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) && !strings.ContainsRune(name, '/') {
		text, err := policies.Text(name)
		if err != nil {
			return nil, fmt.Errorf("%s %w", name, errNoPolicy)
		}
		return text, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, policy.MaxSize+1))
	if err == nil && len(text) > policy.MaxSize {
		err = fmt.Errorf("%s: larger than %d bytes", name, policy.MaxSize)
	}
	return text, err
}

// parseKernel reads --kernel.
func parseKernel(flag string) (policy.Version, error) {
	if flag == "" {
		return policy.Newest, nil
	}
	v, err := policy.ParseVersion(flag)
	if err != nil {
		return v, fmt.Errorf("--kernel: %w", err)
	}
	return v, nil
}

// parseFS reads --fs and --fsuuid. Without --fs it returns nil.
func parseFS(name, uuid string) (*policy.Filesystem, error) {
	if name == "" {
		if uuid != "" {
			return nil, errors.New("--fsuuid has no effect without --fs")
		}
		return nil, nil
	}
	f, ok := policy.FindFilesystem(name)
	if !ok {
		return nil, fmt.Errorf("--fs: no filesystem %q is known", name)
	}
	if uuid != "" {
		if !f.AnyUUID {
			return nil, fmt.Errorf("--fsuuid: %s has no UUID of its own: fsuuid= matches nothing there", name)
		}
		u, err := policy.ParseUUID(uuid)
		if err != nil {
			return nil, fmt.Errorf("--fsuuid: %w", err)
		}
		f.UUID, f.AnyUUID = u, false
	}
	return &f, nil
}

// readyPolicy is a line of attest policy list.
type readyPolicy struct {
	Name     string `json:"name"`
	Kernel   string `json:"kernel"` // the oldest that takes it
	Summary  string `json:"summary"`
	Protects string `json:"protects"`
	Breaks   string `json:"breaks"`
}

// listPolicies reads the headers of the ready policies.
func listPolicies() ([]readyPolicy, error) {
	names, err := policies.Names()
	if err != nil {
		return nil, err
	}
	var list []readyPolicy
	for _, name := range names {
		text, err := policies.Text(name)
		if err != nil {
			return nil, err
		}
		h, err := policies.ParseHeader(text)
		if err != nil {
			return nil, fmt.Errorf("policy %s: %w", name, err)
		}
		list = append(list, readyPolicy{name, h.Kernel, h.Summary, h.Protects, h.Breaks})
	}
	return list, nil
}

func newPolicyList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "Name the ready policies",
		Long:    "list names the ready policies, with the oldest kernel that takes each. show prints one.",
		Example: "  attest policy list",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			list, err := listPolicies()
			if err != nil {
				return err
			}
			if asJSON {
				return writePolicyList(c.OutOrStdout(), list)
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, p := range list {
				fmt.Fprintf(w, "%s\tLinux %s\t%s\n", p.Name, p.Kernel, p.Summary)
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.policy.list/v1)")
	return c
}

func writePolicyList(w io.Writer, list []readyPolicy) error {
	doc := newDocument(w, "attest.policy.list/v1", "policies")
	for _, p := range list {
		if err := doc.add(p); err != nil {
			return err
		}
	}
	return doc.end(struct {
		Policies int `json:"policies"`
	}{len(list)})
}

func newPolicyShow() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "show POLICY",
		Short:   "Print a ready policy",
		Long:    "show prints a ready policy, or with --json the rules of any policy as the kernel prints them.",
		Example: "  attest policy show appraise-executables > rootfs/etc/ima/ima-policy",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			text, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return writePolicyRules(c.OutOrStdout(), args[0], text)
			}
			_, err = c.OutOrStdout().Write(text)
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document (schema attest.policy.show/v1)")
	return c
}

// jsonRule is a rule in a document.
type jsonRule struct {
	Line int    `json:"line"`
	Rule string `json:"rule"`
}

// policyRulesSummary is the end of the document.
type policyRulesSummary struct {
	Rules  int    `json:"rules"`
	Kernel string `json:"kernel,omitempty"` // the oldest that takes the policy
	Error  string `json:"error,omitempty"`  // why the newest known does not
}

func writePolicyRules(w io.Writer, name string, text []byte) error {
	doc := newDocument(w, "attest.policy.show/v1", "rules")
	p, refused := policy.Parse(text, policy.Newest)
	if refused != nil {
		err := doc.end(policyRulesSummary{Error: refused.Error()})
		return cmp.Or(err, error(&exitError{exitFindings, fmt.Errorf("%s: %w", name, refused)}))
	}
	for _, r := range p.Rules() {
		if err := doc.add(jsonRule{r.Line, r.String()}); err != nil {
			return err
		}
	}
	oldest, _ := policy.OldestFor(text)
	return doc.end(policyRulesSummary{Rules: len(p.Rules()), Kernel: oldest.String()})
}
