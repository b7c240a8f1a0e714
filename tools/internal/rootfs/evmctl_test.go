package rootfs

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pkg/xattr"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// evmctls are the programs to compare with: the installed one, and a newer one named by
// $ATTEST_EVMCTL.
func evmctls(t *testing.T) []string {
	t.Helper()
	programs := []string{"evmctl", os.Getenv("ATTEST_EVMCTL")}
	programs = slices.DeleteFunc(programs, func(p string) bool {
		_, err := exec.LookPath(p)
		return p == "" || err != nil
	})
	if len(programs) == 0 {
		t.Skip("evmctl is not installed (Debian package ima-evm-utils): signatures are not compared with it")
	}
	return programs
}

// evmctl says whether the program accepts.
func evmctl(t *testing.T, program string, args ...string) bool {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Logf("%s %v: %v\n%s", program, args, err, out)
	}
	return err == nil
}

// capNetBind is a security.capability as setcap cap_net_bind_service=ep writes it.
var capNetBind, _ = hex.DecodeString("0100000200040000000000000000000000000000")

// tampering changes one thing about a signed file.
var tampering = map[string]func(path string) error{
	"content bit":    func(p string) error { return flipContent(p) },
	"content size":   func(p string) error { return os.Truncate(p, 3) },
	"hash algorithm": func(p string) error { return flipLabel(p, ima.XattrIMA, 2, 3) },
	"key id":         func(p string) error { return flipLabel(p, ima.XattrIMA, 6, 1) },
	"signature":      func(p string) error { return flipLabel(p, ima.XattrIMA, 20, 4) },
	"last bit":       func(p string) error { return flipLabel(p, ima.XattrIMA, -1, 1) },
	"truncated": func(p string) error {
		value, err := xattr.LGet(p, ima.XattrIMA)
		if err != nil {
			return err
		}
		return xattr.LSet(p, ima.XattrIMA, value[:len(value)-1])
	},
}

// tamperingMetadata is what only EVM sees.
var tamperingMetadata = map[string]func(path string) error{
	"uid":                func(p string) error { return os.Lchown(p, 1, 4) },
	"gid":                func(p string) error { return os.Lchown(p, 3, 1) },
	"uid and gid":        func(p string) error { return os.Lchown(p, 4, 3) },
	"mode":               func(p string) error { return os.Chmod(p, 0o757) },
	"capability":         func(p string) error { return flipLabel(p, ima.XattrCapability, 5, 1) },
	"capability removed": func(p string) error { return xattr.LRemove(p, ima.XattrCapability) },
	"evm hash algorithm": func(p string) error { return flipLabel(p, ima.XattrEVM, 2, 3) },
	"evm key id":         func(p string) error { return flipLabel(p, ima.XattrEVM, 3, 0x80) },
	"evm signature":      func(p string) error { return flipLabel(p, ima.XattrEVM, 30, 1) },
	"ima":                func(p string) error { return flipLabel(p, ima.XattrIMA, 25, 1) },
}

func flipContent(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	content[2] ^= 0x10
	return os.WriteFile(path, content, 0)
}

func flipLabel(path, name string, at int, bit byte) error {
	value, err := xattr.LGet(path, name)
	if err != nil {
		return err
	}
	if at < 0 {
		at += len(value)
	}
	value[at] ^= bit
	return xattr.LSet(path, name, value)
}

// victim makes a file with an owner, a mode and a capability worth changing.
func victim(t *testing.T, path string) {
	t.Helper()
	write(t, path, []byte("hello ima\n"), 0o755)
	if err := os.Lchown(path, 3, 4); err != nil {
		t.Fatal(err)
	}
	if err := xattr.LSet(path, ima.XattrCapability, capNetBind); err != nil {
		t.Fatal(err)
	}
}

