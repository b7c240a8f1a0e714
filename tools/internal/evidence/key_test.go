package evidence

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// TestEachAttributeOfAK is CVE-2021-3406: a key that could sign what an attacker composed,
// or leave its TPM, is none to attest with.
func TestEachAttributeOfAK(t *testing.T) {
	good := newDevice(t, "ecdsa").ak.Public()
	for bit := range 32 {
		public := bytes.Clone(good)
		attrs := binary.BigEndian.Uint32(public[6:]) ^ 1<<bit
		binary.BigEndian.PutUint32(public[6:], attrs)
		ak, err := ParseAK(public)
		if bit == 10 { // NoDA: how wrong passwords are counted
			if err != nil {
				t.Errorf("NoDA: %v", err)
			}
			continue
		}
		if err == nil || ak != nil {
			t.Errorf("attribute bit %d may be changed", bit)
		}
	}
}

func TestWeakAndStrangeKeys(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaParms := func(p tpm2.TPMSRSAParms) tpm2.TPMTPublic {
		area := akArea(t, &key.PublicKey, "rsassa")
		area.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &p)
		return area
	}
	rsassa := func(hash tpm2.TPMAlgID) tpm2.TPMTRSAScheme {
		return tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: hash})}
	}
	sha1Name := akArea(t, &ec.PublicKey, "")
	sha1Name.NameAlg = tpm2.TPMAlgSHA1
	offCurve := akArea(t, &ec.PublicKey, "")
	offCurve.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: []byte{1}}, Y: tpm2.TPM2BECCParameter{Buffer: []byte{2}}})
	for name, area := range map[string]tpm2.TPMTPublic{
		"RSA 1024":         akArea(t, &small.PublicKey, "rsassa"),
		"another exponent": rsaParms(tpm2.TPMSRSAParms{Scheme: rsassa(tpm2.TPMAlgSHA256), KeyBits: 2048, Exponent: 3}),
		"another size":     rsaParms(tpm2.TPMSRSAParms{Scheme: rsassa(tpm2.TPMAlgSHA256), KeyBits: 3072}),
		"SHA-1":            rsaParms(tpm2.TPMSRSAParms{Scheme: rsassa(tpm2.TPMAlgSHA1), KeyBits: 2048}),
		"no scheme":        rsaParms(tpm2.TPMSRSAParms{Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull}, KeyBits: 2048}),
		"name with SHA-1":  sha1Name,
		"not on the curve": offCurve,
	} {
		if ak, err := ParseAK(marshalPublic(area)); err == nil || ak != nil || CodeOf(err) != CodeKey {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := marshalPublic(akArea(t, &ec.PublicKey, ""))
	for name, public := range map[string][]byte{
		"empty": {}, "cut short": good[:len(good)-1], "longer": append(bytes.Clone(good), 0), "huge": make([]byte, 1<<16),
		"type": append([]byte{0, 10, 0, 8}, make([]byte, 8)...),
	} {
		if ak, err := ParseAK(public); err == nil || ak != nil {
			t.Errorf("%s: taken", name)
		}
		if ek, err := ParseEK(public); err == nil || ek != nil {
			t.Errorf("%s: taken as endorsement key", name)
		}
	}
	if _, err := ParseEK(good); CodeOf(err) != CodeKey {
		t.Errorf("an attestation key as endorsement key: %v", err)
	}
}

// TestID: Keylime's hash_ek is the SHA-256 of the key in PEM.
func TestID(t *testing.T) {
	ek, err := ParseEK(softEK(t))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(ek.Key())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	if got, err := ek.ID(); err != nil || got != hex.EncodeToString(sum[:]) || CheckID(got) != nil {
		t.Errorf("ID %q, %v", got, err)
	}
	if _, err := ParseAK(ek.Public()); CodeOf(err) != CodeKey {
		t.Errorf("an endorsement key as attestation key: %v", err)
	}
}

// softEK is an endorsement key whose private part nobody has.
func softEK(t testing.TB) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	area := tpm2.RSAEKTemplate
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
	return marshalPublic(area)
}

func TestSecretsAndTags(t *testing.T) {
	seen := map[string]bool{}
	ones := 0
	const n = 10_000
	for range n {
		nonce := NewNonce()
		seen[string(nonce)], seen[string(NewSecret())] = true, true
		for _, b := range nonce {
			for ; b != 0; b &= b - 1 {
				ones++
			}
		}
	}
	if len(seen) != 2*n {
		t.Errorf("%d of %d challenges differ", len(seen), 2*n)
	}
	if bits := n * 256; ones < bits*499/1000 || ones > bits*501/1000 {
		t.Errorf("%d of %d bits are set", ones, bits)
	}
	secret := NewSecret()
	if len(secret) != 32 {
		t.Errorf("secret of %d bytes", len(secret))
	}
	tag := Activation{AuthTag: AuthTag(secret, "device")}
	if tag.check() != nil || !tag.Matches(secret, "device") || tag.Matches(secret, "other") || tag.Matches(NewSecret(), "device") {
		t.Error("the tag is not of this secret and this id alone")
	}
}
