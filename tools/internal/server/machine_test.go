package server

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// machine is a device: a TPM, its keys, and a kernel that measures.
type machine struct {
	w     *world
	dev   *tpm.TPM
	ek    *tpm.EK
	ak    *tpm.AK
	id    string
	token string
	list  []byte
	ends  []int // of the list's entries
	boot  time.Time
}

func (w *world) machine(e *tpmtest.Emulator) *machine {
	w.t.Helper()
	m := &machine{w: w, dev: e.Open(), boot: w.clock.Now()}
	var err error
	if m.ek, err = m.dev.EK(""); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(m.ek.Close)
	if m.ak, err = m.dev.CreateAK("ecdsa"); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(m.ak.Close)
	ek, err := evidence.ParseEK(m.ek.Public)
	if err != nil {
		w.t.Fatal(err)
	}
	if m.id, err = ek.ID(); err != nil {
		w.t.Fatal(err)
	}
	m.measureAggregate()
	return m
}

// entry makes an ima-ng entry and its template data.
func entry(path string, digest []byte) (line, data []byte) {
	le := binary.LittleEndian
	d := append([]byte("sha256:\x00"), digest...)
	data = append(le.AppendUint32(nil, uint32(len(d))), d...)
	data = append(le.AppendUint32(data, uint32(len(path)+1)), path+"\x00"...)
	sum := sha1.Sum(data)
	line = append(le.AppendUint32(nil, 10), sum[:]...)
	line = append(le.AppendUint32(line, 6), "ima-ng"...)
	return append(le.AppendUint32(line, uint32(len(data))), data...), data
}

// run has the kernel measure a file and the TPM extend PCR 10.
func (m *machine) run(path string, digest []byte) {
	m.w.t.Helper()
	line, data := entry(path, digest)
	m.list = append(m.list, line...)
	m.ends = append(m.ends, len(m.list))
	tpmtest.Extend(m.w.t, m.dev, 10, func(h crypto.Hash) []byte { s := h.New(); s.Write(data); return s.Sum(nil) })
}

func (m *machine) runFile(path string) {
	m.w.t.Helper()
	m.run(path, content(path))
}

// content is the digest of the file at path in the release of policyOf.
func content(path string) []byte {
	sum := sha256.Sum256([]byte("content of " + path))
	return sum[:]
}

// measureAggregate measures boot_aggregate as Linux does: SHA-256 of PCR 0 to 9.
func (m *machine) measureAggregate() {
	m.w.t.Helper()
	sel, err := evidence.Selection{"sha256": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}.TPM()
	if err != nil {
		m.w.t.Fatal(err)
	}
	values, err := m.dev.PCRs(sel)
	if err != nil {
		m.w.t.Fatal(err)
	}
	sum := sha256.Sum256(bytes.Join(values, nil))
	m.run("boot_aggregate", sum[:])
}

func (m *machine) from(entry int) []byte {
	switch {
	case entry == 0:
		return m.list
	case entry > len(m.ends):
		return nil // it has booted since
	}
	return m.list[m.ends[entry-1]:]
}

func (m *machine) registration() evidence.Registration {
	issuers := append([]byte{}, m.ek.Certificate...)
	ders, err := evidence.CutCertificates(issuers)
	if err != nil {
		m.w.t.Fatal(err)
	}
	cert := evidence.FormatCertificates(ders)
	return evidence.Registration{AK: m.ak.Public(), EK: m.ek.Public, EKCert: &cert}
}

// enrol registers and activates under id.
func (m *machine) enrol(change ...func(*evidence.Registration)) {
	m.w.t.Helper()
	r := m.registration()
	for _, f := range change {
		f(&r)
	}
	a := m.w.send("POST", m.w.registrar+"/v2.6/agents/"+m.id, "", r)
	if a.status != http.StatusOK {
		m.w.t.Fatalf("register: %d %s", a.status, a.body)
	}
	challenge, err := evidence.DecodeAnswer[evidence.Challenge](bytes.NewReader(a.body))
	if err != nil {
		m.w.t.Fatal(err)
	}
	a = m.w.send("PUT", m.w.registrar+"/v2.6/agents/"+m.id+"/activate", "", evidence.Activation{AuthTag: evidence.AuthTag(m.open(challenge.Results), m.id)})
	if a.status != http.StatusOK {
		m.w.t.Fatalf("activate: %d %s", a.status, a.body)
	}
}

// open opens a credential with the TPM.
func (m *machine) open(c evidence.Challenge) []byte {
	m.w.t.Helper()
	idObject, encrypted, err := c.Credential()
	if err != nil {
		m.w.t.Fatal(err)
	}
	secret, err := m.ek.Activate(m.ak, idObject, encrypted)
	if err != nil {
		m.w.t.Fatal(err)
	}
	return secret
}

