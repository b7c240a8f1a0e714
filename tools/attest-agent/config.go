package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/config"
	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/tpm"
)

const (
	defaultConfig = "/etc/attest/agent.toml"
	envPrefix     = "ATTEST_AGENT_"
)

// settings are what a file says; nil is not said. All are texts, so that a variable and a
// flag can say the same.
type settings struct {
	VerifierURL  *string `toml:"verifier_url"`
	RegistrarURL *string `toml:"registrar_url"`
	CA           *string `toml:"ca"`
	ID           *string `toml:"id"`
	TPM          *string `toml:"tpm"`
	EK           *string `toml:"ek"`
	AK           *string `toml:"ak"`
	StateDir     *string `toml:"state_dir"`
	User         *string `toml:"user"`
	IMAList      *string `toml:"ima_list"`
	FirmwareLog  *string `toml:"firmware_log"`
	RetryMax     *string `toml:"retry_max"`
	Timeout      *string `toml:"timeout"`
	Manifest     *string `toml:"manifest"`
	ManifestCA   *string `toml:"manifest_ca"`
	SecretsDir   *string `toml:"secrets_dir"`
	SecretsRun   *string `toml:"secrets_execute"`
	Listen       *string `toml:"listen"`
	ListenCA     *string `toml:"listen_ca"`
	Contact      *string `toml:"contact"`
	RevokeCert   *string `toml:"revocation_cert"`
	NoticeCA     *string `toml:"notice_ca"`
	NoticesDir   *string `toml:"notices_dir"`
	Actions      *string `toml:"actions"`
	ActionsState *string `toml:"actions_state"`
}

// known are the settings with their defaults and what they mean.
var known = []struct{ key, value, help string }{
	{"verifier_url", "", "`URL` of the verifier, https://HOST:8881"},
	{"registrar_url", "", "`URL` of the registrar (default: the verifier's host, port 8891)"},
	{"ca", "", "`FILE` with the certificates, PEM, that alone may have signed the server's"},
	{"id", "", "`ID` of this device (default: the hash of the TPM's endorsement key)"},
	{"tpm", tpm.DefaultAddress, "`ADDRESS` of the TPM: a device, or unix:PATH or tcp:HOST:PORT of an emulator"},
	{"ek", "", "endorsement key `TEMPLATE`: " + strings.Join(tpm.EKTemplates(), ", ") + " (default: the first with a certificate)"},
	{"ak", "ecdsa", "`SCHEME` of a new attestation key: " + strings.Join(tpm.Schemes(), ", ") + "; Keylime's verifier takes rsassa"},
	{"state_dir", "/var/lib/attest-agent", "`FOLDER` for the attestation key and the last verdict"},
	{"user", "attest", "`USER` to become once the TPM and the kernel's logs are open, when started by root; empty: stay"},
	{"ima_list", "/sys/kernel/security/ima/binary_runtime_measurements", "`FILE` with the kernel's measurement list"},
	{"firmware_log", "/sys/kernel/security/tpm0/binary_bios_measurements", "`FILE` with the firmware's event log; it may be missing"},
	{"retry_max", "5m", "longest `TIME` between attempts while the verifier cannot be reached"},
	{"timeout", "60s", "`TIME` that one request may take"},
	{"manifest", "", "verify: `FILE` with the manifest of the image, as attest sign wrote it"},
	{"manifest_ca", "", "verify: `FILE` with the CA certificates that the kernel has built in"},
	{"secrets_dir", "/run/attest-agent/secrets", "`FOLDER` on tmpfs for secrets; they are erased when the device is not trusted, and when the agent stops"},
	{"secrets_execute", "", "\"1\": run what a secret says is to be run, as the agent's user (default: nothing is run)"},
	{"listen", "", "`ADDRESS` to answer Keylime's verifier and tenant at, as 0.0.0.0:9002 (default: no port is opened)"},
	{"listen_ca", "", "`FILE` with the certificates, PEM, that alone may have signed the certificate of who calls there"},
	{"contact", "", "`IP:PORT` at which the device is polled, as the registrar is told (default: listen; of 0.0.0.0 the address that the registrar is reached from)"},
	{"revocation_cert", "", "`FILE` with the certificate, PEM, that signs Keylime's notices of other devices (default: the payload's)"},
	{"notice_ca", "", "`FILE` with the certificates, PEM, whose keys alone may sign notices of other devices (default: none is asked for)"},
	{"notices_dir", "/run/attest-agent/notices", "`FOLDER` in which the agent leaves notices for attest-agent act"},
	{"actions", "/etc/attest/actions.d", "act: `FOLDER` with the programs to run on a notice; root's, and nobody else may write it"},
	{"actions_state", "/var/lib/attest-agent-actions", "act: `FOLDER` that remembers which notices were acted upon"},
}

// Config is what the agent runs with.
type Config struct {
	values  map[string]string
	origins map[string]string

	verifier, registrar *url.URL
	contact             netip.AddrPort // where the device is polled, if it is
	retryMax, timeout   time.Duration
}

func (c *Config) get(key string) string { return c.values[key] }

func (c *Config) set(key, value, origin string) { c.values[key], c.origins[key] = value, origin }

