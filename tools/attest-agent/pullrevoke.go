//go:build !nopull

package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/payload"
)

// errNoRevocationCert means that no notice can be believed.
var errNoRevocationCert = errors.New("no revocation_cert is set, and no payload brought one")

// revoke takes a notice of Keylime's about another device, if it is signed by whom this
// device was told to believe.
func (l *listener) revoke(signed *evidence.SignedRevocation) error {
	cert := l.revocation.Load()
	if cert == nil {
		return &badRequest{errNoRevocationCert.Error()}
	}
	if err := signed.Verify(cert); err != nil {
		return err
	}
	notice, err := evidence.DecodeBody[evidence.Revocation](strings.NewReader(signed.Message))
	if err != nil {
		return err
	}
	if l.spool != nil {
		text, err := json.Marshal(signed)
		if err != nil {
			return err
		}
		if err := l.leave(text); err != nil {
			return err
		}
	}
	l.agent.say("notice: %s of %s: %s", printable(notice.Type, 40), notice.ID, printable(notice.EventID, 120))
	return nil
}

// deliver keeps a payload in memory, and takes the certificate for notices from it where the
// image has none.
func (l *listener) deliver(p *payload.Payload) error {
	if l.agent.config.get("revocation_cert") == "" {
		cert, err := payloadRevocationCert(p)
		if err != nil {
			return &badRequest{err.Error()}
		}
		if cert != nil {
			l.revocation.Store(cert)
		}
	}
	if err := l.agent.secrets.keep(context.Background(), p); err != nil {
		return fmt.Errorf("keep payload: %w", err)
	}
	return nil
}

// payloadRevocationCert is the certificate in a payload that signs notices, or nil.
func payloadRevocationCert(p *payload.Payload) (*x509.Certificate, error) {
	for _, f := range p.Files {
		if f.Name == payloadCert {
			return parseCert(f.Name, f.Data)
		}
	}
	return nil, nil
}

// leave puts a notice that was verified into the folder for actions, whole or not at all.
// The agent is not believed there: act verifies it again.
func (l *listener) leave(signed []byte) error {
	names, err := os.ReadDir(l.spool.dir)
	if err != nil {
		return fmt.Errorf("leave notice: %w", err)
	}
	if len(names) >= maxNotices {
		return errors.New("leave notice: nobody takes them: see attest-agent act")
	}
	sum := sha256.Sum256(signed)
	return l.spool.keep(revocationPrefix+hex.EncodeToString(sum[:16])+noticeName, signed)
}
