#!/bin/sh
# Makes the debian-{ima,ima-*,evm-sig,custom,sha1} lists: boots a kernel with a TPM in QEMU
# for each template and copies what it measured out through a serial line.
#   gen.sh KERNEL MODULE.ko DIR      needs qemu-system-x86, swtpm, busybox-static, cpio, go
# The other lists of this directory come from boots of whole images.
set -eu
kernel=$(realpath "$1") module=$(realpath "$2")
cd "$3"
mkdir -p root/bin root/proc root/sys root/dev root/t setfattr
cp "$(command -v busybox)" root/bin/
ln -sf busybox root/bin/sh
cp "$module" root/t/m.ko
cat > setfattr/main.go <<'GO'
package main

import (
	"encoding/hex"
	"log"
	"os"
	"syscall"
)

func main() {
	v, err := hex.DecodeString(os.Args[2])
	if err == nil {
		err = syscall.Setxattr(os.Args[3], os.Args[1], v, 0)
	}
	if err != nil {
		log.Fatal(err)
	}
}
GO
CGO_ENABLED=0 go build -o root/bin/setfattr setfattr/main.go
cat > root/init <<'INIT'
#!/bin/busybox sh
PATH=/bin B=/bin/busybox ima=/sys/kernel/security/ima
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
$B mount -t securityfs sec /sys/kernel/security
$B mkdir -p /w; $B mount -t tmpfs tmp /w; cd /w
$B cat > /p <<'P'
measure func=FILE_CHECK mask=MAY_READ fsmagic=0x01021994
measure func=FILE_CHECK mask=MAY_EXEC fsmagic=0x01021994
measure func=MODULE_CHECK template=ima-modsig
measure func=KEY_CHECK
measure func=CRITICAL_DATA
P
$B cat /p > $ima/policy
hash=0404a5179bba8fab834fc386a17478842d04b2742d653c9addae998e007c242d02d4
put() { $B printf "$2" > "$1"; }
read_() { $B cat "$1" > /dev/null; }
put a 'plain\n'; read_ a
put 'a b (x)' 'space\n'; read_ 'a b (x)'
n=$($B printf 'new\nline'); put "$n" 'nl\n'; read_ "$n"
u=$($B printf 'h\303\266\377\t'); put "$u" 'u\n'; read_ "$u"
put s 'signed\n'; setfattr security.ima 030204deadbeef000401020304 s; read_ s
put h 'hashed\n'; setfattr security.ima $hash h; read_ h
put e 'evm\n'; setfattr security.ima $hash e; $B chown 2002:7 e; $B chmod 4751 e
setfattr security.capability 0100000200200000000000000000000000000000 e
setfattr security.evm 050204d5cbd735000401020304 e; read_ e
long=$($B printf 'd%.0s' $($B seq 1 200)); $B mkdir -p $long/$long; put $long/$long/f 'l\n'; read_ $long/$long/f
$B insmod /t/m.ko
put v 'v\n'; exec 3>>v; read_ v; exec 3>&-               # open_writers
put o 'x\n'; exec 4<o; echo y >> o; exec 4<&-            # ToMToU
for form in binary ascii; do echo "== $form"; $B base64 $ima/${form}_runtime_measurements; done > /dev/ttyS1
{
	echo "== pcrs"
	for bank in sha1 sha256 sha384; do
		for i in 0 1 2 3 4 5 6 7 8 9 10; do echo "$bank:$i $($B cat /sys/class/tpm/tpm0/pcr-$bank/$i | $B tr A-F a-f)"; done
	done
	echo "== end"
} > /dev/ttyS1
$B sleep 1; $B poweroff -f
INIT
chmod +x root/init
(cd root && find . | cpio -o -H newc --quiet | gzip) > initrd.gz

# boot NAME PARAMETER...
boot() {
	name=$1; shift
	rm -rf tpm; mkdir tpm
	swtpm_setup --tpm2 --tpmstate tpm --pcr-banks sha1,sha256,sha384 > /dev/null
	swtpm socket --tpm2 --tpmstate dir=tpm --ctrl type=unixio,path=tpm/sock --terminate &
	while [ ! -S tpm/sock ]; do sleep 0.1; done
	timeout 300 qemu-system-x86_64 -accel tcg -cpu max -m 512 -nographic -no-reboot -monitor none -kernel "$kernel" -initrd initrd.gz \
		-append "console=ttyS0 quiet lsm=integrity $*" -chardev socket,id=c,path=tpm/sock -tpmdev emulator,id=t,chardev=c \
		-device tpm-tis,tpmdev=t -serial "file:$name.console" -serial "file:$name.out" < /dev/null
	wait
	tr -d '\r' < "$name.out" > "$name.text"
	for form in binary ascii; do
		sed -n "/^== $form/,/^==/{/^==/!p}" "$name.text" | base64 -d > "debian-$name.${form}_runtime_measurements"
	done
	sed -n '/^== pcrs/,/^== end/{/^==/!p}' "$name.text" > "debian-$name.pcrs"
	[ -s "debian-$name.pcrs" ]
}
boot ima ima_template=ima ima_hash=sha1
for template in ima-ng ima-sig ima-ngv2 ima-sigv2 ima-modsig evm-sig; do boot $template ima_template=$template; done
boot custom 'ima_template_fmt=n-ng|d-ngv2|imode|evmsig|igid'
boot sha1 ima_hash=sha1
