package server

import (
	"encoding/base64"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strconv"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// importedDevice is the body of POST devices/ID/import: what another registrar, which made
// the TPM prove it, knows of a device. The members are those of Keylime's registrar.
type importedDevice struct {
	Source  string            `json:"source"` // where from, for the history
	AK      string            `json:"aik_tpm"`
	EK      string            `json:"ek_tpm"`
	EKCert  *string           `json:"ekcert,omitempty"`
	IP      *string           `json:"ip,omitempty"`
	Port    *int              `json:"port,omitempty"`
	TLSCert *string           `json:"mtls_cert,omitempty"`
	Group   string            `json:"group,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	DryRun  bool              `json:"dry_run,omitempty"` // say what would be, and change nothing
}

// importDevice binds an EK and an AK without a challenge, on the word of an admin. All else
// is as with a registration: the keys are looked at, and the EK's certificate. Nothing is
// trusted by it: the first attestation has to be signed by the AK.
func (s *Server) importDevice(c *call) error {
	var m importedDevice
	if err := c.decode(&m); err != nil {
		return err
	}
	id := c.PathValue("id")
	if err := evidence.CheckID(id); err != nil {
		return err
	}
	i, err := s.imported(c, &m)
	if err != nil {
		return err
	}
	labels := map[string]string{}
	maps.Copy(labels, m.Labels)
	labels["imported"] = "yes"
	added, err := s.Store.Import(c.Context(), store.Imported{Identity: *i, Device: id, Source: m.Source, Group: m.Group, Labels: labels,
		Due: c.now.Add(s.due()), DryRun: m.DryRun}, c.who.name, c.now)
	if err != nil {
		return err
	}
	if added && !m.DryRun {
		s.alarm(c, id)
	}
	answer := map[string]any{"id": id, "added": added, "dry_run": m.DryRun}
	if len(i.TLSCert) > 0 && m.IP != nil && m.Port != nil {
		var f *failure
		if _, err := s.pullSettings(net.JoinHostPort(*m.IP, strconv.Itoa(*m.Port)), nil); errors.As(err, &f) {
			answer["not_polled"] = f.text
		}
	}
	status := http.StatusCreated
	if !added {
		status = http.StatusOK
	}
	return c.json(status, answer)
}

// imported reads the keys as [Server.register] does.
func (s *Server) imported(c *call, m *importedDevice) (*store.Identity, error) {
	r := &evidence.Registration{EKCert: m.EKCert, IP: m.IP, Port: m.Port, TLSCert: m.TLSCert}
	var err error
	for _, k := range []struct {
		name, text string
		to         *[]byte
	}{{"aik_tpm", m.AK, &r.AK}, {"ek_tpm", m.EK, &r.EK}} {
		if *k.to, err = base64.StdEncoding.DecodeString(k.text); err != nil {
			return nil, fail(http.StatusBadRequest, "malformed", "%s is not base64", k.name)
		}
	}
	if m.IP != nil {
		if _, err := netip.ParseAddr(*m.IP); err != nil {
			return nil, fail(http.StatusBadRequest, "contact", "ip is not an address")
		}
	}
	ek, err := evidence.ParseEK(r.EK)
	if err != nil {
		return nil, err
	}
	ak, err := evidence.ParseAK(r.AK)
	if err != nil {
		return nil, err
	}
	return s.keysOf(c, r, ek, ak)
}
