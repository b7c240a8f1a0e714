package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
)

// TestHintsOfNetwork: what a wrong address comes to names the setting that holds it.
func TestHintsOfNetwork(t *testing.T) {
	get := func(err error) error {
		return fmt.Errorf("open session: %w", &url.Error{Op: "Post", URL: "https://verifier:8881", Err: err})
	}
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"nobody listens":        {get(refused), "whether attest-verifier serve runs"},
		"no such name":          {get(&net.DNSError{Err: "no such host", IsNotFound: true}), "name servers"},
		"plain HTTP":            {get(http.ErrSchemeMismatch), "does not speak TLS"},
		"the registrar's port":  {&statusError{what: whatSession, status: http.StatusNotFound}, "8881"},
		"named by an operator":  {&statusError{what: whatRegister, status: http.StatusForbidden}, "set id to that name"},
		"of the TPM's emulator": {fmt.Errorf("open TPM tcp:127.0.0.1:1: %w", refused), ""},
		"not root":              {fmt.Errorf("lock state folder: %w", syscall.EACCES), "run as root"},
		"port in use":           {fmt.Errorf("listen: %w", syscall.EADDRINUSE), "another address: listen"},
		"unknown":               {errors.New("unknown"), ""},
	} {
		if got := hintFor(c.err); !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%s: hint %q, want %q in it", name, got, c.want)
		}
	}
}
