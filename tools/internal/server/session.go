package server

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"slices"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

func (s *Server) verifierVersion(c *call) error {
	return keylime(c, evidence.Versions{Current: "3.0", Supported: slices.Concat(supported["2"], supported["3"])})
}

// newSession gives a challenge to whoever asks in the name of a device. That costs the
// device nothing: its proven sessions stay, and the caller is counted by its address.
func (s *Server) newSession(c *call) error {
	if err := c.version("3"); err != nil {
		return err
	}
	m, err := evidence.Decode[evidence.SessionRequest](c.Body)
	if err != nil {
		return err
	}
	n := store.Session{ID: rand.Text(), Device: m.Data.Attributes.Agent, Challenge: evidence.NewNonce(), Expires: c.now.Add(s.ChallengeLifetime)}
	if err := s.Store.NewSession(c.Context(), n, c.now); err != nil {
		if errors.Is(err, store.ErrNotFound) {
			return fail(http.StatusNotFound, "not_enrolled", "no such device is enrolled: register it first")
		}
		return err
	}
	return c.push(http.StatusOK, evidence.NewDocument(n.ID, evidence.NewSessionChallenge(n.Device, n.Challenge, c.now.UTC(), n.Expires.UTC())))
}

var errPossession = fail(http.StatusUnauthorized, "proof", "the proof is wrong, late or one too many: ask for a new challenge")

// proveSession gives the token to who has the attestation key.
func (s *Server) proveSession(c *call) error {
	if err := c.version("3"); err != nil {
		return err
	}
	m, err := evidence.Decode[evidence.SessionProof](c.Body)
	if err != nil {
		return err
	}
	n, err := s.Store.TakeSession(c.Context(), c.PathValue("session"), c.now)
	if errors.Is(err, store.ErrProof) {
		return errPossession
	}
	if err != nil {
		return err
	}
	if n.Device != m.Data.Attributes.Agent {
		return errPossession
	}
	st, err := s.Store.State(c.Context(), n.Device, c.now)
	if err != nil {
		return err
	}
	ak, err := s.aks.parse(st.AK.Public)
	if err != nil {
		return err
	}
	proof := m.Data.Attributes.Provided[0].Data
	if err := ak.VerifyPossession(n.Challenge, proof.Message, proof.Signature); err != nil {
		s.Log.Warn("proof of possession failed", "device", n.Device, "peer", c.peer, "error", err)
		return errPossession
	}
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails: crypto/rand
	token := n.ID + "." + base64.RawURLEncoding.EncodeToString(random[:])
	expires := c.now.Add(s.SessionLifetime).UTC()
	if err := s.Store.ProveSession(c.Context(), n.ID, sha256.Sum256([]byte(token)), expires, c.now); err != nil {
		return err
	}
	asked := evidence.NewSessionChallenge(n.Device, n.Challenge, n.Expires.Add(-s.ChallengeLifetime), n.Expires)
	return c.push(http.StatusOK, evidence.NewDocument(n.ID, evidence.NewSessionResult(asked, m.Data.Attributes.Provided[0], token, c.now.UTC(), expires)))
}
