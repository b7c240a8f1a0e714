package main

import (
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

// besideLabels are the labels of one file, held until they are written to files beside it. They are
// made for the file as attest-init copies it from the initramfs: root's, mode 0644.
type besideLabels map[string][]byte

// besideSuffixes are those that attest-init looks for.
var besideSuffixes = map[string]string{ima.XattrIMA: ".sig", ima.XattrEVM: ".evm"}

func (besideLabels) Stat(_ string, f *rootfs.File) error {
	f.Mode, f.UID, f.GID = f.Mode&unix.S_IFMT|0o644, 0, 0
	return nil
}

func (l besideLabels) List(*os.File) ([]string, error)             { return slices.Collect(maps.Keys(l)), nil }
func (l besideLabels) Get(_ *os.File, name string) ([]byte, error) { return l[name], nil }

func (l besideLabels) Set(_ *os.File, name string, value []byte) error {
	l[name] = value
	return nil
}

func (l besideLabels) Remove(_ *os.File, name string) error {
	delete(l, name)
	return nil
}

func (besideLabels) Probe(*os.File, map[string][]byte) error { return nil }

// write puts each label beside file, and removes an older one that was not made anew.
func (l besideLabels) write(file string) error {
	for name, suffix := range besideSuffixes {
		value, ok := l[name]
		if !ok {
			if err := os.Remove(file + suffix); err != nil && !os.IsNotExist(err) {
				return err
			}
			continue
		}
		if err := os.WriteFile(file+suffix, value, 0o644); err != nil {
			return err
		}
	}
	return nil
}
