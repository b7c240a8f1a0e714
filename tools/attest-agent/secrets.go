package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/payload"
	"github.com/meta-attest/meta-attest/tools/internal/tpm"
)

// Bounds of all secrets of a device: the folder counts as this process's memory.
const (
	maxSecrets    = 256
	maxSecretSize = 16 << 20 // bytes
	lastName      = "~"      // comes after all names
)

// secrets are the payloads that the verifier gave to this device.
type secrets struct {
	*payloads
	challenge []byte               // of the attestation that is under way, or was accepted
	held      []evidence.SecretRef // sorted by name
	sizes     map[string]int       // of what is held, by its name
	failure   string               // that was said last
}

// follow does what follows from an attestation: it erases all at once unless the device is
// trusted, and asks for what it is to have where that is something else than it has.
func (s *secrets) follow(ctx context.Context, m *evidence.Meta) error {
	if m == nil {
		return nil // the device is polled, and learns nothing
	}
	if m.Verdict == nil || m.Verdict.State != trusted {
		return s.revoke()
	}
	if m.Again || m.Secrets == evidence.SecretsTag(s.held) {
		return nil
	}
	err := s.fetch(ctx, m.Secrets)
	if statusOf(err) == http.StatusForbidden || statusOf(err) == http.StatusNotFound {
		return errors.Join(s.revoke(), s.failed(err))
	}
	var erase *eraseError
	if errors.As(err, &erase) {
		return err
	}
	return s.failed(err)
}

// refused does what follows from an attestation that failed: a verifier that does not know
// the device, or refuses it, does not trust it.
func (s *secrets) refused(err error) error {
	if status := statusOf(err); status == http.StatusForbidden || status == http.StatusNotFound {
		return s.revoke()
	}
	return nil
}

// revoke erases all payloads. Its error ends the agent, and with it the folder of systemd's.
func (s *secrets) revoke() error {
	if len(s.held) > 0 {
		s.agent.say("secrets erased")
	}
	s.held, s.sizes = nil, nil
	if err := s.eraseAll(); err != nil {
		return &eraseError{err}
	}
	return nil
}

// eraseError means that secrets may still be there.
type eraseError struct{ err error }

func (e *eraseError) Error() string { return e.err.Error() }
func (e *eraseError) Unwrap() error { return e.err }

// failed says why secrets could not be had, when that is news. The device attests on.
func (s *secrets) failed(err error) error {
	text := ""
	if err != nil {
		text = printable(err.Error(), maxShown)
	}
	if text != "" && text != s.failure {
		s.agent.say("secrets: %s", text)
	}
	s.failure = text
	return nil
}

// fetch asks for all secrets with a key that lasts as long, and erases what the device is not
// to have any more.
func (s *secrets) fetch(ctx context.Context, tag string) error {
	if tag == "" {
		return s.keepOnly(nil, lastName)
	}
	if s.folder == nil {
		return fmt.Errorf("secrets_dir: %w", s.err) // not asked for, as they could not be kept
	}
	q, err := s.request()
	if err != nil {
		return err
	}
	defer q.close()
	names, until, err := s.takeAll(ctx, q)
	// One that cannot be had keeps no other that is taken away.
	return errors.Join(s.keepOnly(names, until), err)
}

// takeAll takes the secrets, page by page. It returns the names of those that the device is
// to have up to the name until, which after an error is not lastName.
func (s *secrets) takeAll(ctx context.Context, q *secretRequest) (names []string, until string, err error) {
	left := maxSecretSize
	for {
		page, err := s.agent.client.secrets(ctx, s.agent.state.ID, q.message)
		if err != nil {
			return names, q.message.After, err
		}
		for _, one := range page.Secrets {
			if one.Name <= q.message.After {
				return names, q.message.After, fmt.Errorf("secret %s comes after %s", one.Name, q.message.After)
			}
			names, q.message.After = append(names, one.Name), one.Name
			if len(names) > maxSecrets {
				left = 0
			}
			s.agent.notify.alive() // one may have a program that takes its time
			size, err := s.take(ctx, q, one, left)
			if left -= size; left < 0 {
				err = fmt.Errorf("more than %d secrets, or %d bytes of them: those from %s on are not here", maxSecrets, maxSecretSize, one.Name)
			}
			if err != nil {
				return names, q.message.After, err
			}
		}
		if !page.More {
			return names, lastName, nil
		}
	}
}

