package evidence

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// PullVersions are the versions of the API of an agent that is polled, oldest first
// (keylime-agent/src/api.rs of rust-keylime 0.2). They differ in [Algorithm], and 2.1 has
// no agent/info.
func PullVersions() []string { return []string{"2.1", "2.2", "2.3", "2.4", "2.5", "2.6"} }

// maxPullNonce is the longest nonce or challenge in a URL, in bytes (MAX_NONCE_SIZE of
// rust-keylime).
const maxPullNonce = 64

// AgentVersions are the results of GET /version at an agent.
type AgentVersions struct {
	Current   string   `json:"supported_version"`
	Supported []string `json:"supported_versions,omitempty"` // agents before rust-keylime 0.2.7 have Current alone
}

func (AgentVersions) limits() (string, int64) { return "", maxSmall }

func (v AgentVersions) check() error {
	if v.Current == "" {
		return errors.New("supported_version is missing")
	}
	return nil
}

// Has says whether the agent has a version.
func (v AgentVersions) Has(version string) bool {
	return v.Current == version || slices.Contains(v.Supported, version)
}

// Best is the newest of [PullVersions] that the agent has, or "".
func (v AgentVersions) Best() string {
	for _, o := range slices.Backward(PullVersions()) {
		if v.Has(o) {
			return o
		}
	}
	return ""
}

// Algorithm is what enc_alg says of an attestation key in a version of the API: "rsa" and
// "ecc" before 2.5 for the two smallest keys, "rsa2048" and "ecc256" from then on.
func Algorithm(key crypto.PublicKey, version string) string {
	name := "ecc"
	bits := 256
	switch k := key.(type) {
	case *rsa.PublicKey:
		name, bits = "rsa", k.N.BitLen()
	case *ecdsa.PublicKey:
		bits = k.Curve.Params().BitSize
	}
	if i := slices.Index(PullVersions(), version); (bits == 2048 || bits == 256) && i < slices.Index(PullVersions(), "2.5") {
		return name
	}
	return name + strconv.Itoa(bits)
}

// QuoteRequest is the query of GET /v2.x/quotes/integrity.
type QuoteRequest struct {
	Nonce   string // 16 to 64 ASCII letters and digits; the quote's qualifying data are these bytes
	PCRs    []int  // ascending, 0 to 23; the agent adds [KeyPCR]
	WithKey bool   // "partial=0": the answer holds the agent's key
	Offset  int    // first entry of the measurement list that is wanted
}

// WithKeyPCR are the PCRs that such a quote is about.
func (q QuoteRequest) WithKeyPCR() []int {
	pcrs := append(slices.Clone(q.PCRs), KeyPCR)
	slices.Sort(pcrs)
	return slices.Compact(pcrs)
}

// maxPullPCR is the highest PCR that a mask names.
const maxPullPCR = 23

// Query is the URL's query.
func (q QuoteRequest) Query() string {
	var mask uint32
	for _, pcr := range q.PCRs {
		mask |= 1 << pcr
	}
	partial := 1
	if q.WithKey {
		partial = 0
	}
	return fmt.Sprintf("nonce=%s&mask=%#x&partial=%d&ima_ml_entry=%d", q.Nonce, mask, partial, q.Offset)
}

// ParseQuoteRequest reads the query of GET quotes/integrity. Without ima_ml_entry the list
// is wanted from its beginning. The error's code is [CodeMalformed].
func ParseQuoteRequest(query string) (*QuoteRequest, error) {
	values, err := parseQuery(query)
	if err != nil {
		return nil, err
	}
	q := &QuoteRequest{Nonce: values["nonce"]}
	if err := checkPullNonce("nonce", q.Nonce); err != nil {
		return nil, err
	}
	mask, err := strconv.ParseUint(strings.TrimPrefix(values["mask"], "0x"), 16, maxPullPCR+1)
	if err != nil {
		return nil, refuse(CodeMalformed, "read query: mask %.40q is not that of PCRs 0 to %d in hexadecimal", values["mask"], maxPullPCR)
	}
	for pcr := range maxPullPCR + 1 {
		if mask>>pcr&1 == 1 {
			q.PCRs = append(q.PCRs, pcr)
		}
	}
	switch values["partial"] {
	case "0":
		q.WithKey = true
	case "1":
	default:
		return nil, refuse(CodeMalformed, "read query: partial is %.40q, neither 0 nor 1", values["partial"])
	}
	if entry, ok := values["ima_ml_entry"]; ok {
		n, err := strconv.ParseUint(entry, 10, 31)
		if err != nil {
			return nil, refuse(CodeMalformed, "read query: ima_ml_entry %.40q is no number of an entry", entry)
		}
		q.Offset = int(n)
	}
	return q, nil
}

