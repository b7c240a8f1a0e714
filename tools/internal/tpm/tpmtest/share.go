package tpmtest

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
)

// Share makes Address serve any number of connections at a time, as Linux does, where a
// running agent has the TPM open and the kernel extends a PCR. Commands of all go to one
// TPM: handles are not kept apart, and what a connection loaded stays when it ends. It is
// called before the first connection, and not together with Reboot or Suspend.
func (e *Emulator) Share() {
	e.t.Helper()
	tpm, err := net.Dial("unix", strings.TrimPrefix(e.Address, "unix:"))
	if err != nil {
		e.t.Fatal(err)
	}
	path := filepath.Join(e.dir, "shared.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		e.t.Fatal(err)
	}
	e.Address = "unix:" + path
	e.t.Cleanup(func() {
		l.Close()
		tpm.Close()
	})
	var mu sync.Mutex
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for relay(&mu, conn, tpm) == nil {
				}
			}()
		}
	}()
}

// relay carries one command to the TPM and its answer back.
func relay(mu *sync.Mutex, conn, tpm net.Conn) error {
	command, err := message(conn)
	if err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	if _, err := tpm.Write(command); err != nil {
		return err
	}
	answer, err := message(tpm)
	if err != nil {
		return err
	}
	_, err = conn.Write(answer)
	return err
}

// message reads a command or an answer: u16 tag, u32 size of all, and more.
func message(r io.Reader) ([]byte, error) {
	const header, most = 6, 4096
	b := make([]byte, header, most)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(b[2:])
	if size < header || size > most {
		return nil, errors.New("a message of the TPM has another size")
	}
	b = b[:size]
	_, err := io.ReadFull(r, b[header:])
	return b, err
}
