//go:build cgo

package keys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const softPIN = "654321"

// softHSM makes a SoftHSM token in a folder of the test and returns the module.
func softHSM(t *testing.T) string {
	t.Helper()
	needs(t, "softhsm2-util")
	module := ""
	for _, pattern := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/*/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 && module == "" {
			module = found[0]
		}
	}
	if module == "" {
		t.Skip("SKIP: libsofthsm2.so is not installed")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", writeFile(t, filepath.Join(dir, "conf"), fmt.Appendf(nil, "directories.tokendir = %s/tokens\nlog.level = ERROR\n", dir)))
	initToken(t, "attest")
	return module
}

func initToken(t *testing.T, label string) {
	command(t, "softhsm2-util", "--init-token", "--free", "--label", label, "--pin", softPIN, "--so-pin", "12345678")
}

// importKey puts a new key into the token and returns its file.
func importKey(t *testing.T, kind, label, id string) string {
	_, file := newKey(t, kind)
	command(t, "softhsm2-util", "--import", file, "--token", "attest", "--label", label, "--id", id, "--pin", softPIN)
	return file
}

func TestPKCS11(t *testing.T) {
	module := softHSM(t)
	base := "pkcs11:token=attest;object=%s?module-path=" + module
	for _, kind := range []string{"RSA-2048", "P-256", "P-384", "P-521"} {
		id := fmt.Sprintf("%02x", len(kind)*16+int(kind[2]-'0'))
		want, err := Open(t.Context(), importKey(t, kind, kind, id), Options{})
		if err != nil {
			t.Fatal(err)
		}
		key, err := Open(t.Context(), fmt.Sprintf(base, kind), passphrase(softPIN))
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		checkSigns(t, key, want.Public())
		signAtOnce(t, key, 8, 5)
		if !key.Remote || key.Deterministic != strings.HasPrefix(kind, "RSA") || len(key.Warnings) > 0 {
			t.Errorf("%s: got Remote %v, Deterministic %v, Warnings %q", kind, key.Remote, key.Deterministic, key.Warnings)
		}
		if err := key.Close(); err != nil {
			t.Errorf("%s: close: %v", kind, err)
		}
		// The key is the token's only one with this id: no object is needed.
		key, err = Open(t.Context(), fmt.Sprintf("pkcs11:token=attest;id=%%%s;type=private?module-path=%s", id, module), passphrase(softPIN))
		if err != nil {
			t.Fatalf("%s by id: %v", kind, err)
		}
		checkSigns(t, key, want.Public())
		key.Close()
	}
}

// TestPKCS11PIN has the ways in which a PIN comes.
func TestPKCS11PIN(t *testing.T) {
	module := softHSM(t)
	importKey(t, "P-256", "ima", "01")
	pin := writeFile(t, filepath.Join(t.TempDir(), "pin"), []byte(softPIN+"\n"))
	wrong := writeFile(t, filepath.Join(t.TempDir(), "pin"), []byte("111111\n"))
	uri := "pkcs11:token=attest;object=ima?module-path=" + module
	for name, c := range map[string]struct {
		uri  string
		o    Options
		want error
	}{
		"file":           {uri + "&pin-source=file:" + pin, Options{}, nil},
		"file URL":       {uri + "&pin-source=file://" + pin, Options{}, nil},
		"path":           {uri + "&pin-source=" + pin, Options{}, nil},
		"value":          {uri + "&pin-value=" + softPIN, Options{}, nil},
		"option":         {uri, passphrase(softPIN), nil},
		"file first":     {uri + "&pin-source=file:" + pin, passphrase("111111"), nil},
		"none":           {uri, Options{}, ErrNoPassphrase},
		"wrong option":   {uri, passphrase("111111"), ErrPassphrase},
		"wrong file":     {uri + "&pin-source=file:" + wrong, Options{}, ErrPassphrase},
		"wrong value":    {uri + "&pin-value=111111", Options{}, ErrPassphrase},
		"file is absent": {uri + "&pin-source=file:/absent/pin", Options{}, os.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := Open(t.Context(), c.uri, c.o)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err != nil {
				if strings.Contains(err.Error(), "111111") {
					t.Errorf("the PIN stands in %q", err)
				}
				return
			}
			defer key.Close()
			if strings.Contains(key.URI+strings.Join(key.Warnings, ""), softPIN) {
				t.Errorf("the PIN stands in %s or %q", key.URI, key.Warnings)
			}
			if warned := len(key.Warnings) > 0; warned != strings.Contains(c.uri, "pin-value") {
				t.Errorf("got warnings %q", key.Warnings)
			}
		})
	}
}

// TestPKCS11Finds has URIs that fit no key, or more than one.
func TestPKCS11Finds(t *testing.T) {
	module := softHSM(t)
	importKey(t, "P-256", "ima", "01")
	importKey(t, "P-256", "ima", "02")
	initToken(t, "twin")
	initToken(t, "twin")
	command(t, "pkcs11-tool", "--module", module, "--token-label", "attest", "--login", "--pin", softPIN,
		"--delete-object", "--type", "pubkey", "--id", "02")
	at := "?pin-value=" + softPIN + "&module-path=" + module
	for uri, want := range map[string]string{
		"pkcs11:token=attest;object=absent" + at:        "the token has no such private key",
		"pkcs11:token=attest;object=ima" + at:           "2 private keys fit: add id= or object=",
		"pkcs11:token=attest" + at:                      "2 private keys fit",
		"pkcs11:token=attest;id=%02" + at:               "neither public key nor certificate",
		"pkcs11:token=absent;object=ima" + at:           "no such token",
		"pkcs11:token=attest;serial=00;object=ima" + at: "no such token",
		"pkcs11:token=attest;slot-id=1;object=ima" + at: "no such token",
		"pkcs11:token=twin;object=ima" + at:             "2 tokens of " + module + " fit: add serial= or slot-id=",
		"pkcs11:object=ima" + at:                        "3 tokens of " + module + " fit",
	} {
		key, err := Open(t.Context(), uri, Options{})
		if err == nil {
			key.Close()
			t.Errorf("%s: opened", uri)
			continue
		}
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), softPIN) || !strings.HasPrefix(err.Error(), withoutPIN(uri)) {
			t.Errorf("%s: got %q, want %q", uri, err, want)
		}
	}
	key, err := Open(t.Context(), "pkcs11:token=attest;manufacturer=SoftHSM%20project;model=SoftHSM%20v2;id=%01"+at, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	// A second key of the same module while the first is open.
	other, err := Open(t.Context(), "pkcs11:token=attest;object=ima;id=%01"+at, Options{})
	if err != nil {
		t.Fatal(err)
	}
	checkSigns(t, other, key.Public())
	other.Close()
	checkSigns(t, key, key.Public())
}

func TestPKCS11Module(t *testing.T) {
	softHSM(t)
	importKey(t, "P-256", "ima", "01")
	key, err := Open(t.Context(), "pkcs11:token=attest;object=ima?module-name=softhsm2", passphrase(softPIN))
	if err != nil {
		t.Fatal(err)
	}
	key.Close()
	text := writeFile(t, filepath.Join(t.TempDir(), "module.so"), []byte("text"))
	for uri, want := range map[string]string{
		"pkcs11:token=attest?module-name=absent":          "no such module",
		"pkcs11:token=attest?module-path=" + text:         "not a loadable module",
		"pkcs11:token=attest?module-path=relative.so":     "must be absolute",
		"pkcs11:token=attest?module-name=../../tmp/evil":  "no such module",
		"pkcs11:token=a;token=b?module-path=" + text:      "duplicate path attribute",
		"pkcs11:tokn=a?module-path=" + text:               "unknown attribute in tokn=a",
		"pkcs11:token=a?module-path=" + text + "&x=1":     "unknown attribute",
		"pkcs11:token=a;type=cert?module-path=" + text:    "a private key is needed",
		"pkcs11:token=a;slot-id=-1?module-path=" + text:   "not a number",
		"pkcs11:token=a;id=%zz?module-path=" + text:       "invalid url escape",
		"pkcs11:token=;object=ima?module-path=" + text:    "attribute without a value",
		"pkcs11:token?module-path=" + text:                "malformed path attribute",
		"pkcs11:x?module-path=/m&pin-value=12345":         "malformed",
		"pkcs11:token=a?pin-value=1&pin-source=/x&" + "x": "malformed query attribute",
	} {
		_, err := Open(t.Context(), uri, passphrase(softPIN))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "12345") {
			t.Errorf("%s: got %v, want %q", uri, err, want)
		}
	}
}

// TestPKCS11Kit names no module.
func TestPKCS11Kit(t *testing.T) {
	softHSM(t)
	importKey(t, "P-256", "ima", "01")
	const uri = "pkcs11:token=attest;object=ima"
	if _, err := findModule(""); err != nil {
		if _, again := Open(t.Context(), uri, passphrase(softPIN)); again == nil || !strings.Contains(again.Error(), "which PKCS#11 module?") {
			t.Errorf("got %v", again)
		}
		t.Skipf("SKIP: %v", err)
	}
	if !strings.Contains(command(t, "p11-kit", "list-modules"), "softhsm2") {
		t.Skip("SKIP: SoftHSM is not configured in p11-kit")
	}
	key, err := Open(t.Context(), uri, passphrase(softPIN))
	if err != nil {
		t.Fatal(err)
	}
	checkSigns(t, key, key.Public())
	if err := key.Close(); err != nil {
		t.Error(err)
	}
}

// TestPKCS11Debug: a published key does not become private by moving it into a token.
func TestPKCS11Debug(t *testing.T) {
	module := softHSM(t)
	command(t, "softhsm2-util", "--import", "../../../keys-debug/ima.key", "--token", "attest", "--label", "ima", "--id", "01", "--pin", softPIN)
	if _, err := Open(t.Context(), "pkcs11:token=attest?module-path="+module, passphrase(softPIN)); !errors.Is(err, ErrDebugKey) {
		t.Errorf("got %v", err)
	}
}
