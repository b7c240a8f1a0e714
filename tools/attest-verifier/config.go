package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/config"
)

const defaultConfig = "/etc/attest/verifier.toml"

// duration is a time.Duration as people write it: "60s".
type duration time.Duration

func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err == nil && v <= 0 {
		err = fmt.Errorf("%s is not more than zero", b)
	}
	*d = duration(v)
	return err
}

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// settings are the keys of the configuration, and its documentation.
type settings struct {
	Database string `toml:"database" help:"path of an SQLite file, or postgres://..."`
	TLS      struct {
		Cert     string `toml:"cert" help:"PEM file: the server's certificate, then its issuers"`
		Key      string `toml:"key" help:"PEM file: its private key, readable by nobody else"`
		ClientCA string `toml:"client_ca" help:"PEM file: who issues operators' certificates (OU=operator or OU=admin)"`
	} `toml:"tls"`
	Registrar struct {
		Listen  string `toml:"listen" help:"where devices enrol"`
		Enabled bool   `toml:"enabled" help:"answer there"`
	} `toml:"registrar"`
	Verifier struct {
		Listen  string `toml:"listen" help:"where devices attest, and operators ask"`
		Enabled bool   `toml:"enabled" help:"answer there"`
	} `toml:"verifier"`
	Operations struct {
		Listen string `toml:"listen" help:"/livez /readyz /metrics; TLS unless on the loopback device; \"\": off"`
	} `toml:"operations"`
	Attestation struct {
		Interval          duration `toml:"interval" help:"between attestations of a device"`
		Grace             int      `toml:"grace" help:"intervals after which a device is overdue"`
		ChallengeLifetime duration `toml:"challenge_lifetime" help:"in which a device has to answer"`
		SessionLifetime   duration `toml:"session_lifetime" help:"after which a device proves anew who it is"`
		EKCA              []string `toml:"ek_ca" help:"PEM files, or folders of them: certificates of TPM manufacturers"`
		EKCheck           string   `toml:"ek_check" help:"require: only TPMs of these; tofu: any, with an alarm"`
		DeviceID          string   `toml:"device_id" help:"ek: the hash of the EK, or what an operator named; any"`
		Policies          []string `toml:"policies" help:"of devices that no operator has named"`
	} `toml:"attestation"`
	Policy struct {
		Certificates []string `toml:"certificates" help:"PEM or DER files: whose signatures of manifests count"`
	} `toml:"policy"`
	Secrets struct {
		Key string `toml:"key" help:"file of 32 random bytes, mode 0600, that secrets are kept with; \"\": none are taken"`
	} `toml:"secrets"`
	Pull struct {
		Cert          string   `toml:"cert" help:"PEM file: the certificate by which polled agents know this verifier (their trusted_client_ca issues it); \"\": no agent is polled"`
		Key           string   `toml:"key" help:"PEM file: its private key, readable by nobody else"`
		Networks      []string `toml:"networks" help:"where polled agents may be, as in 10.0.0.0/8; []: anywhere but loopback, link-local and multicast addresses"`
		Parallel      int      `toml:"parallel" help:"polls at a time"`
		RevocationKey string   `toml:"revocation_key" help:"PEM file: an RSA key, readable by nobody else, that signs what polled agents are told of bad verdicts of others; \"\": they are told nothing"`
	} `toml:"pull"`
	Keylime struct {
		ClientCA string `toml:"client_ca" help:"PEM file: who issues the certificates of Keylime's tenants; \"\": no tenant is answered"`
	} `toml:"keylime"`
	Evidence struct {
		KeepTrusted duration `toml:"keep_trusted" help:"evidence of verdicts that were good"`
		KeepOthers  duration `toml:"keep_others" help:"all other evidence, and notices that nobody took"`
	} `toml:"evidence"`
	Notices struct {
		Source   string            `toml:"source" help:"URI that notices are from; \"\": one of the hash of the first event"`
		Cert     string            `toml:"cert" help:"PEM file: the certificate in notice_ca of the devices"`
		Key      string            `toml:"key" help:"its private key, a PEM file or pkcs11:...; \"\": devices hear nothing of others"`
		Webhooks []webhookSettings `toml:"webhook" help:"[[notices.webhook]] name, url, secret (file: whsec_...), ca, cert, key"`
	} `toml:"notices"`
	Log struct {
		Level string `toml:"level" help:"debug, info, warn or error"`
	} `toml:"log"`
	Limits struct {
		Connections     int `toml:"connections" help:"on one listener"`
		ConnectionsIP   int `toml:"connections_ip" help:"from one address"`
		RequestsIP      int `toml:"requests_ip" help:"a minute from one address, before it has proven anything"`
		RequestsDevice  int `toml:"requests_device" help:"a minute from one device; never less than the interval needs"`
		Replays         int `toml:"replays" help:"whole measurement lists that are judged at a time"`
		ReferenceMemory int `toml:"reference_memory" help:"MiB of compiled policies"`
		Waiters         int `toml:"waiters" help:"devices that wait for notices at a time"`
	} `toml:"limits"`
}

