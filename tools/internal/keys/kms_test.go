package keys

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// pluginDir is where the program sigstore-kms-attesttest was built, once for all tests.
var pluginDir = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "attest-plugin")
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "sigstore-kms-attesttest"), "./testdata/plugin").CombinedOutput()
	if err != nil {
		return dir, fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, _ := pluginDir(); dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// plugin puts the plug-in into PATH and returns the folder that holds key.
func plugin(t *testing.T, key crypto.PrivateKey) (dir string) {
	t.Helper()
	needs(t, "go")
	bin, err := pluginDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	dir = t.TempDir()
	serviceKey(t, dir, key)
	return dir
}

// serviceKey puts a key where the plug-in finds it.
func serviceKey(t *testing.T, dir string, key crypto.PrivateKey) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// calls is how often the plug-in was asked to sign.
func calls(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(text), "\n")
}

func openPlugin(t *testing.T, ctx context.Context, dir string) *Key {
	t.Helper()
	key, err := Open(ctx, "attesttest://"+dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestPlugin(t *testing.T) {
	for _, kind := range []string{"RSA-2048", "P-256"} {
		private, _ := newKey(t, kind)
		dir := plugin(t, private)
		key := openPlugin(t, t.Context(), dir)
		checkSigns(t, key, private.Public())
		if !key.Remote || key.Deterministic != (kind == "RSA-2048") {
			t.Errorf("%s: got Remote %v, Deterministic %v", kind, key.Remote, key.Deterministic)
		}
		if got := calls(t, dir); got != 3 { // checkSigns signs three digests twice
			t.Errorf("%s: %d calls", kind, got)
		}
	}
}

// TestPluginOnce: whatever the number of goroutines, each digest is signed once.
func TestPluginOnce(t *testing.T) {
	private, _ := newKey(t, "P-256")
	dir := plugin(t, private)
	key := openPlugin(t, t.Context(), dir)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 8 {
				digest := digestOf(crypto.SHA256, fmt.Sprint((g+i)%4))
				if _, err := key.Sign(nil, digest, crypto.SHA256); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := calls(t, dir); got != 4 {
		t.Errorf("%d calls for 4 digests", got)
	}
	// The same bytes as a digest of another algorithm would be another signature.
	if _, err := key.Sign(nil, digestOf(crypto.SHA512, "0"), crypto.SHA512); err != nil {
		t.Error(err)
	}
	if got := calls(t, dir); got != 5 {
		t.Errorf("%d calls", got)
	}
}

func TestPluginRetries(t *testing.T) {
	private, _ := newKey(t, "P-256")
	dir := plugin(t, private)
	key := openPlugin(t, t.Context(), dir)
	writeFile(t, filepath.Join(dir, "fail"), []byte("11"))
	if _, err := key.Sign(nil, digestOf(crypto.SHA256, "a"), crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	if got := calls(t, dir); got != 3 {
		t.Errorf("%d calls, want two failures and a success", got)
	}
	writeFile(t, filepath.Join(dir, "fail"), []byte("11111"))
	_, err := key.Sign(nil, digestOf(crypto.SHA256, "b"), crypto.SHA256)
	if err == nil || !strings.Contains(err.Error(), "gave up after 5 attempts") || !strings.Contains(err.Error(), "service is busy") {
		t.Errorf("got %v", err)
	}
	// A failure is not remembered.
	if _, err := key.Sign(nil, digestOf(crypto.SHA256, "b"), crypto.SHA256); err != nil {
		t.Error(err)
	}
}

// TestPluginAnswers: no byte of a wrong answer comes out.
func TestPluginAnswers(t *testing.T) {
	plugin(t, rsa2048(t)) // into PATH, before the parallel tests
	for answer, want := range map[string]string{
		"garbage": "15 bytes came back that are no signature of the public key",
		"pss":     "signature is RSASSA-PSS: not supported, Linux wants PKCS#1 v1.5",
		"empty":   "answer is not usable",
		"noise":   "parsing plugin response",
	} {
		t.Run(answer, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			serviceKey(t, dir, rsa2048(t))
			key := openPlugin(t, t.Context(), dir)
			writeFile(t, filepath.Join(dir, "answer"), []byte(answer))
			sig, err := key.Sign(nil, digestOf(crypto.SHA256, "a"), crypto.SHA256)
			if err == nil || sig != nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "attesttest://") {
				t.Errorf("got %x, %v, want %q", sig, err, want)
			}
		})
	}
}

// TestPluginCanceled: the context of Open ends a call that hangs.
func TestPluginCanceled(t *testing.T) {
	dir := plugin(t, rsa2048(t))
	ctx, cancel := context.WithCancel(t.Context())
	key := openPlugin(t, ctx, dir)
	writeFile(t, filepath.Join(dir, "answer"), []byte("slow"))
	time.AfterFunc(200*time.Millisecond, cancel)
	if _, err := key.Sign(nil, digestOf(crypto.SHA256, "a"), crypto.SHA256); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := key.Sign(nil, digestOf(crypto.SHA256, "b"), crypto.SHA256); !errors.Is(err, context.Canceled) {
		t.Errorf("afterwards: got %v", err)
	}
}

func TestKMSRefuses(t *testing.T) {
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	if _, err := Open(t.Context(), "attesttest://"+plugin(t, ed), Options{}); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "Ed25519") {
		t.Errorf("Ed25519: got %v", err)
	}
	_, err := Open(t.Context(), "absent://key", Options{})
	if err == nil || !strings.Contains(err.Error(), "sigstore-kms-absent") || !strings.Contains(err.Error(), "hashivault://") {
		t.Errorf("no plug-in: got %v", err)
	}
	for _, name := range []string{"VAULT_ADDR", "BAO_ADDR"} {
		t.Setenv(name, "")
	}
	if _, err := Open(t.Context(), "hashivault://key", Options{}); err == nil || !strings.Contains(err.Error(), "VAULT_ADDR") {
		t.Errorf("no address: got %v", err)
	}
}

func TestRemoteForgets(t *testing.T) {
	r := newRemote(t.Context(), "test", rsa2048(t).Public(), nil)
	for i := range maxRemembered + 100 {
		r.remember(fmt.Sprint(i), []byte{1})
	}
	if len(r.made) > maxRemembered {
		t.Errorf("%d signatures are remembered", len(r.made))
	}
}
