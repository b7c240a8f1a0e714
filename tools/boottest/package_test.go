package boottest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/cpio"
)

// packageScripts are shell functions for scripts that make packages.
const packageScripts = `
key=keys/p256
control() { # FOLDER NAME VERSION: of a package with nothing in it
	mkdir -p "$1/$meta"
	printf 'Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: boottest <boottest@localhost>\nDescription: boottest\n' "$2" "$3" "$arch" > "$1/$meta/control"
}
script() { # FOLDER NAME LINE...: a maintainer script
	file=$1/$meta/$2
	shift 2
	{ echo '#!/bin/sh'; for line in "$@"; do echo "$line"; done; } > "$file"
	chmod 755 "$file"
}
program() { # FILE TEXT: a program that prints a text
	mkdir -p "${1%/*}"
	printf '#!/bin/sh\necho "%s"\n' "$2" > "$1"
	chmod 755 "$1"
}
hello() { # VERSION: a package with everything
	control $pk/hello hello "$1"
	program $pk/hello/usr/bin/hello "hello $1"
	mkdir -p $pk/hello/etc $pk/hello/usr/lib/hello
	cp "$root/bin/bash" $pk/hello/usr/lib/hello/pwd
	echo "version=$1" > $pk/hello/etc/hello.conf
	echo /etc/hello.conf > $pk/hello/$meta/conffiles
	script $pk/hello preinst 'echo "preinst $1" > /var/tmp/hello'
	script $pk/hello postinst 'echo "postinst $1, $(/usr/bin/hello)" >> /var/tmp/hello'
	script $pk/hello prerm 'echo "prerm $1" > /var/tmp/prerm'
}
signed() { # FOLDER
	attest package build --key "$key.key" --cert "$key.crt" $evm -- $build "$1" "$root/p"
}
`

// debianPackages makes the root of a machine with dpkg, and packages in it.
const debianPackages = packageScripts + `
meta=DEBIAN arch=amd64 build='dpkg-deb --root-owner-group -Zgzip --build'
mkdir -p $root/p $root/var/tmp $root/var/lib/dpkg/info $root/var/lib/dpkg/updates $root/usr/local
ls -d $root/usr/bin $root/usr/sbin > /dev/null
: > $root/var/lib/dpkg/status
mv $root/usr/bin/dpkg-deb $root/usr/bin/dpkg-deb.distrib
cp bin/attest-labels $root/usr/bin/
ln -s attest-labels $root/usr/bin/dpkg-deb
printf '/usr/bin/dpkg-deb\n/usr/bin/dpkg-deb.distrib\n:\n' > $root/var/lib/dpkg/diversions
for applet in sh rm diff; do ln -s busybox $root/bin/$applet; done
cp keys/p256.der $root/etc/keys/x509_ima.der
[ -z "$evm" ] || cp keys/p256.der $root/etc/keys/x509_evm.der
cat > $root/p/install <<'END'
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
if /usr/bin/dpkg --force-unsafe-io "$@" > /run/out 2> /run/err; then
	echo installed
else
	busybox grep -m 1 -e ': error: "' -e ': error: p' -e ': error: n' -e 'ermission denied' /run/err || busybox cat /run/err
fi
busybox cat /run/out /run/err > /dev/console
END
cat > $root/p/bypass <<'END'
busybox mkdir -p /run/real
busybox ln -sf /usr/bin/dpkg-deb.distrib /run/real/dpkg-deb
export PATH=/run/real:/usr/sbin:/usr/bin:/sbin:/bin
/usr/bin/dpkg --force-unsafe-io -i "$@" > /run/out 2> /run/err && echo installed || echo failed
END
cat > $root/p/labels <<'END'
attest-labels "$@" > /run/out 2>/dev/null
code=$?
echo "$code $(busybox head -n 1 /run/out)"
END

hello 1.0; signed $pk/hello
hello 2.0; signed $pk/hello
hello 3.0; signed $pk/hello
dpkg-deb -R $root/p/hello_3.0_amd64.deb $pk/tampered
printf 'echo tampered\n' >> $pk/tampered/usr/bin/hello
$build $pk/tampered $root/p/tampered.deb
printf '# changed\n' >> $pk/hello/DEBIAN/preinst
$build $pk/hello $root/p/script.deb
dpkg-deb -R $root/p/hello_3.0_amd64.deb $pk/added
program $pk/added/usr/bin/added added
$build $pk/added $root/p/added.deb
dpkg-deb -R $root/p/hello_3.0_amd64.deb $pk/moded
chmod 4755 $pk/moded/usr/bin/hello
$build $pk/moded $root/p/moded.deb
key=foreign/p256; hello 4.0; signed $pk/hello; key=keys/p256

control $pk/plain plain 1.0
program $pk/plain/usr/bin/plain 'plain 1.0'
$build $pk/plain $root/p/plain_1.0_amd64.deb
control $pk/plain plain 1.1
signed $pk/plain

for name in libc6 dpkg; do
	control $pk/$name $name 99
	signed $pk/$name
done
attest sign $root --key keys/p256.key --cert keys/p256.crt --progress none $evm --rule 'skip:/p/**'
mke2fs -q -t ext4 -I 512 -b 4096 -U ` + rootUUID + ` -E root_owner=0:0 -d $root $root.img 320M
`

