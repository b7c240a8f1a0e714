//go:build !nopull

package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

const (
	listenFile = "listen.pem"    // key and self-signed certificate of the listener
	shareFile  = "transport.pem" // the key that shares of payloads are encrypted to
)

// identity is what a device that is polled shows: verifier and tenant learn the certificate
// from the registrar, and the transport key from a quote. Both outlive the process, else a
// verifier would take a restart of the agent for another agent.
type identity struct {
	tls      tls.Certificate
	cert     string // PEM
	share    *rsa.PrivateKey
	shareKey string // PEM
}

// openIdentity reads the keys of the state folder, and makes those that are missing.
func openIdentity(f *folder) (*identity, error) {
	id := &identity{}
	text, err := f.read(listenFile)
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = makeListenPair(); err == nil {
			err = f.write(listenFile, text)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open key of the listener: %w", err)
	}
	if id.tls, err = tls.X509KeyPair(text, text); err != nil {
		return nil, fmt.Errorf("read %s of the state folder: %w", listenFile, err)
	}
	id.cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.tls.Certificate[0]}))
	if id.share, err = openShareKey(f); err != nil {
		return nil, fmt.Errorf("open transport key: %w", err)
	}
	id.shareKey, err = evidence.FormatShareKey(&id.share.PublicKey)
	return id, err
}

// makeListenPair makes a key and its certificate. The dates of a certificate that is pinned
// mean nothing, and the device's clock may be wrong: they are the widest there are (RFC
// 5280, 4.1.2.5).
func makeListenPair() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes([]byte(rand.Text()[:8])), Subject: pkix.Name{CommonName: "attest-agent"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	text, err := formatKey(key)
	return append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...), err
}

func formatKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func openShareKey(f *folder) (*rsa.PrivateKey, error) {
	text, err := f.read(shareFile)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, err
		}
		if text, err = formatKey(key); err != nil {
			return nil, err
		}
		return key, f.write(shareFile, text)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("read %s of the state folder: it is not PEM", shareFile)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %s of the state folder: %w", shareFile, err)
	}
	share, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read %s of the state folder: it is no RSA key", shareFile)
	}
	return share, nil
}

// fingerprint names the certificate.
func (i *identity) fingerprint() string {
	sum := sha256.Sum256(i.tls.Certificate[0])
	return hex.EncodeToString(sum[:])
}
