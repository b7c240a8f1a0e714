package appraise

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/meta-attest/meta-attest/tools/internal/bootlog"
)

const (
	maxRefstate = 1 << 20 // bytes; a dbx makes some 100 KB
	maxRefKeys  = 1 << 14 // signatures of one variable
)

// refstate is a reference state of Keylime's measured boot policy "example"
// (keylime/mba/elchecking/example.py): a boot by shim and GRUB. Where its reading differs
// from Keylime's it is the stricter one:
//
//   - A member that the format does not have is an error; the empty state, with which
//     Keylime checks nothing, too.
//   - Digests are SHA-2. Keylime takes an event when any of its digests fits, SHA-1 too.
//   - kernel_cmdline is RE2, and matches the whole command line, as Keylime has it.
//   - What an event's data say counts only where its digest proves them; Keylime believes
//     the text beside the digest of the kernel's command line.
//   - Secure Boot, if there is to be some, has to be measured as on, and a dbx if one is
//     required; Keylime passes a log without these events.
//   - Events that extend nothing (EV_NO_ACTION) are not looked at; Keylime takes one.
type refstate struct {
	secureBoot bool
	firmware   []refFirmware
	signatures map[string][]refKey // by the name of the variable in small letters
	mok, mokx  []refDigest
	kernels    []refKernel
}

// refDigest is what an event has to have extended; one of them is enough.
type refDigest map[bootlog.Alg]string

type refFirmware struct {
	scrtm refDigest
	blobs []refDigest
}

type refKey struct{ owner, data string }

type refKernel struct {
	applications [][]refDigest // shim, GRUB, kernel; in one of these orders
	vmlinuz      refDigest     // nil: any
	initrd       refDigest
	cmdline      *regexp.Regexp // of "kernel_cmdline: ..."
}

// CheckRefstate says why text is not a reference state of Keylime's measured boot policy
// "example", see [Release].
func CheckRefstate(text []byte) error {
	_, err := parseRefstate(text)
	return err
}

// parseRefstate reads the JSON of keylime-policy create measured-boot.
func parseRefstate(text []byte) (*refstate, error) {
	if len(text) > maxRefstate || !utf8.Valid(text) {
		return nil, fmt.Errorf("measured boot policy: %d bytes: at most %d bytes of UTF-8 are read", len(text), maxRefstate)
	}
	o, r := newObject(text), &refstate{secureBoot: true, signatures: map[string][]refKey{}}
	type parsed struct{ sb, plain *refKernel }
	var kernels []parsed
	err := o.some([]string{"scrtm_and_bios", "pk", "kek", "db", "dbx", "mokdig", "mokxdig", "kernels"}, []string{"has_secureboot", "vendor_db"}, func(name string) error {
		switch name {
		case "has_secureboot":
			v, err := o.truth()
			r.secureBoot = v
			return err
		case "scrtm_and_bios":
			return o.array(func() error { return r.readFirmware(o) })
		case "mokdig":
			return o.array(func() error { return o.digest(&r.mok) })
		case "mokxdig":
			return o.array(func() error { return o.digest(&r.mokx) })
		case "kernels":
			return o.array(func() error {
				sb, plain, err := readKernel(o)
				kernels = append(kernels, parsed{sb, plain})
				return err
			})
		}
		return r.readSignatures(o, name)
	})
	if err == nil {
		err = o.end()
	}
	for i, k := range kernels {
		chosen, member := k.plain, "vmlinuz_plain_sha256"
		if r.secureBoot {
			chosen, member = k.sb, "kernel_authcode_sha256"
		}
		if err == nil && chosen == nil {
			err = fmt.Errorf("kernel %d lacks %s", i+1, member)
		}
		if err == nil {
			r.kernels = append(r.kernels, *chosen)
		}
	}
	switch {
	case err != nil:
	case len(r.kernels) == 0 || len(r.firmware) == 0:
		err = errors.New("it has no kernels or no scrtm_and_bios, so that no boot could fit it")
	case r.secureBoot && (len(r.signatures["pk"]) == 0 || len(r.signatures["db"]) == 0):
		err = errors.New("it wants Secure Boot and has no pk or no db")
	}
	if err != nil {
		return nil, fmt.Errorf("measured boot policy: byte %d: %w", o.d.InputOffset(), err)
	}
	return r, nil
}

func (r *refstate) readFirmware(o *object) error {
	var f refFirmware
	err := o.members([]string{"scrtm", "platform_firmware"}, func(name string) error {
		if name == "platform_firmware" {
			return o.array(func() error { return o.digest(&f.blobs) })
		}
		var all []refDigest
		err := o.digest(&all)
		if err == nil {
			f.scrtm = all[0]
		}
		return err
	})
	if len(r.firmware) == maxRules {
		return fmt.Errorf("more than %d of scrtm_and_bios", maxRules)
	}
	r.firmware = append(r.firmware, f)
	return err
}

