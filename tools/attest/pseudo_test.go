package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestPseudo signs under the pseudo that BitBake uses, as a user without privileges:
// the labels and the owners that EVM signs are those of pseudo's database, and reach an
// image that is made under it.
func TestPseudo(t *testing.T) {
	need(t, "pseudo", "evmctl", "mke2fs", "debugfs", "getfattr", "openssl")
	libs, _ := filepath.Glob("/usr/lib/*/pseudo/libpseudo.so")
	if len(libs) == 0 {
		t.Skip("libpseudo.so is not where Debian has it")
	}
	dir := openDir(t)
	makeKeys(t, dir)
	build(t, dir, "CGO_ENABLED=1")
	wrap := []string{"env", "PSEUDO_PREFIX=/usr", "PSEUDO_BINDIR=/usr/bin", "PSEUDO_LIBDIR=" + filepath.Dir(libs[0]), "PSEUDO_LOCALSTATEDIR=" + dir}
	if os.Getuid() == 0 {
		need(t, "setpriv")
		wrap = append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, wrap...)
	}
	real := script(t, dir, wrap, "id -u")
	if real == "0\n" {
		t.Fatal("this is to be shown without privileges")
	}
	script(t, dir, append(wrap, "pseudo"), `
mkdir -p root/bin root/dev
echo x >root/bin/x
chown 12:34 root/bin/x
chmod 4755 root/bin/x
echo z >root/bin/z
chmod 0 root/bin/z
mknod root/dev/null c 1 3
ln -s x root/bin/link
`)
	out := script(t, dir, append(wrap, "pseudo"), `
sign='attest sign root --key ima.key --cert ima.crt --evm --target x86_64 --manifest m.json'
$sign
$sign
getfattr -m - root/dev/null root/bin/z
evmctl ima_verify -k ima.der root/bin/x
evmctl verify -k ima.der root/bin/x
attest verify root --cert ima.crt --evm --target x86_64 --all --manifest m.json
chmod 4711 root/bin/x
attest verify root --cert ima.crt --evm --target x86_64 || echo "exit $?"
chmod 4755 root/bin/x
mke2fs -q -t ext4 -d root image 8M
! attest sign root --labels direct --key ima.key --cert ima.crt
`)
	contains(t, out,
		"signed 2 of 2 (written 2, unchanged 0)", // not the device, which is an empty file to the kernel
		"signed 2 of 2 (written 0, unchanged 2)",
		"root/bin/x: verification is OK",
		"verified 2 of 2 files", "0 findings",
		"bin/x: evm-mismatch: security.evm: owner 12:34, mode 104711", "exit 4",
		"not permitted to write security.* attributes",
	)
	contains(t, script(t, dir, nil, "debugfs -R 'stat bin/x' image; debugfs -R 'ea_list bin/x' image; getfattr -m - root/bin/x"),
		"User:    12   Group:    34", "security.evm", "security.ima")
	if attrs := script(t, dir, nil, "getfattr -m - root/bin/x"); attrs != "" {
		t.Errorf("the builder's file has %q", attrs)
	}
}

// TestWithoutCgo: a program that cannot reach pseudo says so and changes nothing.
func TestWithoutCgo(t *testing.T) {
	need(t, "openssl")
	dir := openDir(t)
	makeKeys(t, dir)
	build(t, dir, "CGO_ENABLED=0")
	out := script(t, dir, nil, `
mkdir root
echo x >root/x
! LD_PRELOAD=libpseudo.so attest sign root --key ima.key --cert ima.crt 2>&1
`)
	contains(t, out, "built without cgo", "hint: build with CGO_ENABLED=1")
}

// TestDump writes labels that setfattr restores, for names that need quoting.
func TestDump(t *testing.T) {
	need(t, "setfattr", "openssl", "evmctl")
	if os.Getuid() != 0 {
		t.Skip("restoring security.* attributes needs root")
	}
	dir := openDir(t)
	makeKeys(t, dir)
	build(t, dir)
	out := script(t, dir, nil, `
mkdir -p root/sub
for name in plain 'sub/back\slash' 'sub/ space ' 'sub/eq=ual' 'sub/#hash' "$(printf 'sub/new\nline')" "$(printf 'sub/\377')" "$(printf 'sub/tab\tcr\r')"; do
	echo "$name" >"root/$name"
done
cp -a root copy
attest sign root --key ima.key --cert ima.crt --labels dump --output labels --evm --target arm
! getfattr -m - -R root | grep .
(cd root && setfattr -h --restore=../labels)
attest verify root --cert ima.crt --all --evm --target arm
attest sign copy --key ima.key --cert ima.crt --labels dump --evm --target arm 2>/dev/null | cmp - labels
attest sign root --key ima.key --cert ima.crt --evm --target arm
`)
	contains(t, out, "verified 8 of 8 files", "signed 8 of 8 (written 0, unchanged 8)")
}

// TestKilled kills the program at many moments. Each file then has no label or a good
// one, the manifest is the old one, and the next run completes the tree.
func TestKilled(t *testing.T) {
	need(t, "openssl", "timeout")
	if os.Getuid() != 0 {
		t.Skip("labels need root")
	}
	dir := openDir(t)
	makeKeys(t, dir)
	build(t, dir)
	out := script(t, dir, nil, `
mkdir root
i=0
while [ $i -lt 3000 ]; do echo $i >root/$i; i=$((i+1)); done
echo old >m.json
for delay in 0.01 0.02 0.03 0.05 0.07 0.09 0.12 0.15 0.2; do
	timeout -s KILL $delay attest sign root --key ima.key --cert ima.crt --manifest m.json --force >out 2>&1 || true
	if ! grep -q old m.json; then break; fi
	if [ -n "$(getfattr -Rh -n security.ima root 2>/dev/null | head -1)" ]; then
		attest verify root --cert ima.crt --progress none || exit 1
		partial=$(getfattr -Rh -n security.ima root 2>/dev/null | grep -c '^# file') || true
		if [ "$partial" -lt 3000 ]; then echo "partial"; fi
	fi
done
attest sign root --key ima.key --cert ima.crt --manifest m.json
attest verify root --cert ima.crt --all --manifest m.json
`)
	contains(t, out, "signed 3000 of 3000", "verified 3000 of 3000 files")
}
