package evidence

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crypto/x509"

	"github.com/meta-attest/meta-attest/tools/internal/tpm"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// enrolled is a TPM with its keys, as an agent and a registrar hold them.
type enrolled struct {
	dev *tpm.TPM
	ak  *tpm.AK
	key *AK
}

func enrol(t *testing.T, dev *tpm.TPM, scheme string) enrolled {
	t.Helper()
	ak, err := dev.CreateAK(scheme)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseAK(ak.Public())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(key.Name(), ak.Name()) {
		t.Errorf("the key's name is %x, the TPM says %x", key.Name(), ak.Name())
	}
	return enrolled{dev, ak, key}
}

// answer makes the evidence that want asks for, as the agent does.
func (e enrolled) answer(t *testing.T, want Expected, list []byte, offset int) *Evidence {
	t.Helper()
	selection, err := want.PCRs.TPM()
	if err != nil {
		t.Fatal(err)
	}
	q, err := e.ak.Quote(want.Nonce, selection)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := AppendPCRBlob(nil, selection, q.Values)
	if err != nil {
		t.Fatal(err)
	}
	return &Evidence{Message: q.Message, Signature: q.Signature, PCRs: blob, List: list, Offset: offset}
}

// measured extends PCR 10 of the TPM as the software device's was.
func measured(t *testing.T, dev *tpm.TPM, data []byte) {
	t.Helper()
	tpmtest.Extend(t, dev, 10, func(h crypto.Hash) []byte { s := h.New(); s.Write(data); return s.Sum(nil) })
}

// TestRealQuotes verifies quotes of a TPM: each scheme, several banks, a suspend and a boot.
func TestRealQuotes(t *testing.T) {
	emulator := tpmtest.Start(t)
	for _, scheme := range tpm.Schemes() {
		emulator.Reboot()
		dev := emulator.Open()
		e := enrol(t, dev, scheme)
		blob := e.ak.Blob()
		log := &device{t: t}
		measured(t, dev, log.append(10, "boot_aggregate"))
		measured(t, dev, log.append(10, "/bin/sh"))
		want := Expected{AK: e.key, Nonce: NewNonce(), IMA: true, PCRs: Selection{"sha256": {0, 10}, "sha384": {10}, "sha1": {10}}}
		c, state := accepted(t, e.answer(t, want, log.list, 0), want, State{})
		if got := paths(t, c); !slices.Equal(got, []string{"boot_aggregate", "/bin/sh"}) {
			t.Errorf("%s: entries %v", scheme, got)
		}

		emulator.Suspend(dev)
		dev = emulator.Open()
		var err error
		if e.ak, err = dev.LoadAK(blob); err != nil {
			t.Fatal(err)
		}
		e.dev = dev
		measured(t, dev, log.append(10, "/bin/ls"))
		want.Nonce = NewNonce()
		c, state = accepted(t, e.answer(t, want, log.from(2), 2), want, state)
		if c.Rebooted() || c.Covered() != 3 || c.Clock().RestartCount == 0 {
			t.Errorf("%s: after a suspend: covered %d, %+v", scheme, c.Covered(), c.Clock())
		}

		emulator.Reboot()
		dev = emulator.Open()
		if e.ak, err = dev.LoadAK(blob); err != nil {
			t.Fatal(err)
		}
		fresh := &device{t: t}
		measured(t, dev, fresh.append(10, "boot_aggregate"))
		want.Nonce = NewNonce()
		refused(t, e.answer(t, want, log.from(3), 3), want, state, CodeReboot)
		want.Nonce = NewNonce()
		c, _ = accepted(t, e.answer(t, want, fresh.list, 0), want, state)
		if !c.Rebooted() || c.Covered() != 1 {
			t.Errorf("%s: after a boot: covered %d", scheme, c.Covered())
		}
		e.ak.Close()
		_ = dev.Close()
	}
}

