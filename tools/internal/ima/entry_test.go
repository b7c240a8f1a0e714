package ima

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fields puts a length before each value, as template data has it.
func fields(order binary.AppendByteOrder, values ...string) []byte {
	var b []byte
	for _, v := range values {
		b = append(order.AppendUint32(b, uint32(len(v))), v...)
	}
	return b
}

// record is an entry of a binary list as Linux writes it.
func record(order binary.AppendByteOrder, pcr uint32, template string, data []byte) []byte {
	sum := sha1.Sum(data)
	b := append(order.AppendUint32(nil, pcr), sum[:]...)
	b = append(order.AppendUint32(b, uint32(len(template))), template...)
	return append(order.AppendUint32(b, uint32(len(data))), data...)
}

func digestOf(content string) string {
	sum := sha256.Sum256([]byte(content))
	return string(sum[:])
}

// TestFields: what the kernel's lists say of the files that their guest made, one of them
// with a signature, one with a bare hash, one with capabilities and a portable signature.
func TestFields(t *testing.T) {
	signed, evm := "\x03\x02\x04\xde\xad\xbe\xef\x00\x04\x01\x02\x03\x04", "\x05\x02\x04\xd5\xcb\xd7\x35\x00\x04\x01\x02\x03\x04"
	type seen struct{ Path, Content, Signature, EVM string }
	base := []seen{{"/w/a", "plain\n", "", ""}, {"/w/a_b_(x)", "space\n", "", ""}, {"/w/new\nline", "nl\n", "", ""}, {"/w/h\xc3\xb6\xff\t", "u\n", "", ""}}
	labels := append(base[:4:4], seen{"/w/s", "signed\n", signed, ""}, seen{"/w/h", "hashed\n", "", ""}, seen{"/w/e", "evm\n", evm, ""})
	bare := append(base[:4:4], seen{"/w/s", "signed\n", "", ""}, seen{"/w/h", "hashed\n", "", ""}, seen{"/w/e", "evm\n", "", ""})
	portable := append(base[:4:4], seen{"/w/s", "signed\n", "", ""}, seen{"/w/h", "hashed\n", "", ""}, seen{"/w/e", "evm\n", "", evm})
	for name, want := range map[string][]seen{
		"debian-ima": bare, "debian-ima-ng": bare, "debian-ima-ngv2": bare, "debian-ima-sig": labels, "debian-ima-sigv2": labels,
		"debian-ima-modsig": labels, "debian-evm-sig": portable, "debian-custom": portable,
	} {
		var got []seen
		r := NewListReader(readList(t, name, little), little, 0)
		for {
			e, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range want {
				h, err := e.File.Hash.New()
				if err != nil {
					t.Fatal(err)
				}
				h.Write([]byte(w.Content))
				if w.Path == string(e.Path) && bytes.Equal(e.File.Sum, h.Sum(nil)) && !e.Violation {
					got = append(got, seen{w.Path, w.Content, string(e.Signature), string(e.EVMSignature)})
				}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
}

// find returns the first entry of a path.
func find(t *testing.T, list, path string) *Entry {
	for r := NewListReader(readList(t, list, little), little, 0); ; {
		e, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if string(e.Path) == path {
			return e
		}
	}
}

func TestInode(t *testing.T) {
	in, ok, err := find(t, "debian-evm-sig", "/w/e").Inode()
	want := Inode{UID: 2002, GID: 7, Mode: 0104751, Xattrs: map[string][]byte{
		XattrIMA:        append([]byte{4, 4}, digestOf("hello ima\n")...),
		XattrCapability: append([]byte{1, 0, 0, 2, 0, 0x20}, make([]byte, 14)...),
	}}
	if diff := cmp.Diff(want, in); diff != "" || !ok || err != nil {
		t.Errorf("%v, %v: -want +got\n%s", ok, err, diff)
	}
	if _, ok, err := find(t, "debian-ima-sig", "/w/e").Inode(); ok || err != nil {
		t.Errorf("ima-sig has an inode: %v", err)
	}
	if in, ok, err := find(t, "debian-evm-sig", "/w/a").Inode(); !ok || err != nil || len(in.Xattrs) != 0 {
		t.Errorf("%+v, %v, %v", in, ok, err)
	}
	e := find(t, "debian-evm-sig", "/w/e")
	e.xattrLengths = []byte{0x22, 0, 0, 0, 0x15, 0, 0, 0}
	if _, ok, err := e.Inode(); ok || !errors.Is(err, ErrList) {
		t.Errorf("a length too long: %v", err)
	}
}

func TestTypedDigest(t *testing.T) {
	n := 0
	for r := NewListReader(readList(t, "custom-verity-sigv3", little), little, 0); ; {
		e, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if label, err := e.Label(); err != nil {
			t.Errorf("%s: %v", e.Path, err)
		} else if e.File.Verity && label != nil && label.Type == VeritySignature {
			n++
		}
	}
	if n == 0 {
		t.Error("no signature of an fs-verity digest")
	}
	buf := find(t, "debian-ima-sig", ".builtin_trusted_keys")
	if buf.Template.Name != "ima-buf" || !bytes.HasPrefix(buf.Buffer, []byte{0x30, 0x82}) {
		t.Errorf("template %s, buffer %.10x", buf.Template.Name, buf.Buffer)
	}
}

// TestBigEndian: the same entries, as a big-endian kernel writes and hashes them.
func TestBigEndian(t *testing.T) {
	form := Form{Order: binary.BigEndian, Hash: SHA1}
	inASCII := Form{ASCII: true, Order: binary.BigEndian, Hash: SHA1}
	data := fields(binary.BigEndian, "sha256:\x00"+digestOf("x"), "/x\x00", "", "", "", "", "\x00\x00\x07\xd2", "\x00\x00\x00\x07", "\x81\xa4")
	list := record(binary.BigEndian, 10, "evm-sig", data)
	e, err := NewListReader(list, form, 0).Next()
	if err != nil || e.CheckDigest() != nil || e.PCR != 10 {
		t.Fatalf("%+v, %v", e, err)
	}
	in, ok, err := e.Inode()
	if err != nil || !ok || in.UID != 2002 || in.GID != 7 || in.Mode != 0100644 {
		t.Errorf("%+v, %v, %v", in, ok, err)
	}
	line := inASCII.Append(nil, e)
	if back, err := NewListReader(line, inASCII, 0).Next(); err != nil || !bytes.Equal(form.Append(nil, back), list) || back.CheckDigest() != nil {
		t.Errorf("%s: %v", line, err)
	}
	for _, want := range []struct {
		list []byte
		form Form
	}{{list, form}, {line, inASCII}} {
		if got, err := DetectForm(want.list); got != want.form || err != nil {
			t.Errorf("got %+v, %v; want %+v", got, err, want.form)
		}
	}
}

// TestOldViolation: kernels that leave room for SHA-1 in a violation of SHA-256.
func TestOldViolation(t *testing.T) {
	data := fields(binary.LittleEndian, "sha256:\x00"+strings.Repeat("\x00", 20), "/x\x00")
	list := record(binary.LittleEndian, 10, "ima-ng", data)
	if _, err := NewListReader(list, little, 0).Next(); !errors.Is(err, ErrList) {
		t.Errorf("a short digest: %v", err)
	}
	copy(list[4:24], make([]byte, 20))
	if e, err := NewListReader(list, little, 0).Next(); err != nil || !e.Violation || e.CheckDigest() != nil {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestOtherBank: a list of *_runtime_measurements_sha256.
func TestOtherBank(t *testing.T) {
	form := Form{Order: binary.LittleEndian, Hash: SHA256}
	for r := NewListReader(readList(t, "debian-ima-sig", little), little, 0); ; {
		e, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(e.Data)
		e.Digest = sum[:]
		list := form.Append(nil, e)
		again, err := NewListReader(list, form, 0).Next()
		if err != nil || again.CheckDigest() != nil || !bytes.Equal(form.Append(nil, again), list) {
			t.Fatalf("%x: %v", list, err)
		}
		if got, err := DetectForm(list); got != form || err != nil {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
}

// TestEvmctl: the reference implementation agrees that these lists make these PCRs.
func TestEvmctl(t *testing.T) {
	if _, err := exec.LookPath("evmctl"); err != nil {
		t.Skip("evmctl is not installed: nothing to compare with")
	}
	for _, name := range lists(t) {
		if name == "debian-ima" {
			continue // evmctl refuses ima beside ima-buf
		}
		args := []string{"ima_measurement", "--ignore-violations"}
		files := map[HashAlgo][]byte{}
		for _, v := range readPCRs(t, name, "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10") {
			files[v.Bank.Hash] = fmt.Appendf(files[v.Bank.Hash], "PCR-%02d: %x\n", v.PCR, v.Value)
		}
		for _, bank := range []HashAlgo{SHA1, SHA256} { // it reads no other
			file := filepath.Join(t.TempDir(), bank.String())
			if err := os.WriteFile(file, files[bank], 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, "--pcrs", bank.String()+","+file)
		}
		out, err := exec.Command("evmctl", append(args, filepath.Join("testdata/lists", name+".binary_runtime_measurements"))...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestEvmctlPadded: the reference implementation agrees with what kernels before 5.8 made
// of the SHA-256 bank, of which there is no list here.
func TestEvmctlPadded(t *testing.T) {
	if _, err := exec.LookPath("evmctl"); err != nil {
		t.Skip("evmctl is not installed: nothing to compare with")
	}
	for _, name := range []string{"debian-bpf-seabios", "debian-tcb-violation-seabios"} {
		var wanted []PCRValue
		for _, v := range readPCRs(t, name, "10") {
			if v.Bank.Hash == SHA256 {
				v.Bank.Padding = PaddedOld
			}
			wanted = append(wanted, v)
		}
		replay, err := NewReplay(nil, wanted)
		if err != nil {
			t.Fatal(err)
		}
		for r := NewListReader(readList(t, name, little), little, 0); ; {
			e, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := replay.Extend(e); err != nil {
				t.Fatal(err)
			}
		}
		args := []string{"ima_measurement", "--ignore-violations"}
		for _, v := range replay.Values() {
			var pcrs []byte
			for i := range 24 {
				if i == v.PCR {
					pcrs = fmt.Appendf(pcrs, "PCR-%02d: %x\n", i, v.Value)
				} else {
					pcrs = fmt.Appendf(pcrs, "PCR-%02d: %0*x\n", i, 2*len(v.Value), 0)
				}
			}
			file := filepath.Join(t.TempDir(), v.Bank.Hash.String())
			if err := os.WriteFile(file, pcrs, 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, "--pcrs", v.Bank.Hash.String()+","+file)
		}
		out, err := exec.Command("evmctl", append(args, filepath.Join("testdata/lists", name+".binary_runtime_measurements"))...).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("SHA1 padded")) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