// session proves possession of the AK and keeps the token.
func (m *machine) session() {
	m.w.t.Helper()
	a := m.w.send("POST", m.w.verifier+"/v3.0/sessions", "", evidence.NewDocument("", evidence.SessionRequest{Agent: m.id, Supported: []evidence.Method{evidence.Possession()}}))
	if a.status != http.StatusOK {
		m.w.t.Fatalf("session: %d %s", a.status, a.body)
	}
	c, err := evidence.Decode[evidence.SessionChallenge](bytes.NewReader(a.body))
	if err != nil {
		m.w.t.Fatal(err)
	}
	message, signature, err := m.ak.Certify(c.Data.Attributes.Requested[0].Parameters.Challenge)
	if err != nil {
		m.w.t.Fatal(err)
	}
	a = m.w.send("PATCH", m.w.verifier+"/v3.0/sessions/"+c.Data.ID, "", evidence.NewDocument(c.Data.ID, evidence.NewSessionProof(m.id, message, signature)))
	if a.status != http.StatusOK {
		m.w.t.Fatalf("prove session: %d %s", a.status, a.body)
	}
	r, err := evidence.Decode[evidence.SessionResult](bytes.NewReader(a.body))
	if err != nil {
		m.w.t.Fatal(err)
	}
	m.token = r.Data.Attributes.Token
}

func (m *machine) capabilities() evidence.Capabilities {
	n, yes := len(m.ends), true
	return evidence.Capabilities{
		Supported: []evidence.Supported{
			{Class: evidence.ClassCertification, Type: evidence.TypeQuote, Capabilities: evidence.Capability{Version: "2.0", Hashes: []string{"sha256"}, Schemes: []string{"ecdsa"},
				Keys: []evidence.Key{{Class: "asymmetric", Algorithm: "ecc", Size: 256, Server: "ak", Name: base64.StdEncoding.EncodeToString(m.ak.Name())}}}},
			{Class: evidence.ClassLog, Type: evidence.TypeIMA, Capabilities: evidence.Capability{Entries: &n, Partial: &yes, Appendable: &yes, Formats: []string{evidence.FormatBinary, evidence.FormatText}}},
		},
		System: evidence.SystemInfo{BootTime: m.boot.UTC()},
	}
}

// negotiate asks what to send.
func (m *machine) negotiate() (location string, asked evidence.Requests) {
	m.w.t.Helper()
	a := m.w.send("POST", m.w.verifier+"/v3.0/agents/"+m.id+"/attestations", m.token, evidence.NewDocument("", m.capabilities()))
	if a.status != http.StatusCreated {
		m.w.t.Fatalf("negotiate: %d %s", a.status, a.body)
	}
	d, err := evidence.Decode[evidence.Requests](bytes.NewReader(a.body))
	if err != nil {
		m.w.t.Fatal(err)
	}
	return a.header.Get("Location"), d.Data.Attributes
}

// collect makes what was asked for.
func (m *machine) collect(asked evidence.Requests) evidence.Collected {
	m.w.t.Helper()
	var c evidence.Collected
	for _, q := range asked.Requested {
		item := evidence.Item{Class: q.Class, Type: q.Type}
		if q.Type == evidence.TypeIMA {
			item.Data = evidence.NewLog(m.from(*q.Parameters.Offset), q.Parameters.Format, len(m.ends)-*q.Parameters.Offset)
		} else {
			item.Data = m.quote(q.Parameters)
		}
		c.Collected = append(c.Collected, item)
	}
	return c
}

func (m *machine) quote(p evidence.Parameters) evidence.Data {
	m.w.t.Helper()
	sel, err := evidence.Selection(p.Selected).TPM()
	if err != nil {
		m.w.t.Fatal(err)
	}
	q, err := m.ak.Quote(p.Challenge, sel)
	if err != nil {
		m.w.t.Fatal(err)
	}
	blob, err := evidence.AppendPCRBlob(nil, sel, q.Values)
	if err != nil {
		m.w.t.Fatal(err)
	}
	return evidence.Data{Message: q.Message, Signature: q.Signature, PCRs: blob}
}

// submit sends evidence and returns the answer.
func (m *machine) submit(location string, c evidence.Collected) answer {
	m.w.t.Helper()
	return m.w.send("PATCH", m.w.verifier+location, m.token, evidence.NewDocument("", c))
}

// attest does one round and returns what the device is told.
func (m *machine) attest() evidence.Verdict {
	m.w.t.Helper()
	location, asked := m.negotiate()
	a := m.submit(location, m.collect(asked))
	if a.status != http.StatusAccepted {
		m.w.t.Fatalf("attest: %d %s", a.status, a.body)
	}
	d, err := evidence.Decode[evidence.Accepted](bytes.NewReader(a.body))
	if err != nil {
		m.w.t.Fatal(err)
	}
	if d.Meta == nil || d.Meta.Verdict == nil || d.Meta.Next == 0 {
		m.w.t.Fatalf("attest: no verdict or time in %s", a.body)
	}
	return *d.Meta.Verdict
}

func (m *machine) expect(status store.Status, codes string) {
	m.w.t.Helper()
	if v := m.attest(); v.State != string(status) {
		m.w.t.Fatalf("the device is told %+v, want %s", v, status)
	}
	m.w.expect(m.id, status, codes)
}

// direct calls a handler without a network.
func (m *machine) direct(h http.Handler, method, path string, body []byte) answer {
	return m.directFrom(h, method, path, bytes.NewReader(body))
}

func (m *machine) directFrom(h http.Handler, method, path string, body io.Reader) answer {
	m.w.t.Helper()
	r := httptest.NewRequestWithContext(m.w.t.Context(), method, path, body)
	r.Header.Set("Authorization", "Bearer "+m.token)
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return answer{rec.Code, rec.Header(), rec.Body.Bytes()}
}