// dpkgCases take the key id of a stranger.
func dpkgCases(stranger string) []testCase {
	return []testCase{
		{"the policy of the root is in force", "rules", "3"},
		{"install a package with maintainer scripts", "run /bin/busybox sh /p/install -i /p/hello_1.0_amd64.deb", "installed"},
		{"its program, a script", "run /usr/bin/hello", "hello 1.0"},
		{"its program, with shared libraries", "run /usr/lib/hello/pwd -c pwd", "/"},
		{"its postinst ran the program", "run /bin/busybox tail -n 1 /var/tmp/hello", "postinst configure, hello 1.0"},
		{"its labels", "run /bin/busybox sh /p/labels check hello", "0 1 packages, 0 findings"},
		{"upgrade", "run /bin/busybox sh /p/install -i /p/hello_2.0_amd64.deb", "installed"},
		{"the program of the new version", "run /usr/bin/hello", "hello 2.0"},
		{"the old prerm ran", "run /bin/busybox cat /var/tmp/prerm", "prerm upgrade"},

		{"package with a changed program", "run /bin/busybox sh /p/install -i /p/tampered.deb", `dpkg-deb: error: "usr/bin/hello.dpkg-new": not authentic: security.ima: signature does not match`},
		{"package with a changed script", "run /bin/busybox sh /p/install -i /p/script.deb", `dpkg-deb: error: "preinst": not authentic: security.ima: signature does not match`},
		{"package with another program", "run /bin/busybox sh /p/install -i /p/added.deb", `dpkg-deb: error: "usr/bin/added": not authentic: the label list does not have it`},
		{"package by a foreign key", "run /bin/busybox sh /p/install -i /p/hello_4.0_amd64.deb", "dpkg-deb: " + noCertificate + stranger},
		{"package that is not signed", "run /bin/busybox sh /p/install -i /p/plain_1.0_amd64.deb", "dpkg-deb: error: package has no label list"},
		{"what was there is there", "run /usr/bin/hello", "hello 2.0"},
		{"with its labels", "run /bin/busybox sh /p/labels check hello", "0 1 packages, 0 findings"},

		{"not signed, on demand", "run /bin/busybox env ATTEST_LABELS=optional sh /p/install -i /p/plain_1.0_amd64.deb", "installed"},
		{"the kernel refuses its program", "run /usr/bin/plain", noSignature},
		{"attest-labels says why", "run /bin/busybox sh /p/labels check plain", "4 plain: plain: package has no label list"},
		{"the way back: a signed build", "run /bin/busybox sh /p/install -i /p/plain_1.1_amd64.deb", "installed"},
		{"its program", "run /usr/bin/plain", "plain 1.0"},

		{"a label is lost", "unlabel /usr/bin/hello security.ima", "ok"},
		{"so the program is refused", "run /usr/bin/hello", noSignature},
		{"attest-labels finds it", "run /bin/busybox sh /p/labels check hello", `4 hello: "usr/bin/hello": has not its label`},
		{"and sets it again", "run /bin/busybox sh /p/labels apply hello", "0 1 packages, 0 findings"},
		{"so the program runs", "run /usr/bin/hello", "hello 2.0"},

		{"installed by the real dpkg-deb: preinst is refused", "run /bin/busybox sh /p/bypass /p/hello_3.0_amd64.deb", "failed"},
		{"and what was there still runs", "run /usr/bin/hello", "hello 2.0"},

		{"the C library is replaced", "run /bin/busybox sh /p/install -i /p/libc6_99_amd64.deb", "installed"},
		{"a program with shared libraries", "run /bin/bash -c pwd", "/"},
		{"dpkg is replaced; dpkg-deb is diverted", "run /bin/busybox sh /p/install -i /p/dpkg_99_amd64.deb", "installed"},
		{"the new dpkg works", "run /bin/busybox sh /p/install -i /p/hello_3.0_amd64.deb", "installed"},
		{"and its package", "run /usr/bin/hello", "hello 3.0"},
		{"removal", "run /bin/busybox sh /p/install --purge hello", "installed"},
		{"prerm ran", "run /bin/busybox cat /var/tmp/prerm", "prerm remove"},
		{"all that is installed", "run /bin/busybox sh /p/labels check", "0 3 packages, 0 findings"},

		{"without us: the C library is replaced", "run /bin/busybox sh /p/bypass /p/libc6_99_amd64.deb", "installed"},
		{"no program with shared libraries runs", "run /bin/bash -c pwd", "exit -1"},
		{"the way back is static", "run /bin/busybox sh /p/labels apply libc6", "0 1 packages, 0 findings"},
		{"a program with shared libraries runs", "run /bin/bash -c pwd", "/"},
	}
}

