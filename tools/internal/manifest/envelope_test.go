package manifest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sigstore/sigstore/pkg/signature"
	sigdsse "github.com/sigstore/sigstore/pkg/signature/dsse"
)

// identity is a key with its certificate.
type identity struct {
	crypto.Signer
	cert *x509.Certificate
}

func newIdentity(t testing.TB, name string, key crypto.Signer, err error) identity {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return identity{key, cert}
}

func newP256(t testing.TB, name string) identity {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return newIdentity(t, name, key, err)
}

var keyring struct {
	sync.Once
	ids map[string]identity
}

func newEd25519(t testing.TB) identity {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return newIdentity(t, "ed", key, err)
}

// identities has one of each kind of key that signs manifests.
func identities(t testing.TB) map[string]identity {
	keyring.Do(func() {
		keyring.ids = make(map[string]identity)
		for name, c := range map[string]elliptic.Curve{"p256": elliptic.P256(), "p384": elliptic.P384(), "p521": elliptic.P521()} {
			key, err := ecdsa.GenerateKey(c, rand.Reader)
			keyring.ids[name] = newIdentity(t, name, key, err)
		}
		for name, bits := range map[string]int{"rsa2048": 2048, "rsa3072": 3072, "rsa4096": 4096} {
			key, err := rsa.GenerateKey(rand.Reader, bits)
			keyring.ids[name] = newIdentity(t, name, key, err)
		}
	})
	return keyring.ids
}

// write makes a manifest of es at path.
func write(t testing.TB, path string, id identity, es []Entry) {
	t.Helper()
	w, err := Create(path, exampleHeader)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(id, id.cert); err != nil {
		t.Fatal(err)
	}
}

// read opens the manifest at path and returns it with all its entries.
func read(t testing.TB, path string, trusted ...*x509.Certificate) (*Manifest, []Entry) {
	t.Helper()
	m, err := Open(path, trusted)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	var es []Entry
	for e, err := range m.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		es = append(es, e)
	}
	return m, es
}

func slurp(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEachKey(t *testing.T) {
	for name, id := range identities(t) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "i.attest.json")
			write(t, path, id, example)
			first := slurp(t, path)
			other := newP256(t, "other")
			m, es := read(t, path, other.cert, id.cert)
			if diff := cmp.Diff(example, es) + cmp.Diff(exampleHeader, m.Header); diff != "" {
				t.Error(diff)
			}
			if m.SignedBy != id.cert || m.Count != len(example) || !cmp.Equal(m.Algorithms, []string{"sha256", "sha384", "sha512"}) {
				t.Errorf("signed by %q, %d entries, algorithms %v", m.SignedBy.Subject, m.Count, m.Algorithms)
			}
			write(t, path, id, example)
			if !bytes.Equal(first, slurp(t, path)) {
				t.Error("the same entries and key gave other bytes")
			}
			for _, trusted := range [][]*x509.Certificate{nil, {other.cert}} {
				if _, err := Open(path, trusted); !errors.Is(err, ErrNotAuthentic) {
					t.Errorf("with %d other certificates: %v", len(trusted), err)
				}
			}
		})
	}
}

// TestSigstoreAgrees has sigstore's DSSE verify ours, and us verify sigstore's.
func TestSigstoreAgrees(t *testing.T) {
	for name, id := range identities(t) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "i.attest.json")
			write(t, path, id, example)
			payload := marshal(t, exampleHeader, example)
			sv, err := signature.LoadDefaultSignerVerifier(id.Signer)
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			opts := []sigdsse.Option{sigdsse.WithDecodedPayload(&got), sigdsse.WithExpectedPayloadType(payloadType)}
			envelope := slurp(t, path)
			if err := sigdsse.WrapVerifier(sv, opts...).VerifySignature(bytes.NewReader(envelope), nil); err != nil {
				t.Errorf("WrapVerifier: %v", err)
			}
			if !bytes.Equal(got, payload) {
				t.Errorf("sigstore read another payload:\n%s", got)
			}
			if err := sigdsse.WrapMultiVerifierWithOpts(payloadType, 1, []signature.Verifier{sv}, opts...).VerifySignature(bytes.NewReader(envelope), nil); err != nil {
				t.Errorf("WrapMultiVerifier: %v", err)
			}
			other := identities(t)["p256"]
			so, err := signature.LoadDefaultSignerVerifier(other.Signer)
			if err != nil {
				t.Fatal(err)
			}
			for kind, signer := range map[string]signature.Signer{
				"WrapSigner":      sigdsse.WrapSigner(sv, payloadType),
				"WrapMultiSigner": sigdsse.WrapMultiSigner(payloadType, so, sv),
			} {
				env, err := signer.SignMessage(bytes.NewReader(payload))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, env, 0o644); err != nil {
					t.Fatal(err)
				}
				if _, es := read(t, path, id.cert); !cmp.Equal(es, example) {
					t.Errorf("%s: %d entries", kind, len(es))
				}
			}
		})
	}
}

