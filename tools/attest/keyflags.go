package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

// passphraseEnv is where a passphrase may stand. There is no flag for the passphrase itself:
// every user of the machine sees arguments.
const passphraseEnv = "ATTEST_KEY_PASSPHRASE"

// keyFlags say how private keys are opened.
type keyFlags struct {
	passphraseFile string
	allowDebug     bool
}

// AddFlags adds the flags to a command.
func (k *keyFlags) AddFlags(fs *pflag.FlagSet) {
	k.addPassphrase(fs)
	fs.BoolVar(&k.allowDebug, "allow-debug-keys", false, "take keys whose private half is published, such as those of keys-debug")
}

// addPassphrase adds the flag of commands that look at keys and use none.
func (k *keyFlags) addPassphrase(fs *pflag.FlagSet) {
	fs.StringVar(&k.passphraseFile, "passphrase-file", "", "the first line of `FILE` is the passphrase of the key or the PIN of the token (default: $"+passphraseEnv+")")
}

// Options are what the flags and the environment say.
func (k *keyFlags) Options() keys.Options {
	return keys.Options{Passphrase: k.passphrase, AllowDebug: k.allowDebug}
}

// open opens a key and says on stderr what a person should know of it.
func (k *keyFlags) open(ctx context.Context, uri string, stderr io.Writer) (*keys.Key, error) {
	key, err := keys.Open(ctx, uri, k.Options())
	if err != nil {
		return nil, err
	}
	for _, w := range key.Warnings {
		fmt.Fprintf(stderr, "attest: warning: %s\n", w)
	}
	if name, ok := keys.DebugName(key.Public()); ok {
		fmt.Fprintf(stderr, "attest: warning: %s is published as %s: everybody has this private key\n", key.URI, name)
	}
	return key, nil
}

// pairFlags say how a private key is opened together with its certificate.
type pairFlags struct {
	keyFlags
	allowExpired bool
}

func (p *pairFlags) addFlags(fs *pflag.FlagSet) {
	p.keyFlags.AddFlags(fs)
	fs.BoolVar(&p.allowExpired, "allow-expired", false, "go on although the certificate has expired (the kernel does not look at the date)")
}

// openPair opens a key and checks that it and its certificate can be used together.
func (p *pairFlags) openPair(ctx context.Context, uri, file string, stderr io.Writer) (*keys.Key, *x509.Certificate, error) {
	certs, err := keys.ReadCertificates(file)
	if err != nil {
		return nil, nil, err
	}
	cert := certs[0] // as openssl takes the first of a chain for the leaf
	key, err := p.open(ctx, uri, stderr)
	if err != nil {
		return nil, nil, err
	}
	err = keys.CheckPair(key.Public(), cert, time.Now())
	if errors.Is(err, keys.ErrExpired) && p.allowExpired {
		fmt.Fprintf(stderr, "attest: warning: %v\n", err)
		err = nil
	}
	if err != nil {
		key.Close()
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	return key, cert, nil
}

// passphrase returns nothing when none is given.
func (k *keyFlags) passphrase() ([]byte, error) {
	if k.passphraseFile == "" {
		return []byte(os.Getenv(passphraseEnv)), nil
	}
	text, err := readBounded(k.passphraseFile, 4<<10)
	if err != nil {
		return nil, err
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return nil, fmt.Errorf("%s: first line is empty", k.passphraseFile)
	}
	return line, nil
}
