package tpmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// made is what the manufacturer delivers: the state of a TPM that nobody has used, and the
// certificates above its endorsement key's.
type made struct{ state, rootCA, issuer []byte }

// stock holds the TPMs that no running test has: swtpm_setup takes more than a second, most
// of which it waits. Who takes one has it alone until his test ends, so that two TPMs at a
// time never are the same; it is delivered as new each time.
var stock struct {
	sync.Mutex
	free []made
}

// take is a TPM of the stock, which gets it back when the test ends.
func take(t testing.TB) made {
	t.Helper()
	stock.Lock()
	n := len(stock.free)
	var m made
	if n > 0 {
		m, stock.free = stock.free[n-1], stock.free[:n-1]
	}
	stock.Unlock()
	if n == 0 {
		m = manufacture(t)
	}
	t.Cleanup(func() {
		stock.Lock()
		defer stock.Unlock()
		stock.free = append(stock.free, m)
	})
	return m
}

// stateFile is where swtpm keeps the state of a TPM 2.0.
const stateFile = "tpm2-00.permall"

// manufacture makes the TPM's state with swtpm_setup, and a certificate authority of two
// levels with swtpm's own.
func manufacture(t testing.TB) made {
	t.Helper()
	dir := t.TempDir()
	state, ca := filepath.Join(dir, "state"), filepath.Join(dir, "ca")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"setup.conf": fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\n",
			"/usr/bin/swtpm_localca", filepath.Join(dir, "ca.conf"), filepath.Join(dir, "ca.options")),
		"ca.conf":    fmt.Sprintf("statedir = %s\nsigningkey = %[1]s/key.pem\nissuercert = %[1]s/issuer.pem\ncertserial = %[1]s/serial\n", ca),
		"ca.options": "--platform-manufacturer Example\n--platform-version 1\n--platform-model Test\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), "swtpm_setup", "--tpm2", "--tpmstate", state,
		"--config", filepath.Join(dir, "setup.conf"), "--create-ek-cert", "--pcr-banks", "sha1,sha256,sha384",
		"--runas", fmt.Sprint(os.Getuid()), "--overwrite").CombinedOutput()
	if err != nil {
		t.Fatalf("swtpm_setup: %v\n%s", err, out)
	}
	read := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	return made{read(filepath.Join(state, stateFile)), read(filepath.Join(ca, "swtpm-localca-rootca-cert.pem")), read(filepath.Join(ca, "issuer.pem"))}
}
