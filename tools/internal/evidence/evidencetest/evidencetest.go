// Package evidencetest gives tests a device whose TPM is software: unlike a real one it has
// the counters, the PCRs and the key that a test wants, and a thousand of them cost nothing.
// That real ones are understood is for package tpmtest.
package evidencetest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	_ "crypto/sha1" // of template hashes, and of a bank
	"crypto/sha256"
	_ "crypto/sha512" // of a bank
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// Device is a machine with its TPM and a kernel that measures in template ima-ng.
type Device struct {
	ID    string
	Token string // of its session

	Clock    evidence.Clock            // what the next quote says; it goes on by a second with each
	PCRs     map[string]*[24][]byte    // by bank
	List     []byte                    // measurement list, binary, little-endian
	Firmware []byte                    // event log of the firmware, or nil
	BootTime time.Time                 // as the agent says
	Offset   func(asked int) (use int) // which entry an agent sends from; nil: as asked

	t    testing.TB
	key  *ecdsa.PrivateKey
	area []byte
	ends []int
}

// New returns a device that has just booted. The same name gives the same key.
func New(t testing.TB, name string) *Device {
	t.Helper()
	seed := sha256.Sum256([]byte("key of " + name))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed[:])
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	d := &Device{ID: name, t: t, key: key, Clock: evidence.Clock{Milliseconds: 1000, ResetCount: 5, Safe: true}}
	d.area = tpm2.Marshal(tpm2.New2B(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}}),
	}))
	d.boot()
	return d
}

// AK is the public area of the attestation key, and its SubjectPublicKeyInfo.
func (d *Device) AK() (area, spki []byte) {
	d.t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(d.key.Public())
	if err != nil {
		d.t.Fatal(err)
	}
	return d.area, spki
}

// boot clears PCRs and list, and measures boot_aggregate.
func (d *Device) boot() {
	d.PCRs = map[string]*[24][]byte{}
	for bank, hash := range banks {
		d.PCRs[bank] = &[24][]byte{}
		for i := range d.PCRs[bank] {
			d.PCRs[bank][i] = make([]byte, hash.Size())
		}
	}
	d.List, d.ends = nil, nil
	d.Aggregate()
}

var banks = map[string]crypto.Hash{"sha1": crypto.SHA1, "sha256": crypto.SHA256, "sha384": crypto.SHA384}

// Aggregate measures boot_aggregate as Linux does: SHA-256 of PCR 0 to 9.
func (d *Device) Aggregate() {
	h := sha256.New()
	for _, v := range d.PCRs["sha256"][:10] {
		h.Write(v)
	}
	d.Run("boot_aggregate", h.Sum(nil))
}

// Reboot resets the TPM, as a boot does; the agent may tell of it.
func (d *Device) Reboot() {
	d.Clock.ResetCount++
	d.Clock.RestartCount = 0
	d.boot()
}

// Forget empties list and PCR 10 without a boot, so that a test can measure anew.
func (d *Device) Forget() {
	for bank, hash := range banks {
		d.PCRs[bank][10] = make([]byte, hash.Size())
	}
	d.List, d.ends = nil, nil
}

// Run has the kernel measure a file with a SHA-256 digest.
func (d *Device) Run(path string, digest []byte) {
	le := binary.LittleEndian
	value := append([]byte("sha256:\x00"), digest...)
	data := append(le.AppendUint32(nil, uint32(len(value))), value...)
	data = append(le.AppendUint32(data, uint32(len(path)+1)), path+"\x00"...)
	d.List = append(le.AppendUint32(d.List, 10), hashOf(crypto.SHA1, data)...)
	d.List = append(le.AppendUint32(d.List, 6), "ima-ng"...)
	d.List = append(le.AppendUint32(d.List, uint32(len(data))), data...)
	d.ends = append(d.ends, len(d.List))
	for bank, hash := range banks {
		d.PCRs[bank][10] = hashOf(hash, d.PCRs[bank][10], hashOf(hash, data))
	}
}

func hashOf(hash crypto.Hash, parts ...[]byte) []byte {
	h := hash.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// Capabilities is what an agent offers.
func (d *Device) Capabilities() evidence.Capabilities {
	d.t.Helper()
	ak, err := evidence.ParseAK(d.area)
	if err != nil {
		d.t.Fatal(err)
	}
	n, yes := len(d.ends), true
	log := func(kind string) evidence.Supported {
		return evidence.Supported{Class: evidence.ClassLog, Type: kind, Capabilities: evidence.Capability{Entries: &n, Partial: &yes, Appendable: &yes, Formats: []string{evidence.FormatBinary}}}
	}
	available := map[string][]int{}
	for bank := range d.PCRs {
		available[bank] = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}
	}
	c := evidence.Capabilities{System: evidence.SystemInfo{BootTime: d.BootTime.UTC()}, Supported: []evidence.Supported{
		{Class: evidence.ClassCertification, Type: evidence.TypeQuote, Capabilities: evidence.Capability{Version: "2.0", Hashes: []string{"sha256"}, Schemes: []string{"ecdsa"}, AvailablePC: available,
			Keys: []evidence.Key{{Class: "asymmetric", Algorithm: "ecc", Size: 256, Server: "ak", Name: base64.StdEncoding.EncodeToString(ak.Name())}}}},
		log(evidence.TypeIMA),
	}}
	if d.Firmware != nil {
		c.Supported = append(c.Supported, log(evidence.TypeFirmware))
	}
	return c
}

