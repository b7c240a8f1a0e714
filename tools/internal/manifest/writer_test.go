package manifest

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("MANIFEST_TEST_WRITE"); path != "" {
		writeForever(path)
	}
	os.Exit(m.Run())
}

// names lists dir.
func names(t testing.TB, dir string) string {
	t.Helper()
	des, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, de := range des {
		out = append(out, de.Name())
	}
	return strings.Join(out, " ")
}

func TestFileRoundTrip(t *testing.T) {
	id := newP256(t, "id")
	path := filepath.Join(t.TempDir(), "i.attest.json")
	rapid.Check(t, func(rt *rapid.T) {
		want := entries().Draw(rt, "entries")
		write(t, path, id, want)
		m, got := read(t, path, id.cert)
		if diff := cmp.Diff(append([]Entry(nil), want...), got); diff != "" {
			rt.Fatal(diff)
		}
		m.Close()
	})
}

func TestDefaultName(t *testing.T) {
	id := newP256(t, "id")
	path := filepath.Join(t.TempDir(), "i.attest.json")
	w, err := Create(path, Header{})
	if err == nil {
		err = w.Commit(id, id.cert)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, es := read(t, path, id.cert)
	if m.Header != (Header{Name: "rootfs"}) || len(es) != 0 || m.Count != 0 || m.Algorithms != nil {
		t.Errorf("header %+v, %d entries, algorithms %v", m.Header, m.Count, m.Algorithms)
	}
}

// TestMode leaves the permissions of the result to the umask.
func TestMode(t *testing.T) {
	id := newP256(t, "id")
	path := filepath.Join(t.TempDir(), "i.attest.json")
	plain := filepath.Join(t.TempDir(), "plain")
	write(t, path, id, nil)
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := os.Stat(path)
	want, err2 := os.Stat(plain)
	if err != nil || err2 != nil || got.Mode() != want.Mode() {
		t.Errorf("mode %v, want %v (%v, %v)", got.Mode(), want.Mode(), err, err2)
	}
}

// brokenSigner fails, or signs something else.
type brokenSigner struct {
	crypto.Signer
	err error
}

func (s brokenSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.err != nil {
		return nil, s.err
	}
	digest[0] ^= 1
	return s.Signer.Sign(nil, digest, opts)
}

func TestFailedCommitKeepsOld(t *testing.T) {
	id, other := newP256(t, "id"), newP256(t, "other")
	ed := newEd25519(t)
	tests := []struct {
		name   string
		before func(*Writer) error // runs when the entries have reached the file
		signer crypto.Signer
		cert   *x509.Certificate
		want   string
	}{
		{"signer fails", nil, brokenSigner{id, errors.New("token removed")}, id.cert, "sign: token removed"},
		{"signer signs another digest", nil, brokenSigner{id, nil}, id.cert, `verify signature just made with certificate "CN=id"`},
		{"certificate of another key", nil, id, other.cert, `verify signature just made with certificate "CN=other"`},
		{"certificate of another kind of key", nil, id, identities(t)["rsa2048"].cert, "verify signature just made"},
		{"Ed25519", nil, ed, ed.cert, `use certificate "CN=ed": Ed25519 key: unsupported`},
		{
			"refused entry", func(w *Writer) error { w.Add(Entry{Path: "z"}); return nil },
			id, id.cert, fmt.Sprintf(`add entry %d "z" to manifest`, len(example)+1),
		},
		{"temporary file cut", func(w *Writer) error { return w.f.Truncate(200) }, id, id.cert, "read back"},
		{
			"temporary file changed", func(w *Writer) error { _, err := w.f.WriteAt([]byte("AAAA"), int64(len(envelopeHead))); return err },
			id, id.cert, "is not what was written",
		},
		{"temporary file gone", func(w *Writer) error { return os.Remove(w.tmp) }, id, id.cert, "rename"},
		{"aborted", (*Writer).Abort, id, id.cert, "committed or aborted"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "i.attest.json")
			write(t, path, id, example[:1])
			old := slurp(t, path)
			w, err := Create(path, exampleHeader)
			for i := 0; err == nil && i < len(example); i++ {
				err = w.Add(example[i])
			}
			if err = errors.Join(err, w.out.Flush()); err != nil {
				t.Fatal(err)
			}
			if tt.before != nil {
				if err := tt.before(w); err != nil {
					t.Fatal(err)
				}
			}
			checkErr(t, w.Commit(tt.signer, tt.cert), tt.want)
			if err := w.Abort(); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(old, slurp(t, path)) || names(t, dir) != "i.attest.json" {
				t.Errorf("the old manifest is not as it was, or not alone: %s", names(t, dir))
			}
		})
	}
}

