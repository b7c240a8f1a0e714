package keys

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// newAuthority makes a CA with a key of the given kind and its certificate's file.
func newAuthority(t testing.TB, kind string) (*Authority, string) {
	t.Helper()
	spec := &Spec{Name: "root", Subject: "CN=Acme Root CA,O=Acme", Key: kind, Days: 7300}
	key, _ := newKey(t, kind)
	cert, err := spec.SelfSign(key, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &Authority{key, cert}, writeCertificate(t, cert)
}

func writeCertificate(t testing.TB, cert *x509.Certificate) string {
	return writeFile(t, filepath.Join(t.TempDir(), "crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

func leaf(kind string, roles ...Role) *Spec {
	return &Spec{Name: "leaf", Subject: "CN=Acme leaf,O=Acme", Key: kind, Days: 1095, Roles: roles}
}

// TestIssueOpenSSL lets openssl verify every pair of key kinds, and read what stands in the
// certificates.
func TestIssueOpenSSL(t *testing.T) {
	for _, caKind := range []string{"RSA-2048", "RSA-4096", "P-256", "P-384", "P-521"} {
		ca, caFile := newAuthority(t, caKind)
		if err := ca.Check(time.Now()); err != nil {
			t.Error(err)
		}
		for _, kind := range []string{"RSA-2048", "RSA-3072", "P-256", "P-384", "P-521"} {
			key, _ := newKey(t, kind)
			cert, err := leaf(kind, RoleIMA, RoleEVM).Issue(ca, key.Public(), nil, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			file := writeCertificate(t, cert)
			if out := command(t, "openssl", "verify", "-x509_strict", "-CAfile", caFile, file); !strings.HasSuffix(out, ": OK\n") {
				t.Errorf("%s under %s: %s", kind, caKind, out)
			}
			if err := CheckPair(key.Public(), cert, time.Now()); err != nil {
				t.Errorf("%s under %s: %v", kind, caKind, err)
			}
		}
	}
}

var hexRE = regexp.MustCompile(`([0-9A-F]{2}:){19}[0-9A-F]{2}`)

// extensions are openssl's words for the extensions of a certificate, without key identifiers.
func extensions(t *testing.T, file string) []string {
	out := command(t, "openssl", "x509", "-in", file, "-noout", "-ext",
		"basicConstraints,keyUsage,extendedKeyUsage,subjectKeyIdentifier,authorityKeyIdentifier")
	var lines []string
	for line := range strings.Lines(out) {
		lines = append(lines, hexRE.ReplaceAllString(strings.TrimSpace(line), "ID"))
	}
	return lines
}

func TestExtensions(t *testing.T) {
	ca, caFile := newAuthority(t, "P-384")
	if diff := cmp.Diff([]string{
		"X509v3 Key Usage: critical", "Certificate Sign, CRL Sign",
		"X509v3 Basic Constraints: critical", "CA:TRUE, pathlen:0",
		"X509v3 Subject Key Identifier:", "ID",
	}, extensions(t, caFile)); diff != "" {
		t.Error("CA: ", diff)
	}
	signer := []string{"X509v3 Key Usage: critical", "Digital Signature"}
	code := []string{"X509v3 Extended Key Usage:", "Code Signing"}
	rest := []string{"X509v3 Basic Constraints: critical", "CA:FALSE", "X509v3 Subject Key Identifier:", "ID", "X509v3 Authority Key Identifier:", "ID"}
	for _, c := range []struct {
		roles []Role
		code  bool
	}{{[]Role{RoleIMA}, false}, {[]Role{RoleEVM}, false}, {[]Role{RoleModsign}, true}, {[]Role{RoleSecureBoot}, true}, {[]Role{RoleIMA, RoleModsign}, true}} {
		spec := leaf("RSA-2048", c.roles...)
		cert, err := spec.Issue(ca, rsa2048(t).Public(), nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		want := append([]string{}, signer...)
		if c.code {
			want = append(want, code...)
		}
		want = append(want, rest...)
		if diff := cmp.Diff(want, extensions(t, writeCertificate(t, cert))); diff != "" {
			t.Errorf("%v: %s", c.roles, diff)
		}
		if !bytes.Equal(cert.AuthorityKeyId, ca.Certificate.SubjectKeyId) {
			t.Errorf("%v: AuthorityKeyIdentifier is %x", c.roles, cert.AuthorityKeyId)
		}
	}
}

// TestSKID compares with the method of openssl, subjectKeyIdentifier=hash.
func TestSKID(t *testing.T) {
	for _, kind := range []string{"RSA-2048", "P-256", "P-521"} {
		key, file := newKey(t, kind)
		text := command(t, "openssl", "req", "-x509", "-new", "-batch", "-key", file, "-subj", "/CN=x", "-addext", "subjectKeyIdentifier=hash")
		block, _ := pem.Decode([]byte(text[strings.Index(text, "-----BEGIN"):]))
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		got, err := keyIdentifier(key.Public())
		if err != nil || !bytes.Equal(got, cert.SubjectKeyId) {
			t.Errorf("%s: got %x, %v, openssl has %x", kind, got, err, cert.SubjectKeyId)
		}
	}
}

// TestKeyIDEvmctl: evmctl, which knows the key only, signs with the key id of the certificate.
func TestKeyIDEvmctl(t *testing.T) {
	ca, _ := newAuthority(t, "P-256")
	for _, kind := range []string{"RSA-2048", "RSA-4096", "P-256", "P-384"} {
		key, file := newKey(t, kind)
		encrypted, err := MarshalPrivate(key, []byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		encryptedFile := writeFile(t, filepath.Join(t.TempDir(), "encrypted"), encrypted)
		cert, err := leaf(kind, RoleIMA).Issue(ca, key.Public(), nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		der := writeFile(t, filepath.Join(t.TempDir(), "der"), cert.Raw)
		want := hex.EncodeToString(cert.SubjectKeyId[16:])
		for _, args := range [][]string{{"--key", file}, {"--key", encryptedFile, "--pass=secret"}} {
			data := writeFile(t, filepath.Join(t.TempDir(), "data"), []byte("hello ima\n"))
			command(t, "evmctl", append(append([]string{"ima_sign", "--hashalgo", "sha256", "--sigfile", "--xattr-user"}, args...), data)...)
			sig, err := os.ReadFile(data + ".sig")
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(sig[3:7]); got != want {
				t.Errorf("%s: evmctl wrote key id %s, the certificate has %s", kind, got, want)
			}
			digest := digestOf(crypto.SHA256, "hello ima\n")
			if err := verify(key.Public(), digest, crypto.SHA256, sig[9:]); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
			if out := command(t, "evmctl", "ima_verify", "--key", der, "--sigfile", "--xattr-user", data); !strings.Contains(out, "verification is OK") {
				t.Errorf("%s: %s", kind, out)
			}
		}
	}
}

// TestMarshalPrivateOpenSSL: openssl reads the keys that are written here.
func TestMarshalPrivateOpenSSL(t *testing.T) {
	for _, kind := range []string{"RSA-2048", "P-256", "P-521"} {
		key, plain := newKey(t, kind)
		text, err := MarshalPrivate(key, []byte("größer secret"))
		if err != nil {
			t.Fatal(err)
		}
		file := writeFile(t, filepath.Join(t.TempDir(), "key"), text)
		want := command(t, "openssl", "pkey", "-in", plain)
		if got := command(t, "openssl", "pkey", "-in", file, "-passin", "pass:größer secret"); got != want {
			t.Errorf("%s: openssl decrypts another key", kind)
		}
		opened, err := Open(t.Context(), file, passphrase("größer secret"))
		if err != nil {
			t.Fatal(err)
		}
		checkSigns(t, opened, key.Public())
		opened.Close()
	}
	if _, err := MarshalPrivate(rsa2048(t), []byte{}); !errors.Is(err, ErrNoPassphrase) {
		t.Errorf("empty passphrase: got %v", err)
	}
}

func TestIssueRefuses(t *testing.T) {
	ca, _ := newAuthority(t, "P-256")
	now := time.Now()
	spec := leaf("RSA-2048", RoleIMA)
	spec.Days = 7301
	if _, err := spec.Issue(ca, rsa2048(t).Public(), nil, now); err == nil || !strings.Contains(err.Error(), "outlive the CA") || !strings.Contains(err.Error(), "at most 7299 are left") {
		t.Errorf("longer than the CA: got %v", err)
	}
	spec = leaf("P-256", RoleIMA)
	if _, err := spec.Issue(ca, rsa2048(t).Public(), nil, now); err == nil || !strings.Contains(err.Error(), "is RSA-2048, the ceremony says P-256") {
		t.Errorf("other kind: got %v", err)
	}
	spec = leaf("RSA-2048", RoleIMA)
	spec.Subject = "CN=Acme Root CA,O=Acme"
	if _, err := spec.Issue(ca, rsa2048(t).Public(), nil, now); err == nil || !strings.Contains(err.Error(), "subject is that of the CA") {
		t.Errorf("subject of the CA: got %v", err)
	}
}

func TestAuthorityCheck(t *testing.T) {
	good, _ := newAuthority(t, "P-256")
	other, _ := newAuthority(t, "P-256")
	notCA, err := leaf("RSA-2048", RoleIMA).Issue(good, rsa2048(t).Public(), nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(*x509.Certificate)) *Authority {
		c := *good.Certificate
		f(&c)
		return &Authority{good.Signer, &c}
	}
	for name, c := range map[string]struct {
		ca   *Authority
		now  time.Time
		want error
	}{
		"good":      {good, time.Now(), nil},
		"other key": {&Authority{other.Signer, good.Certificate}, time.Now(), ErrMismatch},
		"leaf":      {&Authority{rsa2048(t), notCA}, time.Now(), ErrUnsupported},
		"expired":   {good, time.Now().AddDate(21, 0, 0), ErrExpired},
		"usage":     {change(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), time.Now(), ErrUnsupported},
		"no SKID":   {change(func(c *x509.Certificate) { c.SubjectKeyId = nil }), time.Now(), ErrUnsupported},
	} {
		if err := c.ca.Check(c.now); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestCheckPair(t *testing.T) {
	ca, _ := newAuthority(t, "P-256")
	now := time.Now()
	cert, err := leaf("RSA-2048", RoleIMA).Issue(ca, rsa2048(t).Public(), nil, now)
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(*x509.Certificate)) *x509.Certificate {
		c := *cert
		f(&c)
		return &c
	}
	for name, c := range map[string]struct {
		public crypto.PublicKey
		cert   *x509.Certificate
		now    time.Time
		want   error
	}{
		"good":                {rsa2048(t).Public(), cert, now, nil},
		"not yet valid":       {rsa2048(t).Public(), cert, now.AddDate(-1, 0, 0), nil},
		"expired":             {rsa2048(t).Public(), cert, now.AddDate(4, 0, 0), ErrExpired},
		"other key":           {ca.Signer.Public(), cert, now, ErrMismatch},
		"no SKID":             {rsa2048(t).Public(), change(func(c *x509.Certificate) { c.SubjectKeyId = nil }), now, ErrUnsupported},
		"short SKID":          {rsa2048(t).Public(), change(func(c *x509.Certificate) { c.SubjectKeyId = []byte{1, 2, 3} }), now, ErrUnsupported},
		"usage":               {rsa2048(t).Public(), change(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), now, ErrUnsupported},
		"usage before expiry": {rsa2048(t).Public(), change(func(c *x509.Certificate) { c.KeyUsage = 0 }), now.AddDate(4, 0, 0), ErrUnsupported},
	} {
		if err := CheckPair(c.public, c.cert, c.now); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

// TestRequest goes to an openssl CA, which copies the extensions, and comes back.
func TestRequest(t *testing.T) {
	key, file := newKey(t, "P-256")
	spec := leaf("P-256", RoleModsign)
	der, err := spec.Request(key)
	if err != nil {
		t.Fatal(err)
	}
	csr := writeFile(t, filepath.Join(t.TempDir(), "csr"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	if out := command(t, "openssl", "req", "-in", csr, "-noout", "-verify"); !strings.Contains(out, "OK") {
		t.Error(out)
	}
	ca, caFile := newAuthority(t, "RSA-2048")
	text, _ := MarshalPrivate(ca.Signer, nil)
	out := filepath.Join(t.TempDir(), "crt")
	command(t, "openssl", "x509", "-req", "-in", csr, "-CA", caFile, "-CAkey", writeFile(t, filepath.Join(t.TempDir(), "ca"), text),
		"-copy_extensions", "copyall", "-days", "10", "-out", out)
	certs, err := ReadCertificates(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckPair(key.Public(), certs[0], time.Now()); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"X509v3 Basic Constraints: critical", "CA:FALSE", "X509v3 Key Usage: critical", "Digital Signature",
		"X509v3 Subject Key Identifier:", "ID", "X509v3 Extended Key Usage:", "Code Signing"}, extensions(t, out)[:8]); diff != "" {
		t.Error(diff)
	}

	// Requests by openssl: the names in other string types, and one thing wrong each.
	request := func(subj string, key string) *x509.CertificateRequest {
		out := filepath.Join(t.TempDir(), "csr")
		command(t, "openssl", "req", "-new", "-batch", "-key", key, "-subj", subj, "-out", out)
		csr, err := ReadRequest(out)
		if err != nil {
			t.Fatal(err)
		}
		return csr
	}
	if public, err := spec.FromRequest(request("/O=Acme/CN=Acme leaf", file), false); err != nil || !samePublic(public, key.Public()) {
		t.Errorf("request by openssl: %v", err)
	}
	_, rsaFile := newKey(t, "RSA-2048")
	for name, c := range map[string]struct{ subj, key, want string }{
		"subject": {"/O=Acme/CN=Somebody else", file, "the ceremony says"},
		"order":   {"/CN=Acme leaf/O=Acme", file, "the ceremony says"},
		"key":     {"/O=Acme/CN=Acme leaf", rsaFile, "is RSA-2048, the ceremony says P-256"},
		"debug":   {"/O=Acme/CN=Acme leaf", "../../../keys-debug/ima.key", "published as keys-debug/ima.key"},
	} {
		if _, err := spec.FromRequest(request(c.subj, c.key), false); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	der[len(der)-1] ^= 1
	if _, err := parseRequest("csr", der); err == nil || !strings.Contains(err.Error(), "verify signature") {
		t.Errorf("changed request: got %v", err)
	}
}

func TestCeremonyCheck(t *testing.T) {
	good := func() *Ceremony {
		return &Ceremony{CA: Spec{Name: "root", Subject: "CN=Root", Key: "P-384", Days: 10}, Leaf: []Spec{*leaf("P-256", RoleIMA)}}
	}
	if err := good().Check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Ceremony){
		"no [ca]":                         func(c *Ceremony) { c.CA = Spec{} },
		"[ca] has a role":                 func(c *Ceremony) { c.CA.Roles = Roles{RoleIMA} },
		`key "leaf": no role`:             func(c *Ceremony) { c.Leaf[0].Roles = nil },
		`role "imma" is not one of`:       func(c *Ceremony) { c.Leaf[0].Roles = Roles{"imma"} },
		"firmware verifies RSA only":      func(c *Ceremony) { c.Leaf[0].Roles = Roles{RoleSecureBoot} },
		`key "leaf": name stands twice`:   func(c *Ceremony) { c.Leaf = append(c.Leaf, c.Leaf[0]) },
		`key "root": name stands twice`:   func(c *Ceremony) { c.Leaf[0].Name = "root" },
		`key "../x": name does not match`: func(c *Ceremony) { c.Leaf[0].Name = "../x" },
		`key "leaf": subject "Acme"`:      func(c *Ceremony) { c.Leaf[0].Subject = "Acme" },
		"subject is that of the CA":       func(c *Ceremony) { c.Leaf[0].Subject = "CN=Root" },
		`key = "P-224" is not one of`:     func(c *Ceremony) { c.Leaf[0].Key = "P-224" },
		"days = 0 is not between":         func(c *Ceremony) { c.Leaf[0].Days = 0 },
		"days = 40000 is not between":     func(c *Ceremony) { c.CA.Days = 40000 },
	} {
		c := good()
		change(c)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if _, err := good().Find([]string{"absent"}); err == nil || !strings.Contains(err.Error(), `no [[leaf]] "absent"`) {
		t.Errorf("got %v", err)
	}
}
