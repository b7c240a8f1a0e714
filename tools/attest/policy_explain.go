package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/policy"
	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

const explainSchema = "attest.policy.explain/v1"

// policyExplainFlags are the flags of attest policy explain.
type policyExplainFlags struct {
	rootfs, kernel, fs, fsuuid string
	uid                        uint32
	evm, all, json             bool
	labels, config             string
}

func newPolicyExplain() *cobra.Command {
	var o policyExplainFlags
	c := &cobra.Command{
		Use:   "explain POLICY --rootfs DIR",
		Short: "Say what a policy measures, appraises and refuses in a root filesystem",
		Long: `explain follows what happens to each file of DIR once POLICY is loaded: programs
are run, libraries mapped, everything is read, modules, firmware and kernels are loaded,
and what a system writes to (machine-id, /var, ...) is written. It says by which rule
each use is measured and appraised, and which the kernel would refuse: no label, not the
label that is demanded, or a signed file that is to be written to. The exit code is then 4.

A compressed module (.ko.gz, .ko.xz, .ko.zst) is refused by func=MODULE_CHECK, as kmod
unpacks it and the kernel sees no file, unless --config shows a kernel that unpacks it:
from Linux 5.17 on with CONFIG_MODULE_DECOMPRESS and CONFIG_MODULE_COMPRESS_GZIP, _XZ or
_ZSTD.

It looks at whether there is a label of the right kind. Whether it is that of the content
is what attest verify finds out.`,
		Example: `  attest policy explain appraise-executables --rootfs rootfs
  attest policy explain policy.ima --rootfs rootfs --kernel 6.1 --fs squashfs --all`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(c.Context(), args[0], c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&o.rootfs, "rootfs", "", "root filesystem in `DIR`")
	f.StringVar(&o.kernel, "kernel", "", "explain for Linux `VERSION`, such as 6.1 (default: "+policy.Newest.String()+", the newest known)")
	f.StringVar(&o.fs, "fs", "ext4", "`KIND` of filesystem that the files will be on: ext4, squashfs, erofs, overlay, ...")
	f.StringVar(&o.fsuuid, "fsuuid", "", "`UUID` of that filesystem (default: the one that a rule asks for)")
	f.Uint32Var(&o.uid, "uid", 0, "the user `ID` that uses the files")
	f.StringVar(&o.config, "config", "", "configuration of the kernel, the `FILE` .config")
	f.BoolVar(&o.evm, "evm", false, "EVM is on: appraised files need security.evm")
	f.StringVar(&o.labels, "labels", rootfs.LabelsAuto, "read labels through `WAY`: auto, libc (pseudo, fakeroot) or direct")
	f.BoolVar(&o.all, "all", false, "print every file that is measured or appraised, and every one that is refused")
	f.BoolVar(&o.json, "json", false, "print one JSON document (schema "+explainSchema+")")
	c.MarkFlagRequired("rootfs")
	return c
}

// run does what the flags say.
func (o *policyExplainFlags) run(ctx context.Context, name string, stdout io.Writer) error {
	text, err := readPolicy(name)
	if err != nil {
		return err
	}
	s := policy.System{Process: policy.Process{UID: o.uid, EUID: o.uid, GID: o.uid, EGID: o.uid}}
	if s.Kernel, err = parseKernel(o.kernel); err != nil {
		return err
	}
	fs, err := parseFS(o.fs, o.fsuuid)
	if err != nil {
		return err
	}
	if fs != nil {
		s.FS = *fs
	}
	if s.Config, err = readConfigFlag(o.config); err != nil {
		return err
	}
	p, err := policy.Parse(text, s.Kernel)
	if err != nil {
		refused := &exitError{exitFindings, fmt.Errorf("%s: %w: %w", name, errPolicy, err)}
		if o.json {
			summary := explainSummary{Kernel: s.Kernel.String(), Filesystem: s.FS.Name, Error: err.Error()}
			return cmp.Or(newDocument(stdout, explainSchema, "files").end(summary), error(refused))
		}
		return refused
	}
	labels, err := rootfs.OpenLabels(o.labels)
	if err != nil {
		return err
	}
	tree, err := rootfs.Open(o.rootfs, labels)
	if err != nil {
		return err
	}
	defer tree.Close()
	e := &explanation{flags: o, system: s, rules: p.Rules(), stdout: stdout}
	if o.json {
		e.doc = newDocument(stdout, explainSchema, "files")
	}
	if err := tree.Look(ctx, e.file); err != nil {
		return err
	}
	return e.end(name)
}

// explanation is what is said of a tree.
type explanation struct {
	flags  *policyExplainFlags
	system policy.System
	rules  []*policy.Rule
	stdout io.Writer
	doc    *document // nil for text

	files      int64
	unreadable int64
	refused    int64 // files
	uses       map[policy.Use]*useCount
	hits       map[int]int64 // files by the line of the rule that decided
	groups     map[refusalGroup]*refusals
	unsure     map[int]bool // lines of rules
}

// useCount counts the files of a use.
type useCount struct {
	Files    int64 `json:"files"`
	Measured int64 `json:"measured"`
	Appraise int64 `json:"appraised"`
	Refused  int64 `json:"refused"`
}

// refusalGroup is what refused files have in common.
type refusalGroup struct {
	use   policy.Use
	line  int
	cause string
}

// shown is how many paths of a group are printed. All of a large tree would take more
// memory than the walk.
const shown = 5

// refusals are the files of a group.
type refusals struct {
	files int64
	paths []string // the first
}

// group adds a file to those that are refused for the same reason.
func (e *explanation) group(g refusalGroup, path string) {
	r := e.groups[g]
	if r == nil {
		r = new(refusals)
		e.groups[g] = r
	}
	r.files++
	if len(r.paths) < shown {
		r.paths = append(r.paths, path)
	}
}

// jsonUse is a [policy.Outcome] in the document. Rules are given by their lines.
type jsonUse struct {
	Use      policy.Use `json:"use"`
	Measured int        `json:"measured,omitempty"`
	Appraise int        `json:"appraised,omitempty"`
	Refused  string     `json:"refused,omitempty"`
}

// jsonExplained is a file in the document.
type jsonExplained struct {
	jsonPath
	Uses []jsonUse `json:"uses"`
}

// file takes one file of the tree.
func (e *explanation) file(l rootfs.Look, err error) error {
	if err != nil {
		e.unreadable++
		if e.doc == nil {
			fmt.Fprintf(e.stdout, "%s: not looked at: %v\n", showPath(l.Path), err)
		}
		return nil
	}
	e.files++
	f := policy.File{
		Path: l.Path, Mode: l.Mode & 0o7777, UID: l.UID, GID: l.GID, Head: l.Head, Tail: l.Tail,
		Object: strings.TrimRight(string(l.SELinux), "\x00"),
		Labels: policy.Labels{IMA: l.IMA, EVM: l.EVM, EVMOn: e.flags.evm},
	}
	outcomes := e.system.Explain(e.rules, &f)
	refused, touched := e.count(&f, outcomes)
	if refused {
		e.refused++
	}
	if refused || e.flags.all && touched {
		return e.show(&f, outcomes)
	}
	return nil
}

// count adds the outcomes to the totals. It says whether the file is refused, and whether
// the policy does anything to it.
func (e *explanation) count(f *policy.File, outcomes []policy.Outcome) (refused, touched bool) {
	if e.uses == nil {
		e.uses, e.hits, e.groups, e.unsure = map[policy.Use]*useCount{}, map[int]int64{}, map[refusalGroup]*refusals{}, map[int]bool{}
	}
	lines := map[int]bool{}
	for _, o := range outcomes {
		n := e.uses[o.Use]
		if n == nil {
			n = new(useCount)
			e.uses[o.Use] = n
		}
		n.Files++
		if o.Measured != nil {
			n.Measured++
			lines[o.Measured.Line] = true
		}
		if o.Appraise != nil {
			n.Appraise++
			lines[o.Appraise.Line] = true
		}
		for _, r := range o.Unsure {
			e.unsure[r.Line] = true
		}
		if o.Refused != "" {
			refused = true
			n.Refused++
			e.group(refusalGroup{o.Use, o.Appraise.Line, o.Refused}, f.Path)
		}
	}
	for line := range lines {
		e.hits[line]++
	}
	return refused, len(lines) > 0
}

// show prints one file, if files are printed one by one.
func (e *explanation) show(f *policy.File, outcomes []policy.Outcome) error {
	if e.doc != nil {
		j := jsonExplained{jsonPath: newJSONPath(f.Path)}
		for _, o := range outcomes {
			j.Uses = append(j.Uses, jsonUse{o.Use, lineOf(o.Measured), lineOf(o.Appraise), o.Refused})
		}
		return e.doc.add(j)
	}
	if !e.flags.all {
		return nil // in groups, at the end
	}
	var parts []string
	for _, o := range outcomes {
		var does []string
		if o.Measured != nil {
			does = append(does, fmt.Sprintf("measured by line %d", o.Measured.Line))
		}
		if o.Appraise != nil {
			does = append(does, fmt.Sprintf("appraised by line %d", o.Appraise.Line))
		}
		if o.Refused != "" {
			does = append(does, "REFUSED: "+o.Refused)
		}
		if does != nil {
			parts = append(parts, fmt.Sprintf("%s %s", o.Use, strings.Join(does, ", ")))
		}
	}
	_, err := fmt.Fprintf(e.stdout, "%s: %s\n", showPath(f.Path), strings.Join(parts, "; "))
	return err
}

// lineOf is the line of a rule, 0 for none.
func lineOf(r *policy.Rule) int {
	if r == nil {
		return 0
	}
	return r.Line
}

// explainSummary is the end of the document.
type explainSummary struct {
	Kernel     string                   `json:"kernel"`
	Filesystem string                   `json:"filesystem"`
	Files      int64                    `json:"files"`
	Unreadable int64                    `json:"unreadable"`
	Refused    int64                    `json:"refused"`
	Uses       map[policy.Use]*useCount `json:"uses,omitempty"`
	Rules      []jsonRuleHits           `json:"rules,omitempty"`
	NewFiles   int                      `json:"new_files_refused_by_line,omitempty"`
	Error      string                   `json:"error,omitempty"` // why the kernel refuses the policy
	Good       bool                     `json:"good"`
}

// jsonRuleHits is a rule and the number of files that it measures or appraises.
type jsonRuleHits struct {
	jsonRule
	Files  int64 `json:"files"`
	Unsure bool  `json:"unsure,omitempty"` // it may match more, depending on security labels
}

// end prints the summary, and returns the error that the program ends with.
func (e *explanation) end(name string) error {
	newFiles := e.system.NewFile(e.rules)
	if e.doc != nil {
		s := explainSummary{Kernel: e.system.Kernel.String(), Filesystem: e.system.FS.Name, Files: e.files, Unreadable: e.unreadable,
			Refused: e.refused, Uses: e.uses, NewFiles: lineOf(newFiles), Good: e.refused+e.unreadable == 0}
		for _, r := range e.rules {
			s.Rules = append(s.Rules, jsonRuleHits{jsonRule{r.Line, r.String()}, e.hits[r.Line], e.unsure[r.Line]})
		}
		if err := e.doc.end(s); err != nil {
			return err
		}
	} else {
		e.printGroups()
		e.printTotals(newFiles)
	}
	switch {
	case e.files+e.unreadable == 0:
		return fmt.Errorf("%s: %w", e.flags.rootfs, errEmpty)
	case e.unreadable > 0:
		return fmt.Errorf("%d %s could not be looked at", e.unreadable, plural(e.unreadable, "file"))
	case e.refused > 0:
		return &exitError{exitFindings, fmt.Errorf("%s: %w: %d of %d", name, errPolicyBreaks, e.refused, e.files)}
	}
	return nil
}

// printGroups prints what is refused.
func (e *explanation) printGroups() {
	uses := policy.Uses()
	order := slices.SortedFunc(maps.Keys(e.groups), func(a, b refusalGroup) int {
		return cmp.Or(cmp.Compare(slices.Index(uses, a.use), slices.Index(uses, b.use)), cmp.Compare(a.line, b.line), cmp.Compare(a.cause, b.cause))
	})
	for _, g := range order {
		r := e.groups[g]
		fmt.Fprintf(e.stdout, "refused: %s of %d %s by line %d: %s\n", g.use, r.files, plural(r.files, "file"), g.line, g.cause)
		for _, path := range r.paths {
			fmt.Fprintf(e.stdout, "    %s\n", showPath(path))
		}
		if more := r.files - int64(len(r.paths)); more > 0 {
			fmt.Fprintf(e.stdout, "    ... and %d more: --all prints every file\n", more)
		}
	}
}

// printTotals prints the counts by use and by rule.
func (e *explanation) printTotals(newFiles *policy.Rule) {
	if newFiles != nil {
		fmt.Fprintf(e.stdout, "new files: those that user %d makes cannot be opened again: line %d demands a signature of them\n", e.flags.uid, newFiles.Line)
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "use\tfiles\tmeasured\tappraised\trefused\t")
	for _, use := range policy.Uses() {
		if n := e.uses[use]; n != nil {
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t\n", use, n.Files, n.Measured, n.Appraise, n.Refused)
		}
	}
	w.Flush()
	for _, r := range e.rules {
		unsure := ""
		if e.unsure[r.Line] {
			unsure = ", or more: it depends on security labels"
		}
		if e.hits[r.Line] > 0 || unsure != "" {
			fmt.Fprintf(e.stdout, "line %d: %d %s%s: %s\n", r.Line, e.hits[r.Line], plural(e.hits[r.Line], "file"), unsure, r)
		}
	}
	fmt.Fprintf(e.stdout, "refused %d of %d %s for Linux %v, on %s\n", e.refused, e.files, plural(e.files, "file"), e.system.Kernel, e.system.FS.Name)
}
