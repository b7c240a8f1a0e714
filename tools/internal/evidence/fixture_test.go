package evidence

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// device is a TPM in software: unlike a real one it signs whatever a test wants, and so
// plays the attacker. That real ones are understood is for swtpm_test.go.
type device struct {
	t      testing.TB
	key    crypto.Signer
	ak     *AK
	scheme tpm2.TPMAlgID

	attest attest // what the next quote says
	pcrs   map[ima.HashAlgo]*[24][]byte
	list   []byte // binary, little-endian, ima-ng
	magic  uint32
}

func newDevice(t testing.TB, scheme string) *device {
	t.Helper()
	d := &device{t: t, magic: generatedValue, pcrs: map[ima.HashAlgo]*[24][]byte{}}
	var err error
	if scheme == "ecdsa" {
		d.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	} else {
		d.key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	area := akArea(t, d.key.Public(), scheme)
	if d.ak, err = ParseAK(marshalPublic(area)); err != nil {
		t.Fatal(err)
	}
	d.scheme = d.ak.scheme
	d.attest = attest{kind: typeQuote, clock: Clock{Milliseconds: 1000, ResetCount: 5, RestartCount: 1, Safe: true}, firmware: 7}
	d.boot()
	return d
}

func akArea(t testing.TB, key crypto.PublicKey, scheme string) tpm2.TPMTPublic {
	t.Helper()
	area := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true,
		},
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		s := tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})}
		if scheme == "rsapss" {
			s = tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSAPSS, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAPSS, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: tpm2.TPMAlgSHA256})}
		}
		area.Type = tpm2.TPMAlgRSA
		area.Parameters = tpm2.NewTPMUPublicParms(area.Type, &tpm2.TPMSRSAParms{Scheme: s, KeyBits: tpm2.TPMKeyBits(k.N.BitLen())})
		area.Unique = tpm2.NewTPMUPublicID(area.Type, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		area.Type = tpm2.TPMAlgECC
		area.Parameters = tpm2.NewTPMUPublicParms(area.Type, &tpm2.TPMSECCParms{
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			CurveID: tpm2.TPMECCNistP256,
		})
		n := len(point) / 2
		area.Unique = tpm2.NewTPMUPublicID(area.Type, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+n]}, Y: tpm2.TPM2BECCParameter{Buffer: point[1+n:]},
		})
	}
	return area
}

func marshalPublic(area tpm2.TPMTPublic) []byte { return tpm2.Marshal(tpm2.New2B(area)) }

// boot clears the PCRs and begins a list, as Linux does, with boot_aggregate.
func (d *device) boot() {
	for _, hash := range []ima.HashAlgo{ima.SHA1, ima.SHA256, ima.SHA384} {
		d.pcrs[hash] = &[24][]byte{}
		for i := range d.pcrs[hash] {
			d.pcrs[hash][i] = make([]byte, hash.Size())
		}
	}
	d.list = nil
	d.measure("boot_aggregate")
}

// measure appends an entry and extends PCR 10 of each bank.
func (d *device) measure(path string) { d.extend(10, d.append(10, path)) }

// append appends an entry of template ima-ng and returns its template data.
func (d *device) append(pcr int, path string) []byte {
	sum := crypto.SHA256.New()
	sum.Write([]byte(path))
	digest := append([]byte("sha256:\x00"), sum.Sum(nil)...)
	le := binary.LittleEndian
	data := append(le.AppendUint32(nil, uint32(len(digest))), digest...)
	data = append(le.AppendUint32(data, uint32(len(path)+1)), path+"\x00"...)
	h := crypto.SHA1.New()
	h.Write(data)
	d.list = le.AppendUint32(d.list, uint32(pcr))
	d.list = append(d.list, h.Sum(nil)...)
	d.list = append(le.AppendUint32(d.list, 6), "ima-ng"...)
	d.list = append(le.AppendUint32(d.list, uint32(len(data))), data...)
	return data
}

func (d *device) extend(pcr int, data []byte) {
	for hash, values := range d.pcrs {
		h := hash.Hash().New()
		h.Write(data)
		measured := h.Sum(nil)
		h = hash.Hash().New()
		h.Write(values[pcr])
		h.Write(measured)
		values[pcr] = h.Sum(nil)
	}
}

// tick lets time pass.
func (d *device) tick() { d.attest.clock.Milliseconds += 1000 }

var nonce = []byte("0123456789abcdef0123456789abcdef")

// expected asks for PCR 0 to 10 of bank SHA-256 and the list.
func (d *device) expected() Expected {
	return Expected{AK: d.ak, Nonce: nonce, PCRs: Selection{"sha256": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}, IMA: true}
}

