// Attest signs the files of a root filesystem image for Linux IMA and EVM, proves
// that they are signed, makes the keys for it, and explains what devices prove to run.
//
// Standard output is the result, standard error is talk. Exit codes are part of the
// interface: see the exit constants.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes, the same for all programs of this project.
const (
	exitGood          = 0
	exitFailure       = 1 // usage, I/O or internal error
	exitNotAuthentic  = 2 // signature, chain
	exitNotAcceptable = 3 // authentic, but refused by policy
	exitFindings      = 4 // unsigned, changed or missing files
)

// exitError is an error that ends the program with another code than exitFailure.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	understood := false // flags and arguments
	root.PersistentPreRun = func(*cobra.Command, []string) { understood = true }
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitGood
	}
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintf(stderr, "attest: error: %s\n", showText(line))
		}
	}
	hint := hintFor(err)
	if hint == "" && !understood {
		hint = command.CommandPath() + " --help"
	}
	if hint != "" {
		fmt.Fprintf(stderr, "attest: hint: %s\n", hint)
	}
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	return exitFailure
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "attest",
		Short: "Sign the files of a Linux image for IMA and EVM, and prove it",
		Long: `attest signs the files of a root filesystem so that the Linux kernel can refuse
a changed one (IMA and EVM), proves that they are signed, and makes the keys. Of devices
that attest to a verifier it says whether they are trusted, and why not.

Exit codes: 0 good, 1 usage, I/O or internal error, 2 not authentic,
3 authentic but not acceptable, 4 findings (unsigned, changed or missing files).`,
		SilenceUsage:      true,
		DisableAutoGenTag: true, // a date and an advertisement in manual pages
		SilenceErrors:     true,
		Version:           version(),
	}
	root.AddCommand(newSign(), newVerify(), newKeys(), newPolicy(), newKernel(), newPackage(), newAllowlist(), newFleet(), newExplain(), newMan())
	return root
}
