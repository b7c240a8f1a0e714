package notice

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func keyPair(t testing.TB, curve elliptic.Curve) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "notices"}, NotAfter: time.Now().Add(-time.Hour)}
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

func example() *Event {
	sum := sha256.Sum256([]byte("event 41"))
	return New("urn:meta-attest:fleet:00", 41, sum[:], time.Date(2026, 11, 22, 10, 0, 0, 123456789, time.UTC), Data{Device: "gateway-17", Group: "paris <1>",
		Labels: map[string]string{"address": "192.0.2.7"}, Status: "untrusted", Codes: []string{"changed_file"},
		Reason: &Reason{Code: "changed_file", Path: `/usr/bin/greets "é" .sh`, Advice: "reinstall it"}})
}

func TestEnvelope(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		key, cert := keyPair(t, curve)
		other, foreign := keyPair(t, curve)
		b, err := Sign(example(), key, cert)
		if err != nil {
			t.Fatal(err)
		}
		e, payload, err := Open(b, []*x509.Certificate{foreign, cert})
		if err != nil {
			t.Fatal(err)
		}
		if again, err := e.Marshal(); err != nil || !bytes.Equal(again, payload) || e.Seq() != 41 {
			t.Errorf("%s, %v, want %s", again, err, payload)
		}
		if _, _, err := Open(b, []*x509.Certificate{foreign}); !errors.Is(err, ErrNotAuthentic) {
			t.Errorf("signed by a stranger: %v", err)
		}
		if _, err := Sign(example(), other, cert); err == nil {
			t.Error("signed with the key of another certificate")
		}
		for i := range b {
			changed := bytes.Clone(b)
			changed[i] ^= 1
			if _, _, err := Open(changed, []*x509.Certificate{cert}); err == nil && !onlyHint(b, changed) {
				t.Errorf("byte %d of %d changed: taken", i, len(b))
			}
		}
	}
	key, cert := keyPair(t, elliptic.P521())
	if _, err := Sign(example(), key, cert); err == nil {
		t.Error("signed with P-521, which devices do not know")
	}
}

// onlyHint says whether two envelopes differ in the hint at the key only.
func onlyHint(a, b []byte) bool {
	x, errX := parseEnvelope(a)
	y, errY := parseEnvelope(b)
	return errX == nil && errY == nil && bytes.Equal(x.Payload, y.Payload) && bytes.Equal(x.Signatures[0].Sig, y.Signatures[0].Sig)
}

