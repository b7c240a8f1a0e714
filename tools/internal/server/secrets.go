package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/payload"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

var errNoSecretKey = fail(http.StatusConflict, "no_secret_key", "this verifier has no key for secrets: make one"+
	" (umask 077; head -c 32 /dev/urandom >FILE) and set [secrets] key = \"FILE\" in its configuration")

// SecretView is what is told of a secret. What it holds is told to devices only.
type SecretView struct {
	Name     string    `json:"name"`
	Revision int64     `json:"revision"`
	Run      string    `json:"run,omitempty"` // the file to execute
	Size     int64     `json:"size"`          // in bytes, of its archive
	Created  time.Time `json:"created"`
	Devices  []string  `json:"devices"`
	Groups   []string  `json:"groups"`
}

func (s *Server) secretViews(ctx context.Context, name string) ([]SecretView, error) {
	all, err := s.Store.Secrets(ctx, name)
	views := make([]SecretView, 0, len(all))
	for _, v := range all {
		views = append(views, SecretView{v.Name, v.Revision, v.Run, v.Size, v.Created.UTC(), append([]string{}, v.Devices...), append([]string{}, v.Groups...)})
	}
	return views, err
}

func (s *Server) listSecrets(c *call) error {
	views, err := s.secretViews(c.Context(), "")
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, map[string]any{"secrets": views})
}

func (s *Server) showSecret(c *call) error {
	if c.PathValue("name") == "" {
		return store.ErrNotFound
	}
	views, err := s.secretViews(c.Context(), c.PathValue("name"))
	if err != nil {
		return err
	}
	if len(views) == 0 {
		return store.ErrNotFound
	}
	return c.json(http.StatusOK, views[0])
}

// putSecret stores a revision: the body is an archive, as [payload.ParseZip] has it.
func (s *Server) putSecret(c *call) error {
	if s.Secrets == nil {
		return errNoSecretKey
	}
	p, body, err := readPayload(c)
	if err != nil {
		return err
	}
	seal := func(ref store.SecretRef) ([]byte, error) { return s.Secrets.seal(ref, p.Run, body), nil }
	ref, err := s.Store.PutSecret(c.Context(), p.Name, p.Run, int64(len(body)), seal, c.who.name, c.now)
	if errors.Is(err, store.ErrTooMany) {
		return fail(http.StatusConflict, "too_many", "%d secrets are stored already: delete one", store.MaxSecrets)
	}
	if err != nil {
		return err
	}
	c.w.Header().Set("Location", "/api/v1/secrets/"+ref.Name)
	return c.json(http.StatusCreated, map[string]any{"name": ref.Name, "revision": ref.Revision, "size": len(body), "files": len(p.Files)})
}

const contentZip = "application/zip"

// readPayload reads what an operator sends. No error of it quotes the content of a file.
func readPayload(c *call) (*payload.Payload, []byte, error) {
	if t := c.Header.Get("Content-Type"); !strings.HasPrefix(t, contentZip) {
		return nil, nil, fail(http.StatusUnsupportedMediaType, "media_type", "send %s", contentZip)
	}
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(bodyTime))
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.Body, payload.MaxSize))
	if err != nil {
		return nil, nil, err
	}
	p, err := payload.ParseZip(body)
	if err == nil {
		p.Name, p.Run = c.PathValue("name"), c.URL.Query().Get("run")
		err = errors.Join(store.CheckID(p.Name), p.Check())
	}
	if err != nil {
		return nil, nil, fail(http.StatusBadRequest, "payload", "%v", err)
	}
	return p, body, nil
}

// assignSecret says who gets a secret.
func (s *Server) assignSecret(c *call) error {
	type grant struct {
		Devices []string `json:"devices"`
		Groups  []string `json:"groups"`
	}
	var m struct {
		Add    grant `json:"add"`
		Remove grant `json:"remove"`
	}
	if err := c.decode(&m); err != nil {
		return err
	}
	if s.Secrets == nil && len(m.Add.Devices)+len(m.Add.Groups) > 0 {
		return errNoSecretKey
	}
	for _, g := range append(m.Add.Groups, m.Remove.Groups...) {
		if g == "" {
			return fail(http.StatusBadRequest, "group", "a group without a name: those are all devices that nobody put into one")
		}
	}
	if err := s.Store.AssignSecret(c.Context(), c.PathValue("name"), store.Grant(m.Add), store.Grant(m.Remove), c.who.name, c.now); err != nil {
		return err
	}
	return s.showSecret(c)
}

