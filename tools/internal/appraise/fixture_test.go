package appraise

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"iter"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
)

// fatal is what the fixture needs of a test, of a benchmark or of rapid.
type fatal interface {
	Helper()
	Fatal(args ...any)
}

// device is a kernel and a TPM in software: claims come of [evidence.Verify] alone.
type device struct {
	t         fatal
	key       *ecdsa.PrivateKey
	ak        *evidence.AK
	pcrs      map[ima.HashAlgo]*[24][]byte
	list      []byte
	firmware  []byte // event log; nil: none is asked for
	resets    uint32
	clock     uint64
	state     evidence.State
	pcrsAsked evidence.Selection
	seen      int // entries in list
}

// deviceKey is made once: keys cost more than what is tested.
var deviceKey, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)

func newDevice(t fatal) *device {
	t.Helper()
	d := &device{t: t, key: deviceKey, resets: 1, pcrsAsked: evidence.Selection{"sha256": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}}
	point, err := d.key.PublicKey.Bytes()
	d.check(err)
	area := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}
	d.ak, err = evidence.ParseAK(tpm2.Marshal(tpm2.New2B(area)))
	d.check(err)
	d.reset()
	d.aggregate()
	return d
}

func (d *device) check(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// reset clears PCRs and list, and measures nothing.
func (d *device) reset() {
	d.pcrs = map[ima.HashAlgo]*[24][]byte{}
	for _, hash := range []ima.HashAlgo{ima.SHA1, ima.SHA256} {
		d.pcrs[hash] = &[24][]byte{}
		for i := range d.pcrs[hash] {
			d.pcrs[hash][i] = make([]byte, hash.Size())
		}
	}
	d.list, d.seen = nil, 0
}

// boot is a reboot.
func (d *device) boot() {
	d.reset()
	d.resets++
	d.aggregate()
}

// aggregate measures boot_aggregate as Linux does.
func (d *device) aggregate() { d.file("boot_aggregate", d.boots(ima.SHA256)) }

func (d *device) boots(hash ima.HashAlgo) []byte {
	h, last := hash.Hash().New(), 9
	if hash == ima.SHA1 {
		last = 7
	}
	for _, v := range d.pcrs[hash][:last+1] {
		h.Write(v)
	}
	return h.Sum(nil)
}

func field(b []byte, parts ...[]byte) []byte {
	v := bytes.Join(parts, nil)
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(v))), v...)
}

// file measures with template ima-ng.
func (d *device) file(path string, sum []byte) { d.entry("ima-ng", "sha256:", sum, path) }

// entry measures with a template whose fields are digest, name and what more there is.
func (d *device) entry(template, prefix string, sum []byte, path string, more ...[]byte) {
	data := field(nil, []byte(prefix), []byte{0}, sum)
	data = field(data, []byte(path), []byte{0})
	for _, m := range more {
		data = field(data, m)
	}
	digest := sha1.Sum(data)
	for hash := range d.pcrs {
		d.extend(hash, 10, hashOf(hash, data))
	}
	d.line(template, digest[:], data)
}

// violation is an entry of zeros, that extends ones.
func (d *device) violation(path string) {
	data := field(field(nil, []byte("sha256:"), make([]byte, 33)), []byte(path), []byte{0})
	for hash := range d.pcrs {
		d.extend(hash, 10, bytes.Repeat([]byte{0xff}, hash.Size()))
	}
	d.line("ima-ng", make([]byte, 20), data)
}

func (d *device) buffer(name string, buf []byte) {
	d.entry("ima-buf", "sha256:", hashOf(ima.SHA256, buf), name, buf)
}

func (d *device) extend(hash ima.HashAlgo, pcr int, sum []byte) {
	d.pcrs[hash][pcr] = hashOf(hash, append(bytes.Clone(d.pcrs[hash][pcr]), sum...))
}

func (d *device) line(template string, digest, data []byte) {
	b := binary.LittleEndian.AppendUint32(d.list, 10)
	b = field(append(b, digest...), []byte(template))
	d.list = field(b, data)
	d.seen++
}

func hashOf(hash ima.HashAlgo, b []byte) []byte {
	h := hash.Hash().New()
	h.Write(b)
	return h.Sum(nil)
}