// TestOpenSSLAgrees has openssl verify ours, and us verify openssl's.
func TestOpenSSLAgrees(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skipf("no openssl to compare with: %v", err)
	}
	hashes := map[string]string{"p384": "-sha384", "p521": "-sha512"}
	for name, id := range identities(t) {
		t.Run(name, func(t *testing.T) {
			dir, hash := t.TempDir(), hashes[name]
			if hash == "" {
				hash = "-sha256"
			}
			file := func(name string, b []byte) {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			openssl := func(args ...string) {
				cmd := exec.CommandContext(t.Context(), "openssl", args...)
				cmd.Dir = dir
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("openssl %v: %v\n%s", args, err, out)
				}
			}
			key, err := x509.MarshalPKCS8PrivateKey(id.Signer)
			if err != nil {
				t.Fatal(err)
			}
			file("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
			openssl("pkey", "-in", "key.pem", "-pubout", "-out", "pub.pem")

			path := filepath.Join(dir, "i.attest.json")
			write(t, path, id, example)
			var env struct {
				PayloadType string
				Payload     []byte
				Signatures  []struct{ KeyID, Sig string }
			}
			if err := json.Unmarshal(slurp(t, path), &env); err != nil {
				t.Fatal(err)
			}
			sig, err := base64.StdEncoding.DecodeString(env.Signatures[0].Sig)
			if err != nil {
				t.Fatal(err)
			}
			file("sig", sig)
			file("pae", fmt.Appendf(nil, "DSSEv1 28 application/vnd.in-toto+json %d %s", len(env.Payload), env.Payload))
			openssl("dgst", hash, "-verify", "pub.pem", "-signature", "sig", "pae")

			openssl("dgst", hash, "-sign", "key.pem", "-out", "sig2", "pae")
			sig2 := base64.StdEncoding.EncodeToString(slurp(t, filepath.Join(dir, "sig2")))
			file("i.attest.json", bytes.Replace(slurp(t, path), []byte(env.Signatures[0].Sig), []byte(sig2), 1))
			if _, es := read(t, path, id.cert); !cmp.Equal(es, example) {
				t.Errorf("%d entries", len(es))
			}
			if strings.HasPrefix(name, "rsa") && !bytes.Equal(sig, slurp(t, filepath.Join(dir, "sig2"))) {
				t.Error("our RSA signature differs from openssl's")
			}
		})
	}
}

// TestFlippedBits flips each bit of a manifest. Only the key id may change unnoticed.
func TestFlippedBits(t *testing.T) {
	id := newP256(t, "id")
	path := filepath.Join(t.TempDir(), "i.attest.json")
	es := []Entry{example[1]}
	for len(marshal(t, exampleHeader, es))%3 != 1 { // for two bytes of padding and four spare bits
		es[0].Path += "d"
	}
	write(t, path, id, es)
	good := slurp(t, path)
	keyid := bytes.Index(good, []byte("SHA256:"))
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if err := os.WriteFile(path, bad, 0o644); err != nil {
				t.Fatal(err)
			}
			m, err := Open(path, []*x509.Certificate{id.cert})
			if err == nil {
				m.Close()
			}
			if hint := i >= keyid && i < keyid+50; err == nil && !hint {
				t.Errorf("byte %d, bit %d (%q): opened", i, bit, bad[max(0, i-10):i+1])
			}
		}
	}
}

