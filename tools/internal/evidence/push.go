package evidence

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Classes and types of evidence in push attestation.
const (
	ClassCertification = "certification"
	ClassLog           = "log"
	TypeQuote          = "tpm_quote"
	TypeIMA            = "ima_log"
	TypeFirmware       = "uefi_log"
)

// Formats of logs: the measurement list is asked for in binary where the agent has that,
// as a path may hold a line feed; JSON then carries it in base64, like the firmware's log.
const (
	FormatBinary = "application/octet-stream"
	FormatText   = "text/plain"
)

const maxItems = 8 // kinds of evidence in one attestation

// Capabilities is the body of POST /v3.0/agents/ID/attestations: what the agent can send.
type Capabilities struct {
	Supported []Supported `json:"evidence_supported"`
	System    SystemInfo  `json:"system_info"`
}

// SystemInfo is what the agent says of its system; nothing proves it.
type SystemInfo struct {
	BootTime time.Time `json:"boot_time"`
}

// Supported is a kind of evidence that the agent has.
type Supported struct {
	Class        string     `json:"evidence_class"`
	Type         string     `json:"evidence_type"`
	Capabilities Capability `json:"capabilities"`
}

// Capability says how the agent can make the evidence: the first members belong to a
// quote, the others to a log.
type Capability struct {
	Version     string           `json:"component_version,omitempty"` // "2.0"
	Hashes      []string         `json:"hash_algorithms,omitempty"`   // "sha256"
	Schemes     []string         `json:"signature_schemes,omitempty"` // "rsassa", "rsapss", "ecdsa"
	AvailablePC map[string][]int `json:"available_subjects,omitempty"`
	Keys        []Key            `json:"certification_keys,omitempty"`

	Format     string   `json:"evidence_version,omitempty"`
	Entries    *int     `json:"entry_count,omitempty"`
	Partial    *bool    `json:"supports_partial_access,omitempty"` // a log can be sent from any entry on
	Appendable *bool    `json:"appendable,omitempty"`
	Formats    []string `json:"formats,omitempty"`
}

// Key names the attestation key.
type Key struct {
	Class     string   `json:"key_class"`         // "asymmetric"
	Algorithm string   `json:"key_algorithm"`     // "rsa" or "ecc"
	Size      int      `json:"key_size"`          // in bits
	Server    string   `json:"server_identifier"` // "ak"
	Name      string   `json:"local_identifier"`  // base64 of [AK.Name]; like all here it proves nothing
	Public    string   `json:"public,omitempty"`  // base64 of the TPM2B_PUBLIC
	Schemes   []string `json:"allowable_signature_schemes,omitempty"`
	Hashes    []string `json:"allowable_hash_algorithms,omitempty"`
}

func (Capabilities) limits() (string, int64) { return "attestation", maxSmall }

func (c Capabilities) check() error {
	if len(c.Supported) == 0 || len(c.Supported) > maxItems {
		return fmt.Errorf("%d kinds of evidence are supported, not 1 to %d", len(c.Supported), maxItems)
	}
	for _, s := range c.Supported {
		if n := s.Capabilities.Entries; n != nil && *n < 0 {
			return fmt.Errorf("%.40q has %d entries", s.Type, *n)
		}
	}
	if c.find(TypeQuote) == nil {
		return fmt.Errorf("the agent has no %s", TypeQuote)
	}
	return nil
}

func (c Capabilities) find(kind string) *Capability {
	i := slices.IndexFunc(c.Supported, func(s Supported) bool { return s.Type == kind })
	if i < 0 {
		return nil
	}
	return &c.Supported[i].Capabilities
}

// Quote is what the agent says of its TPM; it is there in what [Decode] returned.
func (c Capabilities) Quote() *Capability { return c.find(TypeQuote) }

// IMA is what the agent says of its measurement list, or nil.
func (c Capabilities) IMA() *Capability { return c.find(TypeIMA) }

// Firmware is what the agent says of the firmware's event log, or nil.
func (c Capabilities) Firmware() *Capability { return c.find(TypeFirmware) }

// Requests answers [Capabilities]: what the agent is to send, and until when. The answer's
// status is 201, and its Location header is the path that takes the evidence.
type Requests struct {
	Stage     string     `json:"stage"` // "awaiting_evidence"
	Requested []Request  `json:"evidence_requested"`
	System    SystemInfo `json:"system_info"`
	Received  time.Time  `json:"capabilities_received_at"`
	Expires   time.Time  `json:"challenges_expire_at"`
}

