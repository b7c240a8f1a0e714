package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// caller is who sent a request, as far as it was proven.
type caller struct {
	role   Role
	name   string // of the token or the certificate; the id of a device
	device string
}

// admit lets a call pass if the route is for its caller. Callers without proof are counted
// by their address, devices by the id that they proved.
func (s *Server) admit(c *call, roles []Role) error {
	if slices.Contains(roles, Public) {
		c.who = caller{role: Public}
		return s.unproven(c)
	}
	who, err := s.identify(c)
	if err != nil {
		if limited := s.unproven(c); limited != nil {
			return limited // guessing tokens is as slow as anything else
		}
		return err
	}
	c.who = who
	switch {
	case who.role == Device && slices.Contains(roles, Device):
		if who.device != c.PathValue("id") {
			return fail(http.StatusForbidden, "other_device", "the token is that of another device")
		}
		if wait := s.byDevice.take(who.device, c.now); wait > 0 {
			return later(http.StatusTooManyRequests, "premature_attestation", "too many requests of this device", wait)
		}
		return nil
	case who.role == Admin && (slices.Contains(roles, Admin) || slices.Contains(roles, Operator)):
		return nil
	case (who.role == Operator || who.role == Tenant) && slices.Contains(roles, who.role):
		return nil
	}
	return fail(http.StatusForbidden, "role", "this is not for the role %s", who.role)
}

func (s *Server) unproven(c *call) error {
	if wait := s.byIP.take(c.peer, c.now); wait > 0 {
		return later(http.StatusTooManyRequests, "too_many", "too many requests from this address", wait)
	}
	return nil
}

var errNoCredentials = fail(http.StatusUnauthorized, "unauthorized", "give a bearer token or a client certificate")

// identify finds out who calls: a token comes before a certificate.
func (s *Server) identify(c *call) (caller, error) {
	if h := c.Header.Get("Authorization"); h != "" {
		scheme, token, _ := strings.Cut(h, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return caller{}, errNoCredentials
		}
		if len(token) < 16 || len(token) > 256 {
			return caller{}, errToken
		}
		return s.bearer(c, sha256.Sum256([]byte(token)), token)
	}
	if c.TLS == nil || len(c.TLS.PeerCertificates) == 0 || s.operators == nil && s.tenants == nil {
		return caller{}, errNoCredentials
	}
	chain := c.TLS.PeerCertificates
	who, err := s.certified(chain, c.now)
	if err != nil && issuedBy(s.tenants, chain, c.now) { // it names no role: Keylime's own do not
		return caller{role: Tenant, name: tenantPrefix + printable(chain[0].Subject.CommonName)}, nil
	}
	return who, err
}

var errToken = fail(http.StatusUnauthorized, "token", "the token is unknown or has expired")

func (s *Server) bearer(c *call, hash [32]byte, token string) (caller, error) {
	if strings.HasPrefix(token, operatorPrefix) {
		k, err := s.Store.Token(c.Context(), hash, c.now)
		if errors.Is(err, store.ErrNotFound) {
			return caller{}, errToken
		}
		if err != nil {
			return caller{}, err
		}
		return operatorOf(k.Role, "token:"+k.Name)
	}
	id, err := s.Store.TokenDevice(c.Context(), hash, c.now)
	if errors.Is(err, store.ErrNotFound) {
		return caller{}, errToken
	}
	if err != nil {
		return caller{}, err
	}
	return caller{Device, id, id}, nil
}

func operatorOf(role, name string) (caller, error) {
	if r := Role(role); r == Operator || r == Admin {
		return caller{role: r, name: name}, nil
	}
	return caller{}, fail(http.StatusForbidden, "role", "the credential names no role: operator or admin")
}

// certified checks a client certificate. TLS has proven that the client has its key; who
// issued it is looked at here, so that an agent may show a certificate that nobody asked for.
func (s *Server) certified(chain []*x509.Certificate, now time.Time) (caller, error) {
	if s.operators == nil {
		return caller{}, errNoCredentials
	}
	if !issuedBy(s.operators, chain, now) {
		return caller{}, fail(http.StatusUnauthorized, "certificate", "the client certificate is not valid here")
	}
	subject := chain[0].Subject
	if len(subject.OrganizationalUnit) != 1 {
		return caller{}, fail(http.StatusForbidden, "role", "the certificate's organizational unit names no role: operator or admin")
	}
	return operatorOf(subject.OrganizationalUnit[0], "certificate:"+printable(subject.CommonName))
}

// issuedBy says whether a client certificate leads to one of roots, if there are any.
func issuedBy(roots *x509.CertPool, chain []*x509.Certificate, now time.Time) bool {
	if roots == nil {
		return false // Verify would take those of the system
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
}

// printable cuts what comes from a name down to what is good in logs and events.
func printable(s string) string {
	if evidence.CheckID(s) == nil {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.EncodeToString(sum[:9])
}

const operatorPrefix = "attest_"

// newToken makes the token of an operator, and what is stored of it. 256 bits are random.
func newToken() (token string, hash [32]byte) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	token = operatorPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	return token, sha256.Sum256([]byte(token))
}

// AddToken makes a token for an operator. It is returned once; the store has its hash.
func AddToken(ctx context.Context, st *store.Store, name string, role Role, days int, actor string, now time.Time) (string, store.Token, error) {
	if role != Operator && role != Admin {
		return "", store.Token{}, fail(http.StatusBadRequest, "role", "the role of a token is operator or admin")
	}
	if err := store.CheckID(name); err != nil || days < 0 || days > 10_000 {
		return "", store.Token{}, fail(http.StatusBadRequest, "token", "the name of a token is 1 to %d of A-Z a-z 0-9 _ . -, its days are 0 to 10000", store.MaxID)
	}
	k := store.Token{Name: name, Role: string(role), Created: now}
	if days > 0 {
		k.Expires = now.AddDate(0, 0, days)
	}
	token, hash := newToken()
	if err := st.PutToken(ctx, k, hash, actor); err != nil {
		return "", store.Token{}, err
	}
	return token, k, nil
}
