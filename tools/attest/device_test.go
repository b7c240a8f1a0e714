package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/tpm"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// machine is a device: a TPM, and a kernel that measures.
type machine struct {
	w     *fleetWorld
	dev   *tpm.TPM
	ek    *tpm.EK
	ak    *tpm.AK
	id    string
	token string
	list  []byte
	ends  []int // of the list's entries
	http  *http.Client
}

// device does as a device does:
//
//	device boot ID         measure boot_aggregate; write the EK to ek.pem
//	device run PATH [FILE] measure FILE of the script's folder, or tree/PATH, as PATH
//	device enrol           register, and activate
//	device attest STATUS   attest, and be told this
func (w *fleetWorld) device(ts *testscript.TestScript, args []string) error {
	switch args[0] {
	case "boot":
		m, err := w.boot(args[1])
		if err != nil {
			return err
		}
		own, err := evidence.ParseEK(m.ek.Public)
		if err != nil {
			return err
		}
		der, err := x509.MarshalPKIXPublicKey(own.Key())
		if err != nil {
			return err
		}
		return os.WriteFile(ts.MkAbs("ek.pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600)
	case "run":
		file := "tree" + args[1]
		if len(args) > 2 {
			file = args[2]
		}
		content, err := os.ReadFile(ts.MkAbs(file))
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		w.machine.run(args[1], sum[:])
		return nil
	case "enrol":
		return w.machine.enrol()
	case "attest":
		got, err := w.machine.attest()
		if err == nil && got != args[1] {
			err = fmt.Errorf("the device is told %s, not %s", got, args[1])
		}
		return err
	}
	return fmt.Errorf("device %s is unknown", args[0])
}

func (w *fleetWorld) boot(id string) (*machine, error) {
	pool := x509.NewCertPool()
	pool.AddCert(w.ca)
	m := &machine{w: w, dev: w.emulator.Open(), id: id, http: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}}
	w.machine = m
	w.t.Cleanup(m.http.CloseIdleConnections)
	var err error
	if m.ek, err = m.dev.EK(""); err != nil {
		return nil, err
	}
	w.t.Cleanup(m.ek.Close)
	if m.ak, err = m.dev.CreateAK("ecdsa"); err != nil {
		return nil, err
	}
	w.t.Cleanup(m.ak.Close)
	sel, err := evidence.Selection{"sha256": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}.TPM()
	if err != nil {
		return nil, err
	}
	values, err := m.dev.PCRs(sel)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(bytes.Join(values, nil))
	m.run("boot_aggregate", sum[:])
	return m, nil
}

// run has the kernel measure a file, with template ima-ng, and the TPM extend PCR 10.
func (m *machine) run(path string, digest []byte) {
	le := binary.LittleEndian
	d := append([]byte("sha256:\x00"), digest...)
	data := append(le.AppendUint32(nil, uint32(len(d))), d...)
	data = append(le.AppendUint32(data, uint32(len(path)+1)), path+"\x00"...)
	sum := sha1.Sum(data)
	m.list = append(le.AppendUint32(m.list, 10), sum[:]...)
	m.list = append(le.AppendUint32(m.list, 6), "ima-ng"...)
	m.list = append(le.AppendUint32(m.list, uint32(len(data))), data...)
	m.ends = append(m.ends, len(m.list))
	tpmtest.Extend(m.w.t, m.dev, 10, func(h crypto.Hash) []byte { s := h.New(); s.Write(data); return s.Sum(nil) })
}

// call sends JSON; any answer but want is an error.
func (m *machine) call(method, url string, body any, want int) (*http.Response, []byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, nil, err
	}
	r, err := http.NewRequestWithContext(context.Background(), method, url, bytes.NewReader(text))
	if err != nil {
		return nil, nil, err
	}
	if m.token != "" {
		r.Header.Set("Authorization", "Bearer "+m.token)
	}
	res, err := m.http.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != want {
		err = fmt.Errorf("%s %s: %d %s", method, url, res.StatusCode, got)
	}
	return res, got, err
}