// TestRefused: what is signed has to be a notice all the same, and an envelope one of ours.
func TestRefused(t *testing.T) {
	key, cert := keyPair(t, elliptic.P256())
	for name, change := range map[string]func(*Event){
		"number":             func(e *Event) { e.Sequence = "41" },
		"number 0":           func(e *Event) { e.Sequence = fmt.Sprintf("%019d", 0) },
		"negative number":    func(e *Event) { e.Sequence = fmt.Sprintf("%019d", -41) },
		"id":                 func(e *Event) { e.ID = "42" + e.ID[2:] },
		"id of another hash": func(e *Event) { e.ID = e.ID[:len(e.ID)-1] },
		"subject":            func(e *Event) { e.Subject = "other" },
		"name of a device":   func(e *Event) { e.Subject, e.Data.Device = "../x", "../x" },
		"status":             func(e *Event) { e.Data.Status = "unverified"; e.Type = typePrefix + "unverified" },
		"type":               func(e *Event) { e.Type = typePrefix + "trusted" },
		"schema":             func(e *Event) { e.Data.Schema = "attest.notice/v2" },
		"version":            func(e *Event) { e.SpecVersion = "0.3" },
		"source":             func(e *Event) { e.Source = "" },
		"time":               func(e *Event) { e.Time = time.Time{} },
		"NUL":                func(e *Event) { e.Data.Labels["a"] = "x\x00y" },
		"NUL in a name":      func(e *Event) { e.Data.Labels["a\x00"] = "x" },
		"long":               func(e *Event) { e.Data.Reason.Path = strings.Repeat("x", maxText+1) },
		"many":               func(e *Event) { e.Data.Codes = make([]string, maxCodes+1) },
	} {
		e := example()
		change(e)
		if _, err := e.Marshal(); err == nil {
			t.Errorf("%s: written", name)
		}
		payload, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := Open(signed(t, key, cert, MediaType, payload), []*x509.Certificate{cert}); err == nil || errors.Is(err, ErrNotAuthentic) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good, err := example().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	envelope := signed(t, key, cert, MediaType, good)
	more := bytes.Replace(good, []byte(`{`), []byte(`{"later":"version",`), 1)
	if _, _, err := Open(signed(t, key, cert, MediaType, more), []*x509.Certificate{cert}); err != nil {
		t.Errorf("a member of a later version: %v", err)
	}
	for name, b := range map[string][]byte{
		"another type of payload": signed(t, key, cert, "application/vnd.in-toto+json", good),
		"blanks":                  append(envelope, '\n'),
		"a member twice":          bytes.Replace(envelope, []byte(`"payload":`), []byte(`"payload":"","payload":`), 1),
		"another member":          bytes.Replace(envelope, []byte(`"payload":`), []byte(`"x":1,"payload":`), 1),
		"no signature":            append(bytes.Clone(envelope[:bytes.Index(envelope, []byte(`"signatures"`))]), `"signatures":[]}`...),
		"a million signatures":    []byte(`{"payloadType":"` + MediaType + `","payload":"","signatures":[` + strings.Repeat(`{"keyid":"","sig":""},`, 1_000_000) + `{}]}`),
		"huge":                    bytes.Repeat([]byte("{"), MaxSize+1),
		"nothing":                 nil,
		"null":                    []byte("null"),
	} {
		if _, _, err := Open(b, []*x509.Certificate{cert}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func signed(t *testing.T, key *ecdsa.PrivateKey, cert *x509.Certificate, typ string, payload []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(typ), typ, len(payload), payload))
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(envelope{typ, payload, []signature{{KeyID(cert), sig}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSecret(t *testing.T) {
	good := base64.StdEncoding.EncodeToString(make([]byte, 24))
	if s, err := ParseSecret(" whsec_" + good + "\n"); err != nil || len(s) != 24 {
		t.Errorf("%d bytes, %v", len(s), err)
	}
	for _, text := range []string{"", good, "whsec_", "whsec_AAAA", "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 65)), "whsk_" + good} {
		if _, err := ParseSecret(text); err == nil || good != "" && strings.Contains(err.Error(), good) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestCertificates(t *testing.T) {
	_, cert := keyPair(t, elliptic.P256())
	one := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	if certs, err := ParseCertificates(append([]byte("a comment\n"), bytes.Repeat(one, 2)...)); err != nil || len(certs) != 2 {
		t.Errorf("%d certificates, %v", len(certs), err)
	}
	_, strange := keyPair(t, elliptic.P521())
	for name, text := range map[string][]byte{"none": nil, "many": bytes.Repeat(one, maxCerts+1), "a key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"}),
		"of P-521": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: strange.Raw}), "damaged": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw[:100]})} {
		if _, err := ParseCertificates(text); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestPeers has the CloudEvents SDK read what we write, and the libraries of Standard
// Webhooks and of DSSE's authors verify it.
func TestPeers(t *testing.T) {
	python := peers(t)
	key, cert := keyPair(t, elliptic.P256())
	e := example()
	body, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := Sign(e, key, cert)
	if err != nil {
		t.Fatal(err)
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	h := http.Header{"Content-Type": {MediaType + "; charset=utf-8"}}
	Secret(secret).Sign(h, e.ID, time.Now(), body)
	headers := map[string]string{}
	for name := range h {
		headers[strings.ToLower(name)] = h.Get(name)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	input, err := json.Marshal(map[string]any{"body": string(body), "headers": headers, "secret": "whsec_" + base64.StdEncoding.EncodeToString(secret),
		"envelope": string(envelope), "public": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})), "keyid": KeyID(cert), "scheme": "ecdsa-sha2-nistp256"})
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), python, "testdata/peer.py")
	c.Stdin = bytes.NewReader(input)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	var got struct {
		ID, Type, Source, Subject, SpecVersion, Sequence, Time string
		Data                                                   Data
		Signers                                                []string
		PayloadType                                            string `json:"payload_type"`
		Payload                                                string
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.ID != e.ID || got.Type != e.Type || got.Source != e.Source || got.Subject != e.Subject || got.SpecVersion != "1.0" || got.Sequence != e.Sequence ||
		got.Time != "2026-11-22T10:00:00.123456+00:00" || got.Data.Reason.Path != e.Data.Reason.Path {
		t.Errorf("the CloudEvents SDK reads %+v", got)
	}
	if len(got.Signers) != 1 || got.Signers[0] != KeyID(cert) || got.PayloadType != MediaType || got.Payload != string(body) {
		t.Errorf("securesystemslib reads %+v", got)
	}
}

// peers finds a Python with the libraries, or makes one in the user's cache.
func peers(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	dir := filepath.Join(cache, "meta-attest", "notice-peers-1")
	python := filepath.Join(dir, "bin", "python")
	done := filepath.Join(dir, "complete")
	if _, err := os.Stat(done); err == nil {
		return python
	}
	for _, args := range [][]string{{"python3", "-m", "venv", "--clear", dir},
		{python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "cloudevents==2.2.0", "standardwebhooks==1.1.0", "securesystemslib[crypto]==1.6.0"}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("no Python with cloudevents, standardwebhooks and securesystemslib: %v: %s", err, out)
		}
	}
	if err := os.WriteFile(done, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return python
}

func FuzzOpen(f *testing.F) {
	key, cert := keyPair(f, elliptic.P256())
	b, err := Sign(example(), key, cert)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"payloadType":"` + MediaType + `","payload":"","signatures":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := parseEnvelope(b)
		if err != nil {
			return
		}
		if again, err := json.Marshal(v); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s, %v", again, err)
		}
		if e, _, err := Open(b, []*x509.Certificate{cert}); err == nil && e.Seq() != 41 {
			t.Errorf("forged: %+v", e)
		}
	})
}

func FuzzParse(f *testing.F) {
	b, err := example().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Parse(b)
		if err != nil {
			return
		}
		again, err := e.Marshal()
		if err != nil {
			return // the encoding may be longer than what was read
		}
		twice, err := Parse(again)
		if err != nil {
			t.Fatalf("%v: %s", err, again)
		}
		if last, err := twice.Marshal(); err != nil || !bytes.Equal(last, again) {
			t.Errorf("%s, want %s, %v", last, again, err)
		}
	})
}
