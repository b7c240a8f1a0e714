package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/keys"
	"github.com/meta-attest/meta-attest/tools/internal/notice"
	"github.com/meta-attest/meta-attest/tools/internal/server"
)

// webhookSettings are one [[notices.webhook]].
type webhookSettings struct {
	Name   string `toml:"name" json:"name"`
	URL    string `toml:"url" json:"url"`
	Secret string `toml:"secret" json:"secret"` // file
	CA     string `toml:"ca" json:"ca,omitempty"`
	Cert   string `toml:"cert" json:"cert,omitempty"`
	Key    string `toml:"key" json:"key,omitempty"`
}

// showWebhooks writes webhooks as TOML: JSON has other signs between key and value.
func showWebhooks(all []webhookSettings) string {
	var tables []string
	for _, w := range all {
		var pairs []string
		for _, p := range [][2]string{{"name", w.Name}, {"url", w.URL}, {"secret", w.Secret}, {"ca", w.CA}, {"cert", w.Cert}, {"key", w.Key}} {
			if p[1] != "" {
				text, err := json.Marshal(p[1])
				if err != nil {
					text = []byte(strconv.Quote(p[1]))
				}
				pairs = append(pairs, p[0]+" = "+string(text))
			}
		}
		tables = append(tables, "{"+strings.Join(pairs, ", ")+"}")
	}
	return "[" + strings.Join(tables, ", ") + "]"
}

var (
	errWebhookName     = errors.New("a webhook has no name, or that of another")
	errNoWebhookSecret = errors.New("no secret: whoever receives its notices could not tell them from another's")
)

// noticesOf reads what notices are signed and sent with. The key is open until the end.
func noticesOf(ctx context.Context, s *settings) (server.Notices, error) {
	n := server.Notices{Source: s.Notices.Source}
	if (s.Notices.Key == "") != (s.Notices.Cert == "") {
		return n, errors.New("notices: a key needs its certificate, and a certificate its key")
	}
	if s.Notices.Key != "" {
		certs, err := keys.ReadCertificates(s.Notices.Cert)
		if err != nil {
			return n, fmt.Errorf("notices.cert: %w", err)
		}
		key, err := keys.Open(ctx, s.Notices.Key, keys.Options{})
		if err != nil {
			return n, fmt.Errorf("notices.key: %w", err)
		}
		if public, ok := key.Public().(*ecdsa.PublicKey); !ok || !public.Equal(certs[0].PublicKey) {
			return n, errors.New("notices: the certificate is not that of the key, or the key is not ECDSA")
		}
		n.Key, n.Cert = key, certs[0]
	}
	names := map[string]bool{}
	for _, w := range s.Notices.Webhooks {
		if w.Name == "" || names[w.Name] {
			return n, fmt.Errorf("notices.webhook %q: %w", w.Name, errWebhookName)
		}
		names[w.Name] = true
		hook, err := webhookOf(w)
		if err != nil {
			return n, fmt.Errorf("notices.webhook %s: %w", w.Name, err)
		}
		n.Webhooks = append(n.Webhooks, hook)
	}
	return n, nil
}

func webhookOf(w webhookSettings) (server.Webhook, error) {
	hook := server.Webhook{Name: w.Name, URL: w.URL, TLS: &tls.Config{}}
	if w.Secret == "" {
		return hook, errNoWebhookSecret
	}
	text, err := readSecret(w.Secret)
	if err != nil {
		return hook, fmt.Errorf("secret: %w", err)
	}
	line, _, _ := strings.Cut(text, "\n")
	if hook.Secret, err = notice.ParseSecret(line); err != nil {
		return hook, fmt.Errorf("%s: %w", w.Secret, err)
	}
	if w.CA != "" {
		certs, err := keys.ReadCertificates(w.CA)
		if err != nil {
			return hook, fmt.Errorf("ca: %w", err)
		}
		hook.TLS.RootCAs = x509.NewCertPool()
		for _, c := range certs {
			hook.TLS.RootCAs.AddCert(c)
		}
	}
	if w.Cert != "" || w.Key != "" {
		if _, err := readSecret(w.Key); err != nil {
			return hook, fmt.Errorf("key: %w", err)
		}
		pair, err := tls.LoadX509KeyPair(w.Cert, w.Key)
		if err != nil {
			return hook, err
		}
		hook.TLS.Certificates = []tls.Certificate{pair}
	}
	return hook, nil
}

// checkPrivate refuses a file whose content, called what, is not its owner's and group's alone.
func checkPrivate(path, what string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o007 != 0 {
		return fmt.Errorf("%s: everybody may read or change %s (mode %04o): chmod 600 it", path, what, info.Mode().Perm())
	}
	return nil
}

// readSecret reads a file that is nobody else's.
func readSecret(path string) (string, error) {
	if err := checkPrivate(path, "this secret"); err != nil {
		return "", err
	}
	b, err := os.ReadFile(path)
	return string(b), err
}

func newCertificateNotices() *cobra.Command {
	var out string
	var days int
	c := &cobra.Command{
		Use:   "notices",
		Short: "Make the key that signs notices to devices",
		Long: `notices makes a key and a certificate that nobody issued: put the certificate into the image
(notice_ca of the agent), and both into [notices] of the verifier. Before a key is replaced,
devices get a file with both certificates.`,
		Example: "  attest-verifier certificate notices --out /etc/attest/tls",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				return err
			}
			template := certificateTemplate(pkix.Name{CommonName: "attest-verifier notices"}, time.Now(), days)
			files := keys.NewFiles(out)
			if _, err := (&tlsAuthority{key: key, cert: template}).issue(files, "notices", key, template); err != nil {
				return err
			}
			return writeFiles(c, files, out)
		},
	}
	c.Flags().StringVar(&out, "out", ".", "write to `DIR`")
	c.Flags().IntVar(&days, "days", 10*365, "validity; devices do not look at it")
	return c
}
