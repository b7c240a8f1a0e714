package evidence

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/meta-attest/meta-attest/tools/internal/wire"
)

// maxID is the longest id of an agent that Keylime stores.
const maxID = 80

// CheckID refuses an id of a device that is not 1 to 80 letters, digits, points, dashes or
// underscores (Keylime's own rule): it ends in logs, paths and web pages.
func CheckID(id string) error {
	if len(id) == 0 || len(id) > maxID {
		return refuse(CodeMalformed, "agent id has %d bytes, not 1 to %d", len(id), maxID)
	}
	for i, c := range []byte(id) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_') {
			return refuse(CodeMalformed, "agent id has %q at byte %d, not a letter, digit, point, dash or underscore", c, i)
		}
	}
	if id == "." || id == ".." {
		return refuse(CodeMalformed, "agent id is %q", id)
	}
	return nil
}

// Registration is the body of POST /v2.x/agents/ID at the registrar.
type Registration struct {
	AK      []byte  `json:"aik_tpm"`             // TPM2B_PUBLIC
	EK      []byte  `json:"ek_tpm"`              // TPM2B_PUBLIC
	EKCert  *string `json:"ekcert"`              // base64 DER or PEM, see [FormatCertificates]; null when there is none
	IP      *string `json:"ip,omitempty"`        // of an agent that is polled
	Port    *int    `json:"port,omitempty"`      // likewise
	TLSCert *string `json:"mtls_cert,omitempty"` // likewise: PEM, or "disabled"
}

func (Registration) limits() (string, int64) { return "", 4 * maxCertificates }

func (r Registration) check() error {
	if len(r.AK) == 0 || len(r.EK) == 0 {
		return errors.New("aik_tpm or ek_tpm is missing")
	}
	if r.Port != nil && (*r.Port < 1 || *r.Port > 65535) {
		return fmt.Errorf("port is %d", *r.Port)
	}
	return nil
}

// Challenge answers a [Registration].
type Challenge struct {
	Blob []byte `json:"blob"` // what [EK.MakeCredential] made
}

func (Challenge) limits() (string, int64) { return "", maxSmall }

func (c Challenge) check() error {
	_, _, err := c.Credential()
	return err
}

// Credential splits the blob into the buffers of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET.
func (c Challenge) Credential() (idObject, secret []byte, err error) {
	if len(c.Blob) > maxCredential {
		return nil, nil, refuse(CodeMalformed, "read credential: %d bytes, %d at most", len(c.Blob), maxCredential)
	}
	r := wire.NewReader(c.Blob, binary.BigEndian)
	magic, version := r.Uint32(), r.Uint32()
	idObject = r.Bytes(int(r.Uint16()))
	secret = r.Bytes(int(r.Uint16()))
	if err := r.Close(); err != nil {
		return nil, nil, refuse(CodeMalformed, "read credential: %w", err)
	}
	if magic != credentialMagic || version != credentialVersion {
		return nil, nil, refuse(CodeMalformed, "read credential: magic %#x and version %d", magic, version)
	}
	return idObject, secret, nil
}

// Activation is the body of PUT /v2.x/agents/ID/activate.
type Activation struct {
	AuthTag string `json:"auth_tag"`
}

func (Activation) limits() (string, int64) { return "", maxSmall }

func (a Activation) check() error {
	if len(a.AuthTag) != hex.EncodedLen(sha512.Size384) {
		return fmt.Errorf("auth_tag has %d characters, not %d", len(a.AuthTag), hex.EncodedLen(sha512.Size384))
	}
	return nil
}

// NewSecret returns a secret for [EK.MakeCredential]: 32 characters, as Keylime has it, of
// which 192 bits are random.
func NewSecret() []byte {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	return []byte(base64.URLEncoding.EncodeToString(b[:]))
}

// NewNonce returns a challenge of 32 random bytes.
func NewNonce() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails: crypto/rand
	return b
}

// AuthTag proves to the registrar that the TPM opened the credential: the HMAC-SHA384 of
// the id, whose key is the secret in base64, in hexadecimal.
func AuthTag(secret []byte, id string) string {
	m := hmac.New(sha512.New384, []byte(base64.StdEncoding.EncodeToString(secret)))
	m.Write([]byte(id))
	return hex.EncodeToString(m.Sum(nil))
}

// Matches says in constant time whether the tag is that of secret and id.
func (a Activation) Matches(secret []byte, id string) bool {
	return hmac.Equal([]byte(a.AuthTag), []byte(AuthTag(secret, id)))
}

// Empty are results without a member: the registrar's answer to an [Activation].
type Empty struct{}

func (Empty) limits() (string, int64) { return "", maxSmall }
func (Empty) check() error            { return nil }

// Versions are the results of GET /version.
type Versions struct {
	Current   string   `json:"current_version"`
	Supported []string `json:"supported_versions"`
}

func (Versions) limits() (string, int64) { return "", maxSmall }

func (v Versions) check() error {
	if v.Current == "" || len(v.Supported) == 0 {
		return errors.New("current_version or supported_versions is missing")
	}
	return nil
}