func defaultSettings() *settings {
	s := &settings{Database: "attest.db"}
	s.Registrar.Listen, s.Registrar.Enabled = ":8891", true
	s.Verifier.Listen, s.Verifier.Enabled = ":8881", true
	s.Operations.Listen = "127.0.0.1:9881"
	a := &s.Attestation
	a.Interval, a.Grace, a.EKCheck, a.DeviceID = duration(time.Minute), 3, "require", "ek"
	a.ChallengeLifetime, a.SessionLifetime = duration(5*time.Minute), duration(time.Hour)
	s.Evidence.KeepTrusted, s.Evidence.KeepOthers = duration(7*24*time.Hour), duration(90*24*time.Hour)
	s.Pull.Parallel = 32
	s.Log.Level = "info"
	l := &s.Limits
	l.Connections, l.ConnectionsIP, l.RequestsIP, l.RequestsDevice, l.Replays, l.ReferenceMemory = 20_000, 1_000, 600, 60, 4, 512
	l.Waiters = 20_000
	return s
}

// check refuses what would only be noticed later, and says which of all set it.
func (s *settings) check(all []*field) error {
	var errs []error
	refuse := func(name, format string, args ...any) {
		origin := find(all, func(f *field) bool { return f.key == name }).origin
		errs = append(errs, fmt.Errorf("%s: %s: "+format, append([]any{origin, name}, args...)...))
	}
	oneOf := func(name, value string, allowed ...string) {
		for _, a := range allowed {
			if a == value {
				return
			}
		}
		refuse(name, "%q is none of %s", value, strings.Join(allowed, ", "))
	}
	oneOf("attestation.ek_check", s.Attestation.EKCheck, "require", "tofu")
	oneOf("attestation.device_id", s.Attestation.DeviceID, "ek", "any")
	oneOf("log.level", s.Log.Level, "debug", "info", "warn", "error")
	for name, n := range map[string]int{"attestation.grace": s.Attestation.Grace, "limits.connections": s.Limits.Connections,
		"limits.connections_ip": s.Limits.ConnectionsIP, "limits.requests_ip": s.Limits.RequestsIP, "limits.requests_device": s.Limits.RequestsDevice,
		"limits.replays": s.Limits.Replays, "pull.parallel": s.Pull.Parallel, "limits.reference_memory": s.Limits.ReferenceMemory, "limits.waiters": s.Limits.Waiters} {
		if n < 1 || n > 1<<20 {
			refuse(name, "%d is not 1 to %d", n, 1<<20)
		}
	}
	if s.Database == "" {
		refuse("database", "is empty")
	}
	return errors.Join(errs...)
}

// field is one key with its value and where that came from.
type field struct {
	key    string // "tls.cert"
	value  reflect.Value
	help   string
	origin string
}

