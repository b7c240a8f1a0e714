package boottest

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/cpio"
)

// serviceUnits are what the image of the service has beside the agent's own unit: a network and
// a /var, as there is no udev; a shell for the test; and what the agent's confinement is tried with.
var serviceUnits = map[string]string{
	"lab-machine.service": `[Unit]
DefaultDependencies=no
Before=local-fs.target network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/busybox mount -t ext4 /dev/vdb /var
ExecStart=/bin/busybox ip link set lo up
ExecStart=/bin/busybox ip link set eth0 up
ExecStart=/bin/busybox ip address add 10.0.2.15/24 dev eth0
`,
	"lab-shell.service": `[Unit]
After=multi-user.target
[Service]
ExecStart=/bin/busybox sh /usr/lib/lab/shell
StandardOutput=null
`,
	// The watchdog of minutes is one of seconds here.
	"attest-agent.service.d/lab.conf": `[Service]
RestartSec=1s
WatchdogSec=8s
`,
}

// serviceShell reads lines for a shell, as guestInit does.
const serviceShell = `umask 022
for port in /dev/vport*; do exec 3<>$port; done
echo ready >&3
while read -r line <&3; do
	eval "$line" >/run/lab.out 2>&1 3>&-
	code=$?
	busybox sed 's/^/ /' /run/lab.out >&3
	echo "end $code" >&3
done
`

// confinement is what root may do in the agent's unit, as the agent is until it has what it
// needs, and what not.
var confinement = []struct{ name, command, want string }{
	{"the TPM", "exec 3<>/dev/tpmrm0", "allowed"},
	{"the measurement list", "busybox head -c 1 /sys/kernel/security/ima/binary_runtime_measurements", "allowed"},
	{"its state", "busybox touch /var/lib/lab-probe/probe", "allowed"},
	{"a socket of the Internet", "busybox nc -w 1 127.0.0.1 1 </dev/null 2>&1 | busybox grep refused", "allowed"},
	{"a disk", "busybox dd if=/dev/vda of=/dev/null bs=512 count=1", "refused"},
	{"what others keep", "busybox touch /var/probe", "refused"},
	{"a setting of the kernel", "echo 0 >/proc/sys/kernel/panic", "refused"},
	{"to mount", "busybox mount -t tmpfs none /tmp", "refused"},
	{"a namespace", "busybox unshare -m busybox true", "refused"},
	{"a socket of netlink", "busybox ip link", "refused"},
	{"the clock", "! busybox date -s 2030-01-01 2>&1 | busybox grep 'not permitted'", "refused"},
	{"a device node", "busybox mknod /tmp/node c 1 3", "refused"},
	{"a setuid program", "busybox touch /tmp/s && busybox chmod 4755 /tmp/s", "refused"},
	{"what is in the home of root", "busybox cat /root/secret", "refused"},
	{"limit: other processes of root", "busybox kill -0 1", "allowed"},
}

