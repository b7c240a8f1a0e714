SUMMARY = "The Python package of QEMU's protocol where testimage looks for it"
LICENSE = "LGPL-2.0-or-later & GPL-2.0-only"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/GPL-2.0-only;md5=801f80980d171dd6425610833a22dbe6"
INHIBIT_DEFAULT_DEPS = "1"
inherit native

# A folder with the package qemu.qmp: pip3 install --target FOLDER qemu.qmp==0.0.6
LAB_QMP ?= ""
python () {
    if not d.getVar('LAB_QMP'):
        raise bb.parse.SkipRecipe('LAB_QMP is not set')
}

do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install() {
    install -d ${D}${libdir}/qemu-python
    cp -r --no-preserve=ownership ${LAB_QMP}/qemu/qmp ${D}${libdir}/qemu-python/qmp
}
do_install[vardepsexclude] += "LAB_QMP"
do_install[file-checksums] += "${LAB_QMP}/qemu/qmp/legacy.py:True"
