package keys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// needs skips a test, aloud, when the program is not installed.
func needs(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("SKIP: %s is not installed", program)
	}
}

// command runs a program that must succeed and returns what it printed.
func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	needs(t, name)
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func writeFile(t testing.TB, path string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// generated holds an RSA key of each length for all tests: making one takes long.
var generated sync.Map

// newKey makes a private key of a kind that a ceremony knows, and its PKCS#8 file.
func newKey(t testing.TB, kind string) (crypto.Signer, string) {
	t.Helper()
	known, ok := generated.Load(kind)
	if !ok {
		key, err := (&Spec{Name: "test", Key: kind}).Generate()
		if err != nil {
			t.Fatal(err)
		}
		known = key
		if isRSA(key.Public()) {
			known, _ = generated.LoadOrStore(kind, key)
		}
	}
	key := known.(crypto.Signer)
	text, err := MarshalPrivate(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	return key, writeFile(t, filepath.Join(t.TempDir(), kind+".key"), text)
}

// rsa2048 is the RSA key of tests that need no file.
func rsa2048(t testing.TB) *rsa.PrivateKey {
	key, _ := newKey(t, "RSA-2048")
	return key.(*rsa.PrivateKey)
}

func passphrase(s string) Options {
	return Options{Passphrase: func() ([]byte, error) { return []byte(s), nil }}
}

// checkSigns makes a signature with each hash and verifies it with the public key want.
func checkSigns(t testing.TB, key *Key, want crypto.PublicKey) {
	t.Helper()
	if !samePublic(key.Public(), want) {
		t.Fatal("public key is another one")
	}
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		digest := make([]byte, hash.Size())
		rand.Read(digest)
		sig, err := key.Sign(nil, digest, hash)
		if err != nil {
			t.Fatalf("sign %v: %v", hash, err)
		}
		if err := verify(want, digest, hash, sig); err != nil {
			t.Errorf("sign %v: %v", hash, err)
		}
		again, err := key.Sign(rand.Reader, digest, hash)
		if err != nil {
			t.Fatalf("sign %v: %v", hash, err)
		}
		if (key.Deterministic || key.Remote) && !bytes.Equal(sig, again) {
			t.Errorf("sign %v: two signatures of one digest differ", hash)
		}
	}
}

// TestOpenFormats opens what openssl writes.
func TestOpenFormats(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	command(t, "openssl", "genrsa", "-out", file("rsa"), "2048")
	command(t, "openssl", "ecparam", "-genkey", "-name", "prime256v1", "-out", file("sec1")) // with EC PARAMETERS before it
	command(t, "openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521", "-out", file("p521"))
	command(t, "openssl", "rsa", "-traditional", "-in", file("rsa"), "-out", file("pkcs1"))
	command(t, "openssl", "rsa", "-traditional", "-aes128", "-passout", "pass:secret", "-in", file("rsa"), "-out", file("legacy-aes"))
	command(t, "openssl", "ec", "-des3", "-passout", "pass:secret", "-in", file("sec1"), "-out", file("legacy-des3"))
	names := []string{"rsa", "sec1", "p521", "pkcs1", "legacy-aes", "legacy-des3"}
	for _, enc := range [][]string{
		{"-v2", "aes-256-cbc"}, {"-v2", "aes-128-cbc", "-v2prf", "hmacWithSHA1"}, {"-v2", "aes-192-cbc", "-v2prf", "hmacWithSHA512"},
		{"-v2", "des3"}, {"-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA384"},
		{"-scrypt"}, {"-scrypt", "-scrypt_N", "1024", "-scrypt_r", "4", "-scrypt_p", "2", "-v2", "aes-128-cbc"},
	} {
		for _, from := range []string{"rsa", "p521"} {
			name := from + strings.Join(enc, "")
			command(t, "openssl", append([]string{"pkcs8", "-topk8", "-in", file(from), "-out", file(name), "-passout", "pass:secret"}, enc...)...)
			names = append(names, name)
		}
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			der := command(t, "openssl", "pkey", "-in", file(name), "-passin", "pass:secret", "-pubout")
			block, _ := pem.Decode([]byte(der))
			public, err := x509.ParsePKIXPublicKey(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			key, err := Open(t.Context(), file(name), passphrase("secret"))
			if err != nil {
				t.Fatal(err)
			}
			defer key.Close()
			checkSigns(t, key, public)
			if key.Remote || !key.Deterministic || key.URI != file(name) {
				t.Errorf("got Remote %v, Deterministic %v, URI %s", key.Remote, key.Deterministic, key.URI)
			}
			text, err := os.ReadFile(file(name))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), "ENCRYPTED") {
				return
			}
			if _, err := Open(t.Context(), file(name), passphrase("wrong")); !errors.Is(err, ErrPassphrase) || !strings.Contains(err.Error(), file(name)) {
				t.Errorf("wrong passphrase: got %v", err)
			}
			if _, err := Open(t.Context(), file(name), Options{}); !errors.Is(err, ErrNoPassphrase) || !strings.Contains(err.Error(), file(name)) {
				t.Errorf("no passphrase: got %v", err)
			}
			if _, err := Open(t.Context(), file(name), passphrase("")); !errors.Is(err, ErrNoPassphrase) {
				t.Errorf("empty passphrase: got %v", err)
			}
		})
	}
}

