package keylimetest

import (
	"fmt"
	"net/http"
	"testing"
)

// TestOursPull: our agent in the pull model, polled by our verifier.
func TestOursPull(t *testing.T) {
	t.Parallel()
	p := startPlace(t)
	d := newDevice(t)
	d.run("/sbin/init")
	p.allow("/sbin/init", "/bin/sh")
	launch(t, "attest-agent", d.agent("run", "--registrar-url", fmt.Sprintf("https://127.0.0.1:%d", p.ports["registrar"]), "--ca", p.path("cv_ca/cacert.crt"),
		"--listen", d.listen, "--listen-ca", p.path("cv_ca/cacert.crt"), "--secrets-dir", memory(t))).await("enrolled ")
	id := d.id()
	p.api("PATCH", "/devices/"+id, map[string]any{"policies": []string{"image"}, "model": "pull"}, http.StatusOK)
	p.awaitVerdict(id, "trusted")
	d.run("/bin/sh")
	p.awaitMore(id)
	p.awaitVerdict(id, "trusted")
	d.run("/tmp/evil")
	got := p.awaitVerdict(id, "untrusted")
	if r := fmt.Sprint(got.Verdict.Detail.Reasons); r != "[{unknown_file /tmp/evil}]" || got.Poll.Version != "2.6" {
		t.Errorf("reasons %s, API %s", r, got.Poll.Version)
	}
}