// TestEvmctlAgrees signs with each kind of key and hash and asks evmctl and ourselves:
// both accept what was signed, and both refuse each change.
func TestEvmctlAgrees(t *testing.T) {
	needLabels(t)
	programs := evmctls(t)
	for _, kind := range slices.Sorted(maps.Keys(keyKinds)) {
		p := newPair(t, kind)
		for _, hash := range []ima.HashAlgo{ima.SHA256, ima.SHA384, ima.SHA512} {
			t.Run(fmt.Sprint(kind, "/", hash), func(t *testing.T) {
				root := t.TempDir()
				path := filepath.Join(root, "file")
				victim(t, path)
				layout, _ := ima.ParseTarget("x86_64")
				o := SignOptions{Signer: p.signer(t, hash), EVM: p.signer(t, hash), Layout: layout}
				resign := func() { // as it was, from scratch
					victim(t, path)
					sign(t, root, o)
				}
				resign()
				agree(t, programs, p, root, path, layout, true, true)
				if hash != ima.SHA256 && kind != "P-256" {
					return // each kind of key and each hash is tampered with once
				}
				for name, tamper := range tampering {
					if err := tamper(path); err != nil {
						t.Fatal(err)
					}
					t.Run(name, func(t *testing.T) { agree(t, programs, p, root, path, layout, false, false) })
					resign()
				}
				for name, tamper := range tamperingMetadata {
					if err := tamper(path); err != nil {
						t.Fatal(err)
					}
					t.Run(name, func(t *testing.T) { agree(t, programs, p, root, path, layout, name != "ima", false) })
					resign()
				}
			})
		}
	}
}

// agree asks evmctl and Check about a file, and wants the same answer from both.
func agree(t *testing.T, programs []string, p pair, root, path string, layout ima.Layout, imaGood, evmGood bool) {
	t.Helper()
	for _, program := range programs {
		if got := evmctl(t, program, "ima_verify", "-k", p.der, path); got != imaGood {
			t.Errorf("%s accepts security.ima: %v, want %v", program, got, imaGood)
		}
		if imaGood { // of a changed content evmctl verify knows nothing
			if got := evmctl(t, program, "verify", "-k", p.der, path); got != evmGood {
				t.Errorf("%s accepts security.evm: %v, want %v", program, got, evmGood)
			}
		}
	}
	_, findings := check(t, root, CheckOptions{Trust: p.trust(t), All: true, EVM: true, Layout: fixed(layout)})
	if (len(findings) == 0) != (imaGood && evmGood) {
		t.Errorf("findings: %v", findings)
	}
}

// TestVerifyAcceptsEvmctl: labels made by evmctl are good to us, and RSA ones are ours
// byte for byte.
func TestVerifyAcceptsEvmctl(t *testing.T) {
	needLabels(t)
	for _, program := range evmctls(t) {
		for _, kind := range slices.Sorted(maps.Keys(keyKinds)) {
			p := newPair(t, kind)
			for _, hash := range []ima.HashAlgo{ima.SHA256, ima.SHA384, ima.SHA512} {
				t.Run(fmt.Sprint(kind, "/", hash), func(t *testing.T) {
					root := t.TempDir()
					path := filepath.Join(root, "file")
					victim(t, path)
					if !evmctl(t, program, "sign", "--imasig", "--portable", "-a", hash.String(), "-k", p.pem, path) {
						t.Fatal("evmctl cannot sign")
					}
					layout, _ := ima.ParseTarget("x86_64")
					report, findings := check(t, root, CheckOptions{Trust: p.trust(t), All: true, EVM: true, Layout: fixed(layout)})
					if len(findings) > 0 || report.Signed != 1 {
						t.Errorf("%+v, findings %v", report, findings)
					}
					if !strings.HasPrefix(kind, "RSA") {
						return
					}
					theirs := labelsOf(t, root)
					sign(t, root, SignOptions{Signer: p.signer(t, hash), EVM: p.signer(t, hash), Layout: layout, Force: true})
					if ours := labelsOf(t, root); !maps.Equal(ours, theirs) {
						t.Errorf("ours %v\ntheirs %v", ours, theirs)
					}
				})
			}
		}
	}
}

