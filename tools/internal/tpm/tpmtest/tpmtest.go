// Package tpmtest gives tests a TPM 2.0: swtpm, with an endorsement key, its certificate
// and the certificate's issuers, as a manufacturer would deliver it.
package tpmtest

import (
	"crypto"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/tpm"
)

// Emulator is a running swtpm.
type Emulator struct {
	// Address is what [tpm.Open] takes. One connection is served at a time.
	Address string
	// RootCA and Issuer are PEM: the certificates above the endorsement key's.
	RootCA, Issuer []byte

	t    testing.TB
	dir  string // short, as the path of a socket may have 107 bytes
	proc *exec.Cmd
}

// Start makes a new TPM and starts it; both end with the test. Where swtpm is missing the
// test is skipped.
func Start(t testing.TB) *Emulator {
	t.Helper()
	for _, program := range []string{"swtpm", "swtpm_setup", "swtpm_cert"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed (Debian: apt-get install swtpm swtpm-tools)", program)
		}
	}
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	e := &Emulator{t: t, dir: dir, Address: "unix:" + filepath.Join(dir, "tpm.sock")}
	t.Cleanup(func() {
		e.stop()
		_ = os.RemoveAll(dir)
	})
	e.manufacture()
	e.start("startup-clear")
	return e
}

// manufacture makes the TPM's state with swtpm_setup, and a certificate authority of two
// levels with swtpm's own.
func (e *Emulator) manufacture() {
	e.t.Helper()
	ca := filepath.Join(e.dir, "ca")
	e.write("setup.conf", fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\n",
		"/usr/bin/swtpm_localca", filepath.Join(e.dir, "ca.conf"), filepath.Join(e.dir, "ca.options")))
	e.write("ca.conf", fmt.Sprintf("statedir = %s\nsigningkey = %[1]s/key.pem\nissuercert = %[1]s/issuer.pem\ncertserial = %[1]s/serial\n", ca))
	e.write("ca.options", "--platform-manufacturer Example\n--platform-version 1\n--platform-model Test\n")
	if err := os.MkdirAll(filepath.Join(e.dir, "state"), 0o700); err != nil {
		e.t.Fatal(err)
	}
	out, err := exec.CommandContext(e.t.Context(), "swtpm_setup", "--tpm2", "--tpmstate", filepath.Join(e.dir, "state"),
		"--config", filepath.Join(e.dir, "setup.conf"), "--create-ek-cert", "--pcr-banks", "sha1,sha256,sha384",
		"--runas", fmt.Sprint(os.Getuid()), "--overwrite").CombinedOutput()
	if err != nil {
		e.t.Fatalf("swtpm_setup: %v\n%s", err, out)
	}
	if e.RootCA, err = os.ReadFile(filepath.Join(ca, "swtpm-localca-rootca-cert.pem")); err != nil {
		e.t.Fatal(err)
	}
	if e.Issuer, err = os.ReadFile(filepath.Join(ca, "issuer.pem")); err != nil {
		e.t.Fatal(err)
	}
}

func (e *Emulator) write(name, content string) {
	e.t.Helper()
	if err := os.WriteFile(filepath.Join(e.dir, name), []byte(content), 0o600); err != nil {
		e.t.Fatal(err)
	}
}

func (e *Emulator) start(startup string) {
	e.t.Helper()
	socket := strings.TrimPrefix(e.Address, "unix:")
	_ = os.Remove(socket)
	e.proc = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+filepath.Join(e.dir, "state"),
		"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+".ctrl", "--flags", "not-need-init,"+startup)
	if err := e.proc.Start(); err != nil {
		e.t.Fatal(err)
	}
	for range 500 {
		// The socket is there before anybody listens on it.
		if c, err := net.Dial("unix", socket); err == nil {
			_ = c.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	e.t.Fatal("swtpm does not listen on its socket")
}

func (e *Emulator) stop() {
	if e.proc != nil {
		_ = e.proc.Process.Signal(syscall.SIGTERM)
		_ = e.proc.Wait()
		e.proc = nil
	}
}

// Open connects to the TPM until the test ends, or until Reboot or Suspend.
func (e *Emulator) Open() *tpm.TPM {
	e.t.Helper()
	t, err := tpm.Open(e.Address)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = t.Close() })
	return t
}

// Reboot is a reset: PCRs are zero again and resetCount has grown. Connections are lost.
func (e *Emulator) Reboot() {
	e.t.Helper()
	e.stop()
	e.start("startup-clear")
}

// Suspend shuts the TPM down with its state and resumes it: PCRs are as they were and
// restartCount has grown. Connections are lost; t is the open one.
func (e *Emulator) Suspend(t *tpm.TPM) {
	e.t.Helper()
	if _, err := (tpm2.Shutdown{ShutdownType: tpm2.TPMSUState}).Execute(t); err != nil {
		e.t.Fatal(err)
	}
	e.stop()
	e.start("startup-state")
}

// Restart shuts the TPM down with its state and starts it without: PCRs are zero again, and
// it is restartCount that has grown. Connections are lost; t is the open one.
func (e *Emulator) Restart(t *tpm.TPM) {
	e.t.Helper()
	if _, err := (tpm2.Shutdown{ShutdownType: tpm2.TPMSUState}).Execute(t); err != nil {
		e.t.Fatal(err)
	}
	e.stop()
	e.start("startup-clear")
}

// Extend extends a PCR in the banks of SHA-1, SHA-256 and SHA-384 with the digests that
// digest computes, as the kernel does for a measurement.
func Extend(tb testing.TB, t *tpm.TPM, pcr int, digest func(crypto.Hash) []byte) {
	tb.Helper()
	var digests []tpm2.TPMTHA
	for alg, hash := range map[tpm2.TPMAlgID]crypto.Hash{
		tpm2.TPMAlgSHA1: crypto.SHA1, tpm2.TPMAlgSHA256: crypto.SHA256, tpm2.TPMAlgSHA384: crypto.SHA384,
	} {
		digests = append(digests, tpm2.TPMTHA{HashAlg: alg, Digest: digest(hash)})
	}
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: digests},
	}.Execute(t)
	if err != nil {
		tb.Fatal(err)
	}
}