// TestSignedNonsense shows that a good signature does not excuse a bad form.
func TestSignedNonsense(t *testing.T) {
	id := newP256(t, "id")
	sv, err := signature.LoadDefaultSignerVerifier(id.Signer)
	if err != nil {
		t.Fatal(err)
	}
	payload := marshal(t, exampleHeader, example)
	for _, tt := range []struct{ name, payload, typ, want string }{
		{"not canonical", strings.Replace(string(payload), `"uid"`, `"UID"`, 1), payloadType, `entry 1 (line 2): "bin": not in canonical form`},
		{"empty", "", payloadType, "line 1: unexpected EOF"},
		{"other payload type", string(payload), "application/json", "not a DSSE envelope of type application/vnd.in-toto+json"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env, err := sigdsse.WrapSigner(sv, tt.typ).SignMessage(strings.NewReader(tt.payload))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "i.attest.json")
			if err := os.WriteFile(path, env, 0o644); err != nil {
				t.Fatal(err)
			}
			_, err = Open(path, []*x509.Certificate{id.cert})
			checkErr(t, err, tt.want)
			checkErr(t, err, path)
		})
	}
}

func TestEnvelopeRefused(t *testing.T) {
	id := newP256(t, "id")
	path := filepath.Join(t.TempDir(), "i.attest.json")
	write(t, path, id, example)
	good := string(slurp(t, path))
	sigs := good[strings.Index(good, `[{"keyid"`)+1 : len(good)-3]
	tests := []struct{ name, old, new, want string }{
		{"empty", good, "", "read envelope"},
		{"short", good, envelopeHead[:20], "read envelope"},
		{"head only", good, envelopeHead, "payload does not end"},
		{"keys in another order", `{"payloadType"`, `{"signatures":[],"payloadType"`, "not a DSSE envelope"},
		{"key in another case", `"payloadType"`, `"payloadtype"`, "not a DSSE envelope"},
		{"space", `,"signatures"`, `, "signatures"`, "parse envelope: not in canonical"},
		{"two line ends", "}]}\n", "}]}\n\n", "parse envelope: not in canonical"},
		{"bytes after", "}]}\n", "}]}\n{}", "parse envelope: "},
		{"cut", "}]}\n", "}]", "parse envelope: "},
		{"no signatures", sigs, "", "not signed by a trusted certificate: 0 signatures, 1 certificates"},
		{"null signatures", "[" + sigs + "]", "null", "parse envelope: not in canonical"},
		{"unknown key", `{"keyid"`, `{"x":0,"keyid"`, "parse envelope: not in canonical"},
		{"sixteen signatures", sigs, strings.Repeat(sigs+",", 15) + sigs, ""},
		{"seventeen signatures", sigs, strings.Repeat(sigs+",", 16) + sigs, "17 signatures, at most 16"},
		{"long key id", `"keyid":"`, `"keyid":"` + strings.Repeat("k", 250), "signature 1: key id of 300"},
		{"long signature", `"sig":"`, `"sig":"` + strings.Repeat("AAAA", 683), "signature 1: key id of 50"},
		{"long tail", `"keyid":"`, `"keyid":"` + strings.Repeat("k", maxTail), "parse envelope: "},
		{"empty signature", sigs, `{"keyid":"","sig":""}`, "not signed by a trusted certificate: 1 signatures"},
		{"signature not base64", `"sig":"`, `"sig":"*`, "parse envelope: "},
		{"line break in signature", `"sig":"`, `"sig":"\n`, "parse envelope: not in canonical"},
		{"payload not base64", `"payload":"`, `"payload":"****`, "read payload: illegal base64"},
		{"URL base64", `"payload":"`, `"payload":"-__-`, "read payload: illegal base64"},
		{"line breaks in payload", `"payload":"`, "\"payload\":\"\n\n\n\n", "read payload: payload is not strict base64"},
		{"payload with odd length", `"payload":"`, `"payload":"A`, "are not padded base64"},
		{"padding at the start", `"payload":"`, `"payload":"AA==`, "read payload: "},
		{"bytes added to payload", `","signatures"`, `IAo=","signatures"`, "read payload: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if !strings.Contains(good, tt.old) {
				t.Fatalf("nothing to replace: %q", tt.old)
			}
			if err := os.WriteFile(path, []byte(strings.Replace(good, tt.old, tt.new, 1)), 0o644); err != nil {
				t.Fatal(err)
			}
			m, err := Open(path, []*x509.Certificate{id.cert})
			if err == nil {
				m.Close()
			}
			checkErr(t, err, tt.want)
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	id := newP256(t, "id")
	good := filepath.Join(dir, "good")
	write(t, good, id, nil)
	huge := filepath.Join(dir, "huge")
	if err := errors.Join(os.WriteFile(huge, nil, 0o644), os.Truncate(huge, maxFile+1)); err != nil {
		t.Fatal(err)
	}
	odd, err := rsa.GenerateKey(rand.Reader, 1024)
	oddID := newIdentity(t, "rsa1024", odd, err)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	p224ID := newIdentity(t, "p224", p224, err)
	for _, tt := range []struct {
		name, path string
		cert       *x509.Certificate
		want       string
	}{
		{"no file", filepath.Join(dir, "none"), id.cert, "no such file"},
		{"directory", dir, id.cert, "not a regular file"},
		{"device", os.DevNull, id.cert, "not a regular file"},
		{"huge file", huge, id.cert, "at most 1073741824"},
		{"Ed25519 certificate", good, newEd25519(t).cert, `use certificate "CN=ed": Ed25519 key: unsupported`},
		{"RSA-1024 certificate", good, oddID.cert, `use certificate "CN=rsa1024": RSA key: unsupported`},
		{"P-224 certificate", good, p224ID.cert, `use certificate "CN=p224": ECDSA key: unsupported`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Open(tt.path, []*x509.Certificate{tt.cert})
			checkErr(t, err, tt.want)
			checkErr(t, err, tt.path)
		})
	}
}

