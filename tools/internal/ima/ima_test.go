package ima

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
)

func FuzzParse(f *testing.F) {
	for _, set := range []string{"sigv2", "hash", "evm", "sigv3"} {
		files, err := filepath.Glob(filepath.Join("testdata", set, "*"))
		if err != nil || len(files) == 0 {
			f.Fatalf("no vectors of %s: %v", set, err)
		}
		for _, name := range files {
			v := readVector(new(testing.T), name)
			f.Add(v.bytes("xattr"))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, parse := range []func([]byte) (*Xattr, error){ParseIMA, ParseEVM} {
			x, err := parse(in)
			switch {
			case err != nil && (x != nil || !errors.Is(err, ErrMalformed)):
				t.Fatalf("got %v with %v", x, err)
			case err == nil && !bytes.Equal(x.Append(nil), in):
				t.Fatalf("wrote back %x", x.Append(nil))
			}
		}
	})
}

// broken signs with nothing in particular.
type broken struct {
	crypto.Signer
	sig []byte
	err error
}

func (b broken) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return b.sig, b.err }

func TestSignRefuses(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	digest := make([]byte, 32)
	for _, tc := range []struct {
		name   string
		key    crypto.Signer
		hash   HashAlgo
		digest []byte
		want   string
	}{
		{"short digest", key, SHA256, digest[:31], "has 32 bytes, not 31"},
		{"hash without an implementation", key, 18, digest, "cannot sign or verify with streebog256"},
		{"unknown hash", key, 200, nil, "cannot sign or verify with hash algorithm 200"},
		{"failing key", broken{key, nil, errors.New("token removed")}, SHA256, digest, "token removed"},
		{"empty signature", broken{key, nil, nil}, SHA256, digest, "0 bytes"},
		{"long signature", broken{key, make([]byte, 1<<16), nil}, SHA256, digest, "65536 bytes"},
	} {
		x, err := Sign(Signature, tc.key, 1, tc.hash, tc.digest)
		if err == nil || x != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, %v", tc.name, x, err)
		}
	}
}

func TestVerifyRefusesOtherKeys(t *testing.T) {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &Xattr{Type: Signature, Version: 2, Hash: SHA256, Signature: []byte{1}}
	if err := x.Verify(pub, make([]byte, 32)); err == nil || errors.Is(err, ErrMismatch) {
		t.Errorf("Ed25519: %v", err)
	}
	h := &Xattr{Type: DigestNG, Hash: SHA256, Digest: make([]byte, 32)}
	if err := h.Verify(nil, h.Digest); !errors.Is(err, ErrMalformed) {
		t.Errorf("a digest was verified as a signature: %v", err)
	}
}

// TestVersion3BindsTheKind: a signature of an fs-verity digest is none of a content
// digest of the same bytes, nor of metadata.
func TestVersion3BindsTheKind(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	digest := bytes.Repeat([]byte{7}, 32)
	x, err := Sign(VeritySignature, key, 1, SHA256, digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Verify(key.Public(), digest); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []XattrType{Signature, PortableSignature} {
		y := *x
		y.Type = kind
		if err := y.Verify(key.Public(), digest); !errors.Is(err, ErrMismatch) {
			t.Errorf("as type %d: %v", kind, err)
		}
	}
}

func TestKeyIDNeedsFourBytes(t *testing.T) {
	if _, err := KeyID(&x509.Certificate{SubjectKeyId: []byte{1, 2, 3}}); err == nil {
		t.Error("a key id was made of three bytes")
	}
	id, err := KeyID(&x509.Certificate{SubjectKeyId: []byte{9, 0xde, 0xad, 0xbe, 0xef}})
	if err != nil || id != 0xdeadbeef {
		t.Errorf("got %08x, %v", id, err)
	}
}

// TestLayouts: h_misc by hand, for the layouts that evmctl cannot make.
func TestLayouts(t *testing.T) {
	label := []byte{4, 4, 1}
	in := Inode{UID: 0x01020304, GID: 0x05060708, Mode: 0o100644, Xattrs: map[string][]byte{XattrIMA: label}}
	for target, misc := range map[string]string{
		"aarch64": "\x00\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x04\x03\x02\x01" + "\x08\x07\x06\x05" + "\xa4\x81" + "\x00\x00",
		"arm":     "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x04\x03\x02\x01" + "\x08\x07\x06\x05" + "\xa4\x81" + "\x00\x00",
		"s390x":   "\x00\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x01\x02\x03\x04" + "\x05\x06\x07\x08" + "\x81\xa4" + "\x00\x00",
		"mips":    "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x01\x02\x03\x04" + "\x05\x06\x07\x08" + "\x81\xa4" + "\x00\x00",
	} {
		l, err := ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		got, err := EVMDigest(SHA256, l, in)
		if err != nil {
			t.Fatal(err)
		}
		h, _ := SHA256.New()
		h.Write(label)
		h.Write([]byte(misc))
		if want := h.Sum(nil); !bytes.Equal(got, want) {
			t.Errorf("%s (%v): got %x, want %x", target, l, got, want)
		}
	}
	if _, err := ParseTarget("m68k"); err == nil {
		t.Error("m68k, whose struct h_misc is packed, is accepted")
	}
	if a, b := (Layout{64, binary.LittleEndian}).String(), (Layout{32, binary.BigEndian}).String(); a != "64-bit little-endian" || b != "32-bit big-endian" {
		t.Errorf("%s, %s", a, b)
	}
}

func TestSigningHash(t *testing.T) {
	for name, want := range map[string]HashAlgo{"sha256": SHA256, "sha384": SHA384, "sha512": SHA512} {
		if got, err := ParseSigningHash(name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"sha1", "md5", "SHA256", "sha3-256", "sha512-224", "", "unknown"} {
		if got, err := ParseSigningHash(name); err == nil {
			t.Errorf("%s: accepted as %v", name, got)
		}
	}
}