// ParseNonce reads the query of GET quotes/identity (name "nonce") and of GET keys/verify
// (name "challenge"). The error's code is [CodeMalformed].
func ParseNonce(query, name string) (string, error) {
	values, err := parseQuery(query)
	if err != nil {
		return "", err
	}
	return values[name], checkPullNonce(name, values[name])
}

func checkPullNonce(name, nonce string) error {
	if len(nonce) < MinNonce || len(nonce) > maxPullNonce {
		return refuse(CodeMalformed, "read query: %s has %d bytes, not %d to %d", name, len(nonce), MinNonce, maxPullNonce)
	}
	return nil
}

// parseQuery reads a query whose names and values need no escapes: what Keylime sends are
// letters and digits. A name that is there twice is refused, as two readers would take
// different ones; names that nobody knows are passed over.
func parseQuery(query string) (map[string]string, error) {
	if len(query) > 1024 {
		return nil, refuse(CodeMalformed, "read query: %d bytes", len(query))
	}
	values := map[string]string{}
	if query == "" {
		return values, nil
	}
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if i := strings.IndexFunc(value, notAlphanumeric); i >= 0 {
			return nil, refuse(CodeMalformed, "read query: %.40q has something else than letters and digits", name)
		}
		if _, twice := values[name]; twice {
			return nil, refuse(CodeMalformed, "read query: %.40q is there twice", name)
		}
		values[name] = value
	}
	return values, nil
}

func notAlphanumeric(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9')
}

// QuoteAnswer are the results of GET /v2.x/quotes/integrity at an agent that is polled, and
// of quotes/identity, which has no logs.
type QuoteAnswer struct {
	Quote    string  `json:"quote"` // see [NewQuote]
	Hash     string  `json:"hash_alg"`
	KeyAlg   string  `json:"enc_alg"`                              // see [Algorithm]
	Scheme   string  `json:"sign_alg"`                             // "rsassa", "ecdsa"
	Key      string  `json:"pubkey,omitempty"`                     // PEM, see [KeyPCR]
	List     *string `json:"ima_measurement_list,omitempty"`       // text
	Offset   *int    `json:"ima_measurement_list_entry,omitempty"` // its first entry
	Firmware *string `json:"mb_measurement_list,omitempty"`        // base64
	BootTime *int64  `json:"boottime,omitempty"`                   // Unix time; rust-keylime does not send it
}

// NewQuote is the text of a quote: "r" and base64 of TPMS_ATTEST, TPMT_SIGNATURE and PCR
// values ([AppendPCRBlob]) with colons between.
func NewQuote(message, signature, pcrs []byte) string {
	return "r" + strict64.EncodeToString(message) + ":" + strict64.EncodeToString(signature) + ":" + strict64.EncodeToString(pcrs)
}

func (QuoteAnswer) limits() (string, int64) { return "", MaxSize }

func (q QuoteAnswer) check() error {
	if !strings.HasPrefix(q.Quote, "r") || strings.Count(q.Quote, ":") != 2 {
		return errors.New("quote is not r and three parts with colons between")
	}
	if q.Offset != nil && *q.Offset < 0 {
		return errors.New("ima_measurement_list_entry is " + strconv.Itoa(*q.Offset))
	}
	return nil
}

// Evidence is what the answer holds. The nonce of such a quote is the text that was in the
// request's URL.
func (q QuoteAnswer) Evidence() (*Evidence, error) {
	if err := q.check(); err != nil {
		return nil, refuse(CodeMalformed, "read quote: %w", err)
	}
	ev := &Evidence{ListASCII: true}
	parts := strings.Split(q.Quote[1:], ":")
	for i, to := range []*[]byte{&ev.Message, &ev.Signature, &ev.PCRs} {
		var err error
		if *to, err = strict64.DecodeString(parts[i]); err != nil {
			return nil, refuse(CodeMalformed, "read quote: part %d: %w", i+1, err)
		}
	}
	if q.List != nil {
		ev.List = []byte(*q.List)
	}
	if q.Offset != nil {
		ev.Offset = *q.Offset
	}
	if q.Firmware != nil {
		var err error
		if ev.Firmware, err = strict64.DecodeString(*q.Firmware); err != nil {
			return nil, refuse(CodeMalformed, "read event log: %w", err)
		}
	}
	return ev, nil
}

