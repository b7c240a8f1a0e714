package boottest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/meta-attest/meta-attest/tools/boottest/vm"
)

// UUIDs by which rules tell the filesystems apart.
const (
	rootUUID   = "5a6f1c3e-0001-4000-8000-000000000001"
	verityUUID = "5a6f1c3e-0002-4000-8000-000000000002"
	squashUUID = "5a6f1c3e-0003-4000-8000-000000000003" // squashfs has none: no rule can name it
)

// testPolicy is what the machine ima enforces.
const testPolicy = `# Programs, libraries and modules of the root need a signature.
measure func=BPRM_CHECK
appraise func=BPRM_CHECK fsuuid=` + rootUUID + ` appraise_type=imasig
appraise func=MMAP_CHECK mask=MAY_EXEC fsuuid=` + rootUUID + ` appraise_type=imasig
appraise func=MODULE_CHECK fsuuid=` + rootUUID + ` appraise_type=imasig|modsig

appraise func=BPRM_CHECK fsuuid=` + verityUUID + ` digest_type=verity appraise_type=sigv3
appraise func=BPRM_CHECK fsmagic=0xe0f5e1e2 appraise_type=imasig
appraise func=BPRM_CHECK fsuuid=` + squashUUID + ` appraise_type=imasig
`

// testRules is how many rules that is, with the one that the kernel has compiled in.
const testRules = "8"

// evmPolicy is what the machine evm enforces.
const evmPolicy = `appraise func=BPRM_CHECK fsuuid=` + rootUUID + ` appraise_type=imasig
appraise func=MMAP_CHECK mask=MAY_EXEC fsuuid=` + rootUUID + ` appraise_type=imasig
`

