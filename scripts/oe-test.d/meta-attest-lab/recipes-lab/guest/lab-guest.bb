SUMMARY = "What tools/oetest/boot_test.go boots: an init that tries things, and files for it to try"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COREBASE}/meta/COPYING.MIT;md5=3da9cfbcb788c80a0384361b4de20420"
INHIBIT_DEFAULT_DEPS = "1"

# A static program, tools/boottest/guest, and the plan that it reads.
LAB_GUEST ?= ""
LAB_PLAN ?= ""
python () {
    if not d.getVar('LAB_GUEST'):
        raise bb.parse.SkipRecipe('LAB_GUEST is not set')
}

do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install() {
    install -D -m 0755 ${LAB_GUEST} ${D}${base_sbindir}/lab-guest
    install -m 0644 ${LAB_PLAN} ${D}/plan
    for i in signed changed unsigned; do
        install -d ${D}/t/$i
        printf '#!/bin/busybox sh\necho ran # script-%s\n' $i > ${D}/t/$i/script
        chmod 0755 ${D}/t/$i/script
    done
}
do_install[file-checksums] += "${LAB_GUEST}:True ${LAB_PLAN}:True"
do_install[vardepsexclude] += "LAB_GUEST LAB_PLAN"

PACKAGES = "${PN}"
FILES:${PN} = "/"
INSANE_SKIP:${PN} += "already-stripped ldflags arch"
