package appraise

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// maxPolicy bounds a Keylime policy; one of 100 000 files has 11 MB.
const maxPolicy = 512 << 20

// keylimePolicy is a runtime policy of Keylime, version 1 (RUNTIME_POLICY_SCHEMA of
// keylime/ima/ima.py), but for its digests, which go straight into a table. Where it
// differs from Keylime's reading:
//
//   - A member that the schema does not name is an error, and so is one that stands twice.
//   - Digests have no algorithm: they are taken for SHA-1 and SHA-2 by their length.
//   - Spaces of paths are underscores. Keylime compares paths as they stand, so that a policy
//     made from a file system never fits a path with a space.
//   - boot_aggregate is passed over: it is computed from the quote.
//   - Excludes are RE2 (no look-around, no back-references); a bad one is an error, which
//     Keylime finds too late and then drops all. Each is anchored at the beginning, as
//     re.match does, and not at the end: "/tmp" excludes /tmpfoo too. They concern files and no buffers.
//   - A key that was measured into a keyring signs for no file by that: verification-keys do.
//   - log_hash_alg is checked and not used: [evidence.Verify] sees what the list has.
type keylimePolicy struct {
	excludes []*regexp.Regexp
	anyKey   bool     // ignored_keyrings has "*"
	ignored  []string // keyrings
	keys     []signer
}

// parseKeylime adds digests with add, whose kind says whether they are of a file or buffer.
func parseKeylime(text []byte, add func(k kind, sum []byte, path string) error) (*keylimePolicy, error) {
	if len(text) > maxPolicy || !utf8.Valid(text) {
		return nil, fmt.Errorf("%d bytes: at most %d bytes of UTF-8 are read", len(text), maxPolicy)
	}
	p := &keylimePolicy{}
	o := newObject(text)
	err := o.members([]string{"meta", "release", "digests", "excludes", "keyrings", "ima", "ima-buf", "verification-keys"}, func(name string) error {
		switch name {
		case "meta":
			return o.meta()
		case "release":
			_, err := o.integer()
			return err
		case "digests":
			return o.digests(func(k kind, sum []byte, path string) error {
				if path == "boot_aggregate" {
					return nil
				}
				return add(k, sum, path)
			})
		case "keyrings", "ima-buf":
			return o.digests(func(k kind, sum []byte, path string) error { return add(k|bufferKind, sum, path) })
		case "excludes":
			return p.readExcludes(o)
		case "ima":
			return p.readIMA(o)
		}
		s, err := o.text()
		if err != nil || s == "" {
			return err
		}
		return p.readKeys([]byte(s))
	})
	if err == nil {
		err = o.end()
	}
	if err != nil {
		return nil, fmt.Errorf("byte %d: %w", o.d.InputOffset(), err)
	}
	return p, nil
}

func (o *object) meta() error {
	return o.some([]string{"version", "generator"}, []string{"timestamp"}, func(name string) error {
		if name == "timestamp" {
			_, err := o.text()
			return err
		}
		n, err := o.integer()
		if err == nil && (name == "version" && n != 1 || n > 3) {
			err = fmt.Errorf("%s %d is unknown", name, n)
		}
		return err
	})
}

func (o *object) digests(add func(k kind, sum []byte, path string) error) error {
	return o.each(func(path string) error {
		n := 0
		err := o.array(func() error {
			s, err := o.text()
			if err != nil {
				return err
			}
			n++
			i := slices.IndexFunc(digestAlgos, func(a ima.HashAlgo) bool { return 2*a.Size() == len(s) && a != ima.MD5 })
			sum, err := hex.DecodeString(s)
			if i < 0 || err != nil || s != strings.ToLower(s) {
				return fmt.Errorf("%.140q is not the digest of a file in lower-case hexadecimal", s)
			}
			return add(kind(digestAlgos[i]), sum, ima.ListPath(path))
		})
		if err == nil && n == 0 {
			err = errors.New("no digest")
		}
		if err == nil && (path == "" || len(path) > maxPath || strings.IndexByte(path, 0) >= 0) {
			err = fmt.Errorf("path has %d bytes, or a NUL", len(path))
		}
		if err != nil {
			return fmt.Errorf("%.200q: %w", path, err)
		}
		return nil
	})
}

func (p *keylimePolicy) readExcludes(o *object) error {
	return o.array(func() error {
		s, err := o.text()
		if err != nil {
			return err
		}
		if s == "" || len(s) > maxPath || len(p.excludes) == maxRules {
			return fmt.Errorf("exclude %.200q is empty or too long, or there are more than %d", s, maxRules)
		}
		re, err := regexp.Compile(s) // by itself: "a)|(b" would get out of the group
		if err == nil {
			re, err = regexp.Compile(`\A(?:` + s + `)`)
		}
		if err != nil {
			return fmt.Errorf("exclude %.200q: %w", s, err)
		}
		if re.MatchString("/sbin/init") && re.MatchString("/usr/lib/systemd/systemd") {
			return fmt.Errorf("exclude %.200q leaves nothing to be judged", s)
		}
		p.excludes = append(p.excludes, re)
		return nil
	})
}

func (p *keylimePolicy) readIMA(o *object) error {
	return o.members([]string{"ignored_keyrings", "log_hash_alg", "dm_policy"}, func(name string) error {
		switch name {
		case "ignored_keyrings":
			return o.array(func() error {
				s, err := o.text()
				if s == "*" {
					p.anyKey = true
				}
				p.ignored = append(p.ignored, s)
				return err
			})
		case "log_hash_alg":
			s, err := o.text()
			if err == nil && !slices.Contains([]string{"sha1", "sha256", "sha384", "sha512"}, s) {
				err = fmt.Errorf("log_hash_alg %.20q is unknown", s)
			}
			return err
		}
		return o.null("dm_policy")
	})
}