func (s *Server) deleteSecret(c *call) error {
	if err := s.Store.DeleteSecret(c.Context(), c.PathValue("name"), c.who.name, c.now); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// secretsTag tells a device whether what it holds is what it is to have.
func (s *Server) secretsTag(ctx context.Context, device string, status store.Status) (string, error) {
	if s.Secrets == nil || status != store.Trusted {
		return "", nil
	}
	all, err := s.Store.SecretRefs(ctx, device)
	if err != nil {
		return "", err
	}
	refs := make([]evidence.SecretRef, len(all))
	for i, r := range all {
		refs[i] = evidence.SecretRef(r)
	}
	return evidence.SecretsTag(refs), nil
}

var errNotTrusted = fail(http.StatusForbidden, "not_trusted", "secrets are for devices that are trusted: attest first")

// giveSecrets answers POST secrets: a page of the device's secrets, encrypted to a key that
// its TPM made in this boot. Nothing leaves before the release is an event, which is written
// only if the device is trusted in that same transaction.
func (s *Server) giveSecrets(c *call) error {
	if err := c.version("3"); err != nil {
		return err
	}
	if s.Secrets == nil {
		return fail(http.StatusNotFound, "no_secrets", "this verifier has no secrets")
	}
	m, err := evidence.Decode[evidence.SecretRequest](c.Body)
	if err != nil {
		return err
	}
	st, err := s.Store.State(c.Context(), c.who.device, c.now)
	if err != nil {
		return err
	}
	key, err := s.secretKey(st, &m.Data.Attributes)
	if err != nil {
		return err
	}
	answer, refs, err := s.sealPage(c.Context(), st, key, m.Data.Attributes.After)
	if err != nil {
		return err
	}
	if len(refs) > 0 {
		err := s.Store.ReleaseSecrets(c.Context(), st, refs, hex.EncodeToString(key.Name()), s.Now())
		if errors.Is(err, store.ErrUntrusted) {
			return errNotTrusted
		}
		if err != nil {
			return err
		}
		s.Log.Info("secrets released", "device", st.Device, "secrets", refs)
	}
	return c.push(http.StatusOK, evidence.NewDocument("", *answer))
}

// secretKey is the key to encrypt to, if the device is trusted and its TPM vouches for it.
func (s *Server) secretKey(st *store.State, m *evidence.SecretRequest) (*evidence.SecretKey, error) {
	k, err := decodeState[known](st.Evidence)
	if err != nil {
		return nil, err
	}
	if st.Verdict.Status != store.Trusted || !st.Attest || st.Counters == nil || len(k.Challenge) == 0 {
		return nil, errNotTrusted
	}
	ak, err := s.aks.parse(st.AK.Public)
	if err != nil {
		return nil, err
	}
	clock := evidence.Clock{Milliseconds: st.Counters.Clock, ResetCount: st.Counters.Reset, RestartCount: st.Counters.Restart}
	key, err := ak.VerifySecretKey(m.Public, m.Message, m.Signature, evidence.SecretQualifier(st.Device, k.Challenge), clock)
	if err != nil {
		s.Log.Warn("key for secrets refused", "device", st.Device, "code", evidence.CodeOf(err), "error", err)
		return nil, fail(http.StatusForbidden, string(evidence.CodeOf(err)), "%v", err)
	}
	return key, nil
}

const (
	pageSecrets = 32                 // in number
	pageSize    = evidence.MaxSealed // bytes, encrypted
)

// sealPage encrypts the secrets after a name, as many as an answer may hold. It has one of
// them in memory at a time, and what it makes of them.
func (s *Server) sealPage(ctx context.Context, st *store.State, key *evidence.SecretKey, after string) (*evidence.Secrets, []store.SecretRef, error) {
	answer, refs, size := &evidence.Secrets{Secrets: []evidence.Secret{}}, []store.SecretRef{}, 0
	for len(refs) < pageSecrets {
		page, err := s.Store.SecretsOf(ctx, st.Device, after, 1)
		if err != nil || len(page) == 0 {
			return answer, refs, err
		}
		one := page[0]
		plaintext, err := s.Secrets.open(one.SecretRef, one.Run, one.Body)
		if err != nil {
			return nil, nil, err
		}
		sealed, err := key.Seal(evidence.SecretContext{Device: st.Device, ResetCount: st.Counters.Reset, RestartCount: st.Counters.Restart,
			Name: one.Name, Revision: one.Revision, Run: one.Run}, plaintext)
		if err != nil {
			return nil, nil, fmt.Errorf("secret %s: %w", one.Name, err)
		}
		if size += len(sealed); size > pageSize {
			break
		}
		answer.Secrets = append(answer.Secrets, evidence.Secret{Name: one.Name, Revision: one.Revision, Run: one.Run, Sealed: sealed})
		refs, after = append(refs, one.SecretRef), one.Name
	}
	answer.More = true // or that was the last one: the next page is empty then
	return answer, refs, nil
}
