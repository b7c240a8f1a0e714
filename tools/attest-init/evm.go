package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// evmX509AndComplete are flags of the file evm (Documentation/ABI/testing/evm): there are
// certificates, and nothing is to be set up later.
const evmX509AndComplete = "0x80000002"

// closeEVM switches EVM on and closes its setup. While that is open, root can allow changes of
// signed metadata, or load a key of its own and make labels with it; and a change of
// metadata of any file without a good label is refused, even on a tmpfs.
func (b *booter) closeEVM() error {
	if !b.evm {
		return nil
	}
	const file = securityDir + "/evm"
	if err := os.WriteFile(file, []byte(evmX509AndComplete), 0); err != nil {
		return fmt.Errorf("switch EVM on: %w", err)
	}
	state, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read state of EVM: %w", err)
	}
	if text := strings.TrimSpace(string(state)); text != "2" {
		return fmt.Errorf("state of EVM is %q, not 2 (X.509 certificates)", text)
	}
	if err := os.WriteFile(file, []byte(evmX509AndComplete), 0); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("EVM's setup is still open: %v", err)
	}
	tell(levelInfo, "EVM is on, and its setup is closed")
	return nil
}