// evmPackageCases run where owner and mode are appraised, too.
var evmPackageCases = []testCase{
	{"EVM is on, with certificates", "read /sys/kernel/security/evm", "2"},
	{"install", "run /bin/busybox sh /p/install -i /p/hello_1.0_amd64.deb", "installed"},
	{"its program", "run /usr/bin/hello", "hello 1.0"},
	{"upgrade", "run /bin/busybox sh /p/install -i /p/hello_2.0_amd64.deb", "installed"},
	{"the program of the new version", "run /usr/bin/hello", "hello 2.0"},
	{"its labels", "run /bin/busybox sh /p/labels check hello", "0 1 packages, 0 findings"},
	{"package with a changed program", "run /bin/busybox sh /p/install -i /p/tampered.deb", `dpkg-deb: error: "usr/bin/hello.dpkg-new": not authentic: security.ima: signature does not match`},
	{"package with another mode", "run /bin/busybox sh /p/install -i /p/moded.deb", `dpkg-deb: error: "usr/bin/hello.dpkg-new": not authentic: security.evm: owner 0:0, mode 104755: signature does not match`},
	{"the C library is replaced", "run /bin/busybox sh /p/install -i /p/libc6_99_amd64.deb", "installed"},
	{"a program with shared libraries", "run /bin/bash -c pwd", "/"},
}

// noCertificate is followed by a key id.
const noCertificate = "error: not authentic: signature of the label list: no certificate in /etc/keys has key id "

