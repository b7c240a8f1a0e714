package ima

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// vector is one file of testdata, made by gen.sh with programs that are not ours.
type vector struct {
	t      *testing.T
	fields map[string]string
}

// vectors runs test for each vector of a set.
func vectors(t *testing.T, set string, test func(v vector)) {
	files, err := filepath.Glob(filepath.Join("testdata", set, "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors of %s: %v", set, err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) { test(readVector(t, name)) })
	}
}

var vectorFields = []string{
	"expect", "content", "xattr", "cert", "hash", "uid", "gid", "mode", "layout", "digest", "pattern", "size", "block-size", "salt",
	"selinux", "smack", "smackexec", "smacktransmute", "smackmmap", "apparmor", "ima", "capability",
}

func readVector(t *testing.T, name string) vector {
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	v := vector{t, map[string]string{}}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if line := lines.Text(); line != "" && line[0] != '#' {
			key, value, ok := strings.Cut(line, ":")
			if _, again := v.fields[key]; !ok || again || !slices.Contains(vectorFields, key) {
				t.Fatalf("%s: unexpected line %q", name, line)
			}
			v.fields[key] = strings.TrimSpace(value)
		}
	}
	return v
}

func (v vector) bytes(key string) []byte {
	b, err := hex.DecodeString(v.fields[key])
	if err != nil {
		v.t.Fatalf("%s: %v", key, err)
	}
	return b
}

func (v vector) int(key string, base int) int64 {
	n, err := strconv.ParseInt(v.fields[key], base, 64)
	if err != nil {
		v.t.Fatal(err)
	}
	return n
}

func (v vector) cert() *x509.Certificate {
	text, err := os.ReadFile(filepath.Join("testdata", "keys", v.fields["cert"]))
	if err != nil {
		v.t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		v.t.Fatal(err)
	}
	return cert
}

// outcome is what the vectors call the answer to a parsed value.
func (v vector) outcome(x *Xattr, err error, digest func(HashAlgo) ([]byte, error)) string {
	switch {
	case errors.Is(err, ErrMalformed):
		return "malformed"
	case err != nil:
		return err.Error()
	case x.Type == HMAC || x.Type == Signature && v.fields["layout"] != "":
		return "not-portable"
	}
	d, err := digest(x.Hash)
	if errors.Is(err, ErrNoIMA) {
		return "no-ima"
	}
	if err != nil {
		return err.Error()
	}
	var pub crypto.PublicKey
	if !x.IsSignature() {
		if !bytes.Equal(d, x.Digest) {
			return "changed"
		}
	} else {
		cert := v.cert()
		if id, err := KeyID(cert); err != nil || id != x.KeyID {
			return "wrong-key"
		}
		pub = cert.PublicKey
		if err := x.Verify(pub, d); errors.Is(err, ErrMismatch) {
			return "changed"
		} else if err != nil {
			return err.Error()
		}
	}
	if x.Weakness(pub) != "" {
		return "weak"
	}
	return "ok"
}

func (v vector) check(x *Xattr, err error, digest func(HashAlgo) ([]byte, error)) {
	v.t.Helper()
	if err == nil && !bytes.Equal(x.Append(nil), v.bytes("xattr")) {
		v.t.Errorf("parsed and written again: %x", x.Append(nil))
	}
	if got, want := v.outcome(x, err, digest), v.fields["expect"]; got != want {
		v.t.Errorf("got %q, want %q (%v)", got, want, err)
	}
}

func TestIMAVectors(t *testing.T) {
	for _, set := range []string{"sigv2", "hash"} {
		vectors(t, set, func(v vector) {
			x, err := ParseIMA(v.bytes("xattr"))
			v.check(x, err, func(a HashAlgo) ([]byte, error) {
				h, err := a.New()
				if err != nil {
					return nil, err
				}
				h.Write(v.bytes("content"))
				return h.Sum(nil), nil
			})
		})
	}
}

func TestEVMVectors(t *testing.T) {
	names := map[string]string{
		"security.selinux": "selinux", "security.SMACK64": "smack", "security.SMACK64EXEC": "smackexec",
		"security.SMACK64TRANSMUTE": "smacktransmute", "security.SMACK64MMAP": "smackmmap",
		"security.apparmor": "apparmor", XattrIMA: "ima", XattrCapability: "capability",
	}
	layouts := map[string]Layout{"64le": {64, binary.LittleEndian}, "32le": {32, binary.LittleEndian}}
	vectors(t, "evm", func(v vector) {
		in := Inode{UID: uint32(v.int("uid", 10)), GID: uint32(v.int("gid", 10)), Mode: uint16(v.int("mode", 8)), Xattrs: map[string][]byte{}}
		for name, key := range names {
			if _, ok := v.fields[key]; ok {
				in.Xattrs[name] = v.bytes(key)
			}
		}
		x, err := ParseEVM(v.bytes("xattr"))
		v.check(x, err, func(a HashAlgo) ([]byte, error) { return EVMDigest(a, layouts[v.fields["layout"]], in) })
	})
}

func TestVersion3Vectors(t *testing.T) {
	vectors(t, "sigv3", func(v vector) {
		x, err := ParseIMA(v.bytes("xattr"))
		v.check(x, err, func(HashAlgo) ([]byte, error) { return v.bytes("digest"), nil })
	})
}

func TestVerityVectors(t *testing.T) {
	counter := make([]byte, 0, 2<<20)
	for i := 0; len(counter) < 2<<20; i++ {
		counter = strconv.AppendInt(counter, int64(i), 10)
		counter = append(counter, '\n')
	}
	vectors(t, "verity", func(v vector) {
		algo, err := ParseSigningHash(v.fields["hash"])
		if err != nil {
			t.Fatal(err)
		}
		h, err := NewVerity(VerityParams{algo, int(v.int("block-size", 10)), v.bytes("salt")})
		if err != nil {
			t.Fatal(err)
		}
		h.Write(counter[:v.int("size", 10)])
		if got := h.Digest(); !bytes.Equal(got, v.bytes("digest")) {
			t.Errorf("got %x, want %s", got, v.fields["digest"])
		}
	})
}

// TestSignVectors: RSA signatures of a fixed key are equal byte for byte to evmctl's.
func TestSignVectors(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "keys", "rsa2048.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	sign := func(kind XattrType, v vector, digest []byte) {
		v.t.Helper()
		if v.fields["expect"] != "ok" || v.fields["cert"] != "rsa2048.crt" {
			return
		}
		n++
		id, err := KeyID(v.cert())
		if err != nil {
			t.Fatal(err)
		}
		algo, err := ParseSigningHash(v.fields["hash"])
		if err != nil {
			t.Fatal(err)
		}
		if digest == nil {
			h, _ := algo.New()
			h.Write(v.bytes("content"))
			digest = h.Sum(nil)
		}
		x, err := Sign(kind, key.(crypto.Signer), id, algo, digest)
		if err != nil {
			t.Fatal(err)
		}
		if got := x.Append(nil); !bytes.Equal(got, v.bytes("xattr")) {
			v.t.Errorf("got %x", got)
		}
	}
	vectors(t, "sigv2", func(v vector) { sign(Signature, v, nil) })
	vectors(t, "sigv3", func(v vector) { sign(VeritySignature, v, v.bytes("digest")) })
	if n < 5 {
		t.Errorf("only %d vectors of rsa2048 found", n)
	}
}
