// Package keylimedb reads what a Keylime installation knows of its devices: from the
// databases of its registrar and verifier (SQLite or PostgreSQL, of Keylime 7), or from the
// answers of their management API that keylime_tenant prints.
//
// What it reads may have been written by anybody. It is bounded in rows and bytes before it
// is read; of SQLite only plain tables are read, read-only, and nothing that the file's
// schema says is run. Nothing here is verified: keys, certificates and policies are for the
// verifier to look at, to which they are brought.
package keylimedb

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Bounds of an installation.
const (
	maxAgents   = 200_000
	maxPolicies = 10_000
	maxPolicy   = 64 << 20 // bytes of one
	maxTotal    = 1 << 30  // bytes of all
	maxField    = 64 << 10 // bytes of any other field
)

// Agent is a device, as registrar and verifier have it.
type Agent struct {
	ID       string
	AK, EK   string // base64 of a TPM2B_PUBLIC
	EKCert   string // base64 of DER, or PEM; "" for none
	IP       string
	Port     int
	TLSCert  string // PEM; "" of an agent that listens nowhere
	Active   bool   // a TPM proved to hold both keys
	Verified bool   // the verifier has it

	Runtime  string // name of its runtime policy; "" where it is not known or there is none
	MB       string // likewise of its measured boot policy
	TPM      string // tpm_policy, JSON
	Metadata string // meta_data, JSON
	Hashes   []string
	Encs     []string
	Signs    []string
}

// Policy is a named policy: of sort "runtime" or "mb".
type Policy struct {
	Name string
	Text string // JSON
	TPM  string // tpm_policy beside a runtime policy; "" for none
}

// Snapshot is what was read.
type Snapshot struct {
	Agents  []Agent // in the order of their ids
	Runtime []Policy
	MB      []Policy
	Notes   []string // what was not read, and why

	agents map[string]*Agent
	seen   map[string]bool // "runtime NAME", "mb NAME"
	total  int
}

func newSnapshot() *Snapshot {
	return &Snapshot{agents: map[string]*Agent{}, seen: map[string]bool{}}
}

func (s *Snapshot) note(format string, args ...any) {
	if len(s.Notes) < maxPolicies {
		s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
	}
}

// agent finds or makes the entry of an id.
func (s *Snapshot) agent(id string) (*Agent, error) {
	if a := s.agents[id]; a != nil {
		return a, nil
	}
	if len(s.agents) == maxAgents {
		return nil, fmt.Errorf("more than %d agents", maxAgents)
	}
	a := &Agent{ID: id}
	s.agents[id] = a
	return a, nil
}

func (s *Snapshot) policy(list *[]Policy, sort string, p Policy) error {
	switch {
	case p.Text == "" && sort == "mb": // Keylime makes one for each agent that has none
		return nil
	case p.Text == "" || p.Text == "{}" || p.Text == "null":
		s.note("%s policy %.80q: it is empty", sort, p.Name)
		return nil
	case s.seen[sort+" "+p.Name]:
		s.note("%s policy %.80q: it comes twice, the first was taken", sort, p.Name)
		return nil
	}
	if s.total += len(p.Text) + len(p.TPM); s.total > maxTotal || len(*list) == maxPolicies {
		return fmt.Errorf("more than %d policies, or %d bytes of them", maxPolicies, maxTotal)
	}
	s.seen[sort+" "+p.Name] = true
	*list = append(*list, p)
	return nil
}

// done brings the agents into order.
func (s *Snapshot) done() *Snapshot {
	s.Agents = nil
	for _, id := range slices.Sorted(maps.Keys(s.agents)) {
		s.Agents = append(s.Agents, *s.agents[id])
	}
	return s
}

// certificate is a certificate of an agent's TLS as PEM, "" for none.
func certificate(text string) string {
	if text == "" || text == "disabled" || strings.Contains(text, "-----BEGIN") {
		return strings.TrimPrefix(text, "disabled")
	}
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return text // the verifier says what is wrong with it
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// unpickled is the text of a column that Keylime writes as JSON: a JSON string in JSON, or
// the value itself.
func unpickled(text string) string {
	var inner string
	if json.Unmarshal([]byte(text), &inner) == nil {
		return inner
	}
	return text
}

func words(text string) (list []string) {
	if json.Unmarshal([]byte(text), &list) != nil {
		return nil
	}
	return list
}
