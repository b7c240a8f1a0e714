package ima

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestVerityAgainstFsverity compares with the reference program on the sizes around
// which a Merkle tree gains a block or a level.
func TestVerityAgainstFsverity(t *testing.T) {
	if _, err := exec.LookPath("fsverity"); err != nil {
		t.Skip("fsverity is not installed (Debian package fsverity): digests are not compared with it")
	}
	file := filepath.Join(t.TempDir(), "content")
	for _, size := range []int{0, 1, 1023, 1024, 1025, 4095, 4096, 4097, 32 * 1024, 32*1024 + 1, 128 * 4096, 128*4096 + 1, 129 * 4096, 1<<20 + 3} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(i * 7)
		}
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, p := range []VerityParams{
			{SHA256, 4096, nil},
			{SHA512, 4096, nil},
			{SHA256, 1024, []byte{1}},
			{SHA512, 1024, bytes.Repeat([]byte{0xa5}, 32)},
			{SHA256, 65536, []byte("salt")},
		} {
			args := []string{"digest", "--compact", "--hash-alg=" + p.Hash.String(), fmt.Sprintf("--block-size=%d", p.BlockSize)}
			if len(p.Salt) > 0 {
				args = append(args, "--salt="+hex.EncodeToString(p.Salt))
			}
			out, err := exec.Command("fsverity", append(args, file)...).CombinedOutput()
			if err != nil {
				t.Fatalf("fsverity %v: %v: %s", args, err, out)
			}
			v, err := NewVerity(p)
			if err != nil {
				t.Fatal(err)
			}
			v.Write(content)
			if got, want := hex.EncodeToString(v.Digest()), strings.TrimSpace(string(out)); got != want {
				t.Errorf("%d bytes, %v, blocks of %d, salt %x: got %s, want %s", size, p.Hash, p.BlockSize, p.Salt, got, want)
			}
		}
	}
}

// TestVerityChunks: the digest does not depend on how the content arrives, nor on what
// was hashed before.
func TestVerityChunks(t *testing.T) {
	v, err := NewVerity(VerityParams{SHA256, 1024, []byte("s")})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		content := rapid.SliceOfN(rapid.Byte(), 0, 40000).Draw(t, "content")
		v.Reset()
		v.Write(content)
		want := v.Digest()
		v.Reset()
		for rest := content; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "n")
			v.Write(rest[:n])
			rest = rest[n:]
		}
		if got := v.Digest(); !bytes.Equal(got, want) {
			t.Fatalf("in chunks %x, at once %x", got, want)
		}
	})
}

func TestVerityRefuses(t *testing.T) {
	for _, p := range []VerityParams{
		{SHA384, 4096, nil}, {SHA1, 4096, nil}, {SHA256, 0, nil}, {SHA256, 512, nil}, {SHA256, 5000, nil},
		{SHA256, 1 << 17, nil}, {SHA256, -4096, nil}, {SHA256, 4096, make([]byte, 33)},
	} {
		if _, err := NewVerity(p); err == nil {
			t.Errorf("%v, blocks of %d, salt of %d bytes: accepted", p.Hash, p.BlockSize, len(p.Salt))
		}
	}
}
