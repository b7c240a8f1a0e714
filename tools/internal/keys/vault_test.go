package keys

import (
	"crypto"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// vault starts a development server on loopback and returns a function that runs its client.
func vault(t *testing.T) func(args ...string) string {
	t.Helper()
	program, err := exec.LookPath("vault")
	if err != nil {
		if program, err = exec.LookPath("bao"); err != nil {
			t.Skip("SKIP: neither vault nor bao is installed")
		}
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	home := t.TempDir()
	for name, value := range map[string]string{"HOME": home, "VAULT_ADDR": "http://" + address, "VAULT_TOKEN": "attest",
		"BAO_ADDR": "http://" + address, "BAO_TOKEN": "attest", "TRANSIT_SECRET_ENGINE_PATH": ""} {
		t.Setenv(name, value)
	}
	log, err := os.Create(filepath.Join(home, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	server := exec.Command(program, "server", "-dev", "-dev-root-token-id=attest", "-dev-listen-address="+address)
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Kill()
		server.Wait()
	})
	for range 300 {
		if exec.Command(program, "status").Run() == nil {
			return func(args ...string) string { return command(t, program, args...) }
		}
		time.Sleep(100 * time.Millisecond)
	}
	text, _ := os.ReadFile(log.Name())
	t.Fatalf("%s does not answer: %s", program, text)
	return nil
}

// TestVault signs with the transit engine of HashiCorp Vault or OpenBao.
func TestVault(t *testing.T) {
	run := vault(t)
	run("secrets", "enable", "transit")
	for kind, kms := range map[string]string{"RSA-2048": "rsa-2048", "RSA-4096": "rsa-4096", "P-256": "ecdsa-p256", "P-384": "ecdsa-p384", "P-521": "ecdsa-p521"} {
		run("write", "-f", "transit/keys/"+kms, "type="+kms)
		key, err := Open(t.Context(), "hashivault://"+kms, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := typeName(key.Public()); got != kind {
			t.Errorf("%s: got %s", kind, got)
		}
		checkSigns(t, key, key.Public())
		signAtOnce(t, key, 8, 3)
	}
	run("write", "-f", "transit/keys/ed", "type=ed25519")
	if _, err := Open(t.Context(), "hashivault://ed", Options{}); err == nil || !strings.Contains(err.Error(), "Ed25519") {
		t.Errorf("Ed25519: got %v", err)
	}
	if _, err := Open(t.Context(), "hashivault://absent", Options{}); err == nil || !strings.Contains(err.Error(), "hashivault://absent") {
		t.Errorf("absent key: got %v", err)
	}
}

// TestVaultRotated: a service that signs with another key than it showed must not label files.
func TestVaultRotated(t *testing.T) {
	run := vault(t)
	run("secrets", "enable", "transit")
	run("write", "-f", "transit/keys/ima", "type=ecdsa-p256")
	key, err := Open(t.Context(), "hashivault://ima", Options{})
	if err != nil {
		t.Fatal(err)
	}
	run("write", "-f", "transit/keys/ima/rotate")
	_, err = key.Sign(nil, digestOf(crypto.SHA256, "a"), crypto.SHA256)
	if err == nil || !strings.Contains(err.Error(), "no signature of the public key") {
		t.Errorf("got %v", err)
	}
}
