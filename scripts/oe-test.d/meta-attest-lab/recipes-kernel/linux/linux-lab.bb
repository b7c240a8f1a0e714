SUMMARY = "The lab's kernel: the distribution's Linux source through OE-core's kernel.bbclass"
DESCRIPTION = "Compiled by the host's gcc, with the configuration that scripts/kernel.d has for QEMU."
LICENSE = "GPL-2.0-only"
LIC_FILES_CHKSUM = "file://COPYING;md5=6bc538ed5bd9a7fc9398086aedcd7e46"

LAB_LINUX ?= "${@lab_linux()}"
def lab_linux():
    import glob, re
    return max(glob.glob('/usr/src/linux-source-*.tar.xz'), key=lambda f: [int(n) for n in re.findall('[0-9]+', f)], default='')

python () {
    if not d.getVar('LAB_LINUX'):
        raise bb.parse.SkipRecipe('no /usr/src/linux-source-*.tar.xz: as root, apt-get install linux-source')
}
LAB_LINUX_NAME = "${@os.path.basename(d.getVar('LAB_LINUX')).removesuffix('.tar.xz')}"
PV = "${@d.getVar('LAB_LINUX_NAME').removeprefix('linux-source-') or '0'}"

FILESEXTRAPATHS:prepend := "${THISDIR}/../../../../kernel.d:"
SRC_URI = "file://${LAB_LINUX} file://lab.cfg"

inherit kernel
S = "${UNPACKDIR}/${LAB_LINUX_NAME}"

require ../lab-gcc.inc

COMPATIBLE_MACHINE = "qemux86-64"
KERNEL_IMAGETYPE = "bzImage"

do_configure:prepend() {
    cp ${UNPACKDIR}/lab.cfg ${B}/lab.config
    oe_runmake_call -C ${S} O=${B} KCONFIG_ALLCONFIG=${B}/lab.config allnoconfig
}
