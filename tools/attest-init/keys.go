package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// addCertificates gives the kernel the certificates of /etc/keys. In the real root anybody
// could have put one there, so a kernel that asks for no CA gets none of these.
func (b *booter) addCertificates() error {
	errs := []error{b.fillKeyring("ima")}
	if b.evm {
		errs = append(errs, b.fillKeyring("evm"))
	}
	return errors.Join(errs...)
}

// fillKeyring adds each x509_NAME*.der to the keyring of that name. None at all is an error
// once both places have been looked at.
func (b *booter) fillKeyring(name string) error {
	files, err := filepath.Glob(filepath.Join(keysDir, "x509_"+name+"*.der"))
	if err != nil {
		return err
	}
	ring, trusted, err := openKeyring(name, len(files) > 0 && !b.inRoot)
	switch {
	case err != nil:
		return err
	case b.inRoot && !trusted:
		if len(files) > 0 {
			tell(levelInfo, fmt.Sprintf("%s: ignored: this kernel would take certificates of anybody", keysDir))
		}
		files = nil
	}
	var errs []error
	for _, file := range files {
		errs = append(errs, addCertificate(file, ring))
	}
	if b.inRoot && len(files) == 0 && ring.keys == 0 {
		errs = append(errs, fmt.Errorf("keyring .%s is empty: no %s/x509_%s*.der", name, keysDir, name))
	}
	return errors.Join(errs...)
}

// openKeyring finds the keyring of a kernel that has CONFIG_INTEGRITY_TRUSTED_KEYRING, or the
// one, without the dot, that others look for in the keyrings of their root user.
func openKeyring(name string, create bool) (ring keyring, trusted bool, err error) {
	list, err := os.Open("/proc/keys")
	if err != nil {
		return keyring{}, false, err
	}
	defer list.Close()
	rings, err := parseKeyrings(list)
	if err != nil {
		return keyring{}, false, fmt.Errorf("read /proc/keys: %w", err)
	}
	if ring, ok := rings["."+name]; ok {
		return ring, true, nil
	}
	ring, ok := rings["_"+name]
	if !ok && create {
		tell(levelInfo, fmt.Sprintf("keyring _%s: this kernel asks no CA about certificates", name))
		ring.name = "_" + name
		if ring.id, err = unix.AddKey("keyring", ring.name, nil, unix.KEY_SPEC_USER_KEYRING); err != nil {
			return keyring{}, false, fmt.Errorf("create keyring %s: %w", ring.name, err)
		}
	}
	return ring, false, nil
}

// keyring is one line of /proc/keys.
type keyring struct {
	name string
	id   int
	keys int
}

// parseKeyrings reads /proc/keys: "0d1f3a5b I------ 1 perm 1f0b0000 0 0 keyring .ima: 2", or
// ": empty", after the name.
func parseKeyrings(r io.Reader) (map[string]keyring, error) {
	rings := map[string]keyring{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) != 10 || f[7] != "keyring" {
			continue // another type, or a name with blanks, as no keyring of the kernel has
		}
		id, err := strconv.ParseUint(f[0], 16, 31)
		if err != nil {
			return nil, fmt.Errorf("serial number %q: %w", f[0], err)
		}
		ring := keyring{name: strings.TrimSuffix(f[8], ":"), id: int(id)}
		if f[9] != "empty" {
			if ring.keys, err = strconv.Atoi(f[9]); err != nil {
				return nil, fmt.Errorf("keyring %s: %w", ring.name, err)
			}
		}
		rings[ring.name] = ring
	}
	return rings, lines.Err()
}

// addCertificate adds one certificate, DER.
func addCertificate(file string, ring keyring) error {
	der, err := readFile(file, maxSmall)
	if err != nil {
		return err
	}
	if _, err = unix.AddKey("asymmetric", "", der, ring.id); err == nil {
		tell(levelInfo, fmt.Sprintf("%s: added to keyring %s", file, ring.name))
		return nil
	}
	why := ""
	switch {
	case errors.Is(err, unix.ENOKEY):
		why = ": no CA in this kernel signed it"
	case errors.Is(err, unix.EKEYREJECTED):
		why = ": its signature is not by the CA that it names"
	case errors.Is(err, unix.ENOPKG):
		why = ": this kernel lacks its algorithms"
	case errors.Is(err, unix.EBADMSG):
		why = ": not a certificate, DER"
	}
	return fmt.Errorf("add %s to keyring %s: %w%s", file, ring.name, err, why)
}
