package server

import (
	"errors"
	"net/http"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// PollView is how a device is polled, and what came of it last.
type PollView struct {
	Contact  string     `json:"contact,omitempty"` // IP:PORT; none: what the device registers with
	Version  string     `json:"api_version,omitempty"`
	Next     time.Time  `json:"next"`
	Failures int64      `json:"failures"`        // in a row
	Error    string     `json:"error,omitempty"` // of the last of them
	Share    string     `json:"payload_key,omitempty"`
	Handed   *time.Time `json:"payload_key_at,omitempty"`
}

// pollView says whether a device attests by itself or is polled.
func (s *Server) pollView(c *call, id string) (model string, v *PollView, err error) {
	p, err := s.Store.Pull(c.Context(), id)
	if errors.Is(err, store.ErrNotFound) {
		return "push", nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	v = &PollView{Contact: p.Contact, Version: p.Version, Next: p.Next, Failures: p.Failures, Error: p.Error, Handed: moment(p.Handed)}
	switch {
	case p.Waiting:
		v.Share = "waits for a trusted verdict"
	case !p.Handed.IsZero():
		v.Share = "handed over"
	}
	return "pull", v, nil
}

// modelChange is what an operator may say of who begins an attestation.
type modelChange struct {
	Model   string `json:"model,omitempty"`   // push: the device calls; pull: it is polled; "": as it is
	Contact string `json:"contact,omitempty"` // IP:PORT of an agent that is polled; "": what it registers with
}

// checkModel says whether m can be done, and returns what does it.
func (s *Server) checkModel(m modelChange) (func(c *call, id string) error, error) {
	switch {
	case m.Model == "pull":
		p, err := s.pullSettings(m.Contact, nil)
		if err != nil {
			return nil, err
		}
		return func(c *call, id string) error { return s.Store.SetPull(c.Context(), id, p, c.who.name, c.now) }, nil
	case m.Contact != "":
		return nil, fail(http.StatusBadRequest, "contact", "a contact belongs to the model pull")
	case m.Model == "push":
		return func(c *call, id string) error {
			if err := s.Store.EndPull(c.Context(), id, c.who.name, c.now); !errors.Is(err, store.ErrNotFound) {
				return err
			}
			return nil
		}, nil
	case m.Model == "":
		return func(*call, string) error { return nil }, nil
	}
	return nil, fail(http.StatusBadRequest, "model", "model is neither push nor pull")
}
