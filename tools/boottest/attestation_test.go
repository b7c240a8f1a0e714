package boottest

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/cpio"
)

// makeFleet makes the image of the devices, with attest-agent in it, signed and with a manifest,
// and TPMs with certificates. more is a script that puts more into the folder it runs in.
func (l *lab) makeFleet(t *testing.T, v *verifier, more string) (initramfs string) {
	t.Helper()
	_, registrar, _ := net.SplitHostPort(v.listen[0])
	_, port, _ := net.SplitHostPort(v.listen[1])
	l.packages(t, filepath.Join(l.dir, "fleet"), "busybox-static")
	if err := os.WriteFile(filepath.Join(l.dir, "init.sh"), []byte(guestInit), 0o755); err != nil {
		t.Fatal(err)
	}
	l.script(t, l.wrap, `
cd fleet
[ -e bin ] || ln -s usr/bin bin
mkdir -p dev proc sys run tmp var sbin etc/ima etc/attest usr/bin
[ -e bin/busybox ] || cp -a usr/bin/busybox bin/
install -m 755 ../init.sh sbin/init
install -m 755 ../bin/attest-agent usr/bin/
install -m 644 ../tls/ca.crt etc/attest/verifier-ca.crt
printf '#!/bin/busybox sh\necho the tool of the release\n' > usr/bin/tool
chmod 755 usr/bin/tool
printf 'root:x:0:0::/:/bin/sh\nattest:x:900:900::/:/bin/false\n' > etc/passwd
printf 'root:x:0:\nattest:x:900:\n' > etc/group
cat > etc/attest/agent.toml <<END
verifier_url = "https://10.0.2.2:`+port+`"
registrar_url = "https://10.0.2.2:`+registrar+`"
ca = "/etc/attest/verifier-ca.crt"
retry_max = "3s"
END
attest policy show measure-only > etc/ima/ima-policy
`+more+`
cd ..
attest sign fleet --key keys/p256.key --cert keys/p256.crt --manifest fleet.attest.json --progress none
mke2fs -q -t ext4 -I 512 -b 4096 -E root_owner=0:0 -d fleet fleet.img 64M
for n in 1 2; do mke2fs -q -t ext4 -E root_owner=0:0 state$n.img 8M; done
`)
	return l.initramfs(t, []cpio.Entry{l.file(t, "etc/keys/x509_ima.der", "keys/p256.der")})
}

// TestAttestation is a device's life before a verifier: trusted, untrusted for what it ran, and
// trusted again when it booted and ran only what the release has. The verifier is killed in
// between, and another device wants to be the first one.
func TestAttestation(t *testing.T) {
	l := openFleetLab(t)
	l.script(t, nil, `"$REPO/scripts/tpm" tpm1; "$REPO/scripts/tpm" tpm2`)
	v := l.newVerifier(t, "tpm1", "tpm2")
	initramfs := l.makeFleet(t, v, "")
	t.Log(v.fleet("policy", "put", "image", "--manifest", "fleet.attest.json", "--cert", "keys/p256.crt", "--release", "spring", "--activate", "alone"))

	t.Log("enrolled: trusted")
	g := l.start(t, initramfs, "tpm1", "state1.img")
	g.do("attest-agent enrol")
	g.do("/usr/bin/tool")
	g.do("attest-agent run >/run/agent.log 2>&1 &")
	id := v.only()
	before := v.await(id, "trusted", 1)
	g.do("attest-agent status")

	t.Log("the verifier is killed and started: it knows the device, and the agent goes on")
	v.kill()
	v.start()
	v.same(before, v.await(id, "trusted", before.Verdict.Attestations))

	t.Log("an unlisted file runs: untrusted, with its name")
	g.do(`printf '#!/bin/busybox sh\necho not ours\n' >/tmp/implant; busybox chmod 755 /tmp/implant`)
	g.do("/tmp/implant")
	red := v.await(id, "untrusted", 0)
	v.explains(id, "unknown_file", "/tmp/implant")
	if _, code := g.sh("attest-agent status"); code != 3 {
		t.Errorf("attest-agent status ends with %d, want 3", code)
	}

	t.Log("the verifier is killed and started: the verdict, its event and its evidence are there")
	v.kill()
	v.start()
	v.same(red, v.await(id, "untrusted", red.Verdict.Attestations))
	v.explains(id, "unknown_file", "/tmp/implant")
	g.powerOff()

	t.Log("booted: trusted again, by itself")
	g = l.start(t, initramfs, "tpm1", "state1.img")
	g.do("attest-agent run >/run/agent.log 2>&1 &")
	v.await(id, "trusted", red.Verdict.Attestations)
	g.do("busybox killall attest-agent; wait")
	at := v.show(id).Verdict.Attestations

	t.Log("a signed file is changed, which measure-only lets run: untrusted at the next attestation, with its name")
	g.do("echo 'echo and more' >>/usr/bin/tool")
	g.do("/usr/bin/tool")
	if out, code := g.sh("attest-agent run --once"); code != 3 || !strings.Contains(out, "/usr/bin/tool") {
		t.Errorf("attest-agent run --once ends with %d, want 3: %s", code, out)
	}
	if red = v.show(id); red.Verdict.Status != "untrusted" || red.Verdict.Attestations != at+1 {
		t.Errorf("%d attestations later the device is %s, want untrusted after 1", red.Verdict.Attestations-at, red.Verdict.Status)
	}
	v.explains(id, "changed_file", "/usr/bin/tool")
	g.powerOff()

	g = l.start(t, initramfs, "tpm1", "state1.img")
	g.do("/usr/bin/tool")
	g.do("attest-agent run >/run/agent.log 2>&1 &")
	first := v.await(id, "trusted", red.Verdict.Attestations)
	g.powerOff()

	t.Log("another device cannot be the first, whoever may choose ids, and is a device of its own")
	v.kill()
	v.start("ATTEST_VERIFIER_ATTESTATION_DEVICE_ID=any")
	g = l.start(t, initramfs, "tpm2", "state2.img")
	out, code := g.sh("attest-agent enrol --id " + id)
	if code == 0 || !strings.Contains(out, "403") && !strings.Contains(out, "409") {
		t.Errorf("enrolled as %s: exit code %d: %s", id, code, out)
	}
	v.same(first, v.show(id))
	g.do("attest-agent enrol")
	if n := strings.Count(v.fleet("list", "--json"), `"created"`); n != 2 {
		t.Errorf("%d devices, want 2", n)
	}
	g.powerOff()
	t.Log(v.fleet("events", "--check"))
	t.Log(v.fleet("list"))
}