// readKeys reads IMA_KEYRING_JSON_SCHEMA of keylime/ima/file_signatures.py.
func (p *keylimePolicy) readKeys(text []byte) error {
	var ids []uint32
	o := newObject(text)
	err := o.some([]string{"keyids", "pubkeys"}, []string{"meta"}, func(name string) error {
		switch name {
		case "keyids":
			return o.array(func() error {
				n, err := o.integer()
				if err == nil && n > 1<<32-1 {
					err = fmt.Errorf("key id %d has more than 32 bits", n)
				}
				ids = append(ids, uint32(n))
				return err
			})
		case "pubkeys":
			return o.array(func() error {
				s, err := o.text()
				if err != nil {
					return err
				}
				if len(p.keys) == maxRules {
					return fmt.Errorf("more than %d keys", maxRules)
				}
				k, err := parsePublicKey(s)
				p.keys = append(p.keys, k)
				return err
			})
		}
		return o.members([]string{"version"}, func(string) error {
			n, err := o.integer()
			if err == nil && n != 1 {
				err = fmt.Errorf("version %d is unknown", n)
			}
			return err
		})
	})
	if err == nil {
		err = o.end()
	}
	if err == nil && len(ids) > len(p.keys) {
		err = errors.New("more keyids than pubkeys")
	}
	if err != nil {
		return fmt.Errorf("verification-keys: %w", err)
	}
	for i, id := range ids {
		if id != 0 { // 0 stands for: compute it
			p.keys[i].id = id
		}
	}
	return nil
}

// parsePublicKey reads a SubjectPublicKeyInfo in base64. Its key id is the end of the SHA-1
// of the key's bits, as evmctl has it for keys without a certificate.
func parsePublicKey(s string) (signer, error) {
	der, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return signer{}, fmt.Errorf("public key: %w", err)
	}
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return signer{}, fmt.Errorf("public key: %w", err)
	}
	var raw []byte
	switch k := pub.(type) {
	case *rsa.PublicKey:
		raw = x509.MarshalPKCS1PublicKey(k)
	case *ecdsa.PublicKey:
		if raw, err = k.Bytes(); err != nil {
			return signer{}, fmt.Errorf("public key: %w", err)
		}
	}
	sum := sha1.Sum(raw)
	return newSigner(pub, binary.BigEndian.Uint32(sum[16:]))
}

// isKey says whether a measured buffer is what Linux measures of a key: its certificate or
// the key itself, in DER. Keylime (get_pubkey of keylime/ima/file_signatures.py) takes PEM
// too, which Linux loads no key from, and which may stand anywhere in something else.
func isKey(b []byte) bool {
	if _, err := x509.ParseCertificate(b); err == nil {
		return true
	}
	_, err := x509.ParsePKIXPublicKey(b)
	return err == nil
}

// parseTPMPolicy reads Keylime's tpm_policy (readPolicy of keylime/tpm/tpm_util.py):
// {"7": ["hex", ...], "mask": "0x80"}. The mask is computed by the tenant; it has to be of
// just those PCRs, if it is there.
func parseTPMPolicy(text []byte) (pins []PCRRule, err error) {
	if len(text) > maxRules*1024 || !utf8.Valid(text) {
		return nil, fmt.Errorf("tpm_policy of %d bytes, or no UTF-8", len(text))
	}
	o := newObject(text)
	want, got := uint64(0), uint64(0)
	err = o.each(func(name string) error {
		if name == "mask" {
			s, err := o.text()
			if err == nil {
				got, err = strconv.ParseUint(s, 0, 32)
			}
			return err
		}
		n, err := strconv.Atoi(name)
		if err != nil || strconv.Itoa(n) != name || n < 0 || n > maxPCR || n == imaPCR || n == 16 {
			return fmt.Errorf("%.20q is not a PCR that can be pinned: 10 is IMA's, 16 Keylime's", name)
		}
		pin := PCRRule{Index: n}
		want |= 1 << n
		if err := o.oneOrMore(func(s string) error {
			i := slices.IndexFunc(digestAlgos, func(a ima.HashAlgo) bool { return 2*a.Size() == len(s) && a != ima.MD5 })
			if i < 0 {
				return fmt.Errorf("PCR %d: %.140q is not a value", n, s)
			}
			pin.Values = append(pin.Values, digestAlgos[i].String()+":"+strings.ToLower(s))
			return nil
		}); err != nil {
			return err
		}
		pins = append(pins, pin)
		return nil
	})
	if err == nil {
		err = o.end()
	}
	if err == nil && got != 0 && got != want && got&^(1<<imaPCR|1<<16) != want {
		err = fmt.Errorf("mask %#x has %d PCRs, values are there for %d", got, bits.OnesCount64(got), bits.OnesCount64(want))
	}
	if err != nil {
		return nil, fmt.Errorf("tpm_policy: byte %d: %w", o.d.InputOffset(), err)
	}
	return pins, nil
}

// object reads JSON strictly: names are compared as they stand, and none may stand twice.
type object struct{ d *json.Decoder }

func newObject(text []byte) *object {
	o := &object{json.NewDecoder(bytes.NewReader(text))}
	o.d.UseNumber()
	return o
}