// Request asks for one kind of evidence.
type Request struct {
	Class      string     `json:"evidence_class"`
	Type       string     `json:"evidence_type"`
	Parameters Parameters `json:"chosen_parameters"`
}

// Parameters say how to make the evidence: the first members are a quote's, the others a log's.
type Parameters struct {
	Challenge []byte           `json:"challenge,omitempty"`
	Scheme    string           `json:"signature_scheme,omitempty"`
	Hash      string           `json:"hash_algorithm,omitempty"`
	Selected  map[string][]int `json:"selected_subjects,omitempty"` // bank to PCRs: see [Selection]
	Key       *Key             `json:"certification_key,omitempty"`

	Offset *int   `json:"starting_offset,omitempty"` // first entry to send
	Format string `json:"format,omitempty"`
}

func (Requests) limits() (string, int64) { return "attestation", maxSmall }

func (r Requests) check() error {
	if len(r.Requested) == 0 || len(r.Requested) > maxItems {
		return fmt.Errorf("%d kinds of evidence are requested, not 1 to %d", len(r.Requested), maxItems)
	}
	for _, q := range r.Requested {
		if o := q.Parameters.Offset; o != nil && *o < 0 {
			return fmt.Errorf("%.40q is wanted from entry %d", q.Type, *o)
		}
	}
	return nil
}

// Collected is the body of PATCH /v3.0/agents/ID/attestations/latest: the evidence, in the
// order in which it was requested.
type Collected struct {
	Collected []Item `json:"evidence_collected"`
}

// Item is one piece of evidence.
type Item struct {
	Class string `json:"evidence_class"`
	Type  string `json:"evidence_type"`
	Data  Data   `json:"data"`
}

// Data is what was asked for: the first members are a quote's, the others a log's.
type Data struct {
	Message   []byte `json:"message,omitempty"`      // TPMS_ATTEST
	Signature []byte `json:"signature,omitempty"`    // TPMT_SIGNATURE
	PCRs      []byte `json:"subject_data,omitempty"` // see [AppendPCRBlob]

	Count   *int   `json:"entry_count,omitempty"`
	Entries string `json:"entries,omitempty"` // text, or base64 of [FormatBinary]
}

func (Collected) limits() (string, int64) { return "attestation", MaxSize }

func (c Collected) check() error {
	if len(c.Collected) == 0 || len(c.Collected) > maxItems {
		return fmt.Errorf("%d pieces of evidence, not 1 to %d", len(c.Collected), maxItems)
	}
	for i, item := range c.Collected {
		if slices.ContainsFunc(c.Collected[:i], func(o Item) bool { return o.Type == item.Type }) {
			return fmt.Errorf("%.40q is there twice", item.Type)
		}
	}
	return nil
}

// Accepted answers [Collected], with status 202.
type Accepted struct {
	Stage    string     `json:"stage"` // "evaluating_evidence"
	Evidence []Item     `json:"evidence"`
	System   SystemInfo `json:"system_info"`
}

func (Accepted) limits() (string, int64) { return "attestation", MaxSize }

func (a Accepted) check() error {
	if a.Stage == "" {
		return errors.New("stage is missing")
	}
	return nil
}

// Meta is the meta member of an answer.
type Meta struct {
	// Next is when to attest again, in seconds.
	Next int `json:"seconds_to_next_attestation,omitempty"`
	// Verdict is ours: the evidence was judged before the answer was sent.
	Verdict *Verdict `json:"verdict,omitempty"`
	// Again is ours: nothing was judged, the verdict is the one before, and the device is to
	// attest at once from the beginning of its lists.
	Again bool `json:"again,omitempty"`
	// Secrets is ours: the [SecretsTag] of what a trusted device is to have.
	Secrets string `json:"secrets,omitempty"`
}

// Verdict is what a device is told of its own verdict.
type Verdict struct {
	State   string   `json:"state"`
	Reasons []Reason `json:"reasons,omitempty"`
}

// Reason is one cause of a verdict.
type Reason struct {
	Code   string `json:"code"`
	Path   string `json:"path,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// Failure is the body of a refused request of push attestation.
type Failure struct {
	Errors []Problem `json:"errors"`
}

// Problem is one JSON:API error.
type Problem struct {
	Status string `json:"status"` // "403"
	Code   string `json:"code,omitempty"`
	Title  string `json:"title,omitempty"`
	Detail string `json:"detail,omitempty"`
}