// fields lists the keys of s, in the order of their definition.
func fields(s *settings) []*field {
	var all []*field
	var walk func(prefix string, v reflect.Value)
	walk = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name := prefix + f.Tag.Get("toml")
			if f.Type.Kind() == reflect.Struct {
				walk(name+".", v.Field(i))
				continue
			}
			all = append(all, &field{key: name, value: v.Field(i), help: f.Tag.Get("help"), origin: "default"})
		}
	}
	walk("", reflect.ValueOf(s).Elem())
	return all
}

// show is the value as JSON, which is good TOML for the kinds of value that there are.
func (f *field) show() string {
	if all, ok := f.value.Interface().([]webhookSettings); ok {
		return showWebhooks(all)
	}
	b, err := json.Marshal(f.value.Interface())
	if err != nil {
		return err.Error()
	}
	if string(b) == "null" {
		return "[]"
	}
	return string(b)
}

// set takes a value of the environment or of a flag: several are separated by commas.
func (f *field) set(text, origin string) error {
	value := strconv.Quote(text)
	switch f.value.Interface().(type) {
	case []webhookSettings:
		return fmt.Errorf("%s: %s can only be set in a file", origin, f.key)
	case int, bool:
		value = text
	case []string:
		quoted := []string{}
		for part := range strings.SplitSeq(text, ",") {
			if part != "" {
				quoted = append(quoted, strconv.Quote(part))
			}
		}
		value = "[" + strings.Join(quoted, ",") + "]"
	}
	section, key, nested := strings.Cut(f.key, ".")
	line := key + " = " + value
	if !nested {
		line = section + " = " + value
	} else {
		line = "[" + section + "]\n" + line
	}
	var one settings
	if err := config.Decode(origin, line, &one); err != nil {
		return err
	}
	for _, g := range fields(&one) {
		if g.key == f.key {
			f.value.Set(g.value)
		}
	}
	f.origin = origin
	return nil
}

const environmentPrefix = "ATTEST_VERIFIER_"

// readSettings reads file, its drop-ins, the environment and the flags. The file may be
// missing only where it is the default one.
func readSettings(c *cobra.Command) (*settings, []*field, error) {
	path, err := c.Flags().GetString("config")
	if err != nil {
		return nil, nil, err
	}
	s := defaultSettings()
	all := fields(s)
	files, err := config.Files(path)
	if errors.Is(err, fs.ErrNotExist) && !c.Flags().Changed("config") {
		files, err = nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for _, file := range files {
		if err := readInto(s, all, file); err != nil {
			return nil, nil, err
		}
	}
	if err := fromEnvironment(all); err != nil {
		return nil, nil, err
	}
	pairs, err := c.Flags().GetStringArray("set")
	if err != nil {
		return nil, nil, err
	}
	for _, pair := range pairs {
		key, value, ok := strings.Cut(pair, "=")
		f := find(all, func(f *field) bool { return f.key == key })
		if !ok || f == nil {
			return nil, nil, fmt.Errorf("--set %s: not SECTION.KEY=VALUE of a key that there is", pair)
		}
		if err := f.set(value, "--set"); err != nil {
			return nil, nil, err
		}
	}
	return s, all, s.check(all)
}

// readInto reads a file over s, and notes which keys it sets.
func readInto(s *settings, all []*field, file string) error {
	// The package would put the tables of this file over those of the last, key by key.
	hooks := s.Notices.Webhooks
	s.Notices.Webhooks = nil
	if err := config.ReadFile(file, s); err != nil {
		return err
	}
	if s.Notices.Webhooks == nil {
		s.Notices.Webhooks = hooks
	}
	set, err := keysIn(file)
	if err != nil {
		return err
	}
	for _, f := range all {
		if set[f.key] {
			f.origin = file
		}
	}
	if set["database"] && s.shownDatabase() != s.Database {
		return checkPrivate(file, "the password of the database")
	}
	return nil
}

// keysIn are the keys that a file sets.
func keysIn(file string) (map[string]bool, error) {
	md, err := toml.DecodeFile(file, &map[string]any{})
	if err != nil {
		return nil, err
	}
	keys := map[string]bool{}
	for _, k := range md.Keys() {
		keys[k.String()] = true
	}
	return keys, nil
}

func fromEnvironment(all []*field) error {
	for _, pair := range os.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		rest, ours := strings.CutPrefix(name, environmentPrefix)
		if !ours {
			continue
		}
		f := find(all, func(f *field) bool { return strings.ToUpper(strings.ReplaceAll(f.key, ".", "_")) == rest })
		if f == nil {
			return fmt.Errorf("environment: %s is no key of the configuration", name)
		}
		if err := f.set(value, name); err != nil {
			return err
		}
	}
	return nil
}

