package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// eventView is a line of the history.
type eventView struct {
	Seq      int64           `json:"seq"`
	At       time.Time       `json:"at"`
	Kind     string          `json:"kind"`
	Device   string          `json:"device,omitempty"`
	Actor    string          `json:"actor,omitempty"`
	Status   string          `json:"status,omitempty"`
	Detail   json.RawMessage `json:"detail,omitempty"`
	Evidence string          `json:"evidence,omitempty"` // SHA-256: GET evidence/DIGEST
	Hash     string          `json:"hash"`
}

func viewEvent(e store.Event) eventView {
	return eventView{e.Seq, e.At.UTC(), e.Kind, e.Device, e.Actor, string(e.Status), json.RawMessage(e.Detail),
		hex.EncodeToString(e.Evidence), hex.EncodeToString(e.Hash)}
}

func headView(h store.Head) map[string]any {
	return map[string]any{"seq": h.Seq, "hash": hex.EncodeToString(h.Hash)}
}

func (s *Server) listEvents(c *call) error {
	limit, err := c.page()
	if err != nil {
		return err
	}
	before, err := c.number("before")
	if err != nil {
		return err
	}
	events, err := s.Store.Events(c.Context(), c.URL.Query().Get("device"), before, limit)
	if err != nil {
		return err
	}
	views := make([]eventView, 0, len(events))
	for _, e := range events {
		views = append(views, viewEvent(e))
	}
	answer := map[string]any{"events": views}
	if len(events) == limit {
		answer["next"] = events[limit-1].Seq
	}
	return c.json(http.StatusOK, answer)
}

// checkEvents reads the chain from the head that the caller remembers, or from its begin.
func (s *Server) checkEvents(c *call) error {
	seq, err := c.number("seq")
	if err != nil {
		return err
	}
	from := store.Head{Seq: seq}
	if seq > 0 {
		if from.Hash, err = hex.DecodeString(c.URL.Query().Get("hash")); err != nil || len(from.Hash) != sha256.Size {
			return fail(http.StatusBadRequest, "hash", "hash is not a SHA-256 in hexadecimal")
		}
	}
	head, err := s.Store.VerifyChain(c.Context(), from)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, map[string]any{"good": true, "head": headView(head)})
}

// downloadEvidence returns an attest.evidence/v2 bundle, for attest explain.
func (s *Server) downloadEvidence(c *call) error {
	sum, err := hex.DecodeString(c.PathValue("digest"))
	if err != nil || len(sum) != sha256.Size {
		return store.ErrNotFound
	}
	raw, err := s.Store.Evidence(c.Context(), sum)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", contentJSON)
	http.ServeContent(c.w, c.Request, "", time.Time{}, bytes.NewReader(raw))
	return nil
}

type tokenView struct {
	Name    string     `json:"name"`
	Role    string     `json:"role"`
	Created time.Time  `json:"created"`
	Expires *time.Time `json:"expires,omitempty"`
	Token   string     `json:"token,omitempty"` // once, when it is made
}

func (s *Server) listTokens(c *call) error {
	all, err := s.Store.Tokens(c.Context())
	if err != nil {
		return err
	}
	views := make([]tokenView, 0, len(all))
	for _, k := range all {
		views = append(views, tokenView{k.Name, k.Role, k.Created.UTC(), moment(k.Expires), ""})
	}
	return c.json(http.StatusOK, map[string]any{"tokens": views})
}

func (s *Server) createToken(c *call) error {
	var m struct {
		Name string `json:"name"`
		Role Role   `json:"role"`
		Days int    `json:"days"` // 0: it never expires
	}
	if err := c.decode(&m); err != nil {
		return err
	}
	token, k, err := AddToken(c.Context(), s.Store, m.Name, m.Role, m.Days, c.who.name, c.now)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, tokenView{k.Name, k.Role, k.Created.UTC(), moment(k.Expires), token})
}

func (s *Server) deleteToken(c *call) error {
	if err := s.Store.DeleteToken(c.Context(), c.PathValue("name"), c.who.name, c.now); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}
