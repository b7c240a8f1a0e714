SUMMARY = "The host's static busybox: a shell and an init without a cross compiler"
LICENSE = "GPL-2.0-only"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/GPL-2.0-only;md5=801f80980d171dd6425610833a22dbe6"
INHIBIT_DEFAULT_DEPS = "1"

LAB_BUSYBOX ?= "/bin/busybox"

do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install() {
    install -D -m 0755 ${LAB_BUSYBOX} ${D}${base_bindir}/busybox
    install -d ${D}${base_sbindir}
    for i in cat cp echo grep ls mkdir mount ps sh sleep sync umount uname; do
        ln -s busybox ${D}${base_bindir}/$i
    done
    for i in init poweroff reboot; do
        ln -sr ${D}${base_bindir}/busybox ${D}${base_sbindir}/$i
    done
}
do_install[file-checksums] += "${LAB_BUSYBOX}:True"

PACKAGES = "${PN}"
FILES:${PN} = "${base_bindir} ${base_sbindir}"
# Debian's binary: stripped, with its own linker flags.
INSANE_SKIP:${PN} += "already-stripped ldflags arch"
