package release

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
)

// signedByKeylime is what keylime-policy 7.14.3 sign runtime -b x509 wrote, and the
// certificate that it made for that.
func signedByKeylime(t testing.TB) (text []byte, cert *x509.Certificate) {
	t.Helper()
	text, err := os.ReadFile("testdata/keylime-signed.json")
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile("testdata/keylime-signed.crt")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(file)
	if cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	return text, cert
}

func TestSignedRuntimePolicy(t *testing.T) {
	text, cert := signedByKeylime(t)
	got, err := runtimePolicy(text, []*x509.Certificate{cert})
	if err != nil || !bytes.HasPrefix(got, []byte(`{"meta": `)) {
		t.Fatalf("%s, %v", got, err)
	}
	if _, err := appraise.Compile(appraise.Rules{}, appraise.Release{Name: "signed", Keylime: got}); err != nil {
		t.Error(err)
	}
	if again, err := runtimePolicy(got, nil); err != nil || !bytes.Equal(again, got) {
		t.Errorf("a policy that is not signed: %s, %v", again, err)
	}
	// The certificate that the envelope brings along counts for nothing.
	if _, err := runtimePolicy(text, nil); !errors.Is(err, ErrUnsigned) {
		t.Errorf("without a trusted certificate: %v", err)
	}
	for name, change := range map[string]func(string) string{
		"another payload": func(s string) string { return strings.Replace(s, `"payload": "eyJt`, `"payload": "eyJn`, 1) },
		"another type": func(s string) string {
			return strings.Replace(s, "application/vnd.keylime+json", "application/vnd.in-toto+json", 1)
		},
		"no signature": func(s string) string { i := strings.Index(s, `"signatures"`); return s[:i] + `"signatures": []}` },
		"cut":          func(s string) string { return s[:len(s)-3] },
		"no base64":    func(s string) string { return strings.Replace(s, `"payload": "`, `"payload": "!`, 1) },
		"many": func(s string) string {
			return strings.Replace(s, `"signatures": [`, `"signatures": [`+strings.Repeat(`{"sig":""},`, 17), 1)
		},
		"two envelopes": func(s string) string { return s + s },
	} {
		changed := change(string(text))
		if changed == string(text) {
			t.Fatalf("%s: nothing was changed", name)
		}
		got, err := runtimePolicy([]byte(changed), []*x509.Certificate{cert})
		if err == nil {
			_, err = appraise.Compile(appraise.Rules{}, appraise.Release{Name: "x", Keylime: got})
		}
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzSignedRuntimePolicy(f *testing.F) {
	text, cert := signedByKeylime(f)
	f.Add(text)
	f.Add([]byte(`{"payload":"","payloadType":"","signatures":[]}`))
	want, err := runtimePolicy(text, []*x509.Certificate{cert})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := runtimePolicy(b, []*x509.Certificate{cert})
		if err == nil && IsEnvelope(b) && !bytes.Equal(got, want) {
			t.Fatalf("a payload that nobody signed: %s", got)
		}
	})
}
