package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"github.com/meta-attest/meta-attest/tools/internal/tpm"
)

// Errors that a person can mend.
var (
	errNoVerifier  = errors.New("no verifier_url is set")
	errNoCA        = errors.New("no ca is set")
	errBusy        = errors.New("another attest-agent uses this state folder")
	errNotEnrolled = errors.New("this device is not enrolled")
	errNoList      = errors.New("the kernel gives no measurement list")
	errNoUser      = errors.New("there is no such user")
	errNoRegistrar = errors.New("neither registrar_url nor verifier_url is set")
	errNoListenCA  = errors.New("listen is set and listen_ca is not")
	errNoPull      = errors.New("this agent was built without the pull model")
	errNoContact   = errors.New("no address to be polled at")
)

// hints maps the errors that a person can mend to what mends them.
var hints = []struct {
	err  error
	hint string
}{
	{errNoVerifier, `write verifier_url = "https://HOST:8881" into /etc/attest/agent.toml`},
	{errNoCA, `copy the CA certificate of the verifier to the device and write ca = "/etc/attest/ca.crt" into /etc/attest/agent.toml`},
	{errNoRegistrar, `write registrar_url = "https://HOST:8891" into /etc/attest/agent.toml`},
	{errNoListenCA, `copy the CA certificate of those who may poll this device and write listen_ca = "/etc/attest/listen-ca.crt" into /etc/attest/agent.toml`},
	{errNoContact, `write contact = "IP:PORT" into /etc/attest/agent.toml: where the verifier reaches this device`},
	{errNoPull, `build it with PACKAGECONFIG:append:pn-attest-agent = " pull", or without -tags nopull`},
	{errBusy, "stop it first: systemctl stop attest-agent"},
	{errNotEnrolled, "attest-agent enrol"},
	{errNoList, "mount securityfs (mount -t securityfs securityfs /sys/kernel/security), run as root, and boot a kernel with CONFIG_IMA=y"},
	{errNoTrust, "give --cert FILE, or put the certificate into /etc/keys"},
	{errNoNoticeCA, `copy the certificate that signs notices to the device and write notice_ca = "/etc/attest/notices.crt" into /etc/attest/agent.toml`},
	{errNoUser, `make it (useradd --system attest), or set user = "" to stay the user that started the agent`},
	{tpm.ErrAbsent, "attest-agent doctor"},
	{tpm.ErrDenied, "run as root, or as a user of the group tss"},
	{fs.ErrPermission, "run as root; it becomes another user by itself, where the setting user names one"},
	{syscall.EADDRINUSE, "another program listens there, maybe attest-agent itself; another address: listen, and contact"},
	{tpm.ErrForeign, "make a new key and enrol it: attest-agent enrol --new-key"},
}

// hintFor returns the hint for the first known error in err's tree, or "".
func hintFor(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.hint
		}
	}
	var status *statusError
	if errors.As(err, &status) && status.what == whatRegister && status.status == http.StatusForbidden {
		return "where an operator named this device, set id to that name; where its TPM or key was changed on purpose, an operator forgets the device first: attest fleet delete ID (of Keylime: keylime_tenant -c regdelete -u ID)"
	}
	if errors.As(err, &status) && status.what == whatSession && status.status == http.StatusNotFound {
		return "no verifier answers there: look at the host and the port in verifier_url (8881; the registrar's is 8891)"
	}
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var record tls.RecordHeaderError
	var dns *net.DNSError
	var request *url.Error
	switch {
	case errors.As(err, &unknown):
		return "set ca to the certificate that signed the server's"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "look at the clock of this device (date), and at the server's certificate"
	case errors.As(err, &name):
		return "use a name in verifier_url that stands in the server's certificate"
	case errors.As(err, &dns):
		return "look at the name in verifier_url and registrar_url, and at the name servers of this device"
	case errors.As(err, &request) && errors.Is(err, syscall.ECONNREFUSED):
		return "nobody listens there: look at the port in verifier_url and registrar_url, and whether attest-verifier serve runs"
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return "the server does not speak TLS there: look at the port in verifier_url and registrar_url"
	}
	return ""
}