// opkgPackages makes the root of a machine with opkg, and packages in it. opkg-build is a
// script that is no part of this distribution; these are its steps.
const opkgPackages = packageScripts + `
meta=CONTROL arch=all build=./build-ipk
cat > build-ipk <<'END'
#!/bin/sh -eu
name=$(sed -n 's/^Package: //p' "$1/CONTROL/control")_$(sed -n 's/^Version: //p' "$1/CONTROL/control")
mkdir ipk.new
tar -C "$1/CONTROL" --format=gnu --owner=0 --group=0 -czf ipk.new/control.tar.gz .
tar -C "$1" --format=gnu --owner=0 --group=0 --exclude=./CONTROL -czf ipk.new/data.tar.gz .
echo 2.0 > ipk.new/debian-binary
rm -f "$2/$name.ipk"
ar -crfD "$2/$name.ipk" ipk.new/debian-binary ipk.new/control.tar.gz ipk.new/data.tar.gz
rm -r ipk.new
END
chmod +x build-ipk
mkdir -p $root/p $root/var/tmp $root/etc/opkg $root/var/lib/opkg/info $root/run/lock
printf 'arch all 1\ndest root /\noption lists_dir /var/lib/opkg/lists\noption info_dir /var/lib/opkg/info\noption status_file /var/lib/opkg/status\noption lock_file /run/opkg.lock\n' > $root/etc/opkg/opkg.conf
cp "$opkg" $root/usr/bin/opkg.distrib
cp bin/attest-labels $root/usr/bin/
ln -s attest-labels $root/usr/bin/opkg
for applet in sh rm; do ln -s busybox $root/bin/$applet; done
cp keys/p256.der $root/etc/keys/x509_ima.der
cat > $root/p/install <<'END'
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
if opkg "$@" > /run/out 2> /run/err; then
	echo installed
else
	busybox grep -m 1 -e 'opkg: error:' /run/err || busybox cat /run/err
fi
busybox cat /run/out /run/err > /dev/console
END
cat > $root/p/bypass <<'END'
opkg.distrib install "$@" > /run/out 2> /run/err && echo installed || echo failed
END
cat > $root/p/labels <<'END'
attest-labels "$@" > /run/out 2>/dev/null
code=$?
echo "$code $(busybox head -n 1 /run/out)"
END

hello 1.0; signed $pk/hello
hello 2.0; signed $pk/hello
hello 3.0; signed $pk/hello
echo '# changed' >> $pk/hello/CONTROL/preinst
$build $pk/hello $pk && mv $pk/hello_3.0.ipk $root/p/script.ipk
hello 5.0
attest package build --key $key.key --cert $key.crt -- true $pk/hello .
printf 'echo tampered\n' >> $pk/hello/usr/bin/hello
$build $pk/hello $pk && mv $pk/hello_5.0.ipk $root/p/tampered.ipk
rm $pk/hello/CONTROL/attest-labels
key=foreign/p256; hello 4.0; signed $pk/hello; key=keys/p256

control $pk/plain plain 1.0
program $pk/plain/usr/bin/plain 'plain 1.0'
script $pk/plain postinst '/usr/bin/plain'
$build $pk/plain $root/p
control $pk/plain plain 1.1
signed $pk/plain

control $pk/libc6 libc6 99
script $pk/libc6 postinst '/bin/bash -c pwd > /var/tmp/libc6'
signed $pk/libc6
attest sign $root --key keys/p256.key --cert keys/p256.crt --progress none --rule 'skip:/p/**'
mke2fs -q -t ext4 -I 512 -b 4096 -U ` + rootUUID + ` -E root_owner=0:0 -d $root $root.img 320M
`

