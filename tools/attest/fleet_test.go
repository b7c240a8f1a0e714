package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/meta-attest/meta-attest/tools/internal/keys"
	"github.com/meta-attest/meta-attest/tools/internal/server"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// TestFleet runs testdata/fleet/*.txt: an operator, a verifier and a device with a TPM. The
// command verifier starts a server, device does what a device does: see their functions.
func TestFleet(t *testing.T) {
	files, err := filepath.Glob("testdata/fleet/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			w := &fleetWorld{t: t, emulator: tpmtest.Start(t)}
			testscript.Run(t, testscript.Params{
				Files: []string{file},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"fixtures": func(ts *testscript.TestScript, _ bool, _ []string) {
						ts.Check(writeKeys(ts.MkAbs(".")))
						ts.Check(writeTree(ts.MkAbs("tree")))
					},
					"verifier": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(w.start(ts)) },
					"letter":   func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(w.letter(args[0])) },
					"tamper":   func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(tamper(ts, args)) },
					"device":   func(ts *testscript.TestScript, neg bool, args []string) { ts.Check(w.device(ts, args)) },
				},
			})
		})
	}
}

// fleetWorld is a verifier and a device.
type fleetWorld struct {
	t         *testing.T
	emulator  *tpmtest.Emulator
	ca        *x509.Certificate
	store     *store.Store
	registrar string
	verifier  string
	machine   *machine
}

// start starts a verifier with a database of its own. It trusts manifests of ima.crt and
// writes what an operator has: tls.crt, the tokens operator and admin, alice.crt and .key.
func (w *fleetWorld) start(ts *testscript.TestScript) error {
	dir := ts.MkAbs(".")
	a := &authority{dir: dir}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "tls"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	if err := a.pair("tls", p256, ca); err != nil {
		return err
	}
	a.cert, w.ca = ca, ca
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	if err := a.pair("server", p256, &x509.Certificate{Subject: pkix.Name{CommonName: "server"}, DNSNames: []string{"localhost"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: both}); err != nil {
		return err
	}
	if err := a.pair("alice", p256, &x509.Certificate{Subject: pkix.Name{CommonName: "alice", OrganizationalUnit: []string{"admin"}},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: both}); err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
	if err != nil {
		return err
	}
	releases, err := keys.ReadCertificates(filepath.Join(dir, "ima.crt"))
	if err != nil {
		return err
	}
	database := filepath.Join(w.t.TempDir(), "attest.db")
	if _, _, err := store.Migrate(context.Background(), database); err != nil {
		return err
	}
	st, err := store.Open(context.Background(), database)
	if err != nil {
		return err
	}
	w.t.Cleanup(func() { _ = st.Close() })
	w.store = st
	secrets, err := server.ParseSecretKeys(bytes.Repeat([]byte("0123456789abcdef"), 2))
	if err != nil {
		return err
	}
	s, err := server.New(server.Options{Store: st, Secrets: secrets, Log: slog.New(slog.DiscardHandler), TOFU: true, AnyID: true, ClientCA: []*x509.Certificate{ca}, Releases: releases})
	if err != nil {
		return err
	}
	conf := server.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil })
	for _, l := range []struct {
		at *string
		l  *server.Listener
	}{{&w.registrar, &server.Listener{Handler: s.Registrar()}}, {&w.verifier, &server.Listener{Handler: s.Verifier()}}} {
		if *l.at, err = w.listen(s, l.l, conf); err != nil {
			return err
		}
	}
	for name, role := range map[string]server.Role{"operator": server.Operator, "admin": server.Admin} {
		token, _, err := server.AddToken(context.Background(), st, name, role, 0, "test", time.Now())
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+".token"), []byte(token+"\n"), 0o600)
		}
		if err != nil {
			return err
		}
	}
	ts.Setenv("SERVER", w.verifier)
	return nil
}

func (w *fleetWorld) listen(s *server.Server, l *server.Listener, conf *tls.Config) (string, error) {
	l.Address, l.TLS = "127.0.0.1:0", conf
	if err := l.Open(context.Background(), s.Limits, s.Log); err != nil {
		return "", err
	}
	done := make(chan error, 1)
	go func() { done <- l.Serve() }()
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		l.Close(ctx)
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	_, port, _ := bytes.Cut([]byte(l.Address), []byte("127.0.0.1:"))
	return fmt.Sprintf("https://localhost:%s", port), nil
}

// letter NAME leaves a dead letter to the webhook of that name.
func (w *fleetWorld) letter(name string) error {
	ctx, now := context.Background(), time.Now()
	if err := w.store.Enqueue(ctx, store.Notice{Target: "webhook:" + name}, now); err != nil {
		return err
	}
	jobs, err := w.store.Jobs(ctx, "webhook:"+name, 1, time.Minute, now)
	if err != nil {
		return err
	}
	return w.store.Retry(ctx, jobs[0], "answer 410 Gone", time.Time{})
}

// tamper FILE OLD NEW replaces a text that has to be in a file.
func tamper(ts *testscript.TestScript, args []string) error {
	file := ts.MkAbs(args[0])
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !bytes.Contains(text, []byte(args[1])) {
		return fmt.Errorf("%s: no %q in it", args[0], args[1])
	}
	return os.WriteFile(file, bytes.Replace(text, []byte(args[1]), []byte(args[2]), 1), 0o600)
}
