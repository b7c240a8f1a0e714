package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
	"github.com/meta-attest/meta-attest/tools/internal/server"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

func newServe() *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Answer devices and operators",
		Long: `serve answers devices that enrol (registrar) and attest (verifier), and operators
(/api/v1 beside the verifier). It stops on SIGTERM when the requests under way are
answered; killed at any moment it loses nothing that was answered.`,
		Example: `  attest-verifier migrate && attest-verifier serve
  attest-verifier serve --set registrar.enabled=false`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, _, err := readSettings(c)
			if err != nil {
				return err
			}
			return serve(c.Context(), s, slog.New(slog.NewJSONHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: levelOf(s.Log.Level)})))
		},
	}
}

func levelOf(name string) slog.Level {
	var l slog.Level
	if l.UnmarshalText([]byte(name)) != nil { // settings.check has seen it
		return slog.LevelInfo
	}
	return l
}

// options turns settings into what a server is made of.
func options(s *settings, st *store.Store, log *slog.Logger) (server.Options, error) {
	a := s.Attestation
	o := server.Options{Store: st, Log: log, TOFU: a.EKCheck == "tofu", AnyID: a.DeviceID == "any", Policies: a.Policies,
		Interval: time.Duration(a.Interval), Grace: a.Grace, ChallengeLifetime: time.Duration(a.ChallengeLifetime),
		SessionLifetime: time.Duration(a.SessionLifetime), KeepTrusted: time.Duration(s.Evidence.KeepTrusted), KeepOthers: time.Duration(s.Evidence.KeepOthers),
		Limits: limitsOf(s)}
	var err error
	if o.Secrets, err = readSecretKeys(s.Secrets.Key); err != nil {
		return o, err
	}
	if s.TLS.ClientCA != "" {
		if o.ClientCA, err = keys.ReadCertificates(s.TLS.ClientCA); err != nil {
			return o, fmt.Errorf("tls.client_ca: %w", err)
		}
	}
	if s.Keylime.ClientCA != "" {
		if o.TenantCA, err = keys.ReadCertificates(s.Keylime.ClientCA); err != nil {
			return o, fmt.Errorf("keylime.client_ca: %w", err)
		}
	}
	for _, path := range s.Policy.Certificates {
		certs, err := keys.ReadCertificates(path)
		if err != nil {
			return o, fmt.Errorf("policy.certificates: %w", err)
		}
		o.Releases = append(o.Releases, certs...)
	}
	if len(a.EKCA) > 0 {
		pems, err := pemFiles(a.EKCA)
		if err != nil {
			return o, fmt.Errorf("attestation.ek_ca: %w", err)
		}
		if o.EKCA, err = evidence.NewCAStore(pems...); err != nil {
			return o, fmt.Errorf("attestation.ek_ca: %w", err)
		}
	} else if s.Registrar.Enabled && !o.TOFU {
		return o, errNoManufacturers
	}
	return o, nil
}

func limitsOf(s *settings) server.Limits {
	l := s.Limits
	return server.Limits{Connections: l.Connections, ConnectionsIP: l.ConnectionsIP, RequestsIP: l.RequestsIP, RequestsDevice: l.RequestsDevice,
		Replays: l.Replays, ReferenceMemory: int64(l.ReferenceMemory) << 20, Waiters: l.Waiters}
}

func serve(ctx context.Context, s *settings, log *slog.Logger) error {
	pair, err := newCertificateFile(s.TLS.Cert, s.TLS.Key)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("tls: %w: %w", err, errNoCertificate)
	}
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	if leaf := pair.current().Leaf; time.Now().After(leaf.NotAfter) {
		log.Warn("the TLS certificate has expired: no device and no operator takes it", "file", s.TLS.Cert, "until", leaf.NotAfter)
	}
	st, err := store.Open(ctx, s.Database)
	if err != nil {
		return err
	}
	defer st.Close()
	o, err := options(s, st, log)
	if err != nil {
		return err
	}
	if o.Notices, err = noticesOf(ctx, s); err != nil {
		return err
	}
	var polling *certificateFile
	if o.Pull, polling, err = pullOf(s); err != nil {
		return err
	}
	srv, err := server.New(o)
	if err != nil {
		return err
	}
	listeners, err := open(ctx, s, srv, pair, log)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(l.Serve)
	}
	g.Go(func() error { srv.Run(ctx); return nil })
	g.Go(func() error { return watch(ctx, st, log) })
	g.Go(func() error { pair.renew(ctx, log); return nil })
	if polling != nil {
		g.Go(func() error { polling.renew(ctx, log); return nil })
	}
	g.Go(func() error {
		<-ctx.Done()
		return stop(listeners, log)
	})
	if err := notify("READY=1"); err != nil {
		log.Warn("tell systemd", "error", err)
	}
	err = g.Wait()
	log.Info("stopped")
	return err
}

