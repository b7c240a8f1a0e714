package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/notice"
)

const (
	revocationPrefix = "keylime-" // of files with Keylime's notices in notices_dir
	// sourceKeylime is the source of the event that a notice of Keylime's becomes.
	sourceKeylime = "urn:keylime:verifier"
)

// readRevocationCert is the certificate of the image that signs Keylime's notices, or nil.
func readRevocationCert(c *Config) (*x509.Certificate, error) {
	path := c.get("revocation_cert")
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read revocation_cert: %w", err)
	}
	return parseCert(path, text)
}

func parseCert(name string, text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("read %s: it has no certificate in PEM", name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return cert, nil
}

// openRevocation verifies a notice of Keylime's and makes the event of it that actions
// understand. Its number is the time that Keylime names, in seconds, taken for UTC.
func openRevocation(b []byte, cert *x509.Certificate) (*notice.Event, error) {
	if cert == nil {
		return nil, errors.New("no revocation_cert is set: what came with a payload does not count here")
	}
	signed, err := evidence.DecodeBody[evidence.SignedRevocation](bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	if err := signed.Verify(cert); err != nil {
		return nil, err
	}
	r, err := evidence.DecodeBody[evidence.Revocation](strings.NewReader(signed.Message))
	if err != nil {
		return nil, err
	}
	if r.Type != "revocation" {
		return nil, fmt.Errorf("it is of type %q, which says nothing of a verdict", printable(r.Type, 40))
	}
	at, err := time.Parse(time.ANSIC, r.Time)
	if err != nil {
		return nil, fmt.Errorf("read event_time: %w", err)
	}
	sum := sha256.Sum256([]byte(signed.Message))
	e := notice.New(sourceKeylime, at.Unix(), sum[:], at, notice.Data{Device: r.ID, Status: "untrusted", Codes: []string{r.EventID}})
	_, err = e.Marshal() // which checks it
	return e, err
}

// takeRevocation acts on a notice of Keylime's, once. Keylime numbers nothing and never says
// that a device is good again: so a notice is known by its digest, and does not outlive the
// boot like others.
func (a *actions) takeRevocation(ctx context.Context, b []byte) error {
	e, err := openRevocation(b, a.revocation)
	if err != nil {
		return err
	}
	payload, err := e.Marshal()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(payload)
	digest := hex.EncodeToString(sum[:])
	s := a.state
	if slices.Contains(s.Revocations, digest) {
		return errors.New("it was acted upon")
	}
	s.Revocations = append(s.Revocations, digest)
	s.Revocations = s.Revocations[max(0, len(s.Revocations)-maxRemembered):]
	a.say("notice of Keylime's verifier: %s is %s", e.Subject, e.Data.Status)
	a.finish(ctx, e, payload, b)
	return nil
}
