// Attest-labels gives the files of packages their IMA and EVM labels on the device, while a
// package manager installs them. The labels travel in the package, in the control file
// attest-labels that attest package build made; here the list's signature is verified, and then
// each label against the file, before any is set.
//
//	attest-labels check [--root DIR] [PACKAGE...]   compare installed files with their lists
//	attest-labels apply [--root DIR] [PACKAGE...]   and set the labels that are missing
//
// Without PACKAGE all installed ones. Called by another name it is that program:
//
//	dpkg-deb   what dpkg has it unpack gets labels before it gets its name: maintainer scripts
//	           before they run, files before they replace older ones. The real one is beside
//	           it as dpkg-deb.distrib, where dpkg-divert puts it.
//	opkg       runs opkg.distrib, and holds each process that that starts until what has been
//	           unpacked is labelled.
//
// It is static and stands on its own: while the C library is being replaced nothing else may
// be able to run.
//
// Trusted are the certificates /etc/keys/x509_ima*.der, and for EVM x509_evm*.der, of the
// running system. This is no border of security: the kernel judges each label again with the
// keys in its own keyring. It is what stops a package that the kernel would refuse half way.
//
// A package without a list is refused. With ATTEST_LABELS=optional in the environment it is
// installed, without labels.
//
// Exit codes: 0 good; 1 usage or I/O; 2 not authentic: a list that no trusted key signed, or
// files that are not those of the list; 4 findings: a package without a list, a file without
// its label. Called as dpkg-deb or opkg it otherwise ends as the real program does.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Exit codes, the same for all programs of this project.
const (
	exitError        = 1
	exitNotAuthentic = 2
	exitFindings     = 4
)

// Errors that decide about the exit code and the hint.
var (
	errNotAuthentic = errors.New("not authentic")
	errUnsigned     = errors.New("package has no label list")
	errFindings     = errors.New("labels are missing or wrong")
)

// hints say what mends an error.
var hints = []struct {
	err  error
	code int
	hint string
}{
	{errNotAuthentic, exitNotAuthentic, "get the package again, from a build that signs with a key whose certificate is in " + keysDir},
	{errUnsigned, exitFindings, `build it with INHERIT += "attest-package"; data that nobody executes can be installed with ATTEST_LABELS=optional in the environment`},
	{errFindings, exitFindings, "set labels again with attest-labels apply PACKAGE; install a package with changed files, or without a list, again from a signed build"},
}

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	var err error
	switch name {
	case "dpkg-deb":
		err = dpkgDeb(args)
	case "opkg":
		err = opkg(args)
	default:
		name = "attest-labels"
		err = command(args)
	}
	os.Exit(report(name, err))
}

// report says what went wrong and returns the exit code.
func report(name string, err error) int {
	var ended *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ended) && ended.ExitCode() > 0:
		return ended.ExitCode() // it has said why
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(os.Stderr, "%s: error: %s\n", name, line)
	}
	for _, h := range hints {
		if errors.Is(err, h.err) {
			fmt.Fprintf(os.Stderr, "%s: hint: %s\n", name, h.hint)
			return h.code
		}
	}
	return exitError
}

// optional says whether packages without a list are to be installed.
func optional() bool { return os.Getenv("ATTEST_LABELS") == "optional" }