func (m *machine) enrol() error {
	ders, err := evidence.CutCertificates(m.ek.Certificate)
	if err != nil {
		return err
	}
	cert := evidence.FormatCertificates(ders)
	at := m.w.registrar + "/v2.6/agents/" + m.id
	_, text, err := m.call("POST", at, evidence.Registration{AK: m.ak.Public(), EK: m.ek.Public, EKCert: &cert}, http.StatusOK)
	if err != nil {
		return err
	}
	c, err := evidence.DecodeAnswer[evidence.Challenge](bytes.NewReader(text))
	if err != nil {
		return err
	}
	idObject, encrypted, err := c.Results.Credential()
	if err != nil {
		return err
	}
	secret, err := m.ek.Activate(m.ak, idObject, encrypted)
	if err != nil {
		return err
	}
	if _, _, err = m.call("PUT", at+"/activate", evidence.Activation{AuthTag: evidence.AuthTag(secret, m.id)}, http.StatusOK); err != nil {
		return err
	}
	return m.session()
}

// session proves possession of the AK and keeps the token.
func (m *machine) session() error {
	request := evidence.SessionRequest{Agent: m.id, Supported: []evidence.Method{evidence.Possession()}}
	_, text, err := m.call("POST", m.w.verifier+"/v3.0/sessions", evidence.NewDocument("", request), http.StatusOK)
	if err != nil {
		return err
	}
	c, err := evidence.Decode[evidence.SessionChallenge](bytes.NewReader(text))
	if err != nil {
		return err
	}
	message, signature, err := m.ak.Certify(c.Data.Attributes.Requested[0].Parameters.Challenge)
	if err != nil {
		return err
	}
	proof := evidence.NewDocument(c.Data.ID, evidence.NewSessionProof(m.id, message, signature))
	if _, text, err = m.call("PATCH", m.w.verifier+"/v3.0/sessions/"+c.Data.ID, proof, http.StatusOK); err != nil {
		return err
	}
	r, err := evidence.Decode[evidence.SessionResult](bytes.NewReader(text))
	if err != nil {
		return err
	}
	m.token = r.Data.Attributes.Token
	return nil
}

// attest does one round, and returns what the device is told.
func (m *machine) attest() (string, error) {
	n, yes := len(m.ends), true
	capabilities := evidence.Capabilities{
		Supported: []evidence.Supported{
			{Class: evidence.ClassCertification, Type: evidence.TypeQuote, Capabilities: evidence.Capability{Version: "2.0", Hashes: []string{"sha256"}, Schemes: []string{"ecdsa"},
				Keys: []evidence.Key{{Class: "asymmetric", Algorithm: "ecc", Size: 256, Server: "ak", Name: base64.StdEncoding.EncodeToString(m.ak.Name())}}}},
			{Class: evidence.ClassLog, Type: evidence.TypeIMA, Capabilities: evidence.Capability{Entries: &n, Partial: &yes, Appendable: &yes, Formats: []string{evidence.FormatBinary}}},
		},
		System: evidence.SystemInfo{BootTime: time.Now().UTC().Truncate(time.Hour)},
	}
	res, text, err := m.call("POST", m.w.verifier+"/v3.0/agents/"+m.id+"/attestations", evidence.NewDocument("", capabilities), http.StatusCreated)
	if err != nil {
		return "", err
	}
	d, err := evidence.Decode[evidence.Requests](bytes.NewReader(text))
	if err != nil {
		return "", err
	}
	var c evidence.Collected
	for _, q := range d.Data.Attributes.Requested {
		item := evidence.Item{Class: q.Class, Type: q.Type}
		if q.Type == evidence.TypeIMA {
			from, offset := 0, *q.Parameters.Offset
			if offset > 0 {
				from = m.ends[offset-1]
			}
			item.Data = evidence.NewLog(m.list[from:], q.Parameters.Format, n-offset)
		} else if item.Data, err = m.quote(q.Parameters); err != nil {
			return "", err
		}
		c.Collected = append(c.Collected, item)
	}
	if _, text, err = m.call("PATCH", m.w.verifier+res.Header.Get("Location"), evidence.NewDocument("", c), http.StatusAccepted); err != nil {
		return "", err
	}
	a, err := evidence.Decode[evidence.Accepted](bytes.NewReader(text))
	if err != nil {
		return "", err
	}
	if a.Meta == nil || a.Meta.Verdict == nil {
		return "", errors.New("no verdict in " + string(text))
	}
	return a.Meta.Verdict.State, nil
}

func (m *machine) quote(p evidence.Parameters) (evidence.Data, error) {
	sel, err := evidence.Selection(p.Selected).TPM()
	if err != nil {
		return evidence.Data{}, err
	}
	q, err := m.ak.Quote(p.Challenge, sel)
	if err != nil {
		return evidence.Data{}, err
	}
	blob, err := evidence.AppendPCRBlob(nil, sel, q.Values)
	return evidence.Data{Message: q.Message, Signature: q.Signature, PCRs: blob}, err
}