func find(all []*field, is func(*field) bool) *field {
	for _, f := range all {
		if is(f) {
			return f
		}
	}
	return nil
}

// pemFiles reads the files that paths name: those of a folder in it are *.pem and *.crt.
func pemFiles(paths []string) (pems [][]byte, err error) {
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		files := []string{path}
		if info.IsDir() {
			files = nil
			for _, pattern := range []string{"*.pem", "*.crt"} {
				found, err := filepath.Glob(filepath.Join(path, pattern))
				if err != nil {
					return nil, err
				}
				files = append(files, found...)
			}
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			pems = append(pems, b)
		}
	}
	return pems, nil
}

func newConfig() *cobra.Command {
	var origin, asJSON bool
	show := &cobra.Command{
		Use:     "show",
		Short:   "Show the configuration as it is used, without the password of the database",
		Long:    "show prints the configuration as a file would have it. What there is to set, with its default:\n" + describeSettings(),
		Example: "  attest-verifier config show --origin",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, all, err := readSettings(c)
			if err != nil {
				return err
			}
			s.Database = s.shownDatabase()
			if asJSON {
				return showJSON(c.OutOrStdout(), all)
			}
			showTOML(c.OutOrStdout(), all, origin)
			return nil
		},
	}
	show.Flags().BoolVar(&origin, "origin", false, "say of each value which file, variable or flag set it")
	show.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the origins")
	parent := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	parent.AddCommand(show)
	return parent
}

// describeSettings is what the manual says of each key.
func describeSettings() string {
	var b strings.Builder
	section := ""
	for _, f := range fields(defaultSettings()) {
		name := f.key
		if before, key, ok := strings.Cut(f.key, "."); ok {
			if name = key; before != section {
				section = before
				fmt.Fprintf(&b, "\n    [%s]", section)
			}
		}
		fmt.Fprintf(&b, "\n    %s = %s\n        %s", name, f.show(), f.help)
	}
	return b.String()
}

func showTOML(w io.Writer, all []*field, origin bool) {
	section := ""
	for _, f := range all {
		name := f.key
		if before, key, ok := strings.Cut(f.key, "."); ok {
			if name = key; before != section {
				section = before
				fmt.Fprintf(w, "\n[%s]\n", section)
			}
		}
		line := name + " = " + f.show()
		if origin {
			line = fmt.Sprintf("%-52s # %s", line, f.origin)
		}
		fmt.Fprintln(w, line)
	}
}

func showJSON(w io.Writer, all []*field) error {
	type value struct {
		Key    string          `json:"key"`
		Value  json.RawMessage `json:"value"`
		Origin string          `json:"origin"`
		Help   string          `json:"help,omitempty"`
	}
	values := []value{}
	for _, f := range all {
		text, err := json.Marshal(f.value.Interface())
		if err != nil {
			return err
		}
		if string(text) == "null" {
			text = []byte("[]")
		}
		values = append(values, value{f.key, text, f.origin, f.help})
	}
	return json.NewEncoder(w).Encode(map[string]any{"schema": "attest.config/v1", "values": values})
}

// shownDatabase is the database without its password.
func (s *settings) shownDatabase() string {
	scheme, _, isURL := strings.Cut(s.Database, "://")
	if !isURL {
		return s.Database
	}
	u, err := url.Parse(s.Database)
	if err != nil {
		return scheme + "://xxxxx"
	}
	return u.Redacted()
}
