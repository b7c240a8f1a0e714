package main

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/config"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

var (
	errNoServer     = errors.New("no verifier to talk to")
	errHalfIdentity = errors.New("a client certificate needs its key, and a key its certificate")
	errNoIdentity   = errors.New("nothing to prove who you are with")
	errTokenLeaked  = errors.New("others may read this token")
)

func newFleet() *cobra.Command {
	c := &cobra.Command{
		Use:   "fleet",
		Short: "See what your devices run, and say what they may run",
		Long: `fleet talks to an attest-verifier as an operator.

  list, show       devices and what they are known to be
  explain          why a device is not trusted, and what to do
  add, change      name a device before it enrols; its group, labels and policies
  delete           forget a device
  policy           what devices are compared with
  import           devices and policies of a Keylime installation
  events           what happened, in a history that cannot be changed unseen
  secret           files for devices, while they are trusted
  notices          what others were told of bad verdicts, where that failed
  evidence         download evidence, for attest explain

Where the verifier is and who you are is read from the file fleet.toml in
~/.config/attest, then fleet.d/*.toml beside it; then the environment, then flags: the
last value wins. Paths in a file are relative to it.

    server = "https://verifier.example.com:8881"    # ATTEST_FLEET_SERVER
    server_ca = "verifier-ca.crt"                   # ATTEST_FLEET_SERVER_CA
    client_cert = "alice.crt"                       # ATTEST_FLEET_CLIENT_CERT
    client_key = "alice.key"                        # ATTEST_FLEET_CLIENT_KEY
    token_file = "token"                            # ATTEST_FLEET_TOKEN_FILE

A token may stand in $ATTEST_FLEET_TOKEN; it is never an argument, which every user of the
machine sees. One of certificate and token is enough.`,
		Example: `  attest fleet list --status untrusted
  attest fleet explain gateway-17
  attest fleet policy put image --manifest image.attest.json --cert ima.crt --activate beside`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	o := &fleetFlags{}
	f := c.PersistentFlags()
	f.StringVar(&o.config, "config", "", "read `FILE` (default: attest/fleet.toml in the folder of your settings)")
	f.StringVar(&o.flags.Server, "server", "", "`URL` of the verifier")
	f.StringVar(&o.flags.ServerCA, "server-ca", "", "CA of the verifier's TLS certificate, in `FILE` (default: those of the system)")
	f.StringVar(&o.flags.ClientCert, "client-cert", "", "your certificate, PEM `FILE`")
	f.StringVar(&o.flags.ClientKey, "client-key", "", "its private key at `URI`: a PEM file or pkcs11:...")
	f.StringVar(&o.flags.TokenFile, "token-file", "", "the first line of `FILE` is your token")
	o.key.addPassphrase(f)
	c.AddCommand(newFleetList(o), newFleetShow(o), newFleetExplain(o), newFleetAdd(o), newFleetChange(o), newFleetDelete(o),
		newFleetPolicy(o), newFleetImport(o), newFleetEvents(o), newFleetEvidence(o), newFleetNotices(o), newFleetSecret(o))
	return c
}

// fleetSettings are where the verifier is and who asks.
type fleetSettings struct {
	Server     string `toml:"server"`
	ServerCA   string `toml:"server_ca"`
	ClientCert string `toml:"client_cert"`
	ClientKey  string `toml:"client_key"`
	TokenFile  string `toml:"token_file"`
}

// fields are the settings by the ends of their names in the environment.
func (s *fleetSettings) fields() map[string]*string {
	return map[string]*string{"SERVER": &s.Server, "SERVER_CA": &s.ServerCA, "CLIENT_CERT": &s.ClientCert,
		"CLIENT_KEY": &s.ClientKey, "TOKEN_FILE": &s.TokenFile}
}

// over takes the values that s has over those of below.
func (s *fleetSettings) over(below *fleetSettings) {
	under := below.fields()
	for name, value := range s.fields() {
		if *value == "" {
			*value = *under[name]
		}
	}
}

// fleetFlags are the flags of all commands of attest fleet.
type fleetFlags struct {
	config string
	flags  fleetSettings
	key    keyFlags
}

const fleetEnv = "ATTEST_FLEET_"

// settings reads files and environment, and lets flags win.
func (o *fleetFlags) settings() (*fleetSettings, error) {
	s, env := o.flags, fleetSettings{}
	for name, value := range env.fields() {
		*value = os.Getenv(fleetEnv + name)
	}
	s.over(&env)
	file, err := o.file()
	if err != nil {
		return nil, err
	}
	s.over(file)
	if s.Server == "" {
		return nil, errNoServer
	}
	return &s, nil
}

// file reads the configuration. Only one that was asked for has to be there.
func (o *fleetFlags) file() (*fleetSettings, error) {
	path := o.config
	if path == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return &fleetSettings{}, nil // without a home there are environment and flags
		}
		path = filepath.Join(dir, "attest", "fleet.toml")
	}
	files, err := config.Files(path)
	if errors.Is(err, fs.ErrNotExist) && o.config == "" {
		return &fleetSettings{}, nil
	}
	if err != nil {
		return nil, err
	}
	all := &fleetSettings{}
	for _, file := range files {
		one := fleetSettings{}
		if err := config.ReadFile(file, &one); err != nil {
			return nil, err
		}
		for name, value := range one.fields() {
			if name != "SERVER" && *value != "" && !filepath.IsAbs(*value) && !strings.Contains(*value, ":") {
				*value = filepath.Join(filepath.Dir(file), *value)
			}
		}
		one.over(all)
		all = &one
	}
	return all, nil
}

