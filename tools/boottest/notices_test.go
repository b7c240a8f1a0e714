package boottest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// greets is a program of the release, and what acts on notices: the actions that come with
// the agent, signed as all that is in the image. The two nodes share a network of their own.
const greets = `
printf '#!/bin/sh\necho greetings from the release\n' > usr/bin/greets.sh
chmod 755 usr/bin/greets.sh
for applet in sh rm ip; do ln -s busybox bin/$applet; done
mkdir -p etc/ssh root/.ssh etc/attest/actions.d
openssl genpkey -algorithm ed25519 > etc/ssh/ssh_host_ed25519_key
openssl genpkey -algorithm ed25519 > root/.ssh/id_ed25519
chmod 600 etc/ssh/* root/.ssh/*
install -m 755 "$REPO/tools/attest-agent/actions/isolate-peer" "$REPO/tools/attest-agent/actions/remove-ssh-keys" etc/attest/actions.d/
install -m 644 ../tls/notices.crt etc/attest/
echo 'notice_ca = "/etc/attest/notices.crt"' >> etc/attest/agent.toml
`

// node is a device of the demonstration.
type node struct {
	*guest
	id, address string
}

// bootNodes starts devices that attest, and act on notices.
func (l *lab) bootNodes(t *testing.T, initramfs string, nodes []*node) {
	t.Helper()
	for i, n := range nodes {
		n.launch(t, l, initramfs, i+1)
	}
	for i, n := range nodes {
		n.connect()
		n.address = fmt.Sprint("10.1.0.", i+1)
		n.do("busybox ip address add " + n.address + "/24 dev eth1 && busybox ip link set eth1 up")
		n.do("attest-agent act --watch >/run/act.log 2>&1 &")
		n.do("attest-agent run >/run/agent.log 2>&1 &")
	}
	for _, n := range nodes {
		n.do("/usr/bin/greets.sh")
	}
}

func (n *node) launch(t *testing.T, l *lab, initramfs string, number int) {
	t.Helper()
	lan := func(n int) string { return filepath.Join(l.dir, fmt.Sprint("lan", n)) }
	_ = os.Remove(lan(number)) // of the boot before
	n.guest = l.launch(t, initramfs, fmt.Sprint("tpm", number), fmt.Sprintf("state%d.img", number),
		"-netdev", "dgram,id=lan,local.type=unix,local.path="+lan(number)+",remote.type=unix,remote.path="+lan(3-number),
		"-device", fmt.Sprintf("virtio-net-pci,netdev=lan,romfile=,mac=52:54:00:00:01:0%d", number))
}

// eventually waits until a line of shell succeeds, or no longer does.
func (n *node) eventually(want bool, line string) {
	n.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		if _, code := n.sh(line); (code == 0) == want {
			return
		}
		if time.Now().After(end) {
			_, _ = n.sh("cat /run/act.log /run/agent.log")
			n.t.Fatalf("%s: not %t in %s", line, want, patience)
		}
	}
}

// TestNotices is what follows from a bad verdict: a changed greets.sh on node 1 costs it its
// SSH keys and its connection to node 2; a clean boot gives the connection back.
func TestNotices(t *testing.T) {
	l := openFleetLab(t)
	l.script(t, nil, `"$REPO/scripts/tpm" tpm1; "$REPO/scripts/tpm" tpm2`)
	v := l.newVerifier(t, "tpm1", "tpm2")
	v.kill()
	l.script(t, nil, `
attest-verifier certificate notices --out tls
mkdir verifier.d
printf '[notices]\ncert = "tls/notices.crt"\nkey = "tls/notices.key"\n' > verifier.d/notices.toml
`)
	v.start()
	initramfs := l.makeFleet(t, v, greets)
	t.Log(v.fleet("policy", "put", "image", "--manifest", "fleet.attest.json", "--cert", "keys/p256.crt", "--release", "spring", "--activate", "alone"))

	nodes := []*node{{}, {}}
	l.bootNodes(t, initramfs, nodes)
	for _, n := range nodes {
		n.eventually(true, "attest-agent status >/dev/null")
		n.id = strings.TrimSpace(n.do(`busybox sed -n 's/.*"id": "\(.*\)",/\1/p' /var/lib/attest-agent/state.json`))
		v.fleet("change", n.id, "--label", "address="+n.address)
		v.await(n.id, "trusted", 0)
	}
	one, two := nodes[0], nodes[1]
	const keys = "busybox test -e /etc/ssh/ssh_host_ed25519_key -a -e /root/.ssh/id_ed25519"
	there, back := "busybox ping -c 1 -W 2 "+two.address, "busybox ping -c 1 -W 2 "+one.address
	one.do(there)
	two.do(back)
	one.do(keys)

	began := time.Now()
	rows := [][3]string{{"", "node 1", "node 2"}, {"all is as released", "trusted, has its SSH keys", "trusted, reaches node 1"}}
	row := func(what, first, second string) {
		rows = append(rows, [3]string{fmt.Sprintf("%4.1f s  %s", time.Since(began).Seconds(), what), first, second})
	}
	one.do("echo 'echo and a guest' >>/usr/bin/greets.sh")
	one.do("/usr/bin/greets.sh")
	row("greets.sh is changed and runs", "says \"and a guest\"", "")
	red := v.await(one.id, "untrusted", 0)
	v.explains(one.id, "changed_file", "/usr/bin/greets.sh")
	row("the verifier sees it", "untrusted: changed_file /usr/bin/greets.sh", "trusted")
	one.eventually(false, "busybox test -e /etc/ssh/ssh_host_ed25519_key -o -e /root/.ssh/id_ed25519")
	row("node 1 acts on its own notice", "its SSH keys are gone", "")
	two.eventually(false, back)
	if _, code := one.sh(there); code == 0 {
		t.Error("node 1 still reaches node 2")
	}
	row("node 2 acts on the same notice", "does not reach node 2", "does not reach node 1")
	two.do(keys)
	v.await(two.id, "trusted", 0)
	two.do("cat /run/act.log; busybox grep -q 'action isolate-peer: done' /run/act.log && busybox ip route | busybox grep blackhole")
	one.do("cat /run/act.log; busybox grep -q 'action remove-ssh-keys says: 2 files' /run/act.log")

	one.powerOff()
	two.powerOff()
	l.bootNodes(t, initramfs, nodes)
	two.eventually(true, "busybox grep -q 'once more, after a boot' /run/act.log")
	row("both boot", "asks to be judged", "drops node 1 again: its memory outlived the boot")
	v.await(one.id, "trusted", red.Verdict.Attestations)
	two.eventually(true, back)
	row("node 1 runs the release again", "trusted", "lets node 1 in again")
	one.do(there)
	var table strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&table, "%-40s | %-44s | %s\n", r[0], r[1], r[2])
	}
	t.Logf("what followed from the verdict\n%s", table.String())
	v.await(two.id, "trusted", 0)
	t.Log(v.fleet("list"))
}
