package keys

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// FuzzFiles: no file makes the readers of keys, certificates and requests panic, hang or take
// a wrong passphrase for a right one.
func FuzzFiles(f *testing.F) {
	f.Add(read(f, "../../../keys-debug/ima.key"))
	f.Add(read(f, "../../../keys-debug/ima-rsa.key"))
	f.Add(read(f, "../../../keys-debug/ima.crt"))
	f.Add(read(f, "../../../keys-debug/ima.der"))
	key, err := (&Spec{Key: "P-256"}).Generate()
	if err != nil {
		f.Fatal(err)
	}
	encrypted, err := MarshalPrivate(key, []byte("secret"))
	if err != nil {
		f.Fatal(err)
	}
	block, _ := pem.Decode(encrypted)
	cheap := bytes.Replace(block.Bytes, []byte{0x02, 0x03, 0x09, 0x27, 0xc0}, []byte{0x02, 0x03, 0, 0, 1}, 1) // iterations
	if bytes.Equal(cheap, block.Bytes) {
		f.Fatal("the iterations do not stand where they are looked for")
	}
	f.Add(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: cheap}))
	f.Fuzz(func(t *testing.T, content []byte) {
		if len(content) > maxKeyFile {
			return
		}
		if private, err := parsePrivate("file", content, passphrase("wrong")); err == nil && private == nil {
			t.Fatal("neither key nor error")
		}
		if certs, err := ParseCertificates("file", content); (err == nil) != (len(certs) > 0) {
			t.Fatalf("%d certificates, %v", len(certs), err)
		}
		if reports, err := inspectFile("file", content, nil, time.Unix(0, 0), Options{}); (err == nil) != (len(reports) > 0) {
			t.Fatalf("%d reports, %v", len(reports), err)
		}
	})
}

// FuzzPBES2 gives the decryption what no PEM file has to be around: structures with any cost,
// any length and any initialisation vector.
func FuzzPBES2(f *testing.F) {
	for _, kdf := range []string{"-scrypt", "-v2prf hmacWithSHA512 -iter 1"} {
		_, file := newKey(f, "P-256")
		args := append([]string{"pkcs8", "-topk8", "-outform", "DER", "-in", file, "-out", file + ".der", "-passout", "pass:secret"}, strings.Fields(kdf)...)
		command(f, "openssl", args...)
		f.Add(read(f, file+".der"))
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		if len(der) > 4096 || expensive(der) {
			return
		}
		if plain, err := decryptPKCS8(der, []byte("secret")); err == nil && len(plain) == 0 {
			t.Fatal("nothing, and no error")
		}
	})
}

// expensive leaves out what is allowed to take seconds.
func expensive(der []byte) bool {
	var info encryptedPrivateKeyInfo
	var params pbes2Params
	var p pbkdf2Params
	var s scryptParams
	if unmarshal(der, &info) != nil || unmarshal(info.Algorithm.Parameters.FullBytes, &params) != nil {
		return false
	}
	if unmarshal(params.KDF.Parameters.FullBytes, &p) == nil && p.Iterations > 1000 && p.Iterations <= maxIterations {
		return true
	}
	return unmarshal(params.KDF.Parameters.FullBytes, &s) == nil && s.N > 1024 && s.N <= maxScryptMemory/128
}

// TestPBES2Costs: a file must not choose how much memory or time it costs to refuse it.
func TestPBES2Costs(t *testing.T) {
	for _, c := range []struct {
		kdf  any
		want string
	}{
		{pbkdf2Params{Salt: make([]byte, 8), Iterations: maxIterations + 1}, "iterations: not supported"},
		{pbkdf2Params{Salt: make([]byte, 8), Iterations: 0}, "iterations: not supported"},
		{scryptParams{Salt: make([]byte, 8), N: 1 << 30, R: 8, P: 1}, "scrypt with N=1073741824"},
		{scryptParams{Salt: make([]byte, 8), N: 1 << 14, R: 1 << 40, P: 1}, "scrypt with"},
		{scryptParams{Salt: make([]byte, 8), N: 1 << 14, R: 8, P: 1 << 20}, "scrypt with"},
	} {
		oid := oidPBKDF2
		if _, ok := c.kdf.(scryptParams); ok {
			oid = oidScrypt
		}
		kdf, err := algorithm(oid, c.kdf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := deriveKey(kdf, []byte("secret"), 32); err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: got %v, want %q", fmt.Sprint(c.kdf), err, c.want)
		}
	}
}

// FuzzTokenURI: a URI is refused or understood; what is shown of it never holds a PIN, and
// says the same token and key.
func FuzzTokenURI(f *testing.F) {
	f.Add("pkcs11:token=a%20b;object=ima;id=%01%02?module-path=/m.so&pin-value=1234")
	f.Add("pkcs11:slot-id=7;serial=0;model=m;manufacturer=x;type=private?module-path=/m.so&pin-source=file:/run/pin")
	f.Add("pkcs11:?module-path=/m.so")
	f.Fuzz(func(t *testing.T, uri string) {
		parsed, err := parseTokenURI(uri)
		if err != nil {
			return
		}
		if parsed.module == "" || parsed.hasValue && parsed.hasPINFile {
			t.Fatalf("%q: got %+v", uri, parsed)
		}
		shown := withoutPIN(uri)
		again, err := parseTokenURI(shown)
		if err != nil {
			t.Fatalf("%q, shown as %q: %v", uri, shown, err)
		}
		if again.hasValue {
			t.Fatalf("%q is shown with its PIN: %q", uri, shown)
		}
		parsed.pinValue, parsed.hasValue = "", false
		if fmt.Sprintf("%+q", parsed.fields()) != fmt.Sprintf("%+q", again.fields()) {
			t.Fatalf("%q: got %+v, %q: got %+v", uri, parsed, shown, again)
		}
		if parsed.hasPINFile {
			pinFile(parsed.pinSource)
		}
	})
}

// fields are the attributes in a form that can be compared.
func (t *tokenURI) fields() []string {
	slot := ""
	if t.slot != nil {
		slot = fmt.Sprint(*t.slot)
	}
	return []string{t.token, t.serial, t.model, t.manufacturer, slot, t.object, string(t.id), t.module, t.pinSource}
}
