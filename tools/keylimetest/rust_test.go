package keylimetest

import (
	"fmt"
	"testing"
)

// TestRustPush: rust-keylime's agent of the push model before our registrar and verifier.
func TestRustPush(t *testing.T) {
	installed(t, "rust")
	p := startPlace(t)
	d := newDevice(t)
	d.run("/sbin/init")
	p.allow("/sbin/init", "/bin/sh")
	id := d.ekHash()
	p.api("POST", "/devices", map[string]any{"ek_hash": id, "policies": []string{"image"}}, 201)
	newRust(t, p, d).launch("keylime_push_model_agent")
	p.awaitVerdict(id, "trusted")
	d.run("/bin/sh")
	p.awaitMore(id)
	p.awaitVerdict(id, "trusted")
	// Killed and started again, the verifier goes on where it was.
	p.end()
	p.start(nil)
	p.awaitMore(id)
	p.awaitVerdict(id, "trusted")
	d.run("/tmp/evil")
	got := p.awaitVerdict(id, "untrusted")
	if r := fmt.Sprint(got.Verdict.Detail.Reasons); r != "[{unknown_file /tmp/evil}]" {
		t.Errorf("reasons %s", r)
	}
}