// TestEvmctlHash: digests, including the SHA-1 that we would not write ourselves.
func TestEvmctlHash(t *testing.T) {
	needLabels(t)
	program := evmctls(t)[0]
	p := newPair(t, "P-256")
	for _, hash := range []string{"sha1", "sha224", "sha256", "sha384", "sha512"} {
		t.Run(hash, func(t *testing.T) {
			root := t.TempDir()
			path := filepath.Join(root, "file")
			write(t, path, []byte("hello ima\n"), 0o644)
			if !evmctl(t, program, "ima_hash", "-a", hash, path) {
				t.Fatal("evmctl cannot hash")
			}
			report, findings := check(t, root, CheckOptions{Trust: p.trust(t)})
			weak := len(findings) == 1 && findings[0].Code == CodeWeak
			if report.Hashed != 1 || weak != (hash == "sha1") || len(findings) > 0 && !weak {
				t.Errorf("%+v, findings %v", report, findings)
			}
			if err := flipContent(path); err != nil {
				t.Fatal(err)
			}
			if _, findings := check(t, root, CheckOptions{Trust: p.trust(t)}); len(findings) != 1 || findings[0].Code != CodeChanged {
				t.Errorf("after a change: %v", findings)
			}
		})
	}
}

// TestEvmctlLayouts32 compares the 32-bit layout, and a hash protected by EVM.
func TestEvmctl32Bit(t *testing.T) {
	needLabels(t)
	program := evmctls(t)[0]
	p := newPair(t, "RSA-2048")
	root := t.TempDir()
	path := filepath.Join(root, "file")
	victim(t, path)
	if !evmctl(t, program, "sign", "--imahash", "--portable", "--m32", "-a", "sha256", "-k", p.pem, path) {
		t.Fatal("evmctl cannot sign")
	}
	theirs := labelsOf(t, root)
	layout, _ := ima.ParseTarget("arm")
	rule, _ := ParseRule("hash:/**")
	sign(t, root, SignOptions{Signer: p.signer(t, ima.SHA256), EVM: p.signer(t, ima.SHA256), Layout: layout, Rules: Rules{rule}, Force: true})
	if ours := labelsOf(t, root); !maps.Equal(ours, theirs) {
		t.Errorf("ours %v\ntheirs %v", ours, theirs)
	}
	layout, _ = ima.ParseTarget("aarch64")
	if _, findings := check(t, root, CheckOptions{Trust: p.trust(t), EVM: true, Layout: fixed(layout)}); len(findings) != 1 || findings[0].Code != CodeEVMMismatch {
		t.Errorf("for a 64-bit kernel: %v", findings)
	}
}

// TestVeritySignature compares with evmctl sign_hash --veritysig, where there is one.
func TestVeritySignature(t *testing.T) {
	needLabels(t)
	programs := slices.DeleteFunc(evmctls(t), func(p string) bool {
		out, _ := exec.Command(p, "--help").CombinedOutput()
		return !bytes.Contains(out, []byte("--veritysig"))
	})
	if len(programs) == 0 {
		t.Skip("this evmctl has no --veritysig (1.5 has): fs-verity signatures are compared with the committed vectors only")
	}
	p := newPair(t, "RSA-2048")
	root := t.TempDir()
	path := filepath.Join(root, "file")
	write(t, path, bytes.Repeat([]byte("0123456789"), 100000), 0o644)
	sign(t, root, SignOptions{Signer: p.signer(t, ima.SHA256), Verity: &ima.VerityParams{Hash: ima.SHA256, BlockSize: 4096}})
	digest, err := exec.Command("fsverity", "digest", path).Output()
	if err != nil {
		t.Skipf("fsverity: %v", err)
	}
	cmd := exec.Command(programs[0], "sign_hash", "--veritysig", "-k", p.pem)
	cmd.Stdin = bytes.NewReader(digest)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(string(out))[2]
	if got := labelsOf(t, root)[path+" security.ima"]; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
