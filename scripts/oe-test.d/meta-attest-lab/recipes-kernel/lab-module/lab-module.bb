SUMMARY = "A kernel module out of the kernel's tree, signed where Linux looks for modules, and once not"
LICENSE = "GPL-2.0-only"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/GPL-2.0-only;md5=801f80980d171dd6425610833a22dbe6"
SRC_URI = "file://Makefile file://lab_module.c"
S = "${UNPACKDIR}/lab-module"

inherit module
require ../lab-gcc.inc

do_configure:prepend() {
    cp ${UNPACKDIR}/Makefile ${UNPACKDIR}/lab_module.c ${S}
}
do_configure[cleandirs] += "${S}"

do_install:append() {
    install -D -m 0644 lab_module.ko ${D}/t/unsigned/lab_module.ko
}
PACKAGES =+ "${PN}-unsigned"
FILES:${PN}-unsigned = "/t"
