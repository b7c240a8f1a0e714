package evidence

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// keylime runs Keylime's Python code: $KEYLIME_PYTHON is an interpreter that has it (pip
// install keylime, in a virtual environment).
type keylime struct {
	t   *testing.T
	in  *json.Encoder
	out *bufio.Scanner
}

func startKeylime(t *testing.T) keylime {
	t.Helper()
	python := os.Getenv("KEYLIME_PYTHON")
	if python == "" {
		python = "python3"
	}
	if out, err := exec.Command(python, "-c", "import keylime.models.registrar, keylime.models.verifier, keylime.tpm.tpm_main").CombinedOutput(); err != nil {
		t.Skipf("no Keylime for %s (apt-get install python3-gpg python3-sqlalchemy python3-alembic python3-tornado python3-zmq python3-pyasn1-modules python3-jsonschema python3-psutil; python3 -m venv --system-site-packages DIR; DIR/bin/pip install keylime; KEYLIME_PYTHON=DIR/bin/python): %v\n%s", python, err, out[max(0, len(out)-300):])
	}
	cmd := exec.CommandContext(t.Context(), python, "testdata/peer.py")
	cmd.Env = append(os.Environ(), "KEYLIME_DIR="+t.TempDir())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	s := bufio.NewScanner(out)
	s.Buffer(nil, 1<<20)
	return keylime{t, json.NewEncoder(in), s}
}

// ask sends a question; a Python exception is the returned text.
func (k keylime) ask(question map[string]any, answer any) string {
	k.t.Helper()
	if err := k.in.Encode(question); err != nil {
		k.t.Fatal(err)
	}
	if !k.out.Scan() {
		k.t.Fatalf("Keylime ended: %v", k.out.Err())
	}
	var reply struct {
		OK    json.RawMessage
		Error string
	}
	if err := json.Unmarshal(k.out.Bytes(), &reply); err != nil {
		k.t.Fatal(err)
	}
	if reply.Error == "" {
		if err := json.Unmarshal(reply.OK, answer); err != nil {
			k.t.Fatalf("%s: %v", reply.OK, err)
		}
	}
	return reply.Error
}

// TestKeylime: our quotes, proofs and messages go through Keylime's code, and its credential
// through ours.
func TestKeylime(t *testing.T) {
	k := startKeylime(t)
	dev := tpmtest.Start(t).Open()
	b64 := base64.StdEncoding.EncodeToString
	for _, scheme := range []string{"rsassa", "ecdsa", "ecdsa-p384"} { // its checkquote knows no RSAPSS
		e := enrol(t, dev, scheme)
		want := Expected{AK: e.key, Nonce: NewNonce(), PCRs: Selection{"sha256": {0, 10}}}
		if e.key.Hash() == "sha384" {
			want.PCRs = Selection{"sha384": {0, 10}} // it takes the hash of the signature for the bank
		}
		ev := e.answer(t, want, nil, 0)
		der, err := x509.MarshalPKIXPublicKey(e.key.Key())
		if err != nil {
			t.Fatal(err)
		}
		question := map[string]any{
			"do": "checkquote", "ak": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), "nonce": b64(want.Nonce),
			"signature": b64(ev.Signature), "message": b64(ev.Message), "pcrs": b64(ev.PCRs), "hash": e.key.Hash(),
		}
		var pcrs map[string]string
		if msg := k.ask(question, &pcrs); msg != "" || len(pcrs) != 2 {
			t.Errorf("%s: checkquote: %s %v", scheme, msg, pcrs)
		}
		question["nonce"] = b64(NewNonce())
		if msg := k.ask(question, &pcrs); !strings.Contains(msg, "nonce") {
			t.Errorf("%s: checkquote with another nonce: %q", scheme, msg)
		}
		challenge := NewNonce()
		message, signature, err := e.ak.Certify(challenge)
		if err != nil {
			t.Fatal(err)
		}
		var ok bool
		if msg := k.ask(map[string]any{"do": "possession", "ak": b64(e.ak.Public()), "message": b64(message), "signature": b64(signature),
			"challenge": b64(challenge), "hash": e.key.Hash(), "scheme": e.key.Scheme()}, &ok); msg != "" {
			t.Errorf("%s: proof of possession: %s", scheme, msg)
		}
		e.ak.Close()
	}
}