// opkgCases take the key id of a stranger.
func opkgCases(stranger string) []testCase {
	return []testCase{
		{"install a package with maintainer scripts", "run /bin/busybox sh /p/install install /p/hello_1.0.ipk", "installed"},
		{"its program, a script", "run /usr/bin/hello", "hello 1.0"},
		{"its program, with shared libraries", "run /usr/lib/hello/pwd -c pwd", "/"},
		{"its preinst ran", "run /bin/busybox head -n 1 /var/tmp/hello", "preinst install"},
		{"its postinst ran the program", "run /bin/busybox tail -n 1 /var/tmp/hello", "postinst configure, hello 1.0"},
		{"its labels", "run /bin/busybox sh /p/labels check hello", "0 1 packages, 0 findings"},
		{"upgrade", "run /bin/busybox sh /p/install install /p/hello_2.0.ipk", "installed"},
		{"the program of the new version", "run /usr/bin/hello", "hello 2.0"},
		{"the old prerm ran", "run /bin/busybox cat /var/tmp/prerm", "prerm upgrade"},
		{"the same package again", "run /bin/busybox sh /p/install install --force-reinstall /p/hello_2.0.ipk", "installed"},
		{"its program has its label again", "run /usr/bin/hello", "hello 2.0"},

		{"package with a changed script", "run /bin/busybox sh /p/install install /p/script.ipk", `opkg: error: hello: "preinst": not authentic: security.ima: signature does not match`},
		{"package by a foreign key", "run /bin/busybox sh /p/install install /p/hello_4.0.ipk", "opkg: error: hello: " + strings.TrimPrefix(noCertificate, "error: ") + stranger},
		{"what was there is there", "run /usr/bin/hello", "hello 2.0"},
		{"with its labels", "run /bin/busybox sh /p/labels check hello", "0 1 packages, 0 findings"},
		{"limit: package with a changed program is unpacked", "run /bin/busybox sh /p/install install /p/tampered.ipk", `opkg: error: "usr/bin/hello": not authentic: security.ima: signature does not match`},
		{"but nothing of it runs", "run /usr/bin/hello", noSignature},
		{"nor has it a label", "run /usr/lib/hello/pwd -c pwd", noSignature},
		{"the way back: the signed package", "run /bin/busybox sh /p/install install --force-reinstall --force-downgrade /p/hello_2.0.ipk", "installed"},
		{"its program runs", "run /usr/bin/hello", "hello 2.0"},

		{"package that is not signed", "run /bin/busybox sh /p/install install /p/plain_1.0.ipk", "opkg: error: plain: package has no label list"},
		{"the kernel refuses its program", "run /usr/bin/plain", noSignature},
		{"attest-labels says why", "run /bin/busybox sh /p/labels check plain", "4 plain: plain: package has no label list"},
		{"the way back: a signed build", "run /bin/busybox sh /p/install install /p/plain_1.1.ipk", "installed"},
		{"its program", "run /usr/bin/plain", "plain 1.0"},

		{"without us: the kernel refuses preinst", "run /bin/busybox sh /p/bypass --force-downgrade /p/hello_1.0.ipk", "failed"},
		{"the C library is replaced", "run /bin/busybox sh /p/install install /p/libc6_99.ipk", "installed"},
		{"its postinst ran a program with shared libraries", "run /bin/busybox cat /var/tmp/libc6", "/"},
		{"removal", "run /bin/busybox sh /p/install remove hello", "installed"},
		{"prerm ran", "run /bin/busybox cat /var/tmp/prerm", "prerm remove"},
		{"all that is installed", "run /bin/busybox sh /p/labels check", "0 2 packages, 0 findings"},
	}
}

