package evidence

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/tpm"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// secretArea is the public area of a key for secrets whose private part is key.
func secretArea(key *ecdh.PrivateKey) tpm2.TPMTPublic {
	point := key.PublicKey().Bytes()
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, STClear: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Decrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}}),
	}
}

// certification is what a software TPM certifies, whether true or not.
type certification struct {
	public, name, qualified, qualifier []byte
	clock                              Clock
	kind                               uint16
}

func (d *device) certify(c certification) (message, signature []byte) {
	be := binary.BigEndian
	b := be.AppendUint16(be.AppendUint32(nil, d.magic), c.kind)
	b = append(be.AppendUint16(b, 4), "name"...)
	b = append(be.AppendUint16(b, uint16(len(c.qualifier))), c.qualifier...)
	b = be.AppendUint32(be.AppendUint32(be.AppendUint64(b, c.clock.Milliseconds), c.clock.ResetCount), c.clock.RestartCount)
	b = be.AppendUint64(append(b, 1), d.attest.firmware)
	b = append(be.AppendUint16(b, uint16(len(c.name))), c.name...)
	b = append(be.AppendUint16(b, uint16(len(c.qualified))), c.qualified...)
	return b, d.sign(b)
}

func TestSecretKey(t *testing.T) {
	d := newDevice(t, "ecdsa")
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	quoted := d.attest.clock
	qualifier := SecretQualifier("device", nonce)
	good := certification{public: marshalPublic(secretArea(key)), qualifier: qualifier, clock: quoted, kind: typeCertify}
	good.name = publicName(good.public)
	good.qualified = nullQualified(good.name)
	verify := func(c certification, magic uint32) (*SecretKey, error) {
		d.magic = magic
		message, signature := d.certify(c)
		return d.ak.VerifySecretKey(c.public, message, signature, qualifier, quoted)
	}
	secret, err := verify(good, generatedValue)
	if err != nil {
		t.Fatal(err)
	}
	context := SecretContext{Device: "device", ResetCount: 5, RestartCount: 1, Name: "web", Revision: 2, Run: "start"}
	sealed, err := secret.Seal(context, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenSecret(key, good.name, context, sealed); err != nil || string(got) != "secret" {
		t.Errorf("opened %q, %v", got, err)
	}
	for name, change := range map[string]func(*SecretContext){
		"device":   func(c *SecretContext) { c.Device = "other" },
		"reset":    func(c *SecretContext) { c.ResetCount++ },
		"restart":  func(c *SecretContext) { c.RestartCount++ },
		"name":     func(c *SecretContext) { c.Name = "db" },
		"revision": func(c *SecretContext) { c.Revision-- },
		"run":      func(c *SecretContext) { c.Run = "" },
		"shifted":  func(c *SecretContext) { c.Name, c.Run = "webs", "tart" },
	} {
		other := context
		change(&other)
		if got, err := OpenSecret(key, good.name, other, sealed); err == nil || got != nil {
			t.Errorf("another %s: opened", name)
		}
	}
	if _, err := OpenSecret(key, []byte("other"), context, sealed); err == nil {
		t.Error("another key name: opened")
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := OpenSecret(key, good.name, context, bad); err == nil {
			t.Errorf("byte %d changed: opened", i)
		}
	}

	for name, change := range map[string]func(*certification){
		"another device":    func(c *certification) { c.qualifier = SecretQualifier("other", nonce) },
		"another challenge": func(c *certification) { c.qualifier = SecretQualifier("device", append([]byte{1}, nonce[1:]...)) },
		"bare challenge":    func(c *certification) { c.qualifier = nonce },
		"no qualifier":      func(c *certification) { c.qualifier = nil },
		"next boot":         func(c *certification) { c.clock.ResetCount++ },
		"boot before":       func(c *certification) { c.clock.ResetCount-- },
		"resumed":           func(c *certification) { c.clock.RestartCount++ },
		"before the quote":  func(c *certification) { c.clock.Milliseconds-- },
		"another name":      func(c *certification) { c.name = d.ak.name },
		"bare qualified":    func(c *certification) { c.qualified = c.name },
		"owner hierarchy":   func(c *certification) { c.qualified = underHierarchy(tpm2.TPMRHOwner, c.name) },
		"endorsement":       func(c *certification) { c.qualified = underHierarchy(tpm2.TPMRHEndorsement, c.name) },
		"quote":             func(c *certification) { c.kind = typeQuote },
		"creation":          func(c *certification) { c.kind = 0x801a },
	} {
		c := good
		change(&c)
		if k, err := verify(c, generatedValue); err == nil || k != nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := verify(good, 0); err == nil {
		t.Error("not made by a TPM: taken")
	}
	later := good
	later.clock.Milliseconds += 5000
	if _, err := verify(later, generatedValue); err != nil {
		t.Errorf("a while after the quote: %v", err)
	}
	// Of an attacker with a key of the same name whose AK is another.
	message, signature := newDevice(t, "ecdsa").certify(good)
	if _, err := d.ak.VerifySecretKey(good.public, message, signature, qualifier, quoted); CodeOf(err) != CodeSignature {
		t.Errorf("another attestation key: %v", err)
	}
	message, signature = d.certify(good)
	for i := range message {
		bad := bytes.Clone(message)
		bad[i] ^= 1
		if _, err := d.ak.VerifySecretKey(good.public, bad, signature, qualifier, quoted); err == nil {
			t.Errorf("byte %d of the statement changed: taken", i)
		}
	}
	for i := range good.public {
		bad := bytes.Clone(good.public)
		bad[i] ^= 1
		if _, err := d.ak.VerifySecretKey(bad, message, signature, qualifier, quoted); err == nil {
			t.Errorf("byte %d of the key changed: taken", i)
		}
	}
}

func underHierarchy(handle tpm2.TPMHandle, name []byte) []byte {
	sum := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(handle)), name...))
	return append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), sum[:]...)
}

