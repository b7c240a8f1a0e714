SUMMARY = "Files that signers trip over: odd names, hard links, setuid, capabilities, nothing in them"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COREBASE}/meta/COPYING.MIT;md5=3da9cfbcb788c80a0384361b4de20420"
INHIBIT_DEFAULT_DEPS = "1"

do_configure[noexec] = "1"
do_compile[noexec] = "1"
# tools/oetest/image_test.go has the list of these files.
do_install() {
    odd=${D}${datadir}/lab-odd
    install -d $odd/dir.d ${D}${localstatedir}/lib/lab-odd ${D}${bindir}
    cd $odd
    for name in 'with space' ' leading and trailing ' '-dash' '#hash' 'quote"s' "apostrophe's" 'dollar$HOME' 'star*[x]?' \
        'back\slash' 'colon:semi;comma,' '%41' 'ümläut' '日本語' .hidden 'dir.d/security.ima'; do
        printf '%s\n' "content of $name" > "$odd/$name"
    done
    : > $odd/empty
    truncate -s 3M $odd/sparse
    echo 'one inode' > $odd/link-a
    ln $odd/link-a $odd/link-b
    ln $odd/link-a $odd/dir.d/link-c
    ln -s link-a $odd/symlink
    ln -s /nowhere $odd/dangling
    mkfifo $odd/fifo
    echo 'state' > ${D}${localstatedir}/lib/lab-odd/state
    printf '#!/bin/sh\nid -u\n' > ${D}${bindir}/lab-setuid
    chmod 4755 ${D}${bindir}/lab-setuid
    printf '#!/bin/sh\nexit 0\n' > ${D}${bindir}/lab-nobody
    chown 65534:65534 ${D}${bindir}/lab-nobody
    chmod 0400 ${D}${bindir}/lab-nobody
}

# A package drops capabilities: like iputils of OE-core, this one gets its own on install.
pkg_postinst:${PN}() {
    printf '#!/bin/sh\nexit 0\n' > $D${bindir}/lab-capable
    chmod 0755 $D${bindir}/lab-capable
    setcap cap_net_raw+ep $D${bindir}/lab-capable
}
PACKAGE_WRITE_DEPS += "libcap-native"

PACKAGES = "${PN}"
FILES:${PN} = "${datadir} ${bindir} ${localstatedir}"
