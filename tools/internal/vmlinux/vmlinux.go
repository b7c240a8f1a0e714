// Package vmlinux reads which certificates are compiled into a Linux kernel: the list that
// certs/system_certificates.S puts into vmlinux, and that fills the keyrings
// .builtin_trusted_keys and, for the module signing key, .ima (certs/system_keyring.c).
//
// It is for kernels of one's own build: debug/elf, below it, does not promise to withstand
// files that were made to break it.
package vmlinux

import (
	"crypto/x509"
	"debug/elf"
	"errors"
	"fmt"
	"io"
)

// ErrNoList means that the kernel was built without CONFIG_SYSTEM_TRUSTED_KEYRING, or that
// the file has no symbols left.
var ErrNoList = errors.New("no system certificate list")

// maxList is the size in bytes of the largest list that is read.
const maxList = 1 << 20

// Certificates are those of a kernel.
type Certificates struct {
	Module  []*x509.Certificate // of CONFIG_MODULE_SIG_KEY
	Trusted []*x509.Certificate // of CONFIG_SYSTEM_TRUSTED_KEYS
}

// Read reads the certificates of vmlinux, an ELF file.
func Read(r io.ReaderAt) (*Certificates, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if errors.Is(err, elf.ErrNoSymbols) {
		return nil, fmt.Errorf("%w: the file has no symbols", ErrNoList)
	}
	if err != nil {
		return nil, err
	}
	k := &kernel{f, map[string]elf.Symbol{}}
	for _, s := range symbols {
		switch s.Name {
		case "system_certificate_list", "system_certificate_list_size", "module_cert_size":
			k.symbols[s.Name] = s
		}
	}
	size, err := k.number("system_certificate_list_size")
	if err != nil {
		return nil, err
	}
	module, err := k.number("module_cert_size")
	if err != nil {
		return nil, err
	}
	if size > maxList || module > size {
		return nil, fmt.Errorf("system certificate list of %d bytes, %d of them for modules: not plausible", size, module)
	}
	list, err := k.bytes("system_certificate_list", size)
	if err != nil {
		return nil, err
	}
	c := &Certificates{}
	if c.Module, err = x509.ParseCertificates(list[:module]); err != nil {
		return nil, fmt.Errorf("certificate of the module signing key: %w", err)
	}
	if c.Trusted, err = x509.ParseCertificates(list[module:]); err != nil {
		return nil, fmt.Errorf("trusted certificates: %w", err)
	}
	return c, nil
}

type kernel struct {
	file    *elf.File
	symbols map[string]elf.Symbol
}

// number reads a C unsigned long.
func (k *kernel) number(name string) (uint64, error) {
	size := uint64(8)
	if k.file.Class == elf.ELFCLASS32 {
		size = 4
	}
	b, err := k.bytes(name, size)
	if err != nil {
		return 0, err
	}
	if size == 4 {
		return uint64(k.file.ByteOrder.Uint32(b)), nil
	}
	return k.file.ByteOrder.Uint64(b), nil
}

// bytes reads what lies at a symbol.
func (k *kernel) bytes(name string, size uint64) ([]byte, error) {
	s, ok := k.symbols[name]
	if !ok {
		return nil, fmt.Errorf("%w: no symbol %s", ErrNoList, name)
	}
	if int(s.Section) >= len(k.file.Sections) {
		return nil, fmt.Errorf("symbol %s: lies in no section", name)
	}
	section := k.file.Sections[s.Section]
	if section.ReaderAt == nil {
		return nil, fmt.Errorf("symbol %s: section %s is compressed", name, section.Name)
	}
	at := s.Value - section.Addr
	if section.Type == elf.SHT_NOBITS || s.Value < section.Addr || at > section.Size || size > section.Size-at {
		return nil, fmt.Errorf("symbol %s: %d bytes of it do not lie in section %s", name, size, section.Name)
	}
	b := make([]byte, size)
	if _, err := section.ReadAt(b, int64(at)); err != nil {
		return nil, fmt.Errorf("read symbol %s: %w", name, err)
	}
	return b, nil
}