// TestChangedWhileRead changes the file under an open manifest.
func TestChangedWhileRead(t *testing.T) {
	id := newP256(t, "id")
	path := filepath.Join(t.TempDir(), "i.attest.json")
	write(t, path, id, example)
	m, err := Open(path, []*x509.Certificate{id.cert})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	other := []Entry{{Path: "evil", Type: Dir}}
	evil := path + ".evil"
	write(t, evil, id, other)
	for name, b := range map[string][]byte{"overwritten": append(slurp(t, evil), slurp(t, path)...), "cut": slurp(t, path)[:100]} {
		if err := os.WriteFile(path, b, 0o644); err != nil { // the same inode
			t.Fatal(err)
		}
		n := 0
		for _, got := range m.Entries() {
			if n, err = n+1, got; err == nil {
				t.Fatalf("%s: an entry came", name)
			}
		}
		if n != 1 || !errors.Is(err, errChanged) {
			t.Errorf("%s: %d results, last error %v", name, n, err)
		}
	}
}

func FuzzEnvelope(f *testing.F) {
	id := newP256(f, "id")
	path := filepath.Join(f.TempDir(), "i.attest.json")
	for _, es := range [][]Entry{nil, example[:1], example} {
		write(f, path, id, es)
		f.Add(slurp(f, path))
	}
	f.Add([]byte(envelopeHead + `","signatures":[]}`))
	f.Add([]byte(envelopeHead + `YQ==","signatures":[{"keyid":"","sig":"AA=="},{"keyid":"k","sig":""}]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := newSnapshot(bytes.NewReader(in), int64(len(in)))
		if err != nil {
			t.Fatal(err)
		}
		e, err := parseEnvelope(s)
		if err != nil {
			if e != nil {
				t.Fatalf("kept an envelope with %v", err)
			}
			return
		}
		var payload bytes.Buffer
		if _, err := payload.ReadFrom(e.payload(s)); err != nil {
			return
		}
		if int64(payload.Len()) != e.size {
			t.Fatalf("payload of %d bytes, announced %d", payload.Len(), e.size)
		}
		out := base64.StdEncoding.AppendEncode([]byte(envelopeHead), payload.Bytes())
		if out = appendTail(out, e.signatures); !bytes.Equal(out, bytes.TrimSuffix(in, []byte("\n"))) {
			t.Fatalf("wrote back %q", out)
		}
	})
}
