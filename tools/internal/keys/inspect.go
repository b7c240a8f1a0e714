package keys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// Report says what a certificate, a certificate request or a private key is, and what Linux
// does with it.
type Report struct {
	File    string `json:"file"`
	Kind    string `json:"kind"` // certificate, request, private key
	Subject string `json:"subject,omitempty"`
	Issuer  string `json:"issuer,omitempty"`
	Serial  string `json:"serial,omitempty"`
	Key     string `json:"key"` // RSA-2048, P-256

	// KeyID is what signatures carry and evmctl shows: the last 4 bytes of SKID, in hex. For a
	// key without certificate it is the one that evmctl computes.
	KeyID       string `json:"key_id"`
	SKID        string `json:"skid"`
	Fingerprint string `json:"spki_sha256"` // of the SubjectPublicKeyInfo, in hex

	NotBefore *time.Time `json:"not_before,omitempty"`
	NotAfter  *time.Time `json:"not_after,omitempty"`
	DaysLeft  *int       `json:"days_left,omitempty"` // negative: expired
	CA        bool       `json:"ca"`
	Usage     []string   `json:"usage,omitempty"`

	Chain    string    `json:"chain,omitempty"` // subject of the CA that signed it
	Keyrings []Keyring `json:"keyrings,omitempty"`
	Findings []Finding `json:"findings"` // reasons not to use it
	Notes    []string  `json:"notes,omitempty"`
}

// Keyring is what a keyring of Linux does with a certificate.
type Keyring struct {
	Name     string `json:"name"`
	Accepted bool   `json:"accepted"`
	Reason   string `json:"reason"`
}

// Finding is a reason not to use a key or certificate.
type Finding struct {
	Code string `json:"code"` // expired, not-yet-valid, weak, unsupported, debug, unusable, chain
	Text string `json:"text"`
}

// FindingChain is the code of the finding that no root signed a certificate.
const FindingChain = "chain"

// soon is how many days before its end a certificate gets a note.
const soon = 60

// Inspect reports on what uri names: a key, as for [Open], or a file with certificates, a
// certificate request or a private key. roots are as for InspectCertificate.
func Inspect(ctx context.Context, uri string, roots []*x509.Certificate, now time.Time, o Options) ([]*Report, error) {
	if strings.HasPrefix(uri, "pkcs11:") || schemeRE.MatchString(uri) {
		o.AllowDebug = true
		key, err := Open(ctx, uri, o)
		if err != nil {
			return nil, err
		}
		return []*Report{inspectKey(key.URI, "private key", key.Public())}, key.Close()
	}
	content, _, err := readFile(uri, maxCertFile)
	if err != nil {
		return nil, err
	}
	return inspectFile(uri, content, roots, now, o)
}

func inspectFile(path string, content []byte, roots []*x509.Certificate, now time.Time, o Options) ([]*Report, error) {
	has := func(what string) bool {
		for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
			if strings.HasSuffix(block.Type, what) {
				return true
			}
		}
		return false
	}
	var reports []*Report
	if has("CERTIFICATE REQUEST") {
		csr, err := parseRequest(path, content)
		if err != nil {
			return nil, err
		}
		r := inspectKey(path, "request", csr.PublicKey)
		r.Subject = csr.Subject.String()
		return []*Report{r}, nil
	}
	if has("PRIVATE KEY") {
		private, err := parsePrivate(path, content, o)
		if err != nil {
			return nil, err
		}
		signer, ok := private.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("%s: %s: %w", path, typeName(private), ErrUnsupported)
		}
		reports = append(reports, inspectKey(path, "private key", signer.Public()))
		if !has("CERTIFICATE") {
			return reports, nil
		}
	}
	certs, err := ParseCertificates(path, content)
	if err != nil {
		return nil, err
	}
	for _, cert := range certs {
		reports = append(reports, InspectCertificate(path, cert, roots, now))
	}
	return reports, nil
}