// userland unpacks what every machine has: busybox, and bash with its libraries.
func (l *lab) userland(t *testing.T, root, policy string, cases []testCase) {
	t.Helper()
	l.packages(t, filepath.Join(l.dir, root), "busybox-static", "bash", "libc6", "libtinfo6")
	l.script(t, l.wrap, `
cd '`+root+`'
for dir in bin sbin lib lib64; do
	[ ! -d usr/$dir ] || [ -e $dir ] || ln -s usr/$dir $dir
done
mkdir -p dev proc sys run tmp t v e s sbin etc/ima etc/keys
[ -e bin/busybox ] || cp -a usr/bin/busybox bin/
cp "$OLDPWD/bin/guest" sbin/init
`)
	for name, text := range map[string]string{"plan": vm.Plan(cases), "etc/ima/ima-policy": policy} {
		if err := os.WriteFile(filepath.Join(l.dir, root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// makeIMA makes the images of the machine ima: vda, the root, and others that are mounted by cases.
func (l *lab) makeIMA(t *testing.T, cases []testCase) []string {
	t.Helper()
	l.userland(t, "root", testPolicy, cases)
	module, err := filepath.Glob(filepath.Join(l.kernel, "modules/*/kernel/drivers/net/dummy.ko"))
	if err != nil || len(module) != 1 {
		t.Fatalf("no dummy.ko in %s", l.kernel)
	}
	l.appendSignature(t, module[0], "keys/modsign", "modsig.ko")
	l.appendSignature(t, module[0], "foreign/modsign", "modsig-foreign.ko")
	l.script(t, l.wrap, "module='"+module[0]+"'"+`
place() { # CASE FILE: a copy in the folder of a case
	mkdir -p "root/t/$1" && cp "$2" "root/t/$1/"
}
sign() { # FOLDER KEY FLAG...
	folder=$1 key=$2
	shift 2
	attest sign "$folder" --key "$key.key" --cert "$key.crt" --progress none "$@"
}
change() { # FILE: one byte, in place, so that its label stays
	printf '\001' | dd of="$1" bs=1 seek=4097 conv=notrunc status=none
}
for name in rsa p384 sha384 sha512 foreign hash changed copied unsigned; do place $name root/bin/busybox; done
place library root/lib/*-linux-gnu/libtinfo.so.6
for name in module module-unsigned module-changed module-foreign; do place $name "$module"; done
place modsig modsig.ko
place modsig-foreign modsig-foreign.ko
printf '#!/bin/busybox sh\necho ran\n' > root/t/unsigned/script
chmod 755 root/t/unsigned/script
for name in unsigned foreign changed; do cp root/etc/ima/ima-policy root/etc/ima/$name; done
cp keys/modsign.der impostor.der byleaf.der root/etc/keys/
cp keys/p384.der root/etc/keys/x509_ima-p384.der
cp foreign/p256.der root/etc/keys/p256-other.der

sign root keys/p256 --rule 'skip:/t/**' --rule skip:/etc/ima/unsigned
sign root/t/rsa keys/rsa
sign root/t/p384 keys/p384
sign root/t/sha384 keys/p256 --hash sha384
sign root/t/sha512 keys/rsa --hash sha512
sign root/t/foreign foreign/p256
sign root/t/hash keys/p256 --rule 'hash:/**'
for name in changed copied module module-changed; do sign root/t/$name keys/p256; done
sign root/t/module-foreign foreign/p256
sign root foreign/p256 --rule sign:/etc/ima/foreign --rule 'skip:/**'

change root/t/changed/busybox
change root/t/module-changed/dummy.ko
echo '# changed' >> root/etc/ima/changed
cat root/bin/bash > root/t/copied/busybox # keeps the label of busybox
mke2fs -q -t ext4 -I 512 -b 4096 -U `+rootUUID+` -E root_owner=0:0 -d root root.img 96M

for name in signed rsa foreign off v2; do mkdir -p verity/$name && cp root/bin/busybox verity/$name/; done
for name in signed off; do sign verity/$name keys/p256 --verity; done
sign verity/rsa keys/rsa --verity
sign verity/foreign foreign/p256 --verity
sign verity/v2 keys/p256
mkdir verity/unsigned && cp root/bin/busybox verity/unsigned/
mke2fs -q -t ext4 -I 512 -b 4096 -O verity -U `+verityUUID+` -E root_owner=0:0 -d verity verity.img 48M

for name in signed changed unsigned; do mkdir -p packed/$name && cp root/bin/busybox packed/$name/; done
for name in signed changed; do sign packed/$name keys/p256; done
change packed/changed/busybox
mkfs.erofs --quiet -x1 erofs.img packed > /dev/null
mksquashfs packed squashfs.img -xattrs -no-progress -quiet > /dev/null
`)
	return []string{"root.img", "verity.img", "erofs.img", "squashfs.img"}
}

// makeEVM makes the image of the machine evm, whose files have portable signatures. Its
// policy comes with the initramfs.
func (l *lab) makeEVM(t *testing.T, cases []testCase) []string {
	t.Helper()
	l.userland(t, "evm", evmPolicy, cases)
	l.script(t, l.wrap, `
for name in signed chmod chowned relabelled unlabelled moded owned missing foreign hash bare; do
	mkdir -p evm/t/$name && cp evm/bin/busybox evm/t/$name/
done
sign() { # FOLDER KEY FLAG...
	folder=$1 key=$2
	shift 2
	attest sign "$folder" --key "$key.key" --cert "$key.crt" --progress none "$@"
}
sign evm keys/p256 --evm --rule 'skip:/t/foreign/**' --rule 'skip:/t/missing/**' --rule 'hash:/t/hash/**' --rule 'hash:/t/bare/**'
sign evm/t/missing keys/p256
sign evm/t/foreign keys/p256 --evm --evm-key foreign/p256.key --evm-cert foreign/p256.crt
sign evm/t/hash keys/rsa --evm --rule 'hash:/**'
setfattr -x security.evm evm/t/bare/busybox
chmod 711 evm/t/moded/busybox
chown 7:7 evm/t/owned/busybox
mke2fs -q -t ext4 -I 512 -b 4096 -U `+rootUUID+` -E root_owner=0:0 -d evm evm.img 64M

# The policy once more, for an initramfs: labels in files. Owner and mode are what EVM signed.
mkdir policy && cp evm/etc/ima/ima-policy policy/ && chown 0:0 policy/ima-policy && chmod 644 policy/ima-policy
sign policy keys/p256 --evm --target x86_64
getfattr --absolute-names --only-values -n security.ima policy/ima-policy > ima-policy.sig
getfattr --absolute-names --only-values -n security.evm policy/ima-policy > ima-policy.evm
`)
	return []string{"evm.img"}
}

// makeRefused makes the root of machines that attest-init judges: its policy is not
// signed, and another one is, but only measures.
func (l *lab) makeRefused(t *testing.T, cases []testCase) []string {
	t.Helper()
	l.userland(t, "refused", testPolicy, cases)
	l.script(t, l.wrap, `
echo 'measure func=BPRM_CHECK' > refused/etc/ima/measures
attest sign refused --key keys/p256.key --cert keys/p256.crt --progress none --rule skip:/etc/ima/ima-policy
mke2fs -q -t ext4 -I 512 -b 4096 -U `+rootUUID+` -E root_owner=0:0 -d refused refused.img 64M
`)
	return []string{"refused.img"}
}

// systemdPart is the id of the partition that has the root.
const systemdPart = "5a6f1c3e-0004-4000-8000-000000000004"

// makeSystemd makes a root that systemd starts, once as it is and once in a partition of a
// disk. The certificate is where the kernel looks for it, the policy where systemd does.
func (l *lab) makeSystemd(t *testing.T, cases []testCase) {
	t.Helper()
	l.packages(t, filepath.Join(l.dir, "systemd"), libraries(t, "systemd")...)
	l.userland(t, "systemd", evmPolicy, cases)
	l.script(t, l.wrap, `
mkdir -p systemd/t/unsigned
cp systemd/bin/busybox systemd/t/unsigned/
cp keys/p256.der systemd/etc/keys/x509_ima.der
cat > systemd/etc/systemd/system/boottest.service <<'END'
[Unit]
Description=What systemd started this machine for
DefaultDependencies=no
[Service]
ExecStart=/sbin/init
StandardOutput=journal+console
END
attest sign systemd --key keys/p256.key --cert keys/p256.crt --progress none --rule 'skip:/t/unsigned/**'
mke2fs -q -t ext4 -I 512 -b 4096 -U `+rootUUID+` -E root_owner=0:0 -d systemd systemd.img 192M
truncate -s 200M systemd.disk
echo 'start=2048, size=393216, uuid=`+systemdPart+`' | sfdisk --quiet --label gpt systemd.disk
dd if=systemd.img of=systemd.disk bs=1M seek=1 conv=notrunc,sparse status=none
`)
}
