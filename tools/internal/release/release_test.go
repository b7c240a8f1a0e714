package release

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/manifest"
)

// runtime is a runtime policy as keylime-policy of Keylime 7.12 writes it.
const runtime = `{"meta":{"version":1,"generator":0},"release":0,"digests":{"/sbin/init":["` + sum + `"]},"excludes":[],` +
	`"keyrings":{},"ima":{"ignored_keyrings":[],"log_hash_alg":"sha1","dm_policy":null},"ima-buf":{},"verification-keys":""}`

const sum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParse(t *testing.T) {
	const rest = `,"runtime_policy":` + runtime + `}`
	for text, want := range map[string]string{
		runtime:                               "",
		`{"schema":"attest.policy/v1"` + rest: "",
		`[]`:                                  "not a JSON object",
		``:                                    "not a JSON object",
		`{"schema":"attest.policy/v1"`:        "not JSON",
		`{"schema":"attest.policy/v1"}`:       "nothing would be allowed",
		`{"schema":"attest.policy/v2"` + rest: "not attest.policy/v1",
		`{"Schema":"attest.policy/v1"` + rest: `unknown member "Schema"`,
		`{"schema":"attest.policy/v1","exclude":[]` + rest:                                 `unknown member "exclude"`,
		`{"schema":"attest.policy/v1","rules":"","rules":"kexec = true"` + rest:            `"rules" stands twice`,
		`{"schema":"attest.policy/v1","rules":1` + rest:                                    "rules: ",
		`{"schema":"attest.policy/v1"` + rest + `{}`:                                       "something follows",
		`{"schema":"attest.policy/v1","release":"a\u001b[2J"` + rest:                       "not text",
		`{"schema":"attest.policy/v1","release":"` + strings.Repeat("a", 129) + `"` + rest: "longer than",
		`{"schema":"attest.policy/v1","manifests":[` + strings.Repeat(`"",`, 64) + `""]}`:  "65 manifests",
		strings.Repeat(" ", MaxSize+1):                                                     "at most",
	} {
		if _, err := Parse([]byte(text)); err == nil != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %q", text, err, want)
		}
	}
}

// TestCompile: manifests count by the certificates that are given, and the rules are those
// of the first policy that has some.
func TestCompile(t *testing.T) {
	key, cert := newSigner(t)
	_, other := newSigner(t)
	signed := &Policy{Schema: Schema, Release: "v2", Manifests: []string{manifestOf(t, key, cert)}}
	keylime := &Policy{Schema: Schema, Runtime: []byte(runtime)}
	if _, err := Compile(nil, Named{"image@1", signed}); !errors.Is(err, ErrNoCertificates) {
		t.Error(err)
	}
	if _, err := Compile([]*x509.Certificate{other}, Named{"image@1", signed}); !errors.Is(err, manifest.ErrNotAuthentic) {
		t.Error(err)
	}
	ruled := func(p Policy, rules string) *Policy { p.Rules = rules; return &p }
	for name, c := range map[string]struct {
		policies []Named
		releases string
		warnings int
		firmware bool
	}{
		"one":          {[]Named{{"image@1", signed}}, "image@1 v2", 1, false},
		"two":          {[]Named{{"image@1", signed}, {"legacy", keylime}}, "image@1 v2, legacy", 1, false},
		"no name":      {[]Named{{"", signed}}, "v2", 1, false},
		"the second's": {[]Named{{"a", signed}, {"b", ruled(*keylime, "weak_digests = true")}}, "a v2, b", 2, false},
		"the first's":  {[]Named{{"a", ruled(*signed, "firmware = {secure_boot = true}")}, {"b", ruled(*keylime, "weak_digests = true")}}, "a v2, b", 0, true},
	} {
		ref, err := Compile([]*x509.Certificate{other, cert}, c.policies...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := strings.Join(ref.Releases(), ", "); got != c.releases || len(ref.Warnings()) != c.warnings || ref.Firmware() != c.firmware {
			t.Errorf("%s: %s, %v, %v", name, got, ref.Warnings(), ref.Firmware())
		}
	}
	for name, bad := range map[string]*Policy{"schema": {Runtime: []byte(runtime)}, "nothing": {Schema: Schema}, "rules": ruled(*keylime, "exclude = 1"),
		"another's rules": ruled(*keylime, "unknown = 1"), "no manifest": {Schema: Schema, Manifests: []string{"{}"}}} {
		if _, err := Compile([]*x509.Certificate{cert}, Named{"a", signed}, Named{"b", bad}); err == nil || !strings.Contains(err.Error(), "policy b: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "attest-manifest-*.json"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func newSigner(t testing.TB) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), SubjectKeyId: []byte{1, 2, 3, 4}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func manifestOf(t testing.TB, key *ecdsa.PrivateKey, cert *x509.Certificate) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image.attest.json")
	w, err := manifest.Create(name, manifest.Header{Name: "image"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(manifest.Entry{Path: "sbin/init", Type: manifest.File, Mode: 0o755, Digests: manifest.Digests{SHA256: sum}}); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(key, cert); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// FuzzPolicy: what is read is written and read again as the same, and compiles or is an error.
func FuzzPolicy(f *testing.F) {
	key, cert := newSigner(f)
	f.Add([]byte(runtime))
	text, err := json.Marshal(&Policy{Schema: Schema, Release: "v2", Rules: "kexec = true", Manifests: []string{manifestOf(f, key, cert)}, TPM: []byte(`{"7":["` + sum + `"]}`)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text)
		if err != nil {
			return
		}
		once, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(once)
		if err != nil {
			t.Fatalf("%s is not read again: %v", once, err)
		}
		if twice, err := json.Marshal(again); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s became %s, %v", once, twice, err)
		}
		if ref, err := Compile([]*x509.Certificate{cert}, Named{"image@1", p}); err == nil && len(ref.Releases()) != 1 {
			t.Fatal(ref.Releases())
		}
	})
}
