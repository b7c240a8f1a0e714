// Package tpm talks to the device's TPM 2.0, and nothing else in the project opens one:
// it makes the endorsement key of the TCG EK Credential Profile and reads its certificate,
// makes and loads the restricted key that signs quotes, answers a credential challenge,
// quotes PCRs and reads the clock.
//
// Nothing here has a password: keys and hierarchies are used with the empty one, NV indices
// only where a wrong guess could not count against the TPM's dictionary-attack lockout,
// and quotes go on while the TPM is locked out. Each object is flushed by the call that
// loaded it, except those that a caller closes ([AK.Close], [EK.Close]).
package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// DefaultAddress is the kernel's TPM device with a resource manager.
const DefaultAddress = "/dev/tpmrm0"

// Errors that a caller may want to name the way out for; those of this package wrap them.
var (
	// ErrAbsent means that there is no TPM at the address.
	ErrAbsent = errors.New("no TPM here")
	// ErrDenied means that the TPM is there and this user may not open it.
	ErrDenied = errors.New("not allowed to open the TPM")
	// ErrOwned means that a hierarchy of the TPM has a password, so that keys cannot be made.
	ErrOwned = errors.New("a password is set in the TPM's endorsement hierarchy: clear it (tpm2_changeauth -c e -p OLD) or clear the TPM")
	// ErrForeign means that the saved key was made by another TPM, or before this one was
	// cleared or got another seed: enrol again.
	ErrForeign = errors.New("the saved attestation key is not of this TPM")
	// ErrCredential means that the challenge was made for another TPM or another key.
	ErrCredential = errors.New("the credential is not for this TPM's endorsement key and this attestation key")
)

// maxResponse is the largest answer that is read; the reference TPM's is 4096.
const maxResponse = 4096

// dialTimeout bounds the wait for a socket; a device is opened at once. socketTime bounds a
// command there, of which the longest makes a key: an emulator that has a client already
// lets another one wait for ever. Linux bounds those of its devices.
const (
	dialTimeout = 5 * time.Second
	socketTime  = 3 * time.Minute
)

// TPM is an open TPM. Commands may be sent concurrently; each is one exchange.
type TPM struct {
	address string
	mu      sync.Mutex
	conn    io.ReadWriteCloser
}

// Open opens the TPM at address: the path of a device, or "unix:PATH" and "tcp:HOST:PORT"
// for the command socket of a TPM emulator (swtpm socket --server ...).
func Open(address string) (*TPM, error) {
	network, where, isSocket := strings.Cut(address, ":")
	if isSocket && (network == "unix" || network == "tcp") {
		conn, err := net.DialTimeout(network, where, dialTimeout)
		if err != nil {
			return nil, openError(address, err)
		}
		return &TPM{address: address, conn: conn}, nil
	}
	info, err := os.Stat(address)
	if err != nil {
		return nil, openError(address, err)
	}
	if info.Mode()&fs.ModeCharDevice == 0 {
		return nil, fmt.Errorf("open TPM %s: %w: it is no character device (a socket is written unix:PATH)", address, ErrAbsent)
	}
	// Not os.OpenFile: a file that can be polled it sets to not blocking, and then Linux
	// answers a read with nothing while the TPM works (tpm_common_read).
	for {
		fd, err := syscall.Open(address, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
		if err == nil {
			return &TPM{address: address, conn: os.NewFile(uintptr(fd), address)}, nil
		}
		if !errors.Is(err, syscall.EINTR) {
			return nil, openError(address, err)
		}
	}
}

func openError(address string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open TPM %s: %w: load its driver (modprobe tpm_crb, tpm_tis or tpm_ftpm_tee), or switch the TPM on in the firmware's settings", address, ErrAbsent)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open TPM %s: %w: run as root, or join the group that owns it (tss)", address, ErrDenied)
	}
	return fmt.Errorf("open TPM %s: %w", address, err)
}

// Close closes the connection to the TPM.
func (t *TPM) Close() error { return t.conn.Close() }

// A TPM may answer that it was not able to begin, and wants the command again. Linux does
// so for its devices; behind a socket it is for us. The wait doubles, to 6 s in all.
const (
	busyTries = 10
	busyWait  = 6 * time.Millisecond
)