func TestAbortAfterCommit(t *testing.T) {
	id := newP256(t, "id")
	path := filepath.Join(t.TempDir(), "i.attest.json")
	w, err := Create(path, exampleHeader)
	if err == nil {
		err = errors.Join(w.Commit(id, id.cert), w.Abort(), w.Abort())
	}
	if err != nil {
		t.Fatal(err)
	}
	read(t, path, id.cert)
	checkErr(t, w.Add(example[0]), "committed or aborted")
	checkErr(t, w.Commit(id, id.cert), "committed or aborted")
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	link, fifoTmp := filepath.Join(dir, "link"), filepath.Join(dir, ".p.tmp")
	err := errors.Join(os.Symlink("elsewhere", link), syscall.Mkfifo(fifoTmp, 0o600), os.Symlink("elsewhere", filepath.Join(dir, ".q.tmp")))
	if err != nil {
		t.Fatal(err)
	}
	before := names(t, dir)
	for _, tt := range []struct {
		name, path string
		h          Header
		want       string
	}{
		{"no directory", filepath.Join(dir, "none", "i"), Header{}, "no such file"},
		{"directory", dir, Header{}, "not a regular file"},
		{"device", os.DevNull, Header{}, "not a regular file"},
		{"symlink", link, Header{}, "not a regular file"},
		{"temporary name is a fifo", filepath.Join(dir, "p"), Header{}, "not a regular file"},
		{"temporary name is a symlink", filepath.Join(dir, "q"), Header{}, "symbolic links"},
		{"header", filepath.Join(dir, "i"), Header{Target: "\xff"}, "target is not"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Create(tt.path, tt.h)
			checkErr(t, err, tt.want)
			checkErr(t, err, tt.path)
		})
	}
	if after := names(t, dir); after != before {
		t.Errorf("left behind: %s, before: %s", after, before)
	}
}

func TestOneWriterAtATime(t *testing.T) {
	dir := t.TempDir()
	id := newP256(t, "id")
	path := filepath.Join(dir, "i.attest.json")
	w, err := Create(path, exampleHeader)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Create(path, exampleHeader)
	checkErr(t, err, "another process is writing it")
	if err := errors.Join(w.Add(example[0]), w.Commit(id, id.cert)); err != nil {
		t.Fatal(err)
	}
	if _, es := read(t, path, id.cert); len(es) != 1 || names(t, dir) != "i.attest.json" {
		t.Errorf("%d entries; %s", len(es), names(t, dir))
	}
}