// open binds all addresses.
func open(ctx context.Context, s *settings, srv *server.Server, pair *certificateFile, log *slog.Logger) ([]*server.Listener, error) {
	var all []*server.Listener
	add := func(on bool, name, address string, l server.Listener) error {
		if !on {
			return nil
		}
		l.Address = address
		if err := l.Open(ctx, limitsOf(s), log); err != nil {
			return fmt.Errorf("%s.listen: %w", name, err)
		}
		log.Info("listening", "for", name, "address", l.Address)
		all = append(all, &l)
		return nil
	}
	conf := server.TLSConfig(pair.get)
	ops := server.Listener{Handler: srv.Operations(func() map[string]*x509.Certificate {
		all := map[string]*x509.Certificate{"server": pair.current().Leaf}
		for i, ca := range srv.ClientCA {
			all[fmt.Sprintf("client_ca_%d", i)] = ca
		}
		for i, ca := range srv.TenantCA {
			all[fmt.Sprintf("keylime_client_ca_%d", i)] = ca
		}
		for i, c := range srv.Releases {
			all[fmt.Sprintf("release_%d", i)] = c
		}
		return all
	})}
	if !server.IsLoopback(s.Operations.Listen) {
		ops.TLS = conf
	}
	err := errors.Join(
		add(s.Registrar.Enabled, "registrar", s.Registrar.Listen, server.Listener{Handler: srv.Registrar(), TLS: conf}),
		add(s.Verifier.Enabled, "verifier", s.Verifier.Listen, server.Listener{Handler: srv.Verifier(), TLS: conf}),
		add(s.Operations.Listen != "", "operations", s.Operations.Listen, ops),
	)
	if err == nil && !s.Registrar.Enabled && !s.Verifier.Enabled {
		err = errNothing
	}
	return all, err
}

const stopTime = 20 * time.Second // for requests under way

func stop(listeners []*server.Listener, log *slog.Logger) error {
	log.Info("stopping")
	if err := notify("STOPPING=1"); err != nil {
		log.Warn("tell systemd", "error", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	var g errgroup.Group
	for _, l := range listeners {
		g.Go(func() error { l.Close(ctx); return nil })
	}
	return g.Wait()
}

func newMigrate() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "migrate",
		Short:   "Make the database, or bring it up to date",
		Example: "  attest-verifier migrate",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, _, err := readSettings(c)
			if err != nil {
				return err
			}
			before, after, err := store.Migrate(c.Context(), s.Database)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(map[string]any{"schema": "attest.migration/v1", "before": before, "after": after})
			}
			fmt.Fprintf(c.OutOrStdout(), "schema %d, was %d: %s\n", after, before, printable(s.shownDatabase()))
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// certificateFile is the server's certificate, read again when it was renewed.
type certificateFile struct {
	cert, key string
	now       chan *tls.Certificate // of one: the current
}

func newCertificateFile(cert, key string) (*certificateFile, error) {
	if cert == "" || key == "" {
		return nil, errNoCertificate
	}
	f := &certificateFile{cert: cert, key: key, now: make(chan *tls.Certificate, 1)}
	pair, err := f.read()
	if err != nil {
		return nil, err
	}
	f.now <- pair
	return f, nil
}

func (f *certificateFile) read() (*tls.Certificate, error) {
	if err := checkPrivate(f.key, "this private key"); err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("read TLS certificate %s and key %s: %w", f.cert, f.key, err)
	}
	return &pair, nil
}

func (f *certificateFile) current() *tls.Certificate {
	c := <-f.now
	f.now <- c
	return c
}

func (f *certificateFile) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return f.current(), nil
}

// renew reads the files each minute; one that cannot be read is logged, and the old one used.
func (f *certificateFile) renew(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		pair, err := f.read()
		if err != nil {
			log.Error("read TLS certificate", "error", err)
			continue
		}
		<-f.now
		f.now <- pair
	}
}