// Collect makes what was asked for.
func (d *Device) Collect(asked evidence.Requests) evidence.Collected {
	d.t.Helper()
	var c evidence.Collected
	for _, q := range asked.Requested {
		item := evidence.Item{Class: q.Class, Type: q.Type}
		switch q.Type {
		case evidence.TypeQuote:
			item.Data = d.Quote(q.Parameters)
		case evidence.TypeIMA:
			from := *q.Parameters.Offset
			if d.Offset != nil {
				from = d.Offset(from)
			}
			item.Data = evidence.NewLog(d.from(from), q.Parameters.Format, len(d.ends)-from)
		case evidence.TypeFirmware:
			item.Data = evidence.NewLog(d.Firmware, q.Parameters.Format, -1)
		}
		c.Collected = append(c.Collected, item)
	}
	return c
}

func (d *Device) from(entry int) []byte {
	switch {
	case entry == 0:
		return d.List
	case entry > len(d.ends):
		return nil
	}
	return d.List[d.ends[entry-1]:]
}

const (
	generated   = 0xff544347 // TPM_GENERATED_VALUE
	typeQuote   = 0x8018     // TPM_ST_ATTEST_QUOTE
	typeCertify = 0x8017     // TPM_ST_ATTEST_CERTIFY
)

// Quote signs the PCRs that were asked for (TPM2_Quote).
func (d *Device) Quote(p evidence.Parameters) evidence.Data {
	d.t.Helper()
	selection, err := evidence.Selection(p.Selected).TPM()
	if err != nil {
		d.t.Fatal(err)
	}
	var values [][]byte
	names := map[tpm2.TPMAlgID]string{tpm2.TPMAlgSHA1: "sha1", tpm2.TPMAlgSHA256: "sha256", tpm2.TPMAlgSHA384: "sha384"}
	for _, s := range selection.PCRSelections {
		for _, pcr := range slices.Sorted(slices.Values(p.Selected[names[s.Hash]])) {
			values = append(values, d.PCRs[names[s.Hash]][pcr])
		}
	}
	b := append(d.attest(typeQuote, p.Challenge), tpm2.Marshal(selection)...)
	b = append(binary.BigEndian.AppendUint16(b, 32), hashOf(crypto.SHA256, values...)...)
	blob, err := evidence.AppendPCRBlob(nil, selection, values)
	if err != nil {
		d.t.Fatal(err)
	}
	return evidence.Data{Message: b, Signature: d.sign(b), PCRs: blob}
}

// Certify has the key certify itself (TPM2_Certify).
func (d *Device) Certify(challenge []byte) (message, signature []byte) {
	d.t.Helper()
	ak, err := evidence.ParseAK(d.area)
	if err != nil {
		d.t.Fatal(err)
	}
	b := d.attest(typeCertify, challenge)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(ak.Name()))), ak.Name()...)
	b = binary.BigEndian.AppendUint16(b, 0)
	return b, d.sign(b)
}

// attest begins a TPMS_ATTEST.
func (d *Device) attest(kind uint16, nonce []byte) []byte {
	be := binary.BigEndian
	b := be.AppendUint16(be.AppendUint32(nil, generated), kind)
	b = append(be.AppendUint16(b, 4), "name"...)
	b = append(be.AppendUint16(b, uint16(len(nonce))), nonce...)
	b = be.AppendUint32(be.AppendUint32(be.AppendUint64(b, d.Clock.Milliseconds), d.Clock.ResetCount), d.Clock.RestartCount)
	safe := byte(0)
	if d.Clock.Safe {
		safe = 1
	}
	d.Clock.Milliseconds += 1000
	return be.AppendUint64(append(b, safe), 7)
}

// sign makes a TPMT_SIGNATURE.
func (d *Device) sign(message []byte) []byte {
	d.t.Helper()
	r, s, err := ecdsa.Sign(rand.Reader, d.key, hashOf(crypto.SHA256, message))
	if err != nil {
		d.t.Fatal(err)
	}
	be := binary.BigEndian
	out := be.AppendUint16(be.AppendUint16(nil, uint16(tpm2.TPMAlgECDSA)), uint16(tpm2.TPMAlgSHA256))
	out = append(be.AppendUint16(out, uint16(len(r.Bytes()))), r.Bytes()...)
	return append(be.AppendUint16(out, uint16(len(s.Bytes()))), s.Bytes()...)
}
