package keys

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// selfSigned lets openssl make a certificate that is no CA, as ima-gen-self-signed.sh of
// meta-security does, with 1024 bits and SHA-1. A new key stands beside it in FILE.key.
func selfSigned(t *testing.T, key []string, extensions ...string) (file string) {
	file = filepath.Join(t.TempDir(), "crt")
	args := append([]string{"req", "-x509", "-new", "-batch", "-nodes", "-out", file, "-keyout", file + ".key", "-subj", "/CN=x", "-addext", "basicConstraints=critical,CA:FALSE"}, key...)
	command(t, "openssl", append(args, extensions...)...)
	return file
}

func TestInspect(t *testing.T) {
	ca, caFile := newAuthority(t, "P-384")
	other, _ := newAuthority(t, "P-384")
	key, keyFile := newKey(t, "P-256")
	cert, err := leaf("P-256", RoleIMA).Issue(ca, key.Public(), nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	oddSKID, err := leaf("P-256", RoleIMA).Issue(ca, key.Public(), []byte("another identifier!!"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	file := writeCertificate(t, cert)
	roots := []*x509.Certificate{other.Certificate, ca.Certificate}
	look := func(file string, roots []*x509.Certificate, now time.Time) *Report {
		t.Helper()
		reports, err := Inspect(t.Context(), file, roots, now, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return reports[len(reports)-1]
	}
	weak := selfSigned(t, []string{"-newkey", "rsa:1024", "-sha1"}, "-addext", "keyUsage=digitalSignature")
	both := writeFile(t, filepath.Join(t.TempDir(), "both"), append(read(t, keyFile), read(t, file)...))
	noUsage := selfSigned(t, []string{"-key", keyFile})
	year := func(n int) time.Time { return time.Now().AddDate(n, 0, 0) }
	for name, c := range map[string]struct {
		report   *Report
		findings string // codes
		keyrings string // that take it
		note     string
	}{
		"leaf":          {look(file, roots, year(0)), "", ".ima .evm", "needs Linux 5.13"},
		"without --ca":  {look(file, nil, year(0)), "", ".ima .evm", ""},
		"CA":            {look(caFile, nil, year(0)), "", ".builtin_trusted_keys .machine", ""},
		"other CA":      {look(file, roots[:1], year(0)), "chain unusable", "", ""},
		"expired":       {look(file, roots, year(4)), "expired", ".ima .evm", ""},
		"not yet valid": {look(file, roots, year(-1)), "not-yet-valid", ".ima .evm", ""},
		"ends soon":     {look(file, roots, time.Now().AddDate(0, 0, 1090)), "", ".ima .evm", "ends in 4 days"},
		"SKID":          {look(writeCertificate(t, oddSKID), roots, year(0)), "", ".ima .evm", "evmctl without this certificate writes key id"},
		"weak":          {look(weak, nil, year(0)), "weak weak unusable", "", ""},
		"weak key":      {look(weak+".key", nil, year(0)), "weak", "", ""},
		"no usage":      {look(noUsage, nil, year(0)), "unusable", "", ""},
		"key":           {look(keyFile, nil, year(0)), "", "", "needs Linux"},
		"both":          {look(both, nil, year(0)), "", ".ima .evm", ""},
		"debug":         {look("../../../keys-debug/secureboot.der", nil, year(0)), "debug", ".ima .evm", ""},
		"debug key":     {look("../../../keys-debug/ima.key", nil, year(0)), "debug", "", ""},
	} {
		checkReport(t, name, c.report, c.findings, c.keyrings, c.note)
	}
	r := look(file, roots, year(0))
	if want := hex.EncodeToString(cert.SubjectKeyId); r.SKID != want || r.KeyID != want[32:] || r.Chain != "CN=Acme Root CA,O=Acme" || *r.DaysLeft < 1093 || *r.DaysLeft > 1095 {
		t.Errorf("got %+v", r)
	}
	if r := look(file, roots, cert.NotAfter.Add(time.Hour)); *r.DaysLeft != -1 {
		t.Errorf("an hour after its end: %d days left", *r.DaysLeft)
	}
}

// checkReport compares the codes of findings, the keyrings that take it, and a part of a note.
func checkReport(t *testing.T, name string, r *Report, findings, keyrings, note string) {
	t.Helper()
	var codes, taken []string
	for _, f := range r.Findings {
		codes = append(codes, f.Code)
	}
	for _, k := range r.Keyrings {
		if k.Accepted {
			taken = append(taken, k.Name)
		}
	}
	if got := strings.Join(codes, " "); got != findings {
		t.Errorf("%s: got findings %v, want %s", name, r.Findings, findings)
	}
	if got := strings.Join(taken, " "); got != keyrings {
		t.Errorf("%s: taken by %q, want %q: %v", name, got, keyrings, r.Keyrings)
	}
	if !strings.Contains(strings.Join(r.Notes, "\n"), note) {
		t.Errorf("%s: got notes %q, want %q", name, r.Notes, note)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestReadCertificates(t *testing.T) {
	ca, caFile := newAuthority(t, "P-256")
	pemText := read(t, caFile)
	for name, c := range map[string]struct {
		content []byte
		n       int
		want    string
	}{
		"PEM":       {pemText, 1, ""},
		"DER":       {ca.Certificate.Raw, 1, ""},
		"many":      {bytes.Repeat(pemText, 3), 3, ""},
		"empty":     {nil, 0, "file is empty"},
		"text":      {[]byte("hello"), 0, "neither PEM nor a certificate in DER"},
		"trailing":  {append(bytes.Clone(ca.Certificate.Raw), 0), 0, "neither PEM nor a certificate in DER"},
		"key":       {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{0}}), 0, "holds no certificate but a private key"},
		"damaged":   {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{0}}), 0, "parse certificate 1"},
		"too large": {bytes.Repeat([]byte{'\n'}, maxCertFile+1), 0, "larger than 1048576 bytes"},
	} {
		path := writeFile(t, filepath.Join(t.TempDir(), "crt"), c.content)
		certs, err := ReadCertificates(path)
		if c.want == "" && (err != nil || len(certs) != c.n) {
			t.Errorf("%s: got %d, %v", name, len(certs), err)
		}
		if c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), path) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}