// attest sends the list from entry offset on; -1: as much as is new.
func (d *device) attest(offset int) *evidence.Claims {
	d.t.Helper()
	ev, want := d.evidence(offset)
	c, state, err := evidence.Verify(ev, want, d.state)
	d.check(err)
	d.state = state
	return c
}

func (d *device) evidence(offset int) (*evidence.Evidence, evidence.Expected) {
	d.t.Helper()
	d.clock += 1000
	want := evidence.Expected{AK: d.ak, Nonce: []byte("0123456789abcdef0123456789abcdef"), PCRs: d.pcrsAsked, IMA: true, Firmware: d.firmware != nil, SHA1Bank: true}
	if offset < 0 {
		offset = d.state.Offset(want)
		if d.state.Clock.ResetCount != d.resets {
			offset = 0
		}
	}
	r := ima.NewListReader(d.list, ima.Form{Order: binary.LittleEndian, Hash: ima.SHA1}, 0)
	d.check(r.Skip(offset))
	selection, err := want.PCRs.TPM()
	d.check(err)
	var values [][]byte
	h := sha256.New()
	for _, s := range selection.PCRSelections {
		hash := map[tpm2.TPMAlgID]ima.HashAlgo{tpm2.TPMAlgSHA1: ima.SHA1, tpm2.TPMAlgSHA256: ima.SHA256}[s.Hash]
		for pcr := range 24 {
			if s.PCRSelect[pcr/8]>>(pcr%8)&1 != 0 {
				values = append(values, d.pcrs[hash][pcr])
				h.Write(d.pcrs[hash][pcr])
			}
		}
	}
	ev := &evidence.Evidence{Offset: offset, List: d.list[r.Offset():], Firmware: d.firmware}
	ev.PCRs, err = evidence.AppendPCRBlob(nil, selection, values)
	d.check(err)
	be := binary.BigEndian
	b := be.AppendUint16([]byte{0xff, 'T', 'C', 'G'}, 0x8018)
	b = append(be.AppendUint16(b, 4), "name"...)
	b = append(be.AppendUint16(b, uint16(len(want.Nonce))), want.Nonce...)
	b = be.AppendUint32(be.AppendUint32(be.AppendUint64(b, d.clock), d.resets), 0)
	b = be.AppendUint64(append(b, 1), 7)
	b = append(b, tpm2.Marshal(selection)...)
	ev.Message = append(be.AppendUint16(b, 32), h.Sum(nil)...)
	ev.Signature = d.sign(ev.Message)
	return ev, want
}

func (d *device) sign(message []byte) []byte {
	sum := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, d.key, sum[:])
	d.check(err)
	be := binary.BigEndian
	out := be.AppendUint16(be.AppendUint16(nil, uint16(tpm2.TPMAlgECDSA)), uint16(tpm2.TPMAlgSHA256))
	for _, n := range [][]byte{r.Bytes(), s.Bytes()} {
		out = append(be.AppendUint16(out, uint16(len(n))), n...)
	}
	return out
}

// content is the digest of a file that has the text as its content.
func content(text string) []byte { return hashOf(ima.SHA256, []byte(text)) }

// files is a manifest: path, content, package and so on.
func files(all ...string) iter.Seq2[manifest.Entry, error] {
	return func(yield func(manifest.Entry, error) bool) {
		for f := range slices.Chunk(all, 3) {
			e := manifest.Entry{Path: f[0], Type: manifest.File, Package: f[2]}
			e.Digests.SHA256 = hex.EncodeToString(content(f[1]))
			if !yield(e, nil) {
				return
			}
		}
	}
}

func release(name string, all ...string) Release {
	return Release{Name: name, Files: []iter.Seq2[manifest.Entry, error]{files(all...)}}
}

func compile(t testing.TB, rules string, releases ...Release) *Reference {
	t.Helper()
	r, err := ParseRules("rules.toml", rules)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := Compile(r, releases...)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// judged is the verdict on c alone, which has to be possible.
func judged(t testing.TB, c *evidence.Claims, ref *Reference, prev State) (Verdict, State) {
	t.Helper()
	v, s, err := Appraise(c, ref, prev)
	if err != nil {
		t.Fatal(err)
	}
	return v, s
}