// makeService makes a root that systemd starts, with the agent as attest-agent's recipe and
// attest-image put it there: unit, user, settings and a manifest of all other files.
func (l *lab) makeService(t *testing.T, v *verifier) {
	t.Helper()
	l.packages(t, filepath.Join(l.dir, "service"), append(libraries(t, "systemd"), "busybox-static", "libc6")...)
	_, registrar, _ := net.SplitHostPort(v.listen[0])
	_, port, _ := net.SplitHostPort(v.listen[1])
	unit, err := os.ReadFile(filepath.Join(l.repo, "tools/attest-agent/attest-agent.service"))
	if err != nil {
		t.Fatal(err)
	}
	units := map[string]string{"attest-agent.service": string(unit), "lab-probe.service": probeUnit(t, string(unit))}
	for name, text := range serviceUnits {
		units[name] = text
	}
	for name, text := range units {
		l.write(t, "service/lib/systemd/system/"+name, text)
	}
	l.write(t, "service/usr/lib/lab/shell", serviceShell)
	var probe strings.Builder
	for _, c := range confinement {
		probe.WriteString("if (" + c.command + ") >/dev/null 2>&1; then echo '" + c.name + ": allowed'; else echo '" + c.name + ": refused'; fi\n")
	}
	l.write(t, "service/usr/lib/lab/probe", probe.String())
	l.write(t, "service/etc/attest/agent.toml", `verifier_url = "https://10.0.2.2:`+port+`"
registrar_url = "https://10.0.2.2:`+registrar+`"
ca = "/etc/attest/verifier-ca.crt"
retry_max = "3s"
manifest_ca = "/etc/attest/image-ca.crt"
manifest = "/usr/share/attest/image.attest.json"
`)
	l.script(t, l.wrap, `
cd service
for dir in bin sbin lib lib64; do
	[ ! -d usr/$dir ] || [ -e $dir ] || ln -s usr/$dir $dir
done
mkdir -p dev proc sys run tmp var root mnt etc/keys etc/attest usr/share/attest usr/bin etc/systemd/system/multi-user.target.wants etc/systemd/system/network-online.target.wants
[ -e bin/busybox ] || cp -a usr/bin/busybox bin/
install -m 755 ../bin/attest-agent usr/bin/
install -m 644 ../tls/ca.crt etc/attest/verifier-ca.crt
install -m 644 "$REPO/keys-debug/root.crt" etc/attest/image-ca.crt
install -m 644 ../keys/p256.der etc/keys/x509_ima.der
echo secret > root/secret
printf '#!/bin/busybox sh\necho the tool of the release\n' > usr/bin/tool
chmod 755 usr/bin/tool
printf 'root:x:0:0::/root:/bin/sh\nattest:!:900:900::/var/lib/attest-agent:/sbin/nologin\n' > etc/passwd
printf 'root:x:0:\nattest:!:900:\n' > etc/group
: > etc/machine-id
ln -s /lib/systemd/system/attest-agent.service etc/systemd/system/multi-user.target.wants/
ln -s /lib/systemd/system/lab-shell.service etc/systemd/system/multi-user.target.wants/
ln -s /lib/systemd/system/lab-machine.service etc/systemd/system/network-online.target.wants/
cd ..
sign() { attest sign service --key keys/p256.key --cert keys/p256.crt --manifest "$1" --progress none; }
sign inner.json
install -m 644 inner.json service/usr/share/attest/image.attest.json
sign service.attest.json
mke2fs -q -t ext4 -I 512 -b 4096 -E root_owner=0:0 -d service service.img 192M
mke2fs -q -t ext4 -E root_owner=0:0 state.img 32M
`)
}

// write makes a file of the lab.
func (l *lab) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// probeUnit is the agent's unit with another program in it.
func probeUnit(t *testing.T, unit string) string {
	t.Helper()
	for _, c := range []struct{ line, with string }{
		{`^ExecStart=.*$`, "ExecStart=/bin/busybox sh /usr/lib/lab/probe\nStandardOutput=file:/run/probe"},
		{`^Type=notify$`, "Type=oneshot"},
		{`^Restart=always$`, "Restart=no"},
		{`^WatchdogSec=.*$`, ""},
		{`^StateDirectory=.*$`, "StateDirectory=lab-probe"},
	} {
		line := regexp.MustCompile("(?m)" + c.line)
		if len(line.FindAllString(unit, -1)) != 1 {
			t.Fatalf("attest-agent.service has not one line %s", c.line)
		}
		unit = line.ReplaceAllLiteralString(unit, c.with)
	}
	return unit
}

// networkModules adds to an initramfs what virtio needs beside a disk, on the kernel of the distribution.
func (l *lab) networkModules(t *testing.T, modules []cpio.Entry) []cpio.Entry {
	t.Helper()
	list := modules[len(modules)-1]
	modules = modules[:len(modules)-1]
	for _, m := range []string{"net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net", "drivers/char/virtio_console"} {
		found, _ := filepath.Glob(filepath.Join(l.dir, "debian/lib/modules/*/kernel", m+".ko"))
		if len(found) != 1 {
			t.Fatalf("module %s: %v", m, found)
		}
		rel, err := filepath.Rel(l.dir, found[0])
		if err != nil {
			t.Fatal(err)
		}
		name := "modules/" + filepath.Base(m) + ".ko"
		list.Data = append(list.Data, "/"+name+"\n"...)
		modules = append(modules, l.file(t, name, rel))
	}
	return append(modules, list)
}