// TestOpenRefuses has a line for each file that is no usable key.
func TestOpenRefuses(t *testing.T) {
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	edDER, _ := x509.MarshalPKCS8PrivateKey(ed)
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	p224DER, _ := x509.MarshalPKCS8PrivateKey(p224)
	t.Setenv("GODEBUG", "rsa1024min=0")
	rsa1024, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	rsa2560, err := rsa.GenerateKey(rand.Reader, 2560)
	if err != nil {
		t.Fatal(err)
	}
	good, _ := MarshalPrivate(rsa2048(t), nil)
	encode := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	for name, c := range map[string]struct {
		content []byte
		want    string
		is      error
	}{
		"empty":          {nil, "file is empty", nil},
		"text":           {[]byte("hello\n"), "not a PEM file", nil},
		"two keys":       {append(good, good...), "more than one private key", nil},
		"certificate":    {encode("CERTIFICATE", []byte{0}), "holds no private key but a certificate", nil},
		"public key":     {encode("PUBLIC KEY", []byte{0}), "holds no private key but a public key", nil},
		"too large":      {append(bytes.Repeat([]byte("\n"), maxKeyFile), good...), "larger than 65536 bytes", nil},
		"openssh":        {encode("OPENSSH PRIVATE KEY", []byte{0}), `PEM block "OPENSSH PRIVATE KEY": not supported`, ErrUnsupported},
		"damaged":        {encode("PRIVATE KEY", []byte{0x30, 0}), "parse private key", nil},
		"Ed25519":        {encode("PRIVATE KEY", edDER), "Ed25519: not supported", ErrUnsupported},
		"P-224":          {encode("PRIVATE KEY", p224DER), "P-224 key: not supported", ErrUnsupported},
		"RSA-1024":       {encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsa1024)), "RSA key of 1024 bits is too weak", ErrWeak},
		"RSA-2560":       {encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsa2560)), "RSA-2560 key: not supported", ErrUnsupported},
		"PBES1":          {encode("ENCRYPTED PRIVATE KEY", pbes1(t)), "openssl pkcs8 -topk8 -v2", ErrUnsupported},
		"encrypted junk": {encode("ENCRYPTED PRIVATE KEY", []byte{0x30, 0}), "read EncryptedPrivateKeyInfo", nil},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, filepath.Join(t.TempDir(), "key"), c.content)
			key, err := Open(t.Context(), path, passphrase("secret"))
			if err == nil {
				key.Close()
				t.Fatal("opened")
			}
			if !strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q, want %q", err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("got %v, want %v", err, c.is)
			}
		})
	}
	if _, err := Open(t.Context(), filepath.Join(t.TempDir(), "absent"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: got %v", err)
	}
}