// publicName is the name of a key whose area may be refused.
func publicName(public []byte) []byte {
	sum := sha256.Sum256(public[2:])
	return append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), sum[:]...)
}

// TestSecretKeyAttributes has a TPM in software, which signs anything, certify a key with
// each bit of its attributes flipped, and with other parameters.
func TestSecretKeyAttributes(t *testing.T) {
	d := newDevice(t, "ecdsa")
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := marshalPublic(secretArea(key))
	qualifier := SecretQualifier("device", nonce)
	verify := func(public []byte) error {
		sum := nullQualified(publicName(public))
		message, signature := d.certify(certification{public: public, name: publicName(public), qualified: sum, qualifier: qualifier, clock: d.attest.clock, kind: typeCertify})
		k, err := d.ak.VerifySecretKey(public, message, signature, qualifier, d.attest.clock)
		if (k == nil) != (err != nil) {
			t.Errorf("%v with %v", k, err)
		}
		return err
	}
	if err := verify(good); err != nil {
		t.Fatal(err)
	}
	for bit := range 32 {
		bad := bytes.Clone(good)
		binary.BigEndian.PutUint32(bad[6:], attributes(good)^1<<bit)
		if err := verify(bad); err == nil {
			t.Errorf("attribute bit %d flipped: taken", bit)
		}
	}
	rsaKey := newDevice(t, "rsassa")
	for name, area := range map[string]tpm2.TPMTPublic{
		"ECDH scheme": changed(key, func(a *tpm2.TPMTPublic) {
			a.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{
				Scheme: tpm2.TPMAlgECDH, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDH, &tpm2.TPMSKeySchemeECDH{HashAlg: tpm2.TPMAlgSHA256})}})
		}),
		"P-384": changed(key, func(a *tpm2.TPMTPublic) {
			a.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP384})
		}),
		"policy":   changed(key, func(a *tpm2.TPMTPublic) { a.AuthPolicy.Buffer = make([]byte, 32) }),
		"name alg": changed(key, func(a *tpm2.TPMTPublic) { a.NameAlg = tpm2.TPMAlgSHA384 }),
		"not on the curve": changed(key, func(a *tpm2.TPMTPublic) {
			a.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{1}, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{1}, 32)}})
		}),
		"attestation key": akArea(t, d.key.(*ecdsa.PrivateKey).Public(), "ecdsa"),
		"RSA":             akArea(t, rsaKey.key.Public(), "rsassa"),
	} {
		if err := verify(marshalPublic(area)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func changed(key *ecdh.PrivateKey, change func(*tpm2.TPMTPublic)) tpm2.TPMTPublic {
	area := secretArea(key)
	change(&area)
	return area
}

// TestRealSecrets encrypts to keys of a TPM, for each scheme of attestation key, and takes
// the ways that an attacker has who holds the TPM and what was sent.
func TestRealSecrets(t *testing.T) {
	emulator, other := tpmtest.Start(t), tpmtest.Start(t)
	dev := emulator.Open()
	for _, scheme := range tpm.Schemes() {
		e := enrol(t, dev, scheme)
		want := Expected{AK: e.key, Nonce: NewNonce(), PCRs: Selection{"sha256": {0}}}
		claims, _ := accepted(t, e.answer(t, want, nil, 0), want, State{})
		qualifier := SecretQualifier("device", want.Nonce)
		for i := range 3 {
			key := newSecretKey(t, dev)
			message, signature, boot, err := e.ak.CertifySecretKey(key, qualifier)
			if err != nil {
				t.Fatal(err)
			}
			if boot.ResetCount != claims.Clock().ResetCount || boot.RestartCount != claims.Clock().RestartCount {
				t.Errorf("%s: certified at %+v, quoted at %+v", scheme, boot, claims.Clock())
			}
			public, err := e.key.VerifySecretKey(key.Public(), message, signature, qualifier, claims.Clock())
			if err != nil {
				t.Fatalf("%s: %v", scheme, err)
			}
			context := SecretContext{Device: "device", ResetCount: boot.ResetCount, RestartCount: boot.RestartCount, Name: "web", Revision: int64(i + 1)}
			text := strings.Repeat("secret", i*1000)
			sealed, err := public.Seal(context, []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := OpenSecret(key, key.Name(), context, sealed); err != nil || string(got) != text {
				t.Fatalf("%s: opened %d bytes of %d, %v", scheme, len(got), len(text), err)
			}
			key.Close()
			if _, err := OpenSecret(key, key.Name(), context, sealed); err == nil {
				t.Error("a key that was closed still opens")
			}
		}
		e.ak.Close()
	}

	e := enrol(t, dev, "ecdsa")
	want := Expected{AK: e.key, Nonce: NewNonce(), PCRs: Selection{"sha256": {0}}}
	claims, _ := accepted(t, e.answer(t, want, nil, 0), want, State{})
	qualifier := SecretQualifier("device", want.Nonce)
	far := other.Open()
	theirs := enrol(t, far, "ecdsa")
	stolen := newSecretKey(t, far)
	message, signature, _, err := theirs.ak.CertifySecretKey(stolen, qualifier)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.key.VerifySecretKey(stolen.Public(), message, signature, qualifier, claims.Clock()); CodeOf(err) != CodeSignature {
		t.Errorf("a key of another TPM: %v", err)
	}

	key := newSecretKey(t, dev)
	message, signature, boot, err := e.ak.CertifySecretKey(key, qualifier)
	if err != nil {
		t.Fatal(err)
	}
	public, err := e.key.VerifySecretKey(key.Public(), message, signature, qualifier, claims.Clock())
	if err != nil {
		t.Fatal(err)
	}
	context := SecretContext{Device: "device", ResetCount: boot.ResetCount, RestartCount: boot.RestartCount, Name: "web", Revision: 1}
	sealed, err := public.Seal(context, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSecret(stolen, key.Name(), context, sealed); err == nil {
		t.Error("another TPM opens what it was not sent")
	}
	blob := e.ak.Blob()
	emulator.Reboot()
	dev = emulator.Open()
	again := newSecretKey(t, dev)
	if _, err := OpenSecret(again, key.Name(), context, sealed); err == nil {
		t.Error("a release is opened after a reset")
	}
	ak, err := dev.LoadAK(blob)
	if err != nil {
		t.Fatal(err)
	}
	defer ak.Close()
	message, signature, _, err = ak.CertifySecretKey(again, qualifier)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.key.VerifySecretKey(again.Public(), message, signature, qualifier, claims.Clock()); CodeOf(err) != CodeReboot {
		t.Errorf("a key of the next boot for the attestation of this: %v", err)
	}
}

func newSecretKey(t *testing.T, dev *tpm.TPM) *tpm.SecretKey {
	t.Helper()
	key, err := dev.CreateSecretKey()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(key.Close)
	return key
}

// TestRealSecretKeyOfOtherHierarchy has a TPM certify a key with the same template in the
// owner's hierarchy, where it could be made again after the next boot.
func TestRealSecretKeyOfOtherHierarchy(t *testing.T) {
	dev := tpmtest.Start(t).Open()
	e := enrol(t, dev, "ecdsa")
	want := Expected{AK: e.key, Nonce: NewNonce(), PCRs: Selection{"sha256": {0}}}
	claims, _ := accepted(t, e.answer(t, want, nil, 0), want, State{})
	qualifier := SecretQualifier("device", want.Nonce)
	null := newSecretKey(t, dev)
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](null.Public()[2:])
	if err != nil {
		t.Fatal(err)
	}
	null.Close()
	e.ak.Close() // a TPM has room for three keys, and the certification is made by hand
	parent, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(dev)
	if err != nil {
		t.Fatal(err)
	}
	blob := e.ak.Blob()
	n := 2 + int(binary.BigEndian.Uint16(blob))
	ak, err := tpm2.Load{ParentHandle: tpm2.AuthHandle{Handle: parent.ObjectHandle, Name: parent.Name, Auth: tpm2.PasswordAuth(nil)},
		InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](blob[2:n]), InPrivate: tpm2.TPM2BPrivate{Buffer: blob[n+2:]}}.Execute(dev)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = tpm2.FlushContext{FlushHandle: parent.ObjectHandle}.Execute(dev)
	for name, hierarchy := range map[string]tpm2.TPMHandle{"": tpm2.TPMRHNull, "owner": tpm2.TPMRHOwner, "endorsement": tpm2.TPMRHEndorsement} {
		made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)}, InPublic: tpm2.New2B(*area)}.Execute(dev)
		if err != nil {
			t.Fatal(err)
		}
		rsp, err := tpm2.Certify{
			ObjectHandle:   tpm2.AuthHandle{Handle: made.ObjectHandle, Name: made.Name, Auth: tpm2.PasswordAuth(nil)},
			SignHandle:     tpm2.AuthHandle{Handle: ak.ObjectHandle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
			QualifyingData: tpm2.TPM2BData{Buffer: qualifier}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		}.Execute(dev)
		if err != nil {
			t.Fatal(err)
		}
		_, err = e.key.VerifySecretKey(tpm2.Marshal(made.OutPublic), rsp.CertifyInfo.Bytes(), tpm2.Marshal(rsp.Signature), qualifier, claims.Clock())
		if name == "" && err != nil || name != "" && CodeOf(err) != CodeKey {
			t.Errorf("hierarchy %q: %v", name, err)
		}
		_, _ = tpm2.FlushContext{FlushHandle: made.ObjectHandle}.Execute(dev)
	}
}

