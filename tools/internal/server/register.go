package server

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net/http"
	"net/netip"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

func (s *Server) registrarVersion(c *call) error {
	return keylime(c, evidence.Versions{Current: "2.6", Supported: supported["2"]})
}

// register takes the keys of a TPM and answers with a challenge that only this TPM can
// read. Nothing of an enrolled device changes before it is answered.
func (s *Server) register(c *call) error {
	if err := errors.Join(c.version("2"), evidence.CheckID(c.PathValue("id"))); err != nil {
		return err
	}
	m, err := evidence.DecodeBody[evidence.Registration](c.Body)
	if err != nil {
		return err
	}
	ek, err := evidence.ParseEK(m.EK)
	if err != nil {
		return err
	}
	ak, err := evidence.ParseAK(m.AK)
	if err != nil {
		return err
	}
	id, err := s.identity(c, m, ek, ak)
	if err != nil {
		return err
	}
	secret := evidence.NewSecret()
	blob, err := ek.MakeCredential(ak, secret)
	if err != nil {
		return err
	}
	err = s.Store.Register(c.Context(), store.Attempt{
		Device: c.PathValue("id"), Identity: *id, Peer: c.peer,
		Answer: sha256.Sum256([]byte(evidence.AuthTag(secret, c.PathValue("id")))), Expires: c.now.Add(s.ChallengeLifetime),
	}, c.now)
	if err != nil {
		return err
	}
	return keylime(c, evidence.Challenge{Blob: blob})
}

// identity is what a registration says of its device, if it may say that.
func (s *Server) identity(c *call, m *evidence.Registration, ek *evidence.EK, ak *evidence.AK) (*store.Identity, error) {
	i, err := s.keysOf(c, m, ek, ak)
	if err != nil {
		return nil, err
	}
	return i, s.mayHave(c, ek, i.EK.SPKI)
}

// keysOf is the identity without the question whether it fits the id.
func (s *Server) keysOf(c *call, m *evidence.Registration, ek *evidence.EK, ak *evidence.AK) (*store.Identity, error) {
	i := &store.Identity{EK: store.Key{Public: ek.Public()}, AK: store.Key{Public: ak.Public()}}
	var err error
	if i.EK.SPKI, err = x509.MarshalPKIXPublicKey(ek.Key()); err != nil {
		return nil, err
	}
	if i.AK.SPKI, err = x509.MarshalPKIXPublicKey(ak.Key()); err != nil {
		return nil, err
	}
	if m.EKCert != nil {
		if i.EKCerts, err = certificatesOf(*m.EKCert); err != nil && !s.TOFU {
			return nil, err
		}
	}
	if why := s.doubt(i.EKCerts, ek, c); why != nil {
		if !s.TOFU {
			return nil, fail(http.StatusForbidden, string(evidence.CodeCertificate), "%v", why)
		}
		s.Log.Warn("EK certificate not verified", "device", c.PathValue("id"), "peer", c.peer, "error", why)
	}
	if m.IP != nil {
		if a, err := netip.ParseAddr(*m.IP); err == nil && a.Zone() == "" {
			i.IP = a.String()
		}
	}
	if m.Port != nil {
		i.Port = *m.Port
	}
	if m.TLSCert != nil && *m.TLSCert != "disabled" {
		if block, _ := pem.Decode([]byte(*m.TLSCert)); block != nil {
			i.TLSCert = block.Bytes
		}
	}
	return i, nil
}

