package server

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// DeviceView is a device as operators see it.
type DeviceView struct {
	ID           string            `json:"id"`
	State        string            `json:"state"` // expected, active
	Attest       bool              `json:"attest"`
	Group        string            `json:"group"`
	Labels       map[string]string `json:"labels"`
	Policies     []string          `json:"policies,omitempty"` // with one device only
	Created      time.Time         `json:"created"`
	Activated    *time.Time        `json:"activated,omitempty"`
	Registered   int64             `json:"registrations"`
	EK           []byte            `json:"ek,omitempty"` // SubjectPublicKeyInfo
	AK           []byte            `json:"ak,omitempty"`
	Certificates []byte            `json:"ek_certificates,omitempty"` // DER after DER
	// Alarm says why nobody vouches for the TPM; with one device only.
	Alarm   string      `json:"alarm,omitempty"`
	Model   string      `json:"model,omitempty"` // push, pull; with one device only
	Poll    *PollView   `json:"poll,omitempty"`  // of one that is polled
	Verdict VerdictView `json:"verdict"`
}

// VerdictView is what a device is known to be.
type VerdictView struct {
	Status   string          `json:"status"` // trusted, untrusted, broken, unverified, overdue
	Since    time.Time       `json:"since"`
	Codes    string          `json:"codes"`
	Release  string          `json:"release,omitempty"`
	Attested *time.Time      `json:"attested,omitempty"` // the last time
	Due      *time.Time      `json:"due,omitempty"`
	Total    int64           `json:"attestations"`
	Event    int64           `json:"event,omitempty"`  // that it came of
	Detail   json.RawMessage `json:"detail,omitempty"` // attest.verdict/v1; with one device only
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func verdictView(v store.Verdict) VerdictView {
	return VerdictView{Status: string(v.Status), Since: v.Since.UTC(), Codes: v.Codes, Release: v.Fitted, Attested: moment(v.Attested),
		Due: moment(v.Due), Total: v.Total, Event: v.Event, Detail: v.Detail}
}

func deviceView(d store.Device) DeviceView {
	return DeviceView{ID: d.ID, State: string(d.State), Attest: d.Attest, Group: d.Group, Labels: d.Labels, Policies: d.Policies,
		Created: d.Created.UTC(), Activated: moment(d.Activated), Registered: d.RegCount, EK: d.EK.SPKI, AK: d.AK.SPKI,
		Certificates: d.EKCerts, Verdict: verdictView(d.Verdict)}
}

const maxPage = 1000 // rows of an answer

// page reads the query's limit.
func (c *call) page() (int, error) {
	text := c.URL.Query().Get("limit")
	if text == "" {
		return 100, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxPage {
		return 0, fail(http.StatusBadRequest, "limit", "limit is not 1 to %d", maxPage)
	}
	return n, nil
}

func (s *Server) listDevices(c *call) error {
	limit, err := c.page()
	if err != nil {
		return err
	}
	q := c.URL.Query()
	// A misspelt status would be that of no device, which reads like good news.
	for name, known := range map[string][]string{
		"status": {string(store.Trusted), string(store.Untrusted), string(store.Broken), string(store.Unverified), string(store.Overdue)},
		"state":  {string(store.Expected), string(store.Active)},
	} {
		if v := q.Get(name); v != "" && !slices.Contains(known, v) {
			return fail(http.StatusBadRequest, name, "%s is none of %s", name, strings.Join(known, ", "))
		}
	}
	f := store.Filter{Group: q.Get("group"), Status: store.Status(q.Get("status")), State: store.DeviceState(q.Get("state"))}
	devices, err := s.Store.Devices(c.Context(), f, q.Get("after"), limit, c.now)
	if err != nil {
		return err
	}
	views := make([]DeviceView, 0, len(devices))
	for _, d := range devices {
		d.EK, d.AK = store.Key{}, store.Key{}
		views = append(views, deviceView(d))
	}
	answer := map[string]any{"devices": views}
	if len(devices) == limit {
		answer["next"] = devices[limit-1].ID
	}
	return c.json(http.StatusOK, answer)
}

func (s *Server) showDevice(c *call) error {
	d, err := s.Store.Device(c.Context(), c.PathValue("id"), c.now)
	if err != nil {
		return err
	}
	v := deviceView(d)
	v.Alarm = s.unproved(d, c)
	if v.Model, v.Poll, err = s.pollView(c, d.ID); err != nil {
		return err
	}
	return c.json(http.StatusOK, v)
}

// newDevice is the body of POST devices. Of the EK one of the three is given, or none: then
// the first TPM that asks for the id becomes the device, if the configuration lets it.
type newDevice struct {
	ID       string            `json:"id,omitempty"`      // "": the hash of the EK
	EK       string            `json:"ek,omitempty"`      // PEM: a public key or a certificate
	EKPublic string            `json:"ek_tpm,omitempty"`  // base64 of a TPM2B_PUBLIC
	EKHash   string            `json:"ek_hash,omitempty"` // the id that an agent has by itself
	Group    string            `json:"group,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Policies []string          `json:"policies,omitempty"`
	modelChange
}

func (s *Server) addDevice(c *call) error {
	var m newDevice
	if err := c.decode(&m); err != nil {
		return err
	}
	d := store.Device{ID: m.ID, Group: m.Group, Labels: m.Labels, Policies: m.Policies, Attest: true}
	own, err := m.key(&d.EK)
	if err != nil {
		return err
	}
	if d.ID == "" {
		d.ID = own
	}
	if d.EK.SPKI == nil && !s.AnyID && d.ID != own {
		return fail(http.StatusBadRequest, "device_id", "give the EK with an id that is not its hash")
	}
	if err := evidence.CheckID(d.ID); err != nil {
		return err
	}
	remodel, err := s.checkModel(m.modelChange)
	if err != nil {
		return err
	}
	if err := s.Store.AddDevice(c.Context(), d, c.who.name, c.now); err != nil {
		if errors.Is(err, store.ErrNotFound) {
			return fail(http.StatusBadRequest, "policy", "there is no policy of this name")
		}
		return err
	}
	if err := remodel(c, d.ID); err != nil {
		return err
	}
	c.w.Header().Set("Location", "/api/v1/devices/"+d.ID)
	added, err := s.Store.Device(c.Context(), d.ID, c.now)
	if err != nil {
		return err
	}
	v := deviceView(added)
	if v.Model, v.Poll, err = s.pollView(c, d.ID); err != nil {
		return err
	}
	return c.json(http.StatusCreated, v)
}

// key reads the EK, and returns the id that its device has by itself, "" if no key is given.
func (m *newDevice) key(k *store.Key) (own string, err error) {
	bad := func(text string) error { return fail(http.StatusBadRequest, "ek", "%s", text) }
	switch {
	case m.EKPublic != "":
		raw, err := base64.StdEncoding.DecodeString(m.EKPublic)
		if err != nil {
			return "", bad("ek_tpm is not base64")
		}
		ek, err := evidence.ParseEK(raw)
		if err != nil {
			return "", err
		}
		k.Public = ek.Public()
		if k.SPKI, err = x509.MarshalPKIXPublicKey(ek.Key()); err != nil {
			return "", err
		}
	case m.EK != "":
		block, _ := pem.Decode([]byte(m.EK))
		if block == nil {
			return "", bad("ek is not PEM")
		}
		k.SPKI = block.Bytes
		if block.Type == "CERTIFICATE" {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return "", bad("ek is not a certificate")
			}
			if cert.IsCA {
				return "", bad("ek is the certificate of a CA, not of an endorsement key")
			}
			k.SPKI = cert.RawSubjectPublicKeyInfo
		}
		if _, err := x509.ParsePKIXPublicKey(k.SPKI); err != nil {
			return "", bad("ek is not a public key")
		}
	case m.EKHash != "":
		if b, err := hex.DecodeString(m.EKHash); err != nil || len(b) != 32 {
			return "", bad("ek_hash is not a SHA-256 in hexadecimal")
		}
		return m.EKHash, nil
	default:
		return "", nil
	}
	return idOf(k.SPKI), nil
}

func (s *Server) changeDevice(c *call) error {
	var m struct {
		store.Change
		modelChange
	}
	if err := c.decode(&m); err != nil {
		return err
	}
	remodel, err := s.checkModel(m.modelChange)
	if err != nil {
		return err
	}
	id := c.PathValue("id")
	if _, err := s.Store.Device(c.Context(), id, c.now); err != nil {
		return err
	}
	if err := s.Store.UpdateDevice(c.Context(), id, m.Change, c.who.name, c.now); err != nil {
		if errors.Is(err, store.ErrNotFound) {
			return fail(http.StatusBadRequest, "policy", "there is no policy of this name")
		}
		return err
	}
	if err := remodel(c, id); err != nil {
		return err
	}
	return s.showDevice(c)
}

func (s *Server) deleteDevice(c *call) error {
	id := c.PathValue("id")
	_, err := s.Store.TenantAgent(c.Context(), id)
	if err == nil { // the policies that were its alone go with it
		err = s.Store.RemoveFromVerifier(c.Context(), id, kindTenant, false, c.who.name, c.now)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err := s.Store.DeleteDevice(c.Context(), id, c.who.name, c.now); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// explainDevice is the verdict with its reasons, and the event and evidence it came of.
func (s *Server) explainDevice(c *call) error {
	d, err := s.Store.Device(c.Context(), c.PathValue("id"), c.now)
	if err != nil {
		return err
	}
	st, err := s.Store.State(c.Context(), d.ID, c.now)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	answer := map[string]any{"device": d.ID, "verdict": verdictView(d.Verdict)}
	if st != nil {
		answer["policies"] = sortedNames(st.Policies)
	}
	if d.Verdict.Event > 0 {
		e, err := s.Store.Event(c.Context(), d.Verdict.Event)
		if err != nil {
			return err
		}
		answer["event"] = eventView(e)
	}
	if alarm := s.unproved(d, c); alarm != "" {
		answer["alarm"] = alarm
	}
	return c.json(http.StatusOK, answer)
}

// status counts the fleet.
func (s *Server) status(c *call) error {
	counts, err := s.Store.CountDevices(c.Context(), c.now)
	if err != nil {
		return err
	}
	head, err := s.Store.Head(c.Context())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, map[string]any{"devices": counts, "interval": s.Interval.Seconds(), "overdue_after": s.due().Seconds(),
		"events": headView(head)})
}