// token reads the token from the environment or the file; "" if there is none.
func (s *fleetSettings) token() (string, error) {
	if token := os.Getenv(fleetEnv + "TOKEN"); token != "" {
		return strings.TrimSpace(token), nil
	}
	if s.TokenFile == "" {
		return "", nil
	}
	st, err := os.Stat(s.TokenFile)
	if err != nil {
		return "", err
	}
	if st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s: %w (mode %04o)", s.TokenFile, errTokenLeaked, st.Mode().Perm())
	}
	text, err := readBounded(s.TokenFile, 4<<10)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line = strings.TrimSpace(line); line == "" {
		return "", fmt.Errorf("%s: first line is empty", s.TokenFile)
	}
	return line, nil
}

// fleetTime is what a request may take: a policy may have 64 MiB.
const fleetTime = 5 * time.Minute

// dial makes a client of what the flags say. It does not connect.
func (o *fleetFlags) dial(ctx context.Context) (*fleetClient, error) {
	s, err := o.settings()
	if err != nil {
		return nil, err
	}
	base, err := url.Parse(s.Server)
	if err != nil || base.Scheme != "https" || base.Host == "" || strings.Trim(base.Path, "/") != "" || base.User != nil || base.RawQuery != "" {
		return nil, fmt.Errorf("server %q is not of the form https://HOST:PORT", s.Server)
	}
	client := &fleetClient{base: "https://" + base.Host + "/api/v1"}
	if client.token, err = s.token(); err != nil {
		return nil, err
	}
	if client.token == "" && s.ClientCert == "" {
		return nil, errNoIdentity
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.ServerCA != "" {
		cas, err := keys.ReadCertificates(s.ServerCA)
		if err != nil {
			return nil, err
		}
		conf.RootCAs = x509.NewCertPool()
		for _, ca := range cas {
			conf.RootCAs.AddCert(ca)
		}
	}
	if (s.ClientCert == "") != (s.ClientKey == "") {
		return nil, errHalfIdentity
	}
	if s.ClientCert != "" {
		if client.key, err = keys.Open(ctx, s.ClientKey, o.key.Options()); err != nil {
			return nil, err
		}
		pair, err := certificateOf(s, client.key)
		if err != nil {
			return nil, errors.Join(err, client.key.Close())
		}
		conf.Certificates = []tls.Certificate{*pair}
	}
	client.http = &http.Client{
		Transport: &http.Transport{TLSClientConfig: conf, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true},
		Timeout:   fleetTime,
		// A token is for one server.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return client, nil
}

// certificateOf reads the client certificate of key.
func certificateOf(s *fleetSettings, key *keys.Key) (*tls.Certificate, error) {
	certs, err := keys.ReadCertificates(s.ClientCert)
	if err != nil {
		return nil, err
	}
	if public, ok := certs[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return nil, fmt.Errorf("client certificate %s is not of the key %s", s.ClientCert, s.ClientKey)
	}
	pair := &tls.Certificate{PrivateKey: key, Leaf: certs[0]}
	for _, c := range certs {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return pair, nil
}