// TestService has systemd start the agent, on the kernel of a distribution, which has all that
// systemd confines services with.
func TestService(t *testing.T) {
	l := openFleetLab(t)
	kernel, modules := l.debianKernel(t)
	l.script(t, nil, `"$REPO/scripts/tpm" tpm1; attest policy show measure-only > measure-only.ima`)
	v := l.newVerifier(t, "tpm1")
	l.makeService(t, v)
	t.Log(v.fleet("policy", "put", "image", "--manifest", "service.attest.json", "--cert", "keys/p256.crt", "--release", "spring", "--activate", "alone"))
	initramfs := l.initramfs(t, append(l.networkModules(t, modules), cpio.Entry{Name: "etc/ima", Mode: cpio.Dir | 0o755},
		l.file(t, "etc/ima/ima-policy", "measure-only.ima"), l.file(t, "etc/keys/x509_ima.der", "keys/rsa.der")))

	// A getty on the console would keep the target waiting 90 seconds for a device that udev does not announce.
	t.Log("systemd starts the agent: it enrols, and the verdict is trusted")
	g := l.startImage(t, kernel, "service.img", "ro init=/lib/systemd/systemd systemd.unit=multi-user.target systemd.getty_auto=no", initramfs, "tpm1", "state.img")
	g.connect()
	g.waitFor("systemctl is-active attest-agent.service", "active")
	id := v.only()
	v.await(id, "trusted", 1)
	first := g.unit("MainPID")
	status := g.do("busybox cat /proc/" + first + "/status")
	for _, want := range []string{"\nUid:\t900\t900\t900\t900\n", "\nGid:\t900\t900\t900\t900\n", "\nCapPrm:\t0000000000000000\n", "\nCapEff:\t0000000000000000\n", "\nNoNewPrivs:\t1\n", "\nSeccomp:\t2\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("the agent's process has no %q", want)
		}
	}
	if n := g.unit("NRestarts"); n != "0" {
		t.Errorf("started again %s times\n%s", n, g.do("journalctl --no-pager -u attest-agent.service"))
	}

	t.Log("what the unit lets root do")
	g.do("systemctl start lab-probe.service")
	probed := g.do("busybox cat /run/probe")
	for _, c := range confinement {
		if want := c.name + ": " + c.want + "\n"; !strings.Contains(probed, want) {
			t.Errorf("want %q", want)
		}
	}
	g.do("systemd-analyze security --no-pager --threshold=30 attest-agent.service >/run/security && busybox tail -n 1 /run/security")

	t.Log("the agent hangs: the watchdog ends it, and a new one attests")
	g.do("busybox kill -STOP " + first)
	g.waitFor("systemctl show --value -p NRestarts attest-agent.service", "1")
	g.waitFor("systemctl is-active attest-agent.service", "active")
	v.await(id, "trusted", v.show(id).Verdict.Attestations)
	if second := g.unit("MainPID"); second == first {
		t.Errorf("the process is still %s", first)
	}

	t.Log("attest-agent verify: the system is what was built, then a file is not")
	g.do("attest-agent verify --all --except /var")
	v.await(id, "trusted", v.show(id).Verdict.Attestations)
	g.do("busybox mount -o remount,rw / && echo echo and more >>/usr/bin/tool")
	if out, code := g.sh("attest-agent verify --all --except /var"); code != 4 || !strings.Contains(out, "usr/bin/tool: changed: ") || !strings.Contains(out, ": 2 findings\n") {
		t.Errorf("exit code %d, want 4 and the one file", code)
	}
	g.stop()
}

// unit asks systemd for a property of the agent's.
func (g *guest) unit(property string) string {
	g.t.Helper()
	return strings.TrimSpace(g.do("systemctl show --value -p " + property + " attest-agent.service"))
}

// waitFor repeats a line until it prints a text.
func (g *guest) waitFor(line, want string) {
	g.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Second) {
		out, _ := g.sh(line)
		if strings.TrimSpace(out) == want {
			return
		}
		if time.Now().After(end) {
			g.t.Fatalf("%s: want %s\n%s", line, want, g.do("journalctl --no-pager -u attest-agent.service; systemctl --no-pager list-jobs"))
		}
	}
}
