// Command attest-agent runs on a device: it proves to a verifier what the kernel loaded,
// with the TPM as its witness, and tells the owner of the device what the verifier said.
// Everything is sent by the agent: it opens no port, unless it is told to be polled.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
)

// Exit codes, those of all programs of this project.
const (
	exitError        = 1 // usage, I/O or internal error
	exitNotAuthentic = 2
	exitUntrusted    = 3
	exitFindings     = 4
)

// exitCode is an error that ends the program with another code than exitError.
type exitCode struct {
	code int
	err  error
}

func (e *exitCode) Error() string { return e.err.Error() }
func (e *exitCode) Unwrap() error { return e.err }

const usage = `attest-agent proves to a verifier what this device runs.

usage: attest-agent [run|act|enrol|verify|status|doctor|config show|version] [flags]

  run       attest, again and again, until it is stopped; enrols first where that is needed
  act       run local programs on notices of other devices that run received
  enrol     make the keys and register them, once
  verify    check the files of this system against their labels and the manifest, without a network
  status    what the verifier said last, and when it is asked again (exit code 3: not trusted)
  doctor    check kernel, policy, TPM, keys, clock and network, and say what mends them
  config show [--origin]
            what the settings are, and which file, variable or flag set each

Settings come from /etc/attest/agent.toml, then agent.d/*.toml in the order of their names, then
$ATTEST_AGENT_<SETTING>, then flags: verifier_url in a file is ATTEST_AGENT_VERIFIER_URL and
--verifier-url. "attest-agent VERB --help" lists them.

example:
  attest-agent doctor --verifier-url https://attest.example:8881 --ca /etc/attest/ca.crt
`

// invocation is one call of the program.
type invocation struct {
	args           []string
	stdout, stderr io.Writer
}

var verbs = map[string]func(context.Context, *invocation) error{
	"run":     runAgent,
	"act":     runAct,
	"enrol":   runEnrol,
	"verify":  runVerify,
	"status":  runStatus,
	"doctor":  runDoctor,
	"config":  runConfig,
	"version": runVersion,
}

func main() { os.Exit(start(os.Args[1:], os.Stdout, os.Stderr)) }

func start(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return exitError
	}
	verb, ok := verbs[args[0]]
	switch {
	case args[0] == "help" || args[0] == "-h" || args[0] == "--help":
		fmt.Fprint(stdout, usage)
		return 0
	case !ok:
		fmt.Fprintf(stderr, "attest-agent: error: no verb %q\nattest-agent: hint: attest-agent help\n", args[0])
		return exitError
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := verb(ctx, &invocation{args[1:], stdout, stderr})
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	fmt.Fprintf(stderr, "attest-agent: error: %s\n", printable(strings.ReplaceAll(err.Error(), "\n", "; "), maxShown))
	if hint := hintFor(err); hint != "" {
		fmt.Fprintf(stderr, "attest-agent: hint: %s\n", hint)
	}
	return exitOf(err)
}

// exitOf is the code that err ends the program with.
func exitOf(err error) int {
	var exit *exitCode
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &exit):
		return exit.code
	}
	return exitError
}

func runVersion(_ context.Context, in *invocation) error {
	version := "(devel)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		version = info.Main.Version
	}
	_, err := fmt.Fprintln(in.stdout, version)
	return err
}

// verbFlags are the flags of one verb.
type verbFlags struct {
	*flag.FlagSet
	text string // what the verb does
}

func newFlags(verb, text string) *verbFlags {
	fs := flag.NewFlagSet(verb, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // an error is printed once, by start
	fs.Usage = func() {}
	return &verbFlags{fs, text}
}

// parse takes the flags of a verb, which has no other arguments.
func (f *verbFlags) parse(in *invocation) error {
	err := f.FlagSet.Parse(in.args)
	if errors.Is(err, flag.ErrHelp) {
		f.SetOutput(in.stdout)
		fmt.Fprintf(in.stdout, "usage: attest-agent %s [flags]\n\n%s\n\nflags:\n", f.Name(), f.text)
		f.PrintDefaults()
		return err
	}
	if err == nil && f.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if err != nil {
		return fmt.Errorf("%s: %w: attest-agent %s --help lists the flags", f.Name(), err, f.Name())
	}
	return nil
}

// maxShown bounds a text of another machine in a message, in bytes.
const maxShown = 1000

// printable is text of somebody else's for a terminal or a log: one line, bounded, with
// nothing in it that a terminal would obey.
func printable(s string, most int) string {
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r == '\t' || r >= ' ' && r != 0x7f && (r < 0x80 || r > 0xa0) && (r < 0x200b || r > 0x200f) && (r < 0x2028 || r > 0x202e) && (r < 0x2066 || r > 0x2069) {
			return r
		}
		return '\ufffd'
	}, s)
}
