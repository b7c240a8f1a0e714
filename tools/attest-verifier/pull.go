package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/server"
)

var errHalfPull = errors.New("pull: a certificate needs its key, and a key its certificate")

// pullOf reads how agents are reached that wait to be polled. The certificate file is nil
// where none are; who serves renews it.
func pullOf(s *settings) (server.Pull, *certificateFile, error) {
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
		text, err := readSecret(s.Pull.RevocationKey)
		if err == nil {
			p.RevocationKey, err = evidence.ParseRevocationKey([]byte(text))
		}
		if err != nil {
			return p, nil, fmt.Errorf("pull.revocation_key: %w", err)
		}
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
