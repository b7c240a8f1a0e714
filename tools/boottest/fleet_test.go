package boottest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is for how long a test waits for what comes when machines get round to it.
const patience = 3 * time.Minute

// verifier is an attest-verifier on this machine, which guests reach as 10.0.2.2.
type verifier struct {
	t      *testing.T
	lab    *lab
	listen [3]string // addresses of registrar, verifier and operations
	cmd    *exec.Cmd
}

// freeAddresses are such as nobody listens at. They stay the same when the verifier starts again.
func freeAddresses(t *testing.T) (list [3]string) {
	t.Helper()
	for i := range list {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close() // once all are known, so that they differ
		list[i] = listener.Addr().String()
	}
	return list
}

// newVerifier makes certificates, a database and a token, and starts the program. It believes
// the TPMs in these folders, and devices get the policy "image".
func (l *lab) newVerifier(t *testing.T, tpms ...string) *verifier {
	t.Helper()
	v := &verifier{t: t, lab: l, listen: freeAddresses(t)}
	var authorities []string
	for _, dir := range tpms {
		authorities = append(authorities, dir+"/ca/root.crt", dir+"/ca/issuer.crt")
	}
	text := fmt.Sprintf(`database = "attest.db"
[tls]
cert = "tls/server.crt"
key = "tls/server.key"
client_ca = "tls/ca.crt"
[registrar]
listen = "%s"
[verifier]
listen = "%s"
[operations]
listen = "%s"
[attestation]
interval = "3s"
grace = 100 # a device is off for as long as the next one boots
ek_ca = ["%s"]
policies = ["image"]
[policy]
certificates = ["keys/p256.crt"]
`, v.listen[0], v.listen[1], v.listen[2], strings.Join(authorities, `", "`))
	if err := os.WriteFile(filepath.Join(l.dir, "verifier.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l.script(t, nil, `
attest-verifier certificate init --host 127.0.0.1 --host 10.0.2.2 --out tls
attest-verifier --config verifier.toml migrate
(umask 077 && attest-verifier --config verifier.toml token create alice --role admin > token)
printf '%s\n' 'server = "https://`+v.listen[1]+`"' 'server_ca = "tls/ca.crt"' 'token_file = "token"' > fleet.toml
`)
	v.start()
	t.Cleanup(v.kill)
	return v
}

// start runs the program, with variables, until it can be asked.
func (v *verifier) start(env ...string) {
	v.t.Helper()
	v.cmd = exec.Command(filepath.Join(v.lab.dir, "bin/attest-verifier"), "--config", "verifier.toml", "serve")
	v.cmd.Dir, v.cmd.Env = v.lab.dir, append(os.Environ(), env...)
	log, err := os.OpenFile(filepath.Join(v.lab.dir, "verifier.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		v.t.Fatal(err)
	}
	defer log.Close()
	v.cmd.Stderr = log
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		conn, err := net.Dial("tcp", v.listen[1])
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(end) {
			v.t.Fatalf("attest-verifier does not listen: %v", err)
		}
	}
}

// kill ends it as a loss of power would.
func (v *verifier) kill() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}

// fleet is what "attest fleet" prints. It may end with 3, which means not trusted.
func (v *verifier) fleet(args ...string) string {
	v.t.Helper()
	c := exec.CommandContext(v.t.Context(), filepath.Join(v.lab.dir, "bin/attest"), append([]string{"fleet", "--config", "fleet.toml"}, args...)...)
	c.Dir = v.lab.dir
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if c.ProcessState == nil || err != nil && c.ProcessState.ExitCode() != 3 {
		v.t.Fatalf("attest fleet %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return string(out)
}

// member is a device as the verifier shows it.
type member struct {
	ID            string
	EK            string
	AK            string
	Created       time.Time
	Registrations int
	Alarm         string
	Verdict       struct {
		Status       string
		Attestations int
		Event        int
	}
}

func (v *verifier) show(id string) member {
	v.t.Helper()
	var doc struct{ Device member }
	if err := json.Unmarshal([]byte(v.fleet("show", id, "--json")), &doc); err != nil || doc.Device.ID != id {
		v.t.Fatalf("show %s: %+v: %v", id, doc, err)
	}
	return doc.Device
}

// await waits for a status, and for an attestation after the first so many.
func (v *verifier) await(id, status string, after int) member {
	v.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(300 * time.Millisecond) {
		m := v.show(id)
		if m.Verdict.Status == status && m.Verdict.Attestations > after {
			return m
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(filepath.Join(v.lab.dir, "verifier.log"))
			v.t.Fatalf("%s is %+v, want %s after %d attestations\n%s\n%s", id, m.Verdict, status, after, v.fleet("explain", id), log)
		}
	}
}

// guest is a running machine that does what it is told.
type guest struct {
	t     *testing.T
	cmd   *exec.Cmd
	port  string // socket
	conn  net.Conn
	lines *bufio.Reader
	log   string
	talk  bytes.Buffer // of scripts/qemu
}

// guestInit is its init. It has a folder that outlives a boot, a network, and a port of virtio,
// where it reads lines for a shell.
const guestInit = `#!/bin/busybox sh
umask 022
busybox mount -t tmpfs tmpfs /run
busybox mount -t tmpfs tmpfs /tmp
busybox mount -t ext4 /dev/vdb /var
busybox ip link set lo up
busybox ip link set eth0 up
busybox ip address add 10.0.2.15/24 dev eth0
for port in /dev/vport*; do exec 3<>$port; done
echo ready >&3
while read -r line <&3; do
	eval "$line" >/run/out 2>&1 3>&-
	code=$?
	busybox sed 's/^/ /' /run/out >&3
	echo "end $code" >&3
done
`

// start boots a machine with a TPM and a disk for what it keeps, and more devices for QEMU.
func (l *lab) start(t *testing.T, initramfs, tpm, disk string, more ...string) *guest {
	t.Helper()
	g := l.launch(t, initramfs, tpm, disk, more...)
	g.connect()
	return g
}

// launch is start without waiting for the machine.
func (l *lab) launch(t *testing.T, initramfs, tpm, disk string, more ...string) *guest {
	t.Helper()
	return l.startImage(t, filepath.Join(l.kernel, "bzImage"), "fleet.img", "rw", initramfs, tpm, disk, more...)
}

// startImage is launch with a kernel, an image of the lab and words for the command line.
func (l *lab) startImage(t *testing.T, kernel, image, words, initramfs, tpm, disk string, more ...string) *guest {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm") // short: the path of a socket has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	port := filepath.Join(dir, "port")
	g := &guest{t: t, port: port, log: filepath.Join(dir, "console")}
	args := []string{"--kernel", kernel, "--initramfs", initramfs,
		"--image", filepath.Join(l.dir, image), "--tpm", filepath.Join(l.dir, tpm), "--log", g.log, "--time", "900",
		"--append", "quiet root=/dev/vda attest=log " + words, "--",
		"-drive", "file=" + filepath.Join(l.dir, disk) + ",if=none,id=state,format=raw", "-device", "virtio-blk-pci,drive=state,addr=0x1e", // after the root
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=port,path=" + port + ",server=on,wait=off", "-device", "virtserialport,chardev=port"}
	g.cmd = exec.Command(filepath.Join(l.repo, "scripts/qemu"), append(args, more...)...)
	g.cmd.Stdout, g.cmd.Stderr = &g.talk, &g.talk
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.stop)
	return g
}

// connect waits until the machine listens to what it is told.
func (g *guest) connect() {
	g.t.Helper()
	var err error
	for end := time.Now().Add(patience); g.conn == nil; time.Sleep(20 * time.Millisecond) {
		if g.conn, err = net.Dial("unix", g.port); err != nil && time.Now().After(end) {
			g.t.Fatalf("QEMU does not start: %v", err)
		}
	}
	g.lines = bufio.NewReader(g.conn)
	if line := g.line(); line != "ready\n" {
		g.t.Fatalf("the guest said %q", line)
	}
}

func (g *guest) line() string {
	g.t.Helper()
	_ = g.conn.SetReadDeadline(time.Now().Add(patience))
	line, err := g.lines.ReadString('\n')
	if err != nil {
		if !errors.Is(err, io.EOF) { // else QEMU ended, and its console is being written
			g.stop()
		}
		_ = g.cmd.Wait()
		console, _ := os.ReadFile(g.log)
		g.t.Fatalf("the guest says nothing more: %v\n%s%s", err, &g.talk, console)
	}
	return line
}

// sh runs a line in the guest.
func (g *guest) sh(line string) (out string, code int) {
	g.t.Helper()
	if _, err := g.conn.Write([]byte(line + "\n")); err != nil {
		g.t.Fatal(err)
	}
	for {
		said := g.line()
		if text, ok := strings.CutPrefix(said, " "); ok {
			out += text
			continue
		}
		if _, err := fmt.Sscanf(said, "end %d", &code); err != nil {
			g.t.Fatalf("the guest said %q", said)
		}
		g.t.Logf("guest: %s\n%s(%d)", line, out, code)
		return out, code
	}
}

// do is sh of what has to succeed.
func (g *guest) do(line string) string {
	g.t.Helper()
	out, code := g.sh(line)
	if code != 0 {
		g.t.Fatalf("%s: exit code %d:\n%s", line, code, out)
	}
	return out
}

// stop ends the machine as a loss of power would; scripts/qemu ends QEMU and swtpm.
func (g *guest) stop() {
	if g.cmd.ProcessState == nil {
		_ = g.cmd.Process.Signal(syscall.SIGTERM)
		_ = g.cmd.Wait()
	}
}

// powerOff ends the machine in order.
func (g *guest) powerOff() {
	g.t.Helper()
	if _, err := g.conn.Write([]byte("busybox killall attest-agent; busybox sleep 1; busybox umount /var; busybox poweroff -f\n")); err != nil {
		g.t.Fatal(err)
	}
	if err := g.cmd.Wait(); err != nil {
		console, _ := os.ReadFile(g.log)
		g.t.Fatalf("scripts/qemu: %v\n%s", err, console)
	}
}

// openFleetLab opens a lab with the programs and keys of a fleet.
func openFleetLab(t *testing.T) *lab {
	t.Helper()
	l := openLab(t)
	need(t, "mke2fs", "openssl", "dpkg", "apt-get", "swtpm_localca")
	l.wrapped(t)
	l.build(t, "1", "./tools/attest")
	for _, program := range []string{"attest-init", "attest-agent", "attest-verifier"} {
		l.build(t, "0", "./tools/"+program)
	}
	l.makeKeys(t)
	return l
}

// only is the id of the one device, when there is one.
func (v *verifier) only() string {
	v.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Second) {
		var list struct{ Devices []member }
		err := json.Unmarshal([]byte(v.fleet("list", "--json")), &list)
		if err == nil && len(list.Devices) == 1 {
			return list.Devices[0].ID
		}
		if err != nil || len(list.Devices) > 1 || time.Now().After(end) {
			v.t.Fatalf("devices %+v: %v", list, err)
		}
	}
}

// same wants nothing that was known of a device to be lost or different.
func (v *verifier) same(before, after member) {
	v.t.Helper()
	if after.EK != before.EK || after.AK != before.AK || !after.Created.Equal(before.Created) || after.Registrations != before.Registrations ||
		after.Verdict.Status != before.Verdict.Status || after.Verdict.Event != before.Verdict.Event || after.Verdict.Attestations < before.Verdict.Attestations {
		v.t.Errorf("the device was %+v and is %+v", before, after)
	}
}

// explains wants the verifier to say a code and a path in one line.
func (v *verifier) explains(id, code, path string) {
	v.t.Helper()
	text := v.fleet("explain", id)
	v.t.Log(text)
	for line := range strings.Lines(text) {
		if strings.Contains(line, code) && strings.HasSuffix(strings.TrimSpace(line), path) {
			return
		}
	}
	v.t.Errorf("attest fleet explain does not say %s %s", code, path)
}