func TestSecretMessages(t *testing.T) {
	if SecretsTag(nil) != "" {
		t.Error("the tag of nothing is something")
	}
	tags := map[string]bool{}
	for _, refs := range [][]SecretRef{{{"a", 1}}, {{"a", 2}}, {{"b", 1}}, {{"a", 1}, {"b", 1}}, {{"b", 1}, {"a", 1}}} {
		tags[SecretsTag(refs)] = true
	}
	if len(tags) != 5 {
		t.Errorf("%d tags of 5 sets", len(tags))
	}
	one := Secret{Name: "a", Revision: 1, Sealed: []byte("x")}
	for name, s := range map[string]Secrets{
		"order":    {Secrets: []Secret{{Name: "b", Revision: 1, Sealed: []byte("x")}, one}},
		"twice":    {Secrets: []Secret{one, one}},
		"revision": {Secrets: []Secret{{Name: "a", Sealed: []byte("x")}}},
		"name":     {Secrets: []Secret{{Name: "../a", Revision: 1, Sealed: []byte("x")}}},
		"empty":    {Secrets: []Secret{{Name: "a", Revision: 1}}},
		"large":    {Secrets: []Secret{{Name: "a", Revision: 1, Sealed: make([]byte, MaxSealed+1)}}},
		"more":     {More: true},
	} {
		if s.check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := (Secrets{Secrets: []Secret{one}, More: true}).check(); err != nil {
		t.Error(err)
	}
}

func FuzzDecodeSecrets(f *testing.F) {
	f.Add([]byte(`{"data":{"type":"secrets","attributes":{"secrets":[{"name":"a","revision":1,"run":"r","sealed":"eA=="}],"more":true}}}`))
	f.Add([]byte(`{"data":{"type":"secrets","attributes":{"public":"eA==","message":"eA==","signature":"eA==","after":"a"}}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		again(t, in, Decode[SecretRequest])
		again(t, in, Decode[Secrets])
	})
}

func FuzzSecretKey(f *testing.F) {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(marshalPublic(secretArea(key)))
	f.Fuzz(func(t *testing.T, in []byte) {
		k, err := parseSecretKey(in)
		if (k == nil) != (err != nil) {
			t.Errorf("%v with %v", k, err)
		}
		if err == nil && attributes(in) != secretAttributes {
			t.Errorf("taken with attributes %#x", attributes(in))
		}
	})
}

// TestSecretVectors opens what another implementation of HPKE encrypted, see secret-pyhpke.py.
func TestSecretVectors(t *testing.T) {
	var vectors []struct {
		Private, Plaintext, Sealed string
		KeyName                    string `json:"key_name"`
		Device, Name, Run          string
		Reset, Restart             uint32
		Revision                   int64
	}
	text, err := os.ReadFile("testdata/secret-pyhpke.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &vectors); err != nil || len(vectors) == 0 {
		t.Fatal(len(vectors), err)
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, v := range vectors {
		key, err := ecdh.P256().NewPrivateKey(unhex(v.Private))
		if err != nil {
			t.Fatal(err)
		}
		c := SecretContext{Device: v.Device, ResetCount: v.Reset, RestartCount: v.Restart, Name: v.Name, Revision: v.Revision, Run: v.Run}
		if got, err := OpenSecret(key, unhex(v.KeyName), c, unhex(v.Sealed)); err != nil || hex.EncodeToString(got) != v.Plaintext {
			t.Errorf("%.40s: %x, %v", v.Name, got, err)
		}
	}
}