// keepOnly erases the secrets up to the name until that are not among names.
func (s *secrets) keepOnly(names []string, until string) error {
	for _, r := range slices.Clone(s.held) {
		if r.Name > until || slices.Contains(names, r.Name) {
			continue
		}
		if err := s.erase(r.Name); err != nil {
			return &eraseError{err}
		}
		s.agent.say("secret %s erased", r.Name)
		s.held = slices.DeleteFunc(s.held, func(o evidence.SecretRef) bool { return o == r })
		delete(s.sizes, r.Name)
	}
	return nil
}

// take decrypts a secret and keeps it, unless this revision is here, or it is larger than
// left. It returns the size that it has in memory.
func (s *secrets) take(ctx context.Context, q *secretRequest, one evidence.Secret, left int) (size int, err error) {
	ref := evidence.SecretRef{Name: one.Name, Revision: one.Revision}
	if slices.Contains(s.held, ref) {
		return s.sizes[ref.Name], nil
	}
	zip, err := q.open(one)
	if err != nil {
		return 0, fmt.Errorf("secret %s: %w", one.Name, err)
	}
	p, err := payload.ParseZip(zip)
	if err != nil {
		return 0, fmt.Errorf("secret %s: %w", one.Name, err)
	}
	page := os.Getpagesize()
	for _, f := range p.Files {
		size += (len(f.Data)/page + 1) * page
	}
	if size > left {
		return size, nil
	}
	p.Name, p.Revision, p.Run = one.Name, one.Revision, one.Run
	if err := s.keep(ctx, p); err != nil {
		return size, fmt.Errorf("secret %s: %w", one.Name, err)
	}
	s.hold(ref, size)
	return size, nil
}

// hold notes a revision at its place in the order of names.
func (s *secrets) hold(ref evidence.SecretRef, size int) {
	if s.sizes == nil {
		s.sizes = map[string]int{}
	}
	s.sizes[ref.Name] = size
	i := 0
	for i < len(s.held) && s.held[i].Name < ref.Name {
		i++
	}
	if i < len(s.held) && s.held[i].Name == ref.Name {
		s.held[i] = ref
	} else {
		s.held = slices.Insert(s.held, i, ref)
	}
}

// secretRequest asks for secrets, and decrypts them.
type secretRequest struct {
	device  *device
	key     *tpm.SecretKey
	context evidence.SecretContext
	message evidence.SecretRequest
}

// request makes a key in the TPM and has the attestation key vouch for it.
func (s *secrets) request() (*secretRequest, error) {
	d, id := s.agent.device, s.agent.state.ID
	d.mu.Lock()
	defer d.mu.Unlock()
	key, err := d.tpm.CreateSecretKey()
	if err != nil {
		return nil, err
	}
	var boot tpm2.TPMSClockInfo
	q := &secretRequest{device: d, key: key, message: evidence.SecretRequest{Public: key.Public()}}
	q.message.Message, q.message.Signature, boot, err = d.ak.CertifySecretKey(key, evidence.SecretQualifier(id, s.challenge))
	if err != nil {
		key.Close()
		return nil, err
	}
	q.context = evidence.SecretContext{Device: id, ResetCount: boot.ResetCount, RestartCount: boot.RestartCount}
	return q, nil
}

func (q *secretRequest) open(one evidence.Secret) ([]byte, error) {
	q.device.mu.Lock()
	defer q.device.mu.Unlock()
	c := q.context
	c.Name, c.Revision, c.Run = one.Name, one.Revision, one.Run
	return evidence.OpenSecret(q.key, q.key.Name(), c, one.Sealed)
}

func (q *secretRequest) close() {
	q.device.mu.Lock()
	defer q.device.mu.Unlock()
	q.key.Close()
}

// secrets asks for a page of secrets.
func (c *client) secrets(ctx context.Context, id string, m evidence.SecretRequest) (*evidence.Secrets, error) {
	d, _, err := exchange[evidence.Secrets](ctx, c,
		request{what: "ask for secrets", method: http.MethodPost, path: "/v3.0/agents/" + id + "/secrets", want: http.StatusOK, bearer: true},
		evidence.NewDocument("", m))
	if err != nil {
		return nil, err
	}
	return &d.Data.Attributes, nil
}
