package server

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// Tenant is who has a certificate of [Options.TenantCA]: Keylime's keylime_tenant. It may
// call the management routes of Keylime's API 2.x and nothing else.
const Tenant Role = "tenant"

// tenantPrefix is before the name of a tenant in events.
const tenantPrefix = "tenant:"

// isTenant says whether a client certificate is one of the tenants'. That it names no role
// is of no importance: Keylime's own do not.
func (s *Server) isTenant(chain []*x509.Certificate, now time.Time) bool {
	if s.tenants == nil {
		return false
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: s.tenants, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
}

// tenant answers as Keylime's servers of version 2 do.
func (c *call) tenant(status int, results any) error {
	text := "Success"
	if status != http.StatusOK {
		text = http.StatusText(status)
	}
	return c.json(status, map[string]any{"code": status, "status": text, "results": results})
}

// tenantCall checks the version and the id or name of a path.
func (c *call) tenantCall() error {
	if err := c.version("2"); err != nil {
		return err
	}
	for _, part := range []string{"id", "name"} {
		if v := c.PathValue(part); v != "" {
			if err := store.CheckID(v); err != nil {
				return fail(http.StatusBadRequest, part, "%v", err)
			}
		}
	}
	return nil
}

// pages calls f with all ids that list has, page by page.
func pages(list func(after string, limit int) ([]string, error), f func(id string) error) error {
	for after := ""; ; {
		ids, err := list(after, maxPage)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if err := f(id); err != nil {
				return err
			}
			after = id
		}
		if len(ids) < maxPage {
			return nil
		}
	}
}

// tenantRegistered lists the devices that the registrar activated: GET agents/.
func (s *Server) tenantRegistered(c *call) error {
	if err := c.tenantCall(); err != nil {
		return err
	}
	uuids := []string{}
	err := pages(func(after string, limit int) ([]string, error) {
		devices, err := s.Store.Devices(c.Context(), store.Filter{State: store.Active}, after, limit, c.now)
		var ids []string
		for _, d := range devices {
			ids = append(ids, d.ID)
		}
		return ids, err
	}, func(id string) error { uuids = append(uuids, id); return nil })
	if err != nil {
		return err
	}
	return c.tenant(http.StatusOK, map[string]any{"uuids": uuids})
}

// tenantIdentity shows the keys of a device, as the registrar of Keylime does.
func (s *Server) tenantIdentity(c *call) error {
	if err := c.tenantCall(); err != nil {
		return err
	}
	d, err := s.Store.Device(c.Context(), c.PathValue("id"), c.now)
	if err != nil {
		return err
	}
	if d.State != store.Active {
		return store.ErrNotFound
	}
	var cert, ekcert, ip, port any
	if len(d.TLSCert) > 0 {
		cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.TLSCert}))
	}
	if ders, err := evidence.CutCertificates(d.EKCerts); err == nil && len(ders) > 0 {
		ekcert = base64.StdEncoding.EncodeToString(ders[0])
	}
	if d.IP != "" {
		ip = d.IP
	}
	if d.Port != 0 {
		port = d.Port
	}
	return c.tenant(http.StatusOK, map[string]any{"agent_id": d.ID, "aik_tpm": d.AK.Public, "ek_tpm": d.EK.Public, "ekcert": ekcert,
		"mtls_cert": cert, "ip": ip, "port": port, "regcount": d.RegCount})
}

// tenantForget deletes a device from the registrar. Keylime's goes on attesting one that it
// has forgotten; here such a device has to be taken from the verifier first. One that an
// operator expects is not there for a tenant, and one that an operator stopped stays:
// forgotten, either could enrol anew as if nobody had said anything of it.
func (s *Server) tenantForget(c *call) error {
	if err := c.tenantCall(); err != nil {
		return err
	}
	id := c.PathValue("id")
	d, err := s.Store.Device(c.Context(), id, c.now)
	if err != nil {
		return err
	}
	if d.State != store.Active {
		return store.ErrNotFound
	}
	_, _, err = s.onVerifier(c, id)
	switch {
	case err == nil:
		return fail(http.StatusConflict, "in_use", "agent %s is on the verifier: delete it there first", id)
	case !errors.Is(err, store.ErrNotFound):
		return err
	case len(d.Policies) > 0:
		return stopped(id)
	}
	forget := s.Store.DeleteDevice
	if c.who.role == Tenant {
		forget = s.Store.ForgetDevice
	}
	if err := forget(c.Context(), id, c.who.name, c.now); err != nil {
		return err
	}
	return c.tenant(http.StatusOK, struct{}{})
}

// stopped refuses what would undo the word of an operator.
func stopped(id string) error { return fmt.Errorf("agent %s: %w", id, store.ErrStopped) }

// onVerifier returns a device that is judged, and what a tenant said of it, if one did.
func (s *Server) onVerifier(c *call, id string) (store.Device, *store.TenantAgent, error) {
	d, err := s.Store.Device(c.Context(), id, c.now)
	if err != nil {
		return store.Device{}, nil, err
	}
	a, err := s.Store.TenantAgent(c.Context(), id)
	if err == nil {
		return d, &a, nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return store.Device{}, nil, err
	}
	if d.State != store.Active || !d.Attest || len(d.Policies) == 0 {
		return store.Device{}, nil, store.ErrNotFound
	}
	return d, nil, nil
}

