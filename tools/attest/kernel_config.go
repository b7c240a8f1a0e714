package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/kconfig"
)

// kernelConfigFlags are the flags of attest kernel config.
type kernelConfigFlags struct {
	fragments    []string
	source, arch string
	optional     []string
	partial      bool
	json         bool
}

func newKernelConfig() *cobra.Command {
	var o kernelConfigFlags
	c := &cobra.Command{
		Use:   "config --fragment FILE... CONFIG...",
		Short: "Name each symbol of fragments that a kernel's configuration lacks, and why",
		Long: `config compares CONFIG, the .config of a kernel, with the fragments that it was made
from. Kconfig drops what it cannot give without a word. With --source, the Kconfig files
of that Linux are read for the reason.

Findings are lines "CONFIG_SYMBOL=WANTED became VALUE: reason". In fragments, and in
CONFIG, the last line of a symbol counts; absent, "is not set" and "" are the same.

With --partial each CONFIG is a fragment itself, a defconfig for example. What it does
not mention, or lacks, is no finding then; what it sets and the fragments switch off, or
set to another value, is: "FILE:LINE: CONFIG_SYMBOL=VALUE contradicts FRAGMENT:LINE ...".

Exit code 4: there are findings.`,
		Example: `  attest kernel config --fragment attest.cfg --source linux --arch x86 build/.config
  attest kernel config --fragment attest.cfg --partial defconfig`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(args, c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringArrayVar(&o.fragments, "fragment", nil, "`FILE` with the symbols that have to be there; may be repeated, the last one counts")
	f.StringVar(&o.source, "source", "", "say why, from the Kconfig files in `DIR`, a Linux source")
	f.StringVar(&o.arch, "arch", "", "`ARCH` of the kernel as its source calls it, such as x86 or arm64; for --source")
	f.StringSliceVar(&o.optional, "optional", nil, "these `SYMBOLS`, without CONFIG_ and with commas between them, need not be there")
	f.BoolVar(&o.partial, "partial", false, "CONFIG is a fragment: name what it sets and the fragments contradict")
	f.BoolVar(&o.json, "json", false, "print one JSON document (schema attest.kernel.config/v1)")
	c.MarkFlagRequired("fragment")
	c.MarkFlagsRequiredTogether("source", "arch")
	c.MarkFlagsMutuallyExclusive("source", "partial")
	return c
}

var errConfig = errors.New("the configuration is not what the fragments say")

// jsonSetting is a symbol that is not as it has to be.
type jsonSetting struct {
	Symbol string   `json:"symbol"`
	Want   string   `json:"want"`
	Got    string   `json:"got"`
	At     jsonPath `json:"at"`             // the fragment, or with --partial the line of CONFIG
	Line   int      `json:"line,omitempty"` // in it
	Reason string   `json:"reason,omitempty"`

	// Optional ones are named, and do not count.
	Optional bool `json:"optional,omitempty"`

	text string // for a person
}

func (o *kernelConfigFlags) run(files []string, stdout io.Writer) error {
	fragments, err := readSettings(o.fragments)
	if err != nil {
		return err
	}
	var findings []jsonSetting
	for _, file := range files {
		lines, err := readSettings([]string{file})
		if err != nil {
			return err
		}
		found, err := o.compare(fragments, lines)
		if err != nil {
			return err
		}
		findings = append(findings, found...)
	}
	var n int64
	for _, f := range findings {
		if !f.Optional {
			n++
		}
	}
	if o.json {
		err = json.NewEncoder(stdout).Encode(struct {
			Schema   string        `json:"schema"`
			Findings []jsonSetting `json:"findings"`
			Good     bool          `json:"good"`
		}{"attest.kernel.config/v1", append([]jsonSetting{}, findings...), n == 0})
	} else {
		for _, f := range findings {
			fmt.Fprintln(stdout, showText(f.text))
		}
	}
	if err == nil && n > 0 {
		err = &exitError{exitFindings, fmt.Errorf("%d %s: %w", n, plural(n, "symbol"), errConfig)}
	}
	return err
}

// compare finds what lines have in another way than the fragments.
func (o *kernelConfigFlags) compare(fragments, lines []kconfig.Setting) ([]jsonSetting, error) {
	var findings []jsonSetting
	if o.partial {
		for _, c := range kconfig.Contradictions(fragments, lines) {
			findings = append(findings, jsonSetting{c.Line.Symbol, c.Fragment.Value, c.Line.Value, newJSONPath(c.Line.File), c.Line.Line, "", false,
				fmt.Sprintf("%s:%d: %s contradicts %s:%d, which makes it %s", c.Line.File, c.Line.Line, c.Line, c.Fragment.File, c.Fragment.Line, c.Fragment.Value)})
		}
		return findings, nil
	}
	config := kconfig.NewConfig(lines)
	missing := kconfig.Check(fragments, config)
	var tree *kconfig.Tree
	if o.source != "" && len(missing) > 0 {
		var err error
		if tree, err = kconfig.ReadTree(os.DirFS(o.source), o.arch); err != nil {
			return nil, fmt.Errorf("read Kconfig files of %s: %w", o.source, err)
		}
	}
	for _, m := range missing {
		f := jsonSetting{m.Want.Symbol, m.Want.Value, m.Got, newJSONPath(m.Want.File), m.Want.Line, "",
			slices.Contains(o.optional, m.Want.Symbol), fmt.Sprintf("%s became %s", m.Want, m.Got)}
		if tree != nil {
			f.Reason = tree.Explain(m, config)
		}
		if f.Reason != "" {
			f.text += ": " + f.Reason
		}
		if f.Optional {
			f.text += " (optional)"
		}
		findings = append(findings, f)
	}
	return findings, nil
}

// readSettings reads fragments, one after the other.
func readSettings(files []string) ([]kconfig.Setting, error) {
	var all []kconfig.Setting
	for _, file := range files {
		text, err := readBounded(file, maxConfig)
		if err != nil {
			return nil, err
		}
		settings, err := kconfig.Parse(file, string(text))
		if err != nil {
			return nil, err
		}
		all = append(all, settings...)
	}
	return all, nil
}
