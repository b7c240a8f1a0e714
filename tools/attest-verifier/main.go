// Certificates of some TPMs have a negative serial number, which Go refuses by default.
//go:debug x509negativeserial=1

// Attest-verifier is registrar and verifier: devices enrol with it and prove what they
// run, operators read the verdicts.
//
// Standard output is the result, standard error is talk. Exit codes are part of the
// interface: 0 good, 1 usage, I/O or internal error.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

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
		return 0
	}
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintf(stderr, "attest-verifier: error: %s\n", printable(line))
		}
	}
	if !understood {
		fmt.Fprintf(stderr, "attest-verifier: hint: %s --help\n", command.CommandPath())
	}
	for _, h := range hints {
		if errors.Is(err, h.err) {
			fmt.Fprintf(stderr, "attest-verifier: hint: %s\n", h.hint)
			break
		}
	}
	return 1
}

// printable keeps what comes from a file or a database from talking to the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

var (
	errNoCertificate = errors.New("no TLS certificate: devices would not know whom they talk to")
	// No TPM could be told from a program that plays one.
	errNoManufacturers = errors.New("no certificates of TPM manufacturers")
	errNothing         = errors.New("registrar and verifier are both switched off")
)

// hints maps the errors that a person can mend to what mends them.
var hints = []struct {
	err  error
	hint string
}{
	{errNoCertificate, "set [tls] cert and key; to make a CA and a certificate: attest-verifier certificate --help"},
	{store.ErrSchema, "attest-verifier migrate"},
	{errNoSecretKey, `make one (umask 077; head -c 32 /dev/urandom >secrets.key) and set [secrets] key = "secrets.key"`},
	{errNoWebhookSecret, `make one (umask 077; echo "whsec_$(openssl rand -base64 32)" >siem.secret) and set secret = "siem.secret" in [[notices.webhook]]`},
	{store.ErrExists, "take another name, or forget the old one: attest-verifier token revoke NAME"},
	{errNoManufacturers, `name their folders in [attestation] ek_ca, or enrol on trust with ek_check = "tofu"`},
	{syscall.EADDRINUSE, "another program listens there, maybe attest-verifier itself; take another address: [registrar], [verifier] or [operations] listen"},
	{fs.ErrPermission, "run as a user that may do that; attest-verifier.service, which is no root, gets files of root by LoadCredential="},
	{errNothing, "set enabled = true in [registrar] or [verifier]"},
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "attest-verifier",
		Short: "Registrar and verifier for remote attestation",
		Long: `attest-verifier enrols devices by their TPM, judges what they prove to run, and keeps
the verdicts. Devices speak Keylime's registrar API 2.x and push attestation 3.0.

The configuration is /etc/attest/verifier.toml, then verifier.d/*.toml beside it in the
order of their names, then the environment (ATTEST_VERIFIER_TLS_CERT for cert in [tls]),
then flags: the last value wins. Relative paths are those of the working folder.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,
		Version:           version(),
	}
	root.PersistentFlags().String("config", defaultConfig, "read the configuration from `FILE`")
	root.PersistentFlags().StringArray("set", nil, "set one key of the configuration: `SECTION.KEY=VALUE`")
	root.AddCommand(newServe(), newMigrate(), newConfig(), newToken(), newSecrets(), newCertificate(), newMan())
	return root
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