// tenantList lists the devices that are judged, with bulk their status too: GET agents/.
func (s *Server) tenantList(c *call) error {
	if err := c.tenantCall(); err != nil {
		return err
	}
	q := c.URL.Query()
	ids, status := [][]string{}, map[string]any{}
	bulk := q.Has("bulk")
	other := q.Get("verifier") != "" && q.Get("verifier") != verifierID
	err := pages(func(after string, limit int) ([]string, error) {
		if other {
			return nil, nil
		}
		return s.Store.VerifierDevices(c.Context(), after, limit)
	}, func(id string) error {
		if !bulk {
			ids = append(ids, []string{id}) // Keylime's shape: rows of one column
			return nil
		}
		d, a, err := s.onVerifier(c, id)
		if errors.Is(err, store.ErrNotFound) {
			return nil // deleted meanwhile
		}
		if err == nil {
			status[id], err = s.tenantStatusOf(c, d, a)
		}
		return err
	})
	if err != nil {
		return err
	}
	if bulk {
		return c.tenant(http.StatusOK, status)
	}
	return c.tenant(http.StatusOK, map[string]any{"uuids": ids})
}

func (s *Server) tenantStatus(c *call) error {
	if err := c.tenantCall(); err != nil {
		return err
	}
	d, a, err := s.onVerifier(c, c.PathValue("id"))
	if err != nil {
		return err
	}
	status, err := s.tenantStatusOf(c, d, a)
	if err != nil {
		return err
	}
	return c.tenant(http.StatusOK, status)
}

// tenantRemove ends the judging of a device: DELETE agents/ID at the verifier. A device that
// operators judge by manifests or rules is not for a tenant to take away, and to add anew
// with a policy of its own.
func (s *Server) tenantRemove(c *call) error {
	if err := c.tenantCall(); err != nil {
		return err
	}
	id := c.PathValue("id")
	d, a, err := s.onVerifier(c, id)
	if err != nil {
		return err
	}
	for _, name := range d.Policies {
		if a != nil && (name == a.Runtime || name == derivedName(a.Runtime, a.MBPolicy, a.TPM)) {
			continue // as a tenant said
		}
		if err := s.notRuled(c, name); err != nil {
			return err
		}
	}
	if err := s.Store.RemoveFromVerifier(c.Context(), id, kindTenant, c.who.role == Tenant, c.who.name, c.now); err != nil {
		return err
	}
	return c.tenant(http.StatusOK, struct{}{})
}

// tenantReactivate lets a device attest again, tenantStop ends that for a time.
func (s *Server) tenantReactivate(c *call) error { return s.tenantAttest(c, true) }
func (s *Server) tenantStop(c *call) error       { return s.tenantAttest(c, false) }

func (s *Server) tenantAttest(c *call, attest bool) error {
	if err := c.tenantCall(); err != nil {
		return err
	}
	id := c.PathValue("id")
	if _, _, err := s.onVerifier(c, id); err != nil {
		return err
	}
	if err := s.Store.UpdateDevice(c.Context(), id, store.Change{Attest: &attest, Tenant: c.who.role == Tenant}, c.who.name, c.now); err != nil {
		return err
	}
	return c.tenant(http.StatusOK, struct{}{})
}

// address is where the tenant reached this verifier; it goes there again.
func (c *call) address() (host string, port int) {
	host, text, err := net.SplitHostPort(c.Host)
	if err != nil {
		return c.Host, 0
	}
	port, err = strconv.Atoi(text)
	if err != nil {
		return host, 0
	}
	return host, port
}

// verifierID is what Keylime's verifiers are called unless they are given a name.
const verifierID = "default"

// decodeTenant reads a body as strictly as a tenant of any version 2 allows: what is not
// known here could not be honoured.
func (c *call) decodeTenant(v any) error {
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(bodyTime))
	d := json.NewDecoder(http.MaxBytesReader(c.w, c.Body, store.MaxBody*3/2)) // base64 of a policy
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return err
		}
		return fail(http.StatusBadRequest, "malformed", "read body: %v", err)
	}
	if d.More() {
		return fail(http.StatusBadRequest, "malformed", "read body: something follows the object")
	}
	return nil
}

// sameKeys compares what a tenant says of a device with what the registrar proved.
func (m *tenantAdd) sameKeys(d store.Device) error {
	ak, err := base64.StdEncoding.DecodeString(m.AK)
	if err != nil || !bytes.Equal(ak, d.AK.Public) {
		return fail(http.StatusForbidden, "identity", "ak_tpm is not the attestation key with which agent %s enrolled", d.ID)
	}
	if m.TLSCert == nil || *m.TLSCert == "" || *m.TLSCert == "disabled" {
		return nil
	}
	if block, _ := pem.Decode([]byte(*m.TLSCert)); block == nil || !bytes.Equal(block.Bytes, d.TLSCert) {
		return fail(http.StatusForbidden, "identity", "mtls_cert is not the certificate with which agent %s enrolled", d.ID)
	}
	return nil
}