// rpmPackages makes the root of a machine with rpm, and packages in it.
const rpmPackages = `
mkdir -p $root/p $root/var/tmp $root/var/lib/rpm $pk
for applet in sh rm; do ln -s busybox $root/bin/$applet; done
cp keys/p256.der $root/etc/keys/x509_ima.der
mkdir -p $root/etc/rpm
echo "%__plugindir $(cd $root && ls -d usr/lib/*/rpm-plugins | sed 's#^#/#')" > $root/etc/rpm/macros # where Debian has them
cat > $root/p/install <<'END'
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
if /usr/bin/rpm --force-debian --nodeps "$@" > /run/out 2> /run/err; then
	echo installed
else
	busybox grep -m 1 -o -e 'package.*BAD' /run/err || busybox head -n 1 /run/err
fi
busybox cat /run/out /run/err > /dev/console
END
spec() { # NAME VERSION: the rest comes from standard input
	{ printf 'Name: %s\nVersion: %s\nRelease: 1\nSummary: boottest\nLicense: MIT\nBuildArch: noarch\nAutoReqProv: no\n%%description\nboottest\n' "$1" "$2"; cat; } > $pk/$1.spec
	rpmbuild --quiet -bb --define "_topdir $PWD/$pk" --define '_binary_filedigest_algorithm 8' --define '_build_id_links none' \
		--define '__os_install_post %{nil}' --define '_binaries_in_noarch_packages_terminate_build 0' $pk/$1.spec
	cp $pk/RPMS/noarch/$1-$2-1.noarch.rpm $root/p/$1-$2.rpm
}
signed() { # FILE KEY
	attest package sign --key $2.key --cert $2.crt $root/p/$1
}
hello() { # VERSION
	spec hello "$1" <<END
%install
mkdir -p %{buildroot}/usr/bin %{buildroot}/usr/lib/hello
printf '#!/bin/sh\necho "hello $1"\n' > %{buildroot}/usr/bin/hello
cp $PWD/$root/bin/bash %{buildroot}/usr/lib/hello/pwd
chmod 755 %{buildroot}/usr/bin/hello
%pre
echo "pre \$1" > /var/tmp/hello
%post
echo "post \$1, \$(/usr/bin/hello)" >> /var/tmp/hello
%files
/usr/bin/hello
/usr/lib/hello/pwd
END
}
for version in 1 2 3 4 5; do hello $version; done
signed hello-1.rpm keys/p256
signed hello-2.rpm keys/p256
signed hello-3.rpm foreign/p256
signed hello-5.rpm keys/p256
cp $root/p/hello-5.rpm $root/p/tampered.rpm
printf '\001' | dd of=$root/p/tampered.rpm bs=1 seek=$(($(stat -c %s $root/p/tampered.rpm) - 2000)) conv=notrunc status=none
for version in 99 100; do
	spec libc6 $version <<END
%install
mkdir -p %{buildroot}
cp -a $PWD/$pk/libc6/lib %{buildroot}/
%post
/bin/bash -c pwd > /var/tmp/libc6
%files
/lib
END
done
signed libc6-99.rpm keys/p256
attest sign $root --key keys/p256.key --cert keys/p256.crt --progress none --rule 'skip:/p/**'
mke2fs -q -t ext4 -I 512 -b 4096 -U ` + rootUUID + ` -E root_owner=0:0 -d $root $root.img 400M
`

var rpmCases = []testCase{
	{"install a signed package", "run /bin/busybox sh /p/install -i /p/hello-1.rpm", "installed"},
	{"its program, a script", "run /usr/bin/hello", "hello 1"},
	{"its program, with shared libraries", "run /usr/lib/hello/pwd -c pwd", "/"},
	{"%post ran the program", "run /bin/busybox tail -n 1 /var/tmp/hello", "post 1, hello 1"},
	{"upgrade", "run /bin/busybox sh /p/install -U /p/hello-2.rpm", "installed"},
	{"the program of the new version", "run /usr/bin/hello", "hello 2"},
	{"changed package", "run /bin/busybox sh /p/install -U /p/tampered.rpm", "package hello-5-1.noarch does not verify: Payload SHA256 ALT digest: BAD"},
	{"what was there is there", "run /usr/bin/hello", "hello 2"},
	{"package by a foreign key", "run /bin/busybox sh /p/install -U /p/hello-3.rpm", "installed"},
	{"the kernel refuses its program", "run /usr/bin/hello", badSig},
	{"package without signatures of files", "run /bin/busybox sh /p/install -U /p/hello-4.rpm", "installed"},
	{"the kernel refuses its program, too", "run /usr/bin/hello", noSignature},
	{"the way back: a signed build", "run /bin/busybox sh /p/install -U /p/hello-5.rpm", "installed"},
	{"its program runs", "run /usr/bin/hello", "hello 5"},
	{"the C library is replaced", "run /bin/busybox sh /p/install -i --replacefiles /p/libc6-99.rpm", "installed"},
	{"%post ran a program with shared libraries", "run /bin/busybox cat /var/tmp/libc6", "/"},
	{"limit: by one without signatures", "run /bin/busybox sh /p/install -U /p/libc6-100.rpm", "installed"},
	{"no program with shared libraries runs", "run /bin/bash -c pwd", "exit -1"},
}

