// Package tpmtest gives tests a TPM 2.0: swtpm, with an endorsement key, its certificate
// and the certificate's issuers, as a manufacturer would deliver it.
package tpmtest

import (
	"bytes"
	"crypto"
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

// Start delivers a TPM that no other running test has, as new, and starts it; it ends with
// the test. Where swtpm is missing the test is skipped.
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
	e.deliver()
	e.start("startup-clear")
	return e
}

// deliver puts a TPM of the stock into the emulator.
func (e *Emulator) deliver() {
	e.t.Helper()
	m := take(e.t)
	e.RootCA, e.Issuer = bytes.Clone(m.rootCA), bytes.Clone(m.issuer)
	state := filepath.Join(e.dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		e.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, stateFile), m.state, 0o600); err != nil {
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
		late := time.AfterFunc(10*time.Second, func(p *os.Process) func() { return func() { _ = p.Kill() } }(e.proc.Process))
		_ = e.proc.Wait()
		late.Stop()
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
