package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
	"github.com/meta-attest/meta-attest/tools/internal/server"
)

var errHalfPull = errors.New("pull: a certificate needs its key, and a key its certificate")

// pullOf reads how agents are reached that wait to be polled. The certificate file is nil
// where none are; who serves renews it.
func pullOf(ctx context.Context, s *settings) (server.Pull, *certificateFile, error) {
	p := server.Pull{Parallel: s.Pull.Parallel}
	for _, text := range s.Pull.Networks {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			return p, nil, fmt.Errorf("pull.networks: %w", err)
		}
		p.Networks = append(p.Networks, n.Masked())
	}
	if (s.Pull.Cert == "") != (s.Pull.Key == "") {
		return p, nil, errHalfPull
	}
	if s.Pull.RevocationKey != "" {
		key, err := keys.Open(ctx, s.Pull.RevocationKey, keys.Options{})
		if err != nil {
			return p, nil, fmt.Errorf("pull.revocation_key: %w", err)
		}
		if _, err := evidence.SignRevocation(key, nil); err != nil {
			return p, nil, fmt.Errorf("pull.revocation_key: %w", err)
		}
		p.RevocationKey = key
	}
	if s.Pull.Cert == "" {
		return p, nil, nil
	}
	pair, err := newCertificateFile(s.Pull.Cert, s.Pull.Key)
	if err != nil {
		return p, nil, fmt.Errorf("pull: %w", err)
	}
	p.Certificate = func() *tls.Certificate { return pair.current() }
	return p, pair, nil
}
