//go:build nopull

package main

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
)

// This is what is left of pull*.go in an agent that nobody polls. Its settings are refused,
// so that nobody believes in what is not there; Keylime's notices come by that way alone.

type identity struct{ cert string }

type listener struct {
	net   net.Listener
	spool *notices
	id    atomic.Pointer[string]
	wake  chan struct{}
}

func (c *Config) checkListen() error {
	for _, key := range []string{"listen", "listen_ca", "contact", "revocation_cert"} {
		if c.get(key) != "" {
			return fmt.Errorf("%s: %s: %w", c.origins[key], key, errNoPull)
		}
	}
	return nil
}

func openIdentity(*folder) (*identity, error) { return nil, errNoPull }

func (*identity) fingerprint() string { return "" }

func openListener(*agent) (*listener, error) { return nil, errNoPull }

func (*listener) serve(context.Context) error { return errNoPull }