// TestPackages installs packages where the kernel enforces a policy.
func TestPackages(t *testing.T) {
	l := openLab(t)
	l.prepare(t)
	l.build(t, "0", "./tools/attest-labels")
	ours := l.file(t, "etc/keys/x509_ima.der", "keys/p256.der")

	stranger := fmt.Sprintf("%x", l.certificate(t, l.dir, "foreign/p256.crt").SubjectKeyId)

	t.Run("dpkg", func(t *testing.T) {
		cases := dpkgCases(stranger[len(stranger)-8:])
		l.makeDpkg(t, "dpkg", "", cases)
		l.boot(t, machine{append: "attest=enforce rw", images: []string{"dpkg.img"}, cases: cases, initramfs: []cpio.Entry{ours}})
	})

	t.Run("opkg", func(t *testing.T) {
		cases := opkgCases(stranger[len(stranger)-8:])
		l.makeOpkg(t, "opkg", cases)
		l.boot(t, machine{append: "attest=enforce rw", images: []string{"opkg.img"}, cases: cases, initramfs: []cpio.Entry{ours}})
	})

	t.Run("rpm", func(t *testing.T) {
		l.makeRPM(t, "rpm")
		l.boot(t, machine{append: "attest=enforce rw", images: []string{"rpm.img"}, cases: rpmCases, initramfs: []cpio.Entry{ours}})
	})

	t.Run("dpkg and EVM", func(t *testing.T) {
		l.makeDpkg(t, "dpkgevm", "--evm --target x86_64", evmPackageCases)
		l.boot(t, machine{append: "attest=enforce attest.evm=1 rw", images: []string{"dpkgevm.img"}, cases: evmPackageCases,
			initramfs: []cpio.Entry{ours, l.file(t, "etc/keys/x509_evm.der", "keys/p256.der")}})
	})
}

// makeOpkg makes the image of a machine with opkg, and packages in it.
func (l *lab) makeOpkg(t *testing.T, root string, cases []testCase) {
	t.Helper()
	need(t, "ar")
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	opkg := filepath.Join(cache, "meta-attest/opkg/opkg")
	if _, err := os.Stat(opkg); err != nil {
		t.Skipf("opkg is no package of this distribution; build it, for /usr, /etc and /var, and put it at %s", opkg)
	}
	l.userland(t, root, evmPolicy, cases)
	l.packages(t, filepath.Join(l.dir, root), libraries(t, "libarchive13")...)
	l.packages(t, filepath.Join(l.dir, root+"-packages/libc6"), "libc6")
	l.script(t, l.wrap, "root="+root+" pk="+root+"-packages evm= opkg="+opkg+opkgPackages)
}

// makeRPM makes the image of a machine with rpm, and packages in it.
func (l *lab) makeRPM(t *testing.T, root string) {
	t.Helper()
	need(t, "rpmbuild")
	l.userland(t, root, evmPolicy, rpmCases)
	l.packages(t, filepath.Join(l.dir, root), append(libraries(t, "rpm"), "rpm-common")...)
	l.packages(t, filepath.Join(l.dir, root+"-packages/libc6"), "libc6")
	l.script(t, l.wrap, "root="+root+" pk="+root+"-packages"+rpmPackages)
}

// makeDpkg makes the image of a machine with dpkg, and packages in it.
func (l *lab) makeDpkg(t *testing.T, root, flags string, cases []testCase) {
	t.Helper()
	l.userland(t, root, evmPolicy, cases)
	l.packages(t, filepath.Join(l.dir, root), append(libraries(t, "dpkg"), "tar", "libacl1", "libc-bin")...)
	for _, name := range []string{"libc6", "dpkg"} {
		l.packages(t, filepath.Join(l.dir, root+"-packages", name), name)
	}
	l.script(t, l.wrap, "root="+root+" pk="+root+"-packages evm='"+flags+"'"+debianPackages)
}
