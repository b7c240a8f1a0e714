package server

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/release"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// policyView is a revision of a policy.
type policyView struct {
	Name    string    `json:"name"`
	Version int64     `json:"version"`
	Active  bool      `json:"active"`
	Digest  string    `json:"digest"` // SHA-256 of the body
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
}

func policyViews(all []store.Policy) []policyView {
	views := make([]policyView, 0, len(all))
	for _, p := range all {
		views = append(views, policyView{p.Name, p.Version, p.Active, hex.EncodeToString(p.Digest), p.Size, p.Created.UTC()})
	}
	return views
}

func (s *Server) listPolicies(c *call) error {
	all, err := s.Store.Policies(c.Context(), "")
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, map[string]any{"policies": policyViews(all)})
}

func (s *Server) showPolicy(c *call) error {
	all, err := s.Store.Policies(c.Context(), c.PathValue("name"))
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return store.ErrNotFound
	}
	return c.json(http.StatusOK, map[string]any{"policies": policyViews(all)})
}

// putPolicy stores a revision once it was compiled: what cannot be judged by is refused
// now, and not when the first device asks. It is not in use before it is made active.
func (s *Server) putPolicy(c *call) error {
	name := c.PathValue("name")
	if err := store.CheckID(name); err != nil {
		return fail(http.StatusBadRequest, "name", "%v", err)
	}
	version, err := c.number("version")
	if err != nil {
		return err
	}
	// A large policy over a slow line takes longer than other requests.
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(bodyTime))
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.Body, store.MaxBody))
	if err != nil {
		return err
	}
	warnings, err := s.check(name, body)
	if err != nil {
		return err
	}
	ref, err := s.Store.PutPolicy(c.Context(), name, version, release.Schema, body, c.who.name, c.now)
	if err != nil {
		return err
	}
	answer := map[string]any{"name": name, "version": ref.Version, "digest": hex.EncodeToString(ref.Digest), "warnings": warnings}
	if c.URL.Query().Get("activate") == "true" {
		if err := s.makeActive(c, store.ActivePolicy{Name: name, Versions: []int64{ref.Version}}); err != nil {
			return err
		}
	}
	c.w.Header().Set("Location", fmt.Sprintf("/api/v1/policies/%s/versions/%d", name, ref.Version))
	return c.json(http.StatusCreated, answer)
}

func (s *Server) check(name string, body []byte) (warnings []string, err error) {
	p, err := release.Parse(body)
	if err != nil {
		return nil, fail(http.StatusBadRequest, "policy", "read policy: %v", err)
	}
	ref, err := s.refs.compilePolicies(release.Named{Name: name, Policy: p})
	if err != nil {
		return nil, fail(http.StatusUnprocessableEntity, "policy", "compile policy: %v", err)
	}
	return append([]string{}, ref.Warnings()...), nil
}

// number reads a number of the query, 0 if it is not there.
func (c *call) number(name string) (int64, error) {
	text := c.URL.Query().Get(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, fail(http.StatusBadRequest, name, "%s is not a number", name)
	}
	return n, nil
}

// activatePolicy makes just these versions the allowed ones. Only an admin goes back.
func (s *Server) activatePolicy(c *call) error {
	var m struct {
		Versions  []int64 `json:"versions"`
		Downgrade bool    `json:"downgrade"`
	}
	if err := c.decode(&m); err != nil {
		return err
	}
	if m.Downgrade && c.who.role != Admin {
		return fail(http.StatusForbidden, "role", "a downgrade is for the role admin")
	}
	if err := s.makeActive(c, store.ActivePolicy{Name: c.PathValue("name"), Versions: m.Versions, Downgrade: m.Downgrade}); err != nil {
		return err
	}
	return s.showPolicy(c)
}

// policyBody returns a revision as it was put.
func (s *Server) policyBody(c *call) error {
	all, err := s.Store.Policies(c.Context(), c.PathValue("name"))
	if err != nil {
		return err
	}
	for _, p := range all {
		if strconv.FormatInt(p.Version, 10) != c.PathValue("policyVersion") {
			continue
		}
		body, err := s.Store.PolicyBody(c.Context(), p.Digest)
		if err != nil {
			return err
		}
		c.w.Header().Set("Content-Type", contentJSON)
		http.ServeContent(c.w, c.Request, "", time.Time{}, bytes.NewReader(body))
		return nil
	}
	return store.ErrNotFound
}

func (s *Server) deletePolicy(c *call) error {
	if err := s.Store.DeletePolicy(c.Context(), c.PathValue("name"), c.who.name, c.now); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}