// TestStray has a killed process leave more than the next one writes.
func TestStray(t *testing.T) {
	dir := t.TempDir()
	id := newP256(t, "id")
	path := filepath.Join(dir, "i.attest.json")
	if err := os.WriteFile(filepath.Join(dir, ".i.attest.json.tmp"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, path, id, example)
	if _, es := read(t, path, id.cert); len(es) != len(example) || names(t, dir) != "i.attest.json" {
		t.Errorf("%d entries; %s", len(es), names(t, dir))
	}
}

// TestLostRace has another writer finish between our open and our lock.
func TestLostRace(t *testing.T) {
	dir := t.TempDir()
	tmp := filepath.Join(dir, ".i.tmp")
	f, err := os.Create(tmp)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(checkLocked(f, tmp), os.Rename(tmp, filepath.Join(dir, "i"))); err != nil {
		t.Fatal(err)
	}
	checkErr(t, checkLocked(f, tmp), "another process")
	if err := os.WriteFile(tmp, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	checkErr(t, checkLocked(f, tmp), "another process")
}

// writeForever replaces the manifest at path again and again, with the key beside it; a
// line on standard output announces each Create and each Commit.
func writeForever(path string) {
	err := func() error {
		der, err := os.ReadFile(path + ".key")
		if err != nil {
			return err
		}
		key, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			return err
		}
		der, err = os.ReadFile(path + ".crt")
		if err != nil {
			return err
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		for n := 1; ; n++ {
			w, err := Create(path, Header{Generator: fmt.Sprint(n)})
			for i := 0; err == nil && i < 1000; i++ {
				err = w.Add(Entry{Path: fmt.Sprintf("%04d", i), Type: File, UID: uint32(n)})
			}
			if err == nil {
				err = w.Commit(key.(crypto.Signer), cert)
			}
			if err != nil {
				return err
			}
			fmt.Println(n)
		}
	}()
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestKill kills a process that writes manifests, at moments all over its work.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	id := newP256(t, "id")
	path := filepath.Join(dir, "i.attest.json")
	key, err := x509.MarshalPKCS8PrivateKey(id.Signer)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(path+".key", key, 0o600), os.WriteFile(path+".crt", id.cert.Raw, 0o600)); err != nil {
		t.Fatal(err)
	}
	strays := 0
	for round := range 20 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "MANIFEST_TEST_WRITE="+path)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("round %d wrote nothing: %s", round, &stderr)
		}
		time.Sleep(time.Duration(round) * 500 * time.Microsecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() // "signal: killed"
		if stderr.Len() > 0 {
			t.Fatalf("round %d: %s", round, &stderr)
		}
		m, es := read(t, path, id.cert)
		for _, e := range es {
			if fmt.Sprint(e.UID) != m.Generator || len(es) != 1000 {
				t.Fatalf("round %d: %d entries, one of run %d in the manifest of run %s", round, len(es), e.UID, m.Generator)
			}
		}
		if strings.Contains(names(t, dir), ".tmp") {
			strays++
		}
	}
	t.Logf("%d of 20 kills left a temporary file", strays)
	write(t, path, id, example)
	if got := names(t, dir); strings.Contains(got, ".tmp") {
		t.Errorf("the next run left %s", got)
	}
}

// TestFlatMemory compares the heap after many entries with that after few.
func TestFlatMemory(t *testing.T) {
	const many, bound = 100_000, 4 << 20
	id := newP256(t, "id")
	path := filepath.Join(t.TempDir(), "i.attest.json")
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	base, peak := int64(0), int64(0)
	sample := func(i int) {
		switch {
		case i == 1000:
			base, peak = heap(), 0
		case i%10_000 == 0:
			peak = max(peak, heap()-base)
		}
	}
	at := func(i int) Entry {
		return Entry{
			Path: fmt.Sprintf("usr/lib/python3/dist-packages/%08d.py", i), Type: File, Mode: 0o644, Size: int64(i),
			Digests: Digests{SHA256: fmt.Sprintf("%064x", i)}, Label: "sigv2", KeyID: "6aa320f1", EVM: "portable",
		}
	}
	check := func(what string) {
		if peak > bound {
			t.Errorf("%s: the heap grew by %d bytes, at most %d are fine", what, peak, bound)
		}
		t.Logf("%s: the heap grew by at most %d bytes", what, peak)
	}

	w, err := Create(path, exampleHeader)
	for i := 1; err == nil && i <= many; i++ {
		err = w.Add(at(i))
		sample(i)
	}
	if err == nil {
		err = w.Commit(id, id.cert)
	}
	if err != nil {
		t.Fatal(err)
	}
	check("write")

	m, err := Open(path, []*x509.Certificate{id.cert})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	i := 0
	for _, err := range m.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		i++
		sample(i)
	}
	check("read")

	d, err := m.Diff(func(f Finding) error { return fmt.Errorf("unexpected: %v", f) })
	for i := 1; err == nil && i <= many; i++ {
		err = d.Add(at(i))
		sample(i)
	}
	if err == nil {
		err = d.Finish()
	}
	if err != nil {
		t.Fatal(err)
	}
	check("compare")
}