func pbes1(t *testing.T) []byte {
	dir := t.TempDir()
	in := writeFile(t, filepath.Join(dir, "in"), pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsa2048(t))}))
	command(t, "openssl", "pkcs8", "-topk8", "-in", in, "-outform", "DER", "-out", in+".der", "-passout", "pass:secret", "-v1", "PBE-SHA1-3DES")
	der, err := os.ReadFile(in + ".der")
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestOpenWarnsOfMode(t *testing.T) {
	_, path := newKey(t, "P-256")
	for mode, want := range map[os.FileMode]int{0o600: 0, 0o400: 0, 0o640: 1, 0o604: 1} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		key, err := Open(t.Context(), path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(key.Warnings) != want {
			t.Errorf("mode %o: got %q", mode, key.Warnings)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	_, path := newKey(t, "P-256")
	key, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		digest []byte
		opts   crypto.SignerOpts
	}{
		"SHA-1":  {make([]byte, 20), crypto.SHA1},
		"none":   {make([]byte, 32), crypto.Hash(0)},
		"length": {make([]byte, 31), crypto.SHA256},
		"PSS":    {make([]byte, 32), &rsa.PSSOptions{Hash: crypto.SHA256}},
	} {
		if sig, err := key.Sign(nil, c.digest, c.opts); err == nil {
			t.Errorf("%s: signed %x", name, sig)
		}
	}
}

// TestRFC6979 holds the examples of RFC 6979 A.2.5 to A.2.7 for message "sample" and, the last
// of each curve, "test".
func TestRFC6979(t *testing.T) {
	p256, p384 := "C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721",
		"6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D896D5724E4C70A825F872C9EA60D2EDF5"
	p521 := "00FAD06DAA62BA3B25D2FB40133DA757205DE67F5BB0018FEE8C86E1B68C7E75CAA896EB32F1F47C70855836A6D16FCC1466F6D8FBEC67DB89EC0C08B0E996B83538"
	for _, v := range []struct {
		curve         elliptic.Curve
		key           string
		hash          crypto.Hash
		message, r, s string
	}{
		{elliptic.P256(), p256, crypto.SHA256, "sample", "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716", "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"},
		{elliptic.P256(), p256, crypto.SHA512, "sample", "8496A60B5E9B47C825488827E0495B0E3FA109EC4568FD3F8D1097678EB97F00", "2362AB1ADBE2B8ADF9CB9EDAB740EA6049C028114F2460F96554F61FAE3302FE"},
		{elliptic.P256(), p256, crypto.SHA256, "test", "F1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367", "019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083"},
		{elliptic.P384(), p384, crypto.SHA256, "sample", "21B13D1E013C7FA1392D03C5F99AF8B30C570C6F98D4EA8E354B63A21D3DAA33BDE1E888E63355D92FA2B3C36D8FB2CD", "F3AA443FB107745BF4BD77CB3891674632068A10CA67E3D45DB2266FA7D1FEEBEFDC63ECCD1AC42EC0CB8668A4FA0AB0"},
		{elliptic.P384(), p384, crypto.SHA384, "sample", "94EDBB92A5ECB8AAD4736E56C691916B3F88140666CE9FA73D64C4EA95AD133C81A648152E44ACF96E36DD1E80FABE46", "99EF4AEB15F178CEA1FE40DB2603138F130E740A19624526203B6351D0A3A94FA329C145786E679E7B82C71A38628AC8"},
		{elliptic.P384(), p384, crypto.SHA256, "test", "6D6DEFAC9AB64DABAFE36C6BF510352A4CC27001263638E5B16D9BB51D451559F918EEDAF2293BE5B475CC8F0188636B", "2D46F3BECBCC523D5F1A1256BF0C9B024D879BA9E838144C8BA6BAEB4B53B47D51AB373F9845C0514EEFB14024787265"},
		{elliptic.P521(), p521, crypto.SHA256, "sample", "1511BB4D675114FE266FC4372B87682BAECC01D3CC62CF2303C92B3526012659D16876E25C7C1E57648F23B73564D67F61C6F14D527D54972810421E7D87589E1A7", "04A171143A83163D6DF460AAF61522695F207A58B95C0644D87E52AA1A347916E4F7A72930B1BC06DBE22CE3F58264AFD23704CBB63B29B931F7DE6C9D949A7ECFC"},
		{elliptic.P521(), p521, crypto.SHA512, "sample", "0C328FAFCBD79DD77850370C46325D987CB525569FB63C5D3BC53950E6D4C5F174E25A1EE9017B5D450606ADD152B534931D7D4E8455CC91F9B15BF05EC36E377FA", "0617CCE7CF5064806C467F678D3B4080D6F1CC50AF26CA209417308281B68AF282623EAA63E5B5C0723D8B8C37FF0777B1A20F8CCB1DCCC43997F1EE0E44DA4A67A"},
		{elliptic.P521(), p521, crypto.SHA256, "test", "00E871C4A14F993C6C7369501900C4BC1E9C7B0B4BA44E04868B30B41D8071042EB28C4C250411D0CE08CD197E4188EA4876F279F90B3D8D74A3C76E6F1E4656AA8", "0CD52DBAA33B063C3A6CD8058A1FB0A46A4754B034FCC644766CA14DA8CA5CA9FDE00E88C1AD60CCBA759025299079D7A427EC3CC5B619BFBC828E7769BCD694E86"},
	} {
		raw, _ := new(big.Int).SetString(v.key, 16)
		private, err := ecdsa.ParseRawPrivateKey(v.curve, raw.FillBytes(make([]byte, (v.curve.Params().BitSize+7)/8)))
		if err != nil {
			t.Fatal(err)
		}
		text, err := MarshalPrivate(private, nil)
		if err != nil {
			t.Fatal(err)
		}
		key, err := Open(t.Context(), writeFile(t, filepath.Join(t.TempDir(), "key"), text), Options{})
		if err != nil {
			t.Fatal(err)
		}
		h := v.hash.New()
		h.Write([]byte(v.message))
		sig, err := key.Sign(rand.Reader, h.Sum(nil), v.hash)
		if err != nil {
			t.Fatal(err)
		}
		r, _ := new(big.Int).SetString(v.r, 16)
		s, _ := new(big.Int).SetString(v.s, 16)
		want, _ := asn1.Marshal(struct{ R, S *big.Int }{r, s})
		if !bytes.Equal(sig, want) {
			t.Errorf("%s %v %q: got %x, want %x", v.curve.Params().Name, v.hash, v.message, sig, want)
		}
	}
}

// TestSignConcurrently is for the race detector, and for locks in libcrypto.
func TestSignConcurrently(t *testing.T) {
	text, _ := MarshalPrivate(rsa2048(t), nil)
	key, err := Open(t.Context(), writeFile(t, filepath.Join(t.TempDir(), "key"), text), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	signAtOnce(t, key, 8, 25)
}

// signAtOnce signs n digests on each of many goroutines.
func signAtOnce(t *testing.T, key *Key, goroutines, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range n {
				digest := sha256.Sum256([]byte{byte(g), byte(i)})
				sig, err := key.Sign(nil, digest[:], crypto.SHA256)
				if err == nil {
					err = verify(key.Public(), digest[:], crypto.SHA256, sig)
				}
				if err != nil {
					t.Errorf("goroutine %d, digest %d: %v", g, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestDebugKeys proves that every private key of keys-debug is in the list.
func TestDebugKeys(t *testing.T) {
	files, err := filepath.Glob("../../../keys-debug/*.key")
	if err != nil || len(files) < 6 {
		t.Fatalf("keys-debug has %d keys: %v", len(files), err)
	}
	for _, file := range files {
		var debug *DebugKeyError
		_, err := Open(t.Context(), file, Options{})
		if !errors.As(err, &debug) || !errors.Is(err, ErrDebugKey) || debug.Name != "keys-debug/"+filepath.Base(file) {
			t.Errorf("%s: got %v", file, err)
		}
		key, err := Open(t.Context(), file, Options{AllowDebug: true})
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		key.Close()
	}
	if name, ok := DebugName(rsa2048(t).Public()); ok {
		t.Errorf("a new key is called %s", name)
	}
}

// TestDebugList checks the form of the lists, and one key of them by its modulus, which stands
// in the certificate x509_ima.der of meta-security's meta-integrity.
func TestDebugList(t *testing.T) {
	seen := map[string]bool{}
	for _, list := range []string{ownDebugKeys, otherDebugKeys} {
		for line := range strings.Lines(list) {
			print, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			if !ok || len(print) != 64 || strings.Trim(print, "0123456789abcdef") != "" || name == "" || seen[print] {
				t.Errorf("line %q", line)
			}
			seen[print] = true
		}
	}
	if len(seen) < 20 {
		t.Errorf("only %d keys", len(seen))
	}
}

func TestOpenCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := retry(ctx, func(context.Context) (int, error) { return 0, errors.New("called") }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// digestOf is a digest with each hash.
func digestOf(hash crypto.Hash, text string) []byte {
	switch hash {
	case crypto.SHA384:
		sum := sha512.Sum384([]byte(text))
		return sum[:]
	case crypto.SHA512:
		sum := sha512.Sum512([]byte(text))
		return sum[:]
	default:
		sum := sha256.Sum256([]byte(text))
		return sum[:]
	}
}
