package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Ceremony describes a certification authority and the keys under it: the one text that
// people review before keys are made. Its fields are those of the TOML file.
type Ceremony struct {
	CA   Spec   `toml:"ca"`
	Leaf []Spec `toml:"leaf"`
}

// Spec describes one key and its certificate.
type Spec struct {
	Name    string `toml:"name"`    // stem of the files: NAME.key, NAME.crt (PEM), NAME.der
	Roles   Roles  `toml:"role"`    // leaves only
	Subject string `toml:"subject"` // CN=Acme IMA 2026,O=Acme
	Key     string `toml:"key"`     // RSA-2048 RSA-3072 RSA-4096 P-256 P-384 P-521
	KeyURI  string `toml:"key_uri"` // of a key that exists already, in a token or a service
	Days    int    `toml:"days"`    // of validity, from the day of the ceremony
}

// Role is what a key signs.
type Role string

// The roles decide over extended key usages and over which keys are accepted.
const (
	RoleIMA        Role = "ima"        // contents of files: keyring .ima
	RoleEVM        Role = "evm"        // metadata of files: keyring .evm
	RoleModsign    Role = "modsign"    // kernel modules, policies: appended signatures
	RoleSecureBoot Role = "secureboot" // EFI programs: db, KEK or PK of the firmware
)

// Roles are written as one string or as a list of strings.
type Roles []Role

// UnmarshalTOML implements toml.Unmarshaler.
func (r *Roles) UnmarshalTOML(v any) error {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	for _, e := range list {
		s, ok := e.(string)
		if !ok {
			return fmt.Errorf("role: %v is not a string", e)
		}
		*r = append(*r, Role(s))
	}
	return nil
}

// maxDays is a century: a device may outlive us, a number may still be a typing error.
const maxDays = 36525

var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// Check says why a ceremony cannot be held. Every error names the key that it is about.
func (c *Ceremony) Check() error {
	if c.CA.Name == "" {
		return errors.New("no [ca]")
	}
	if len(c.CA.Roles) > 0 {
		return errors.New("[ca] has a role: what it signs are certificates")
	}
	names := map[string]bool{}
	for i, s := range slices.Concat([]Spec{c.CA}, c.Leaf) {
		if err := s.check(); err != nil {
			return fmt.Errorf("key %q: %w", s.Name, err)
		}
		if names[s.Name] {
			return fmt.Errorf("key %q: name stands twice", s.Name)
		}
		names[s.Name] = true
		if i == 0 {
			continue
		}
		if err := s.checkLeaf(&c.CA); err != nil {
			return fmt.Errorf("key %q: %w", s.Name, err)
		}
	}
	return nil
}

func (s *Spec) check() error {
	if !nameRE.MatchString(s.Name) {
		return fmt.Errorf("name does not match %s", nameRE)
	}
	if _, err := parseSubject(s.Subject); err != nil {
		return fmt.Errorf("subject %q: %w", s.Subject, err)
	}
	if !slices.ContainsFunc(keyTypes, func(t keyType) bool { return t.name == s.Key }) {
		return s.unknownKey()
	}
	if s.Days < 1 || s.Days > maxDays {
		return fmt.Errorf("days = %d is not between 1 and %d", s.Days, maxDays)
	}
	return nil
}

func (s *Spec) checkLeaf(ca *Spec) error {
	if len(s.Roles) == 0 {
		return errors.New("no role")
	}
	for _, r := range s.Roles {
		switch r {
		case RoleIMA, RoleEVM, RoleModsign:
		case RoleSecureBoot:
			if !strings.HasPrefix(s.Key, "RSA-") {
				return fmt.Errorf("role %s with key %s: firmware verifies RSA only", r, s.Key)
			}
		default:
			return fmt.Errorf("role %q is not one of ima evm modsign secureboot", r)
		}
	}
	if s.Subject == ca.Subject {
		// Such a certificate would pass for self-signed (x509_check_for_self_signed).
		return errors.New("subject is that of the CA")
	}
	return nil
}

// Find returns the leaves with the given names, all for no names.
func (c *Ceremony) Find(names []string) ([]Spec, error) {
	if len(names) == 0 {
		if len(c.Leaf) == 0 {
			return nil, errors.New("the ceremony has no [[leaf]]")
		}
		return c.Leaf, nil
	}
	var found []Spec
	for _, name := range names {
		i := slices.IndexFunc(c.Leaf, func(s Spec) bool { return s.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("the ceremony has no [[leaf]] %q", name)
		}
		found = append(found, c.Leaf[i])
	}
	return found, nil
}

type keyType struct {
	name     string
	generate func() (crypto.Signer, error)
}

// keyTypes are the values of Spec.Key.
var keyTypes = []keyType{
	{"RSA-2048", func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) }},
	{"RSA-3072", func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) }},
	{"RSA-4096", func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 4096) }},
	{"P-256", func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }},
	{"P-384", func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) }},
	{"P-521", func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P521(), rand.Reader) }},
}

// Generate makes the private key that s describes.
func (s *Spec) Generate() (crypto.Signer, error) {
	for _, t := range keyTypes {
		if t.name == s.Key {
			key, err := t.generate()
			if err != nil {
				return nil, fmt.Errorf("generate key %q: %w", s.Name, err)
			}
			return key, nil
		}
	}
	return nil, s.unknownKey()
}

func (s *Spec) unknownKey() error {
	var names []string
	for _, t := range keyTypes {
		names = append(names, t.name)
	}
	return fmt.Errorf("key = %q is not one of %s", s.Key, strings.Join(names, " "))
}