func (r *refstate) readSignatures(o *object, name string) error {
	return o.array(func() error {
		var k refKey
		err := o.members([]string{"SignatureOwner", "SignatureData"}, func(member string) error {
			s, err := o.text()
			if err != nil {
				return err
			}
			if member == "SignatureOwner" {
				k.owner = strings.ToLower(s)
				return nil
			}
			k.data, err = hexOf(s)
			return err
		})
		if len(r.signatures[name]) == maxRefKeys {
			return fmt.Errorf("%s has more than %d signatures", name, maxRefKeys)
		}
		r.signatures[name] = append(r.signatures[name], k)
		return err
	})
}

// readKernel returns what an element of kernels wants with Secure Boot and without it, nil
// where a member for that is missing.
func readKernel(o *object) (sb, plain *refKernel, err error) {
	values := map[string]string{}
	err = o.some([]string{"shim_authcode_sha256", "grub_authcode_sha256", "initrd_plain_sha256", "kernel_cmdline"},
		[]string{"kernel_authcode_sha256", "vmlinuz_plain_sha256"}, func(name string) error {
			s, err := o.text()
			if err == nil && name != "kernel_cmdline" {
				if s, err = hexOf(s); err == nil && len(s) != bootlog.SHA256.Size() {
					err = fmt.Errorf("%s is not a SHA-256", name)
				}
			}
			values[name] = s
			return err
		})
	if err != nil {
		return nil, nil, err
	}
	sum := func(name string) refDigest { return refDigest{bootlog.SHA256: values[name]} }
	k := refKernel{initrd: sum("initrd_plain_sha256")}
	// In one group, as Keylime puts them together: "a|b" does not allow any b.
	if k.cmdline, err = regexp.Compile(`\A(?:kernel_cmdline: ` + values["kernel_cmdline"] + `)\z`); err != nil {
		return nil, nil, fmt.Errorf("kernel_cmdline %.200q: %w", values["kernel_cmdline"], err)
	}
	if k.cmdline.MatchString("kernel_cmdline: init=/bin/sh any other command line") {
		return nil, nil, fmt.Errorf("kernel_cmdline %.200q allows any command line", values["kernel_cmdline"])
	}
	shim, grub := sum("shim_authcode_sha256"), sum("grub_authcode_sha256")
	if values["kernel_authcode_sha256"] != "" {
		kernel := sum("kernel_authcode_sha256")
		sb = &refKernel{initrd: k.initrd, cmdline: k.cmdline, applications: [][]refDigest{{shim, grub, kernel}, {shim, grub, kernel, kernel}}}
	}
	if values["vmlinuz_plain_sha256"] != "" {
		plain = &refKernel{initrd: k.initrd, cmdline: k.cmdline, applications: [][]refDigest{{shim, grub}}, vmlinuz: sum("vmlinuz_plain_sha256")}
	}
	return sb, plain, nil
}

// digest reads {"sha256": "0x..."} of one event.
func (o *object) digest(to *[]refDigest) error {
	d := refDigest{}
	err := o.each(func(name string) error {
		s, err := o.text()
		if err != nil {
			return err
		}
		sum, err := hexOf(s)
		if err != nil {
			return err
		}
		for _, a := range []bootlog.Alg{bootlog.SHA1, bootlog.SHA256, bootlog.SHA384, bootlog.SHA512} {
			if a.String() != name {
				continue
			}
			if len(sum) != a.Size() {
				return fmt.Errorf("%.140q is not a digest of %s", s, name)
			}
			if a != bootlog.SHA1 {
				d[a] = sum
			}
			return nil
		}
		return fmt.Errorf("digest algorithm %.20q is unknown", name)
	})
	if err == nil && len(d) == 0 {
		err = errors.New("an event has no SHA-2 digest")
	}
	if len(*to) == maxRules {
		return fmt.Errorf("more than %d digests", maxRules)
	}
	*to = append(*to, d)
	return err
}

// hexOf reads 0x and hexadecimal digits in small letters.
func hexOf(s string) (string, error) {
	digits, ok := strings.CutPrefix(s, "0x")
	b, err := hex.DecodeString(digits)
	if !ok || err != nil || len(b) == 0 || digits != strings.ToLower(digits) {
		return "", fmt.Errorf("%.140q is not 0x and hexadecimal digits in small letters", s)
	}
	return string(b), nil
}

// truth reads a boolean.
func (o *object) truth() (bool, error) {
	t, err := o.d.Token()
	if err != nil {
		return false, err
	}
	v, ok := t.(bool)
	if !ok {
		return false, fmt.Errorf("%.40q where true or false is wanted", fmt.Sprint(t))
	}
	return v, nil
}

// fits says whether e extended one of the digests.
func (d refDigest) fits(e *bootlog.Event) bool {
	if d == nil {
		return true
	}
	for alg, sum := range d {
		if bytes.Equal(e.Digest(alg), []byte(sum)) {
			return true
		}
	}
	return false
}