// InspectCertificate reports on a certificate. roots are the CAs that it may have been
// signed by: with none, Chain stays empty and nothing is found about it.
func InspectCertificate(file string, cert *x509.Certificate, roots []*x509.Certificate, now time.Time) *Report {
	days := int(cert.NotAfter.Sub(now).Hours() / 24)
	if cert.NotAfter.Before(now) {
		days = -1 - int(now.Sub(cert.NotAfter).Hours()/24)
	}
	r := &Report{
		File: file, Kind: "certificate", Subject: cert.Subject.String(), Issuer: cert.Issuer.String(),
		Serial: hex.EncodeToString(cert.SerialNumber.Bytes()), SKID: hex.EncodeToString(cert.SubjectKeyId),
		NotBefore: &cert.NotBefore, NotAfter: &cert.NotAfter, DaysLeft: &days,
		CA: cert.IsCA, Usage: usage(cert),
	}
	r.publicKey(cert.PublicKey)
	r.signature(cert)
	r.validity(cert, now)
	r.identifier(cert)
	r.chain(cert, roots)
	r.keyrings(cert, roots)
	return r
}

// inspectKey reports on a private key or on the key of a certificate request (kind).
func inspectKey(file, kind string, public crypto.PublicKey) *Report {
	r := &Report{File: file, Kind: kind}
	if skid, err := keyIdentifier(public); err == nil {
		r.SKID = hex.EncodeToString(skid)
	}
	r.publicKey(public)
	return r
}

func (r *Report) find(code, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{code, fmt.Sprintf(format, args...)})
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (r *Report) publicKey(public crypto.PublicKey) {
	r.Findings = []Finding{} // [] in JSON
	r.Key = typeName(public)
	if n := len(r.SKID); n >= 2*minKeyID {
		r.KeyID = r.SKID[n-2*minKeyID:]
	}
	if der, err := x509.MarshalPKIXPublicKey(public); err == nil {
		sum := sha256.Sum256(der)
		r.Fingerprint = hex.EncodeToString(sum[:])
	}
	if err := CheckStrength(public); err != nil {
		code := "unsupported"
		if errors.Is(err, ErrWeak) {
			code = "weak"
		}
		r.find(code, "%v", err)
	}
	if name, ok := DebugName(public); ok {
		r.find("debug", "everybody has the private key: it is published as %s", name)
	}
	if k, ok := public.(*ecdsa.PublicKey); ok {
		since := "5.13"
		if k.Curve == elliptic.P521() {
			since = "6.10"
		}
		r.note("needs Linux %s with CONFIG_CRYPTO_ECDSA", since)
	}
}

// signature looks at the hash of the CA's signature: who can make a collision gets a
// certificate for a key of his own.
func (r *Report) signature(cert *x509.Certificate) {
	switch cert.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1:
		r.find("weak", "certificate is signed with %v", cert.SignatureAlgorithm)
	}
}

func (r *Report) validity(cert *x509.Certificate, now time.Time) {
	switch {
	case cert.NotAfter.Before(now):
		r.find("expired", "expired on %s (Linux does not look at it)", cert.NotAfter.Format(time.DateOnly))
	case cert.NotBefore.After(now):
		r.find("not-yet-valid", "not valid before %s (Linux does not look at it)", cert.NotBefore.Format(time.DateTime))
	case *r.DaysLeft < soon:
		r.note("ends in %d days", *r.DaysLeft)
	}
}

func (r *Report) identifier(cert *x509.Certificate) {
	want, err := keyIdentifier(cert.PublicKey)
	if err != nil || len(cert.SubjectKeyId) == 0 || bytes.Equal(want, cert.SubjectKeyId) {
		return
	}
	r.note("SubjectKeyIdentifier is not SHA-1 of the key: evmctl without this certificate writes key id %x, which Linux does not find", want[len(want)-minKeyID:])
}