// configFlags are the flags of all settings.
type configFlags struct {
	file  string
	flags map[string]*string
	fs    *flag.FlagSet
}

func addConfigFlags(fs *verbFlags) *configFlags {
	c := &configFlags{flags: map[string]*string{}, fs: fs.FlagSet}
	fs.StringVar(&c.file, "config", defaultConfig, "read settings from `FILE`, and from *.toml of the folder beside it that ends in .d")
	for _, k := range known {
		c.flags[k.key] = fs.String(strings.ReplaceAll(k.key, "_", "-"), k.value, k.help)
	}
	return c
}

// load reads files, variables and flags, each over the ones before.
func (f *configFlags) load(environ []string) (*Config, error) {
	c := &Config{values: map[string]string{}, origins: map[string]string{}}
	for _, k := range known {
		c.set(k.key, k.value, "default")
	}
	given := map[string]bool{}
	f.fs.Visit(func(g *flag.Flag) { given[g.Name] = true })
	files, err := config.Files(f.file)
	if err != nil && (given["config"] || !errors.Is(err, fs.ErrNotExist)) {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	for _, file := range files {
		if err := c.readFile(file); err != nil {
			return nil, err
		}
	}
	if err := c.readEnviron(environ); err != nil {
		return nil, err
	}
	for _, k := range known {
		if name := strings.ReplaceAll(k.key, "_", "-"); given[name] {
			c.set(k.key, *f.flags[k.key], "--"+name)
		}
	}
	return c, c.check()
}

func (c *Config) readFile(file string) error {
	var s settings
	if err := config.ReadFile(file, &s); err != nil {
		return err
	}
	v := reflect.ValueOf(s)
	for i := range v.NumField() {
		if p := v.Field(i).Interface().(*string); p != nil {
			c.set(v.Type().Field(i).Tag.Get("toml"), *p, file)
		}
	}
	return nil
}

// readEnviron takes ATTEST_AGENT_*; one that is no setting is an error, like an unknown key.
func (c *Config) readEnviron(environ []string) error {
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		rest, ok := strings.CutPrefix(name, envPrefix)
		if !ok {
			continue
		}
		key := strings.ToLower(rest)
		if _, ok := c.values[key]; !ok || rest != strings.ToUpper(rest) {
			return fmt.Errorf("$%s: unknown setting", name)
		}
		c.set(key, value, "$"+name)
	}
	return nil
}

// check turns texts into what they stand for.
func (c *Config) check() error {
	for key, to := range map[string]*time.Duration{"retry_max": &c.retryMax, "timeout": &c.timeout} {
		d, err := time.ParseDuration(c.get(key))
		if err != nil || d < time.Second {
			return fmt.Errorf("%s: %s = %q is no time of a second or more, as 90s or 5m", c.origins[key], key, c.get(key))
		}
		*to = d
	}
	if id := c.get("id"); id != "" {
		if err := evidence.CheckID(id); err != nil {
			return fmt.Errorf("%s: id: %w", c.origins["id"], err)
		}
	}
	if x := c.get("secrets_execute"); x != "" && x != "1" {
		return fmt.Errorf("%s: secrets_execute = %q is neither \"1\" nor empty", c.origins["secrets_execute"], x)
	}
	var err error
	if c.verifier, err = c.url("verifier_url"); err != nil {
		return err
	}
	if err := c.checkListen(); err != nil {
		return err
	}
	if c.registrar, err = c.url("registrar_url"); err == nil && c.registrar == nil && c.verifier != nil {
		u := *c.verifier
		u.Host = net.JoinHostPort(u.Hostname(), "8891")
		c.registrar = &u
	}
	return err
}

// url is a setting that is an address; nil where it is empty.
func (c *Config) url(key string) (*url.URL, error) {
	text := c.get(key)
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%s: %s = %q is not https://HOST[:PORT][/PATH]", c.origins[key], key, text)
	}
	return u, nil
}

// network says whether what the network needs is set.
func (c *Config) network() error {
	switch {
	case c.registrar == nil && c.get("listen") != "":
		return errNoRegistrar
	case c.registrar == nil || c.verifier == nil && c.get("listen") == "":
		return errNoVerifier
	case c.get("ca") == "":
		return errNoCA
	case c.get("listen") != "" && c.get("listen_ca") == "":
		return errNoListenCA
	}
	return nil
}

func runConfig(_ context.Context, in *invocation) error {
	if len(in.args) == 0 || in.args[0] != "show" {
		return errors.New("config has one verb: config show")
	}
	in.args = in.args[1:]
	fs := newFlags("config show", "Prints the settings, as they would stand in a file.")
	cf := addConfigFlags(fs)
	origin := fs.Bool("origin", false, "print what set each")
	if err := fs.parse(in); err != nil {
		return err
	}
	c, err := cf.load(os.Environ())
	if err != nil {
		return err
	}
	for _, k := range known {
		line := fmt.Sprintf("%s = %q", k.key, c.get(k.key))
		if *origin {
			line += "  # " + c.origins[k.key]
		}
		if _, err := fmt.Fprintln(in.stdout, line); err != nil {
			return err
		}
	}
	return nil
}