// TestKeylimeEnrolment: its registrar's code makes the credential, checks the registration
// and computes the tag.
func TestKeylimeEnrolment(t *testing.T) {
	k := startKeylime(t)
	dev := tpmtest.Start(t).Open()
	b64 := base64.StdEncoding.EncodeToString
	for _, template := range []string{"rsa2048", "ecc-p384-high"} {
		ek, err := dev.EK(template)
		if err != nil {
			t.Fatal(err)
		}
		e := enrol(t, dev, "ecdsa")
		var made struct{ Blob, Key string }
		if msg := k.ask(map[string]any{"do": "credential", "id": "device", "ek": b64(ek.Public), "ak": b64(e.ak.Public())}, &made); msg != "" {
			t.Fatalf("%s: %s", template, msg)
		}
		answer, err := DecodeAnswer[Challenge](strings.NewReader(`{"code":200,"status":"Success","results":{"blob":"` + made.Blob + `"}}`))
		if err != nil {
			t.Fatal(err)
		}
		id, encrypted, err := answer.Results.Credential()
		if err != nil {
			t.Fatal(err)
		}
		secret, err := ek.Activate(e.ak, id, encrypted)
		if err != nil || b64(secret) != made.Key {
			t.Errorf("%s: %q, %v", template, secret, err)
		}
		var tag string
		if msg := k.ask(map[string]any{"do": "tag", "key": made.Key, "id": "device"}, &tag); msg != "" || tag != AuthTag(secret, "device") {
			t.Errorf("%s: tag %q, %s", template, tag, msg)
		}
		cert := FormatCertificates([][]byte{ek.Certificate})
		if template == "rsa2048" {
			cert = FormatCertificates([][]byte{ek.Certificate, ek.Certificate}) // PEM, as with issuers behind it
		}
		var errs []string
		msg := k.ask(map[string]any{"do": "registration", "id": "device", "body": Registration{AK: e.ak.Public(), EK: ek.Public, EKCert: &cert}}, &errs)
		if msg != "" || len(errs) > 0 {
			t.Errorf("%s: registration: %s %v", template, msg, errs)
		}
		e.ak.Close()
		ek.Close()
	}
}

// TestKeylimePush: the verifier's model reads our capabilities and our evidence, and we
// what it requests.
func TestKeylimePush(t *testing.T) {
	k := startKeylime(t)
	d := newDevice(t, "rsassa")
	n, yes, no := 2, true, false
	capabilities := Capabilities{System: SystemInfo{time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)}, Supported: []Supported{
		{ClassCertification, TypeQuote, Capability{Version: "2.0", Hashes: []string{"sha256"}, Schemes: []string{"rsassa"}, AvailablePC: Selection{"sha256": {0, 10}},
			Keys: []Key{{Class: "asymmetric", Algorithm: "rsa", Size: 2048, Server: "ak", Name: base64.StdEncoding.EncodeToString(d.ak.Name()), Public: base64.StdEncoding.EncodeToString(d.ak.Public())}}}},
		{ClassLog, TypeFirmware, Capability{Format: "2.1", Entries: &n, Partial: &no, Appendable: &no, Formats: []string{FormatBinary}}},
		{ClassLog, TypeIMA, Capability{Entries: &n, Partial: &yes, Appendable: &yes, Formats: []string{FormatBinary, FormatText}}},
	}}
	want := d.expected()
	ev := d.evidence(want, 0)
	collected := Collected{[]Item{
		{ClassCertification, TypeQuote, Data{Message: ev.Message, Signature: ev.Signature, PCRs: ev.PCRs}},
		{ClassLog, TypeFirmware, NewLog([]byte("log"), FormatBinary, -1)},
		{ClassLog, TypeIMA, NewLog([]byte("10 x\n"), FormatText, 1)},
	}}
	var got struct {
		Errors    []string
		Items     int
		Requested json.RawMessage
	}
	msg := k.ask(map[string]any{"do": "capabilities", "capabilities": capabilities, "collected": collected}, &got)
	if msg != "" || len(got.Errors) > 0 || got.Items != 3 {
		t.Fatalf("%s, %+v", msg, got)
	}
	body := bytes.Join([][]byte{[]byte(`{"data":{"type":"attestation","attributes":`), got.Requested, []byte(`}}`)}, nil)
	r, err := Decode[Requests](bytes.NewReader(body))
	if err != nil {
		t.Fatalf("%s: %v", got.Requested, err)
	}
	if q := r.Data.Attributes.Requested; len(q) != 3 || q[2].Parameters.Format != FormatText {
		t.Errorf("requested %+v", q)
	}
}
