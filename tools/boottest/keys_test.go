package boottest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// ceremony has the keys of the tests: once under the CA that is in the kernel, once under another.
const ceremony = `
[ca]
name = "root"
subject = "CN=other CA,O=boottest"
key = "P-256"
days = 7300
[[leaf]]
name = "rsa"
role = ["ima", "evm"]
subject = "CN=boottest RSA-2048,O=boottest"
key = "RSA-2048"
days = 3650
[[leaf]]
name = "p256"
role = ["ima", "evm"]
subject = "CN=boottest P-256,O=boottest"
key = "P-256"
days = 3650
[[leaf]]
name = "p384"
role = "ima"
subject = "CN=boottest P-384,O=boottest"
key = "P-384"
days = 3650
[[leaf]]
name = "modsign"
role = ["ima", "modsign"]
subject = "CN=boottest modules,O=boottest"
key = "RSA-2048"
days = 3650
`

// makeKeys makes keys, certificates by our CA, and certificates that no kernel should take.
func (l *lab) makeKeys(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(l.dir, "ceremony.toml"), []byte(ceremony), 0o644); err != nil {
		t.Fatal(err)
	}
	l.script(t, nil, `
attest keys issue --ceremony ceremony.toml --out keys --ca-key "$REPO/keys-debug/root.key" --ca-cert "$REPO/keys-debug/root.crt" --allow-debug-keys
attest keys init --ceremony ceremony.toml --out foreign
attest keys issue --ceremony ceremony.toml --out foreign
`)
	ca := l.certificate(t, "", filepath.Join(l.repo, "keys-debug/root.crt"))
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// An impostor has the name and the key id of our CA, but not its key.
	impostor := &x509.Certificate{Subject: ca.Subject, SubjectKeyId: ca.SubjectKeyId}
	l.issue(t, "impostor.der", impostor, stranger, stranger)
	// A key that may sign files tries to be a CA.
	leaf := l.certificate(t, l.dir, "keys/p256.crt")
	l.issue(t, "byleaf.der", leaf, stranger, l.privateKey(t, "keys/p256.key"))
}

// issue writes a certificate for the key of a stranger, by that parent and signed with that key.
func (l *lab) issue(t *testing.T, name string, parent *x509.Certificate, key *ecdsa.PrivateKey, signer crypto.Signer) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, SubjectKeyId: []byte(name),
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0), KeyUsage: x509.KeyUsageDigitalSignature}
	parent.PublicKey = nil // the impostor's is not that of the certificate
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, name), der, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) certificate(t *testing.T, dir, name string) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(readPEM(t, filepath.Join(dir, name)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (l *lab) privateKey(t *testing.T, name string) crypto.Signer {
	t.Helper()
	key, err := x509.ParsePKCS8PrivateKey(readPEM(t, filepath.Join(l.dir, name)))
	if err != nil {
		t.Fatal(err)
	}
	return key.(crypto.Signer)
}

func readPEM(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("%s: not PEM", path)
	}
	return block.Bytes
}

// appendSignature makes a module with a signature as the kernel's scripts/sign-file does.
func (l *lab) appendSignature(t *testing.T, module, key, out string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "openssl", "cms", "-sign", "-binary", "-noattr", "-nocerts", "-nosmimecap", "-md", "sha256",
		"-signer", key+".crt", "-inkey", key+".key", "-outform", "DER", "-in", module)
	c.Dir = l.dir
	sig, err := c.Output()
	if err != nil {
		t.Fatalf("openssl cms: %v", err)
	}
	text, err := os.ReadFile(module)
	if err != nil {
		t.Fatal(err)
	}
	const pkcs7 = 2
	text = append(append(text, sig...), 0, 0, pkcs7, 0, 0, 0, 0, 0)
	text = append(binary.BigEndian.AppendUint32(text, uint32(len(sig))), "~Module signature appended~\n"...)
	if err := os.WriteFile(filepath.Join(l.dir, out), text, 0o644); err != nil {
		t.Fatal(err)
	}
}
