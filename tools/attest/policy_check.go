package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/policy"
)

// policyCheckFlags are the flags of attest policy check.
type policyCheckFlags struct {
	kernel, fs, fsuuid string
	config             string
	json               bool
}

func newPolicyCheck() *cobra.Command {
	var o policyCheckFlags
	c := &cobra.Command{
		Use:   "check POLICY",
		Short: "Find what a kernel refuses in a policy, and what does not do what it says",
		Long: `check reads POLICY as the kernel does, and looks for what it gets wrong.

Findings are lines "POLICY:LINE:COLUMN: SEVERITY: CODE: reason". Errors make the exit
code 4, also those of a policy that does not parse: the file could be read, and what is
wrong with it is what check is asked for. They are: what the kernel refuses (refused,
too-new, unterminated, config), rules that never do what they say (shadowed,
never-matches, fsuuid, no-rule, merged, no-label, no-verity, loses-labels), and rules
that no system survives (kernel-filesystem).

Warnings are what depends on the system, and what a rule does not protect although it
looks as if it did: redundant, ignored, exact-mask, directio, hash-accepted, weak-hash,
programs, scripts, libraries, hooks, policy-not-signed, tmpfs, tmpfs-not-measured,
fsuuid, config, long-line, unknown-filesystem, kernel. With warnings alone the exit code
is 0: no policy is without.`,
		Example: `  attest policy check policy.ima --kernel 6.1
  attest policy check policy.ima --kernel 6.6 --fs squashfs --config build/.config
  attest policy check appraise-executables --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(args[0], c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&o.kernel, "kernel", "", "check for Linux `VERSION`, such as 6.1 (default: "+policy.Newest.String()+", the newest known)")
	f.StringVar(&o.fs, "fs", "", "the files in question are on this `KIND` of filesystem: ext4, squashfs, erofs, overlay, ...")
	f.StringVar(&o.fsuuid, "fsuuid", "", "`UUID` of that filesystem")
	f.StringVar(&o.config, "config", "", "configuration of the kernel, the `FILE` .config")
	f.BoolVar(&o.json, "json", false, "print one JSON document (schema attest.policy.check/v1)")
	return c
}

// jsonPolicyFinding is a [policy.Finding] in the document.
type jsonPolicyFinding struct {
	Severity policy.Severity `json:"severity"`
	Code     policy.Code     `json:"code"`
	Line     int             `json:"line,omitempty"`
	Column   int             `json:"column,omitempty"`
	Token    string          `json:"token,omitempty"`
	Message  string          `json:"message"`
}

// policyCheckSummary is the end of the document.
type policyCheckSummary struct {
	Kernel   string `json:"kernel"`
	Oldest   string `json:"oldest_kernel,omitempty"` // that takes the policy
	Errors   int64  `json:"errors"`
	Warnings int64  `json:"warnings"`
	Good     bool   `json:"good"`
}

// run does what the flags say.
func (o *policyCheckFlags) run(name string, stdout io.Writer) error {
	text, err := readPolicy(name)
	if err != nil {
		return err
	}
	opts := policy.Options{}
	if opts.Kernel, err = parseKernel(o.kernel); err != nil {
		return err
	}
	if opts.FS, err = parseFS(o.fs, o.fsuuid); err != nil {
		return err
	}
	if opts.Config, err = readConfigFlag(o.config); err != nil {
		return err
	}
	findings := policy.Check(text, opts)
	s := policyCheckSummary{Kernel: opts.Kernel.String()}
	if oldest, ok := policy.OldestFor(text); ok {
		s.Oldest = oldest.String()
	}
	for _, f := range findings {
		if f.Severity == policy.SeverityError {
			s.Errors++
		} else {
			s.Warnings++
		}
	}
	s.Good = s.Errors == 0
	if o.json {
		err = writePolicyFindings(stdout, findings, s)
	} else {
		printPolicyFindings(stdout, name, findings, s)
	}
	if err == nil && !s.Good {
		err = &exitError{exitFindings, fmt.Errorf("%s: %d %s: %w", name, s.Errors, plural(s.Errors, "error"), errPolicy)}
	}
	return err
}

func writePolicyFindings(w io.Writer, findings []policy.Finding, s policyCheckSummary) error {
	doc := newDocument(w, "attest.policy.check/v1", "findings")
	for _, f := range findings {
		if err := doc.add(jsonPolicyFinding(f)); err != nil {
			return err
		}
	}
	return doc.end(s)
}

func printPolicyFindings(w io.Writer, name string, findings []policy.Finding, s policyCheckSummary) {
	for _, f := range findings {
		at := showPath(name)
		for _, n := range []int{f.Line, f.Column} {
			if n > 0 {
				at += fmt.Sprintf(":%d", n)
			}
		}
		token := ""
		if f.Token != "" {
			token = fmt.Sprintf("%q: ", f.Token)
		}
		fmt.Fprintf(w, "%s: %s: %s: %s%s\n", at, f.Severity, f.Code, token, f.Message)
	}
	needs := "no known kernel takes it"
	if s.Oldest != "" {
		needs = "taken from Linux " + s.Oldest + " on"
	}
	fmt.Fprintf(w, "%d %s, %d %s for Linux %s; %s\n", s.Errors, plural(s.Errors, "error"), s.Warnings, plural(s.Warnings, "warning"), s.Kernel, needs)
}

// maxConfig is the size in bytes of the largest kernel configuration that is read; that of
// a distribution has 300 KB.
const maxConfig = 4 << 20

// readConfigFlag reads --config. Without it, it returns nil.
func readConfigFlag(file string) (func(option string) bool, error) {
	if file == "" {
		return nil, nil
	}
	options, err := readKernelConfig(file)
	if err != nil {
		return nil, err
	}
	return func(option string) bool { return options[option] }, nil
}

// readKernelConfig returns the options that a .config switches on.
func readKernelConfig(file string) (map[string]bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	options := map[string]bool{}
	lines := bufio.NewScanner(io.LimitReader(f, maxConfig))
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), "=")
		if ok && strings.HasPrefix(name, "CONFIG_") && value != "n" {
			options[name] = true
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if !options["CONFIG_IMA"] {
		return nil, fmt.Errorf("%s: is not the configuration of a kernel with IMA: it has no CONFIG_IMA=y", file)
	}
	return options, nil
}