// evidence answers want with the list from entry offset on.
func (d *device) evidence(want Expected, offset int) *Evidence {
	d.t.Helper()
	selection, err := want.PCRs.TPM()
	if err != nil {
		d.t.Fatal(err)
	}
	values := d.values(selection)
	ev := &Evidence{Offset: offset, List: d.from(offset)}
	ev.Message, ev.Signature = d.quote(selection, values, want.Nonce)
	if ev.PCRs, err = AppendPCRBlob(nil, selection, values); err != nil {
		d.t.Fatal(err)
	}
	return ev
}

func (d *device) values(selection tpm2.TPMLPCRSelection) [][]byte {
	var values [][]byte
	for _, s := range selection.PCRSelections {
		_, hash, err := bankOf(s.Hash)
		if err != nil {
			d.t.Fatal(err)
		}
		for _, pcr := range bits(s.PCRSelect) {
			values = append(values, d.pcrs[hash][pcr])
		}
	}
	return values
}

func (d *device) from(offset int) []byte {
	r := ima.NewListReader(d.list, ima.Form{Order: binary.LittleEndian, Hash: ima.SHA1}, 0)
	if err := r.Skip(offset); err != nil {
		d.t.Fatal(err)
	}
	return d.list[r.Offset():]
}

// quote signs d.attest with the given PCRs.
func (d *device) quote(selection tpm2.TPMLPCRSelection, values [][]byte, nonce []byte) (message, signature []byte) {
	h := crypto.SHA256.New()
	for _, v := range values {
		h.Write(v)
	}
	be := binary.BigEndian
	b := be.AppendUint16(be.AppendUint32(nil, d.magic), d.attest.kind)
	b = append(be.AppendUint16(b, 4), "name"...)
	b = append(be.AppendUint16(b, uint16(len(nonce))), nonce...)
	c := d.attest.clock
	b = be.AppendUint32(be.AppendUint32(be.AppendUint64(b, c.Milliseconds), c.ResetCount), c.RestartCount)
	if c.Safe {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = be.AppendUint64(b, d.attest.firmware)
	b = append(b, tpm2.Marshal(selection)...)
	b = append(be.AppendUint16(b, 32), h.Sum(nil)...)
	return b, d.sign(b)
}

func (d *device) sign(message []byte) []byte {
	d.t.Helper()
	h := crypto.SHA256.New()
	h.Write(message)
	var opts crypto.SignerOpts = crypto.SHA256
	if d.scheme == tpm2.TPMAlgRSAPSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: crypto.SHA256}
	}
	be := binary.BigEndian
	out := be.AppendUint16(be.AppendUint16(nil, uint16(d.scheme)), uint16(tpm2.TPMAlgSHA256))
	if key, ok := d.key.(*ecdsa.PrivateKey); ok {
		r, s, err := ecdsa.Sign(rand.Reader, key, h.Sum(nil))
		if err != nil {
			d.t.Fatal(err)
		}
		out = append(be.AppendUint16(out, uint16(len(r.Bytes()))), r.Bytes()...)
		return append(be.AppendUint16(out, uint16(len(s.Bytes()))), s.Bytes()...)
	}
	sig, err := d.key.Sign(rand.Reader, h.Sum(nil), opts)
	if err != nil {
		d.t.Fatal(err)
	}
	return append(be.AppendUint16(out, uint16(len(sig))), sig...)
}

// paths are those of the entries that c proves.
func paths(t testing.TB, c *Claims) []string {
	t.Helper()
	var got []string
	for e, err := range c.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(e.Path))
	}
	return got
}

// refused checks that evidence is refused with code, that nothing is claimed, and that the
// state is as it was.
func refused(t testing.TB, ev *Evidence, want Expected, prev State, code Code) {
	t.Helper()
	c, next, err := Verify(ev, want, prev)
	if err == nil || CodeOf(err) != code {
		t.Errorf("error %v (%s), want %s", err, CodeOf(err), code)
	}
	if c != nil || !bytes.Equal(next.AK, prev.AK) || next.Clock != prev.Clock || next.Entries != prev.Entries ||
		next.Seen != prev.Seen || next.Stalled != prev.Stalled || !slices.EqualFunc(next.Values, prev.Values, sameValue) {
		t.Errorf("refused evidence left claims %v and state %+v, it was %+v", c, next, prev)
	}
}

func sameValue(a, b ima.PCRValue) bool {
	return a.PCR == b.PCR && a.Bank == b.Bank && bytes.Equal(a.Value, b.Value)
}

// accepted checks that evidence is accepted, and returns what it proves.
func accepted(t testing.TB, ev *Evidence, want Expected, prev State) (*Claims, State) {
	t.Helper()
	c, next, err := Verify(ev, want, prev)
	if err != nil {
		t.Fatal(err)
	}
	return c, next
}
