package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// TestRevocationKey: what the configuration names signs what agents of Keylime believe.
func TestRevocationKey(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "RevocationNotifier-private.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s := defaultSettings()
	s.Pull.RevocationKey = file
	p, _, err := pullOf(s)
	if err != nil {
		t.Fatal(err)
	}
	m, err := evidence.SignRevocation(p.RevocationKey, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Verify(&x509.Certificate{PublicKey: key.Public()}); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(file, 0o604); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pullOf(s); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that everybody may read: %v", err)
	}
}
