package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/tpm"
)

// agent is the program at work.
type agent struct {
	config *Config
	folder *folder
	device *device
	client *client
	state  *State

	identity *identity // of a device that is polled, else nil
	listener *listener // likewise, while it runs
	notices  *notices  // nil where none is asked for
	secrets  secrets   // while it runs
	in       *invocation
	notify   *notifier
}

// openAgent parses the flags of a verb and opens everything. The caller closes it.
func openAgent(fs *verbFlags, cf *configFlags, in *invocation) (*agent, error) {
	if err := fs.parse(in); err != nil {
		return nil, err
	}
	c, err := cf.load(os.Environ())
	if err != nil {
		return nil, err
	}
	a := &agent{config: c, in: in}
	if err := a.open(); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *agent) open() (err error) {
	if err := a.config.network(); err != nil {
		return err
	}
	if a.client, err = newClient(a.config); err != nil {
		return err
	}
	if a.folder, err = openFolder(a.config.get("state_dir")); err != nil {
		return err
	}
	if a.state, err = a.folder.state(); err != nil {
		return err
	}
	if a.config.get("listen") != "" {
		if a.identity, err = openIdentity(a.folder); err != nil {
			return err
		}
	}
	a.device, err = openDevice(a.config, a.folder)
	return err
}

func (a *agent) close() {
	if a.device != nil {
		a.device.close()
	}
	if a.folder != nil {
		a.folder.close()
	}
}

// enrolled says whether this key was registered there under this id, and this address.
func (a *agent) enrolled(ctx context.Context) bool {
	id := a.config.get("id")
	if a.state.ID == "" || id != "" && id != a.state.ID || a.state.Key != a.device.keyName() || a.state.Registrar != a.config.registrar.String() {
		return false
	}
	// Who polls may reach a device that does not reach the registrar now.
	contact, err := a.contact(ctx)
	return err != nil || a.state.Contact == a.shown(contact)
}

// contact is where the device is polled. Where the port is open at all addresses, it is the
// one of them from which the registrar is reached.
func (a *agent) contact(ctx context.Context) (netip.AddrPort, error) {
	contact := a.config.contact
	if a.identity == nil || !contact.Addr().IsUnspecified() {
		return contact, nil
	}
	network, port := "udp", a.config.registrar.Port()
	if contact.Addr().Is4() {
		network = "udp4"
	}
	if port == "" {
		port = "443"
	}
	// No packet leaves: the kernel looks for the route.
	conn, err := new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(a.config.registrar.Hostname(), port))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: the way to %s: %w", errNoContact, a.config.registrar, err)
	}
	defer conn.Close()
	return netip.AddrPortFrom(conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone(""), contact.Port()), nil
}

// shown is an address and what the device shows there; "" where it is not polled.
func (a *agent) shown(contact netip.AddrPort) string {
	if a.identity == nil {
		return ""
	}
	return contact.String() + " " + a.identity.fingerprint()
}

// hashOf is the id that a device has by itself.
func hashOf(ek *tpm.EK) (string, error) {
	public, err := evidence.ParseEK(ek.Public)
	if err != nil {
		return "", err
	}
	return public.ID()
}

// enrol registers the keys and proves that both are in one TPM. To do so again changes
// nothing, at either end.
func (a *agent) enrol(ctx context.Context) error {
	ek, err := a.device.tpm.EK(a.config.get("ek"))
	if err != nil {
		return err
	}
	defer ek.Close()
	id := a.config.get("id")
	if id == "" {
		if id, err = hashOf(ek); err != nil {
			return err
		}
	}
	r := evidence.Registration{AK: a.device.ak.Public(), EK: ek.Public}
	ders, err := evidence.CutCertificates(append(ek.Certificate[:len(ek.Certificate):len(ek.Certificate)], ek.Chain...))
	if err != nil {
		return fmt.Errorf("read EK certificate: %w", err)
	}
	if len(ders) > 0 {
		text := evidence.FormatCertificates(ders)
		r.EKCert = &text
	}
	contact, err := a.contact(ctx)
	if err != nil {
		return err
	}
	if a.identity != nil {
		ip, port := contact.Addr().String(), int(contact.Port())
		r.IP, r.Port, r.TLSCert = &ip, &port, &a.identity.cert
	}
	version, err := a.client.version(ctx)
	if err != nil {
		return err
	}
	path := "/" + version + "/agents/" + id
	challenge, err := results[evidence.Challenge](ctx, a.client, request{what: whatRegister, method: http.MethodPost, path: path}, r)
	if err != nil {
		return err
	}
	idObject, secret, err := challenge.Credential()
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	plain, err := ek.Activate(a.device.ak, idObject, secret)
	if err != nil {
		return err
	}
	if _, err := results[evidence.Empty](ctx, a.client, request{what: "activate", method: http.MethodPut, path: path + "/activate"},
		evidence.Activation{AuthTag: evidence.AuthTag(plain, id)}); err != nil {
		return err
	}
	if a.device.next {
		if err := a.folder.adoptKey(); err != nil {
			return err
		}
		a.device.next = false
	}
	if a.state.ID != id {
		a.state.Verdict, a.state.Since, a.state.Attested = nil, time.Time{}, time.Time{}
	}
	a.state.ID, a.state.Key, a.state.Registrar, a.state.Contact = id, a.device.keyName(), a.config.registrar.String(), a.shown(contact)
	return a.folder.save(a.state)
}

func runEnrol(ctx context.Context, in *invocation) error {
	fs := newFlags("enrol", "Makes the attestation key, registers it and the TPM's endorsement key, and proves that one TPM\nholds both. To do so again is harmless: a good key is never replaced unless told.")
	cf := addConfigFlags(fs)
	fresh := fs.Bool("new-key", false, "make another attestation key, and put the old one aside once the registrar took it")
	a, err := openAgent(fs, cf, in)
	if err != nil {
		return err
	}
	defer a.close()
	if *fresh {
		err = a.device.candidateKey()
	} else {
		_, err = a.device.ensureKey()
	}
	if err == nil {
		err = a.enrol(ctx)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(in.stdout, "enrolled %s at %s with key %s\n", a.state.ID, a.config.registrar, a.state.Key)
	return err
}