// Send gives the TPM one command and returns its answer, as [tpm2]'s commands want it.
func (t *TPM) Send(command []byte) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for try := 0; ; try++ {
		answer, err := t.exchange(command)
		if err != nil || try == busyTries {
			return answer, err
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(answer[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting:
			time.Sleep(busyWait << try)
		default:
			return answer, nil
		}
	}
}

// exchange writes a command and reads its answer, which has at least a header. An error
// closes the connection: the next answer could be that of this command.
func (t *TPM) exchange(command []byte) (answer []byte, err error) {
	defer func() {
		if err != nil {
			_ = t.conn.Close()
		}
	}()
	if c, ok := t.conn.(net.Conn); ok {
		_ = c.SetDeadline(time.Now().Add(socketTime))
	}
	if _, err := t.conn.Write(command); err != nil {
		return nil, fmt.Errorf("write to TPM %s: %w", t.address, err)
	}
	// A device answers in one read, a socket in as many as it likes.
	const header = 10
	buf := make([]byte, maxResponse)
	for n := 0; ; {
		k, err := t.conn.Read(buf[n:])
		n += k
		if n >= header {
			size := int(binary.BigEndian.Uint32(buf[2:]))
			if size < header || size > maxResponse || n > size {
				return nil, fmt.Errorf("read from TPM %s: an answer of %d bytes says that it has %d", t.address, n, size)
			}
			if n == size {
				return buf[:n], nil
			}
		}
		if err == nil && k == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, fmt.Errorf("read from TPM %s: %w", t.address, err)
		}
	}
}

// flush frees a transient object. A failure is not reported: the object that could not be
// freed costs a slot, and the next command that needs one says so.
func (t *TPM) flush(h tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(t)
}

// Info says what the TPM is.
type Info struct {
	Manufacturer string // four letters of the TCG's vendor registry, as "IFX"
	Firmware     uint64 // TPM_PT_FIRMWARE_VERSION_1 and _2
	Banks        tpm2.TPMLPCRSelection
}

// Info reads the manufacturer, the firmware's version and the PCR banks.
func (t *TPM) Info() (Info, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTManufacturer), PropertyCount: 16}.Execute(t)
	if err != nil {
		return Info{}, fmt.Errorf("read TPM properties: %w", err)
	}
	props, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return Info{}, fmt.Errorf("read TPM properties: %w", err)
	}
	info := Info{}
	for _, p := range props.TPMProperty {
		switch p.Property {
		case tpm2.TPMPTManufacturer:
			info.Manufacturer = strings.TrimRight(string(binary.BigEndian.AppendUint32(nil, p.Value)), "\x00 ")
		case tpm2.TPMPTFirmwareVersion1:
			info.Firmware |= uint64(p.Value) << 32
		case tpm2.TPMPTFirmwareVersion2:
			info.Firmware |= uint64(p.Value)
		}
	}
	if info.Banks, err = t.banks(); err != nil {
		return Info{}, err
	}
	return info, nil
}

// banks are the PCR banks that are allocated: those that select no PCR are left out.
func (t *TPM) banks() (tpm2.TPMLPCRSelection, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}.Execute(t)
	if err != nil {
		return tpm2.TPMLPCRSelection{}, fmt.Errorf("read PCR banks: %w", err)
	}
	all, err := rsp.CapabilityData.Data.AssignedPCR()
	if err != nil {
		return tpm2.TPMLPCRSelection{}, fmt.Errorf("read PCR banks: %w", err)
	}
	banks := tpm2.TPMLPCRSelection{}
	for _, s := range all.PCRSelections {
		if strings.Trim(string(s.PCRSelect), "\x00") != "" {
			banks.PCRSelections = append(banks.PCRSelections, s)
		}
	}
	return banks, nil
}

// Clock reads the TPM's clock and its counters of resets and restarts. It is not signed:
// what a verifier may believe is in a quote.
func (t *TPM) Clock() (tpm2.TPMSClockInfo, error) {
	rsp, err := tpm2.ReadClock{}.Execute(t)
	if err != nil {
		return tpm2.TPMSClockInfo{}, fmt.Errorf("read TPM clock: %w", err)
	}
	return rsp.CurrentTime.ClockInfo, nil
}