// AgentInfo are the results of GET /v2.x/agent/info, from 2.2 on.
type AgentInfo struct {
	ID       string `json:"agent_uuid"`
	Hash     string `json:"tpm_hash_alg"`
	KeyAlg   string `json:"tpm_enc_alg"` // see [Algorithm]
	Scheme   string `json:"tpm_sign_alg"`
	AKHandle uint32 `json:"ak_handle"` // of a persistent object or a transient one
}

func (AgentInfo) limits() (string, int64) { return "", maxSmall }
func (i AgentInfo) check() error          { return CheckID(i.ID) }

// KeyAnswer are the results of GET /v2.x/keys/pubkey.
type KeyAnswer struct {
	Key string `json:"pubkey"` // PEM
}

func (KeyAnswer) limits() (string, int64) { return "", maxSmall }

func (k KeyAnswer) check() error {
	_, err := parseShareKey(k.Key)
	return err
}

// maxShares is the size of the body of a [UShare]: a payload in base64 and what is around.
const maxShares = (MaxPayload+gcmOverhead+2)/3*4 + maxSmall

// UShare is the body of POST /v2.x/keys/ukey: the tenant's half of the payload's key.
type UShare struct {
	AuthTag string `json:"auth_tag"`          // [KeyTag]
	Share   []byte `json:"encrypted_key"`     // [SealShare]
	Payload []byte `json:"payload,omitempty"` // [SealPayload]
}

func (UShare) limits() (string, int64) { return "", maxShares }

func (u UShare) check() error {
	if len(u.Payload) > MaxPayload+gcmOverhead {
		return fmt.Errorf("payload has %d bytes, %d at most", len(u.Payload), MaxPayload+gcmOverhead)
	}
	return errors.Join(checkTag("auth_tag", u.AuthTag), checkShare(u.Share))
}

// VShare is the body of POST /v2.x/keys/vkey: the verifier's half, sent after a good quote.
type VShare struct {
	Share []byte `json:"encrypted_key"`
}

func (VShare) limits() (string, int64) { return "", maxSmall }
func (v VShare) check() error          { return checkShare(v.Share) }

func checkShare(share []byte) error {
	if len(share) < 2048/8 || len(share) > 4096/8 {
		return fmt.Errorf("encrypted_key has %d bytes", len(share))
	}
	return nil
}

// checkTag says whether tag is an HMAC-SHA384 in hexadecimal.
func checkTag(name, tag string) error {
	if b, err := hex.DecodeString(tag); err != nil || len(b) != crypto.SHA384.Size() {
		return fmt.Errorf("%s is not %d bytes in hexadecimal", name, crypto.SHA384.Size())
	}
	return nil
}

// KeyProof are the results of GET /v2.x/keys/verify?challenge=C: that the agent has the key.
type KeyProof struct {
	HMAC string `json:"hmac"` // [KeyTag] of the key and C
}

func (KeyProof) limits() (string, int64) { return "", maxSmall }
func (p KeyProof) check() error          { return checkTag("hmac", p.HMAC) }

// Matches says in constant time whether the proof is that of key and challenge.
func (p KeyProof) Matches(key []byte, challenge string) bool {
	return hmac.Equal([]byte(strings.ToLower(p.HMAC)), []byte(KeyTag(key, challenge)))
}

// SignedRevocation is the body of POST /v2.x/notifications/revocation at an agent, and of
// Keylime's webhook.
type SignedRevocation struct {
	Message   string `json:"msg"`       // a [Revocation] as JSON; the signature is over these very bytes
	Signature []byte `json:"signature"` // RSA-PSS with SHA-256
}

func (SignedRevocation) limits() (string, int64) { return "", maxSmall }

func (s SignedRevocation) check() error {
	if s.Message == "" || len(s.Signature) == 0 {
		return errors.New("msg or signature is missing")
	}
	return nil
}

// Revocation is Keylime's notice of a verdict (prepare_error in its
// cloud_verifier_common.py). Nothing in it says for whom it is or that it is not an old one.
type Revocation struct {
	Type      string `json:"type"` // "revocation", "comm_error"
	IP        string `json:"ip"`
	ID        string `json:"agent_id"`
	Port      any    `json:"port"` // a number, or a text
	TPMPolicy any    `json:"tpm_policy"`
	Meta      any    `json:"meta_data"`
	Time      string `json:"event_time"` // as date of HTTP or asctime: see the sender
	EventID   string `json:"event_id,omitempty"`
	Severity  string `json:"severity_label,omitempty"`
	Context   any    `json:"context,omitempty"`
}

func (Revocation) limits() (string, int64) { return "", maxSmall }

func (r Revocation) check() error {
	if r.Type == "" {
		return errors.New("type is missing")
	}
	return CheckID(r.ID)
}
