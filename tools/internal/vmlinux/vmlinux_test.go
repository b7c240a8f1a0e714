package vmlinux

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/elf"
	"encoding/binary"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// source is certs/system_certificates.S of Linux, with the sizes as numbers of WORD.
const source = `
	.section ".init.rodata","a"
	.globl system_certificate_list
system_certificate_list:
1:	.incbin "module"
2:	.incbin "trusted"
3:
	.align 8
	.globl system_certificate_list_size
system_certificate_list_size:
	WORD 3b - 1b
	.globl module_cert_size
module_cert_size:
	WORD 2b - 1b
`

// assemble makes an ELF file of it.
func assemble(t testing.TB, text string, files map[string][]byte, flags ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("as"); err != nil {
		t.Skip("as is not installed: apt-get install binutils")
	}
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := exec.CommandContext(t.Context(), "as", append(flags, "-o", "vmlinux", "-")...)
	c.Dir, c.Stdin = dir, strings.NewReader(text)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("as: %v\n%s", err, out)
	}
	file, err := os.ReadFile(filepath.Join(dir, "vmlinux"))
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func certificate(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func names(certs []*x509.Certificate) string {
	var list []string
	for _, c := range certs {
		list = append(list, c.Subject.CommonName)
	}
	return strings.Join(list, " ")
}

func TestRead(t *testing.T) {
	a, b, c := certificate(t, "a").Raw, certificate(t, "b").Raw, certificate(t, "c").Raw
	for _, x := range []struct {
		name            string
		module, trusted []byte
		wantM, wantT    string
	}{
		{"a CA", nil, a, "", "a"},
		{"two, and a module signing key", c, append(bytes.Clone(a), b...), "c", "a b"},
		{"none", nil, nil, "", ""},
	} {
		for word, flag := range map[string]string{".quad": "--64", ".long": "--32"} {
			t.Run(x.name+flag, func(t *testing.T) {
				file := assemble(t, strings.ReplaceAll(source, "WORD", word), map[string][]byte{"module": x.module, "trusted": x.trusted}, flag)
				got, err := Read(bytes.NewReader(file))
				if err != nil {
					t.Fatal(err)
				}
				if m, tr := names(got.Module), names(got.Trusted); m != x.wantM || tr != x.wantT {
					t.Errorf("got %q, %q; want %q, %q", m, tr, x.wantM, x.wantT)
				}
			})
		}
	}
}

func TestReadRefuses(t *testing.T) {
	files := map[string][]byte{"module": nil, "trusted": []byte("no certificate")}
	good := strings.ReplaceAll(source, "WORD", ".quad")
	for _, x := range []struct {
		name, text, want string
		err              error
	}{
		{"without the keyring", "\t.globl a\na:\t.quad 1\n", "no symbol system_certificate_list_size", ErrNoList},
		{"no certificate", good, "trusted certificates: ", nil},
		{"longer than its section", strings.Replace(good, "3b - 1b", "1000", 1), "do not lie in section", nil},
		{"too long", strings.Replace(good, "3b - 1b", "1 << 40", 1), "not plausible", nil},
		{"no place", "\t.globl system_certificate_list_size\n\t.set system_certificate_list_size, 5\n", "lies in no section", nil},
		{"a place without bytes", "\t.bss\n\t.globl system_certificate_list_size\nsystem_certificate_list_size:\n\t.skip 8\n", "do not lie in section .bss", nil},
		{"more modules than certificates", strings.Replace(good, "2b - 1b", "1000", 1), "not plausible", nil},
	} {
		c, err := Read(bytes.NewReader(assemble(t, x.text, files)))
		if err == nil || !strings.Contains(err.Error(), x.want) || x.err != nil && !errors.Is(err, x.err) || c != nil {
			t.Errorf("%s: got %v, %v, want %q", x.name, c, err, x.want)
		}
	}
	file := assemble(t, good, files, "--64")
	parsed, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(parsed.Sections, func(s *elf.Section) bool { return s.Name == ".init.rodata" })
	table := binary.LittleEndian.Uint64(file[40:])               // e_shoff
	file[table+64*uint64(at)+9] |= byte(elf.SHF_COMPRESSED >> 8) // in sh_flags
	if _, err := Read(bytes.NewReader(file)); err == nil || !strings.Contains(err.Error(), "compressed") {
		t.Errorf("compressed sections: %v", err)
	}
	if _, err := Read(strings.NewReader("bzImage")); err == nil {
		t.Error("no ELF file: no error")
	}
}

// FuzzRead changes kernels: what is read is certificates, and of the kernel's own bytes.
func FuzzRead(f *testing.F) {
	a := certificate(f, "a").Raw
	for word, flag := range map[string]string{".quad": "--64", ".long": "--32"} {
		f.Add(assemble(f, strings.ReplaceAll(source, "WORD", word), map[string][]byte{"module": a, "trusted": a}, flag))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		got, err := Read(bytes.NewReader(file))
		if err != nil {
			if got != nil {
				t.Fatalf("%v, and certificates", err)
			}
			return
		}
		for _, cert := range append(got.Module, got.Trusted...) {
			if !bytes.Contains(file, cert.Raw) {
				t.Fatalf("certificate %q is not in the file", cert.Subject)
			}
		}
	})
}