func TestPossession(t *testing.T) {
	dev := tpmtest.Start(t).Open()
	e, other := enrol(t, dev, "rsapss"), enrol(t, dev, "rsapss")
	challenge := NewNonce()
	message, signature, err := e.ak.Certify(challenge)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.key.VerifyPossession(challenge, message, signature); err != nil {
		t.Error(err)
	}
	if err := e.key.VerifyPossession(NewNonce(), message, signature); CodeOf(err) != CodeNonce {
		t.Errorf("another challenge: %v", err)
	}
	if err := other.key.VerifyPossession(challenge, message, signature); CodeOf(err) != CodeSignature {
		t.Errorf("another key: %v", err)
	}
	want := Expected{AK: e.key, Nonce: challenge, PCRs: Selection{"sha256": {10}}}
	q := e.answer(t, want, nil, 0)
	if err := e.key.VerifyPossession(challenge, q.Message, q.Signature); CodeOf(err) != CodeNotQuote {
		t.Errorf("a quote: %v", err)
	}
	q.Message, q.Signature = message, signature
	refused(t, q, want, State{}, CodeNotQuote)
}

// TestActivation is CVE-2021-3406: only the TPM that holds both keys opens the credential.
func TestActivation(t *testing.T) {
	dev, stranger := tpmtest.Start(t).Open(), tpmtest.Start(t).Open()
	for _, template := range []string{"rsa2048", "ecc-p256", "rsa2048-high", "ecc-p384-high"} {
		ek, err := dev.EK(template)
		if err != nil {
			t.Fatal(err)
		}
		public, err := ParseEK(ek.Public)
		if err != nil {
			t.Fatal(err)
		}
		e := enrol(t, dev, "ecdsa")
		secret := NewSecret()
		blob, err := public.MakeCredential(e.key, secret)
		if err != nil {
			t.Fatal(err)
		}
		id, encrypted, err := Challenge{Blob: blob}.Credential()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ek.Activate(e.ak, id, encrypted)
		if err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%s: %q, %v", template, got, err)
		}
		e.ak.Close() // a TPM without a resource manager has three slots
		wrongAK := enrol(t, dev, "ecdsa")
		if _, err := ek.Activate(wrongAK.ak, id, encrypted); !errors.Is(err, tpm.ErrCredential) {
			t.Errorf("%s: another attestation key: %v", template, err)
		}
		wrongAK.ak.Close()
		ek.Close()

		foreign, err := stranger.EK(template)
		if err != nil {
			t.Fatal(err)
		}
		thief := enrol(t, stranger, "ecdsa")
		if _, err := foreign.Activate(thief.ak, id, encrypted); !errors.Is(err, tpm.ErrCredential) {
			t.Errorf("%s: another TPM: %v", template, err)
		}
		thief.ak.Close()
		foreign.Close()
	}
}

// TestRealCertificates: the chain of swtpm's authority, with its intermediate in the store
// or sent along, as from the NV memory of a TPM.
func TestRealCertificates(t *testing.T) {
	emulator, other := tpmtest.Start(t), tpmtest.Start(t)
	dev := emulator.Open()
	ek, err := dev.EK("")
	if err != nil {
		t.Fatal(err)
	}
	defer ek.Close()
	public, err := ParseEK(ek.Public)
	if err != nil {
		t.Fatal(err)
	}
	issuer, _ := pem.Decode(emulator.Issuer)
	alone := FormatCertificates([][]byte{ek.Certificate})
	chain := FormatCertificates([][]byte{ek.Certificate, issuer.Bytes})
	for _, c := range []struct {
		name   string
		ekcert string
		store  [][]byte
		good   bool
	}{
		{"root and issuer", alone, [][]byte{emulator.RootCA, emulator.Issuer}, true},
		{"issuer alone", alone, [][]byte{emulator.Issuer}, true},
		{"root, issuer sent along", chain, [][]byte{emulator.RootCA}, true},
		{"root without issuer", alone, [][]byte{emulator.RootCA}, false},
		{"another manufacturer", chain, [][]byte{other.RootCA, other.Issuer}, false},
		{"issuer first", FormatCertificates([][]byte{issuer.Bytes, ek.Certificate}), [][]byte{emulator.RootCA}, false},
		{"none", "", [][]byte{emulator.RootCA}, false},
	} {
		store, err := NewCAStore(c.store...)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := store.Verify(c.ekcert, public, time.Now())
		if (err == nil) != c.good || err != nil && CodeOf(err) != CodeCertificate || (cert == nil) != (err != nil) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	store, err := NewCAStore(emulator.RootCA, emulator.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Verify(alone, public, time.Unix(0, 0)); CodeOf(err) != CodeCertificate {
		t.Errorf("a chain of the future: %v", err)
	}
	second, err := dev.EK("ecc-p384-high")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if _, err := store.Verify(FormatCertificates([][]byte{second.Certificate}), public, time.Now()); CodeOf(err) != CodeCertificate {
		t.Errorf("the certificate of another key: %v", err)
	}
}

// run runs a program of tpm2-tools.
func run(t *testing.T, address, name string, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+strings.TrimPrefix(address, "unix:"))
	return cmd.CombinedOutput()
}

func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed (Debian: apt-get install tpm2-tools)", p)
		}
	}
}