// mayHave says whether a device with this EK may have the id that it asks for: the hash of
// the EK, which no other TPM can claim, or the one that an operator gave to just this EK.
func (s *Server) mayHave(c *call, ek *evidence.EK, spki []byte) error {
	own, err := ek.ID()
	if err != nil {
		return err
	}
	if s.AnyID || c.PathValue("id") == own {
		return nil
	}
	d, err := s.Store.Device(c.Context(), c.PathValue("id"), c.now)
	if err == nil && bytes.Equal(d.EK.SPKI, spki) {
		return nil
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return fail(http.StatusForbidden, "device_id", "the id of a device is the hash of its EK, %s, unless an operator named it", own)
}

// doubt says why the certificates do not prove that a manufacturer made this EK.
func (s *Server) doubt(certs []byte, ek *evidence.EK, c *call) error {
	if s.EKCA == nil {
		return errors.New("no manufacturer is known to this server")
	}
	ders, err := evidence.CutCertificates(certs)
	if err != nil {
		return err
	}
	_, err = s.EKCA.Verify(evidence.FormatCertificates(ders), ek, c.now)
	return err
}

// certificatesOf turns an ekcert member into what is stored: DER after DER.
func certificatesOf(ekcert string) ([]byte, error) {
	var raw []byte
	if strings.Contains(ekcert, "-----BEGIN") {
		for rest := []byte(ekcert); ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			raw = append(raw, block.Bytes...)
		}
	} else {
		var err error
		if raw, err = base64.StdEncoding.DecodeString(ekcert); err != nil {
			return nil, fail(http.StatusBadRequest, string(evidence.CodeCertificate), "ekcert is neither PEM nor base64")
		}
	}
	ders, err := evidence.CutCertificates(raw)
	if err != nil {
		return nil, err
	}
	return bytes.Join(ders, nil), nil
}

// activate takes the answer to the challenge. A wrong one is counted and changes nothing.
func (s *Server) activate(c *call) error {
	id := c.PathValue("id")
	if err := c.version("2"); err != nil && c.version("3") != nil {
		return err
	}
	if err := evidence.CheckID(id); err != nil {
		return err
	}
	m, err := evidence.DecodeBody[evidence.Activation](c.Body)
	if err != nil {
		return err
	}
	policies, err := s.known(c, s.Policies)
	if err != nil {
		return err
	}
	first, err := s.Store.Activate(c.Context(), store.Activation{
		Device: id, Peer: c.peer, Answer: sha256.Sum256([]byte(strings.ToLower(m.AuthTag))),
		Policies: policies, Attest: true, Due: c.now.Add(s.due()),
	}, c.now)
	if err != nil {
		return err
	}
	s.Log.Info("device activated", "device", id, "peer", c.peer, "first", first)
	if first {
		s.alarm(c, id)
	}
	return keylime(c, evidence.Empty{})
}

// known leaves out policies that are not there yet: a device must be able to enrol before
// its policy is written, and is unverified until then.
func (s *Server) known(c *call, names []string) ([]string, error) {
	var found []string
	for _, name := range names {
		revisions, err := s.Store.Policies(c.Context(), name)
		if err != nil {
			return nil, err
		}
		if len(revisions) > 0 {
			found = append(found, name)
		}
	}
	return found, nil
}

// alarm writes an event if the device was enrolled on trust. The record itself is computed
// whenever it is shown, see deviceView.
func (s *Server) alarm(c *call, id string) {
	d, err := s.Store.Device(c.Context(), id, c.now)
	if err != nil {
		s.Log.Error("read device", "device", id, "error", err)
		return
	}
	why := s.unproved(d, c)
	if why == "" {
		return
	}
	s.metrics.tofu.Add(1)
	detail := jsonOf(map[string]string{"reason": why})
	if err := s.Store.Note(c.Context(), store.Event{At: c.now, Kind: "ek-not-verified", Device: id, Detail: detail}); err != nil {
		s.Log.Error("write event", "device", id, "error", err)
	}
}

// unproved says why nobody vouches for the TPM of a device; "" if a manufacturer does.
func (s *Server) unproved(d store.Device, c *call) string {
	if d.State != store.Active {
		return ""
	}
	ek, err := evidence.ParseEK(d.EK.Public)
	if err == nil {
		err = s.doubt(d.EKCerts, ek, c)
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// idOf is the id of the device whose EK has this SubjectPublicKeyInfo, as evidence.EK.ID.
func idOf(spki []byte) string {
	sum := sha256.Sum256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
	return hex.EncodeToString(sum[:])
}