func (r *Report) chain(cert *x509.Certificate, roots []*x509.Certificate) {
	if len(roots) == 0 {
		return
	}
	if ca := ima.Issuer(cert, roots); ca != nil {
		r.Chain = ca.Subject.String()
		if len(cert.AuthorityKeyId) == 0 && !ca.Equal(cert) {
			r.note("no AuthorityKeyIdentifier: Linux before 5.18 does not find the CA")
		}
		return
	}
	r.find(FindingChain, "no good signature by %s", subjects(roots))
}

func subjects(certs []*x509.Certificate) string {
	var names []string
	for _, c := range certs {
		names = append(names, fmt.Sprintf("%q", c.Subject))
	}
	return strings.Join(names, " or ")
}

// keyrings follows certs/system_keyring.c and crypto/asymmetric_keys/restrict.c of Linux
// 6.12. Older kernels did not look at keyUsage.
func (r *Report) keyrings(cert *x509.Certificate, roots []*x509.Certificate) {
	ca := AuthorityFault(cert)
	r.Keyrings = append(r.Keyrings, Keyring{".builtin_trusted_keys", ca == "", reason(ca, "can vouch for keys of .ima and .evm; CONFIG_SYSTEM_TRUSTED_KEYS takes it as PEM")})
	machine := ca
	if machine == "" && cert.KeyUsage&x509.KeyUsageDigitalSignature != 0 {
		machine = "keyUsage has digitalSignature (CONFIG_INTEGRITY_CA_MACHINE_KEYRING_MAX)"
	}
	r.Keyrings = append(r.Keyrings, Keyring{".machine", machine == "", reason(machine, "as a MOK with CONFIG_INTEGRITY_CA_MACHINE_KEYRING")})
	leaf := leafFault(cert, roots)
	good := "signed by " + r.Chain
	if r.Chain == "" {
		good = fmt.Sprintf("if %q is in .builtin_trusted_keys", r.Issuer)
	}
	r.Keyrings = append(r.Keyrings, Keyring{".ima", leaf == "", reason(leaf, good)}, Keyring{".evm", leaf == "", reason(leaf, good)})
	if ca != "" && leaf != "" {
		r.find("unusable", "neither a CA (%s) nor a signing certificate (%s)", ca, leaf)
	}
}

func reason(fault, good string) string {
	if fault != "" {
		return fault
	}
	return good
}

// AuthorityFault says why no key of .ima could be vouched for by cert, built into the kernel
// (CONFIG_SYSTEM_TRUSTED_KEYS). It is empty if one can.
func AuthorityFault(cert *x509.Certificate) string {
	switch {
	case CheckStrength(cert.PublicKey) != nil:
		return "key cannot be used"
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return "basicConstraints without CA:TRUE"
	case cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return "keyUsage without keyCertSign"
	case len(cert.SubjectKeyId) < minKeyID:
		return "no SubjectKeyIdentifier"
	case len(cert.Raw) < 4 || cert.Raw[0] != 0x30 || cert.Raw[1] != 0x82:
		return "shorter than 256 bytes, which load_certificate_list does not read"
	}
	return ""
}

// leafFault says why cert is of no use in .ima and .evm.
func leafFault(cert *x509.Certificate, roots []*x509.Certificate) string {
	fault := ima.LinkFault(cert, roots)
	if CheckStrength(cert.PublicKey) == nil {
		return fault
	}
	if fault == "" {
		return "key cannot be used"
	}
	return "key cannot be used, " + fault
}

func usage(cert *x509.Certificate) []string {
	var names []string
	for bit, name := range []string{"digitalSignature", "contentCommitment", "keyEncipherment", "dataEncipherment",
		"keyAgreement", "keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"} {
		if cert.KeyUsage&(1<<bit) != 0 {
			names = append(names, name)
		}
	}
	if slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) {
		names = append(names, "codeSigning")
	}
	return names
}