// TestCheckquote: tpm2-tools take our quotes, and refuse them with another nonce.
func TestCheckquote(t *testing.T) {
	need(t, "tpm2_checkquote")
	emulator := tpmtest.Start(t)
	dev := emulator.Open()
	for _, scheme := range tpm.Schemes() {
		if scheme == "rsapss" {
			continue // tpm2_checkquote 5.4 takes every RSA signature for RSASSA
		}
		e := enrol(t, dev, scheme)
		for i, selection := range []Selection{{"sha256": {0, 10}}, {"sha256": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}, {"sha256": {10}, "sha1": {10}}} {
			want := Expected{AK: e.key, Nonce: NewNonce(), PCRs: selection}
			ev := e.answer(t, want, nil, 0)
			accepted(t, ev, want, State{})
			dir := t.TempDir()
			der, err := x509.MarshalPKIXPublicKey(e.key.Key())
			if err != nil {
				t.Fatal(err)
			}
			for name, b := range map[string][]byte{
				"ak": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "msg": ev.Message, "sig": ev.Signature, "pcrs": ev.PCRs,
			} {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			check := func(nonce []byte) error {
				out, err := run(t, "", "tpm2_checkquote", "-u", filepath.Join(dir, "ak"), "-m", filepath.Join(dir, "msg"),
					"-s", filepath.Join(dir, "sig"), "-f", filepath.Join(dir, "pcrs"), "-g", e.key.Hash(), "-q", hex.EncodeToString(nonce))
				if err != nil {
					return errors.New(string(out))
				}
				return nil
			}
			if err := check(want.Nonce); err != nil {
				t.Errorf("%s, selection %d: tpm2_checkquote: %v", scheme, i, err)
			}
			if check(NewNonce()) == nil {
				t.Errorf("%s, selection %d: tpm2_checkquote takes any nonce", scheme, i)
			}
		}
		e.ak.Close()
	}
}

// TestQuoteOfTPM2Tools: keys and quotes of tpm2-tools are taken.
func TestQuoteOfTPM2Tools(t *testing.T) {
	need(t, "tpm2_createek", "tpm2_createak", "tpm2_quote", "tpm2_flushcontext")
	emulator := tpmtest.Start(t)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	must := func(name string, args ...string) {
		if out, err := run(t, emulator.Address, name, args...); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	must("tpm2_createek", "-c", file("ek.ctx"), "-G", "rsa", "-u", file("ek.pub"))
	must("tpm2_flushcontext", "-t")
	must("tpm2_createak", "-C", file("ek.ctx"), "-c", file("ak.ctx"), "-G", "rsa", "-g", "sha256", "-s", "rsassa", "-u", file("ak.pub"))
	must("tpm2_flushcontext", "-t")
	nonce := NewNonce()
	must("tpm2_quote", "-c", file("ak.ctx"), "-l", "sha256:0,10+sha1:10", "-q", hex.EncodeToString(nonce),
		"-m", file("msg"), "-s", file("sig"), "-o", file("pcrs"), "-g", "sha256")
	read := func(name string) []byte {
		b, err := os.ReadFile(file(name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, err := ParseEK(read("ek.pub")); err != nil {
		t.Error(err)
	}
	ak, err := ParseAK(read("ak.pub"))
	if err != nil {
		t.Fatal(err)
	}
	want := Expected{AK: ak, Nonce: nonce, PCRs: Selection{"sha256": {0, 10}, "sha1": {10}}}
	c, _ := accepted(t, &Evidence{Message: read("msg"), Signature: read("sig"), PCRs: read("pcrs")}, want, State{})
	if len(c.PCRs()) != 3 {
		t.Errorf("%d PCRs", len(c.PCRs()))
	}
}

// TestCredentialsOfTPM2Tools: each side opens what the other made.
func TestCredentialsOfTPM2Tools(t *testing.T) {
	need(t, "tpm2_createek", "tpm2_createak", "tpm2_makecredential", "tpm2_activatecredential", "tpm2_startauthsession", "tpm2_policysecret")
	emulator := tpmtest.Start(t)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	must := func(name string, args ...string) {
		t.Helper()
		if out, err := run(t, emulator.Address, name, args...); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	must("tpm2_createek", "-c", file("ek.ctx"), "-G", "rsa", "-u", file("ek.pub"))
	must("tpm2_flushcontext", "-t")
	must("tpm2_createak", "-C", file("ek.ctx"), "-c", file("ak.ctx"), "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-u", file("ak.pub"), "-n", file("ak.name"))
	must("tpm2_flushcontext", "-t")
	read := func(name string) []byte {
		b, err := os.ReadFile(file(name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ek, err := ParseEK(read("ek.pub"))
	if err != nil {
		t.Fatal(err)
	}
	ak, err := ParseAK(read("ak.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ak.Name(), read("ak.name")) {
		t.Error("tpm2-tools give the key another name")
	}
	secret := NewSecret()
	blob, err := ek.MakeCredential(ak, secret)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file("cred"), blob, 0o600); err != nil {
		t.Fatal(err)
	}
	must("tpm2_startauthsession", "--policy-session", "-S", file("session"))
	must("tpm2_policysecret", "-S", file("session"), "-c", "e")
	must("tpm2_activatecredential", "-c", file("ak.ctx"), "-C", file("ek.ctx"), "-i", file("cred"), "-o", file("secret"), "-P", "session:"+file("session"))
	if !bytes.Equal(read("secret"), secret) {
		t.Error("tpm2_activatecredential reads another secret")
	}
	must("tpm2_flushcontext", file("session"))
	must("tpm2_flushcontext", "-t")

	// And back: a credential of tpm2_makecredential for our keys.
	dev := emulator.Open()
	ours, err := dev.EK("rsa2048")
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	e := enrol(t, dev, "ecdsa")
	defer e.ak.Close()
	for name, b := range map[string][]byte{"ours.pub": ours.Public, "plain": secret} {
		if err := os.WriteFile(file(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := run(t, "none", "tpm2_makecredential", "-T", "none", "-u", file("ours.pub"), "-s", file("plain"),
		"-n", hex.EncodeToString(e.key.Name()), "-o", file("cred2")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	id, encrypted, err := Challenge{Blob: read("cred2")}.Credential()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ours.Activate(e.ak, id, encrypted); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCutCertificates(t *testing.T) {
	emulator := tpmtest.Start(t)
	dev := emulator.Open()
	ek, err := dev.EK("")
	if err != nil {
		t.Fatal(err)
	}
	defer ek.Close()
	public, err := ParseEK(ek.Public)
	if err != nil {
		t.Fatal(err)
	}
	store, err := NewCAStore(emulator.RootCA, emulator.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	der := ek.Certificate
	issuer, _ := pem.Decode(emulator.Issuer)
	header := []byte{0x10, 0x01, 0x00, byte((len(der) + 2) >> 8), byte(len(der) + 2), 0x10, 0x02}
	for name, raw := range map[string][]byte{
		"plain":              der,
		"padded with zeros":  append(slices.Clone(der), make([]byte, 300)...),
		"padded with ones":   append(slices.Clone(der), bytes.Repeat([]byte{0xff}, 300)...),
		"with a TCG header":  slices.Concat(header, der),
		"header and padding": slices.Concat(header, der, make([]byte, 9)),
		"header, no tag":     slices.Concat(header[:5], der),
		"with its issuer":    slices.Concat(der, issuer.Bytes, make([]byte, 5)),
	} {
		if _, err := store.Verify(base64.StdEncoding.EncodeToString(raw), public, time.Now()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, raw := range map[string][]byte{
		"cut short": der[:len(der)-1], "zeros": make([]byte, 100), "ones": bytes.Repeat([]byte{0xff}, 100), "text": []byte("hello"), "empty": {},
		"long": bytes.Repeat(der, 60), "header alone": header,
	} {
		if c, err := store.Verify(base64.StdEncoding.EncodeToString(raw), public, time.Now()); err == nil || c != nil || CodeOf(err) != CodeCertificate {
			t.Errorf("%s: %v", name, err)
		}
	}
}
