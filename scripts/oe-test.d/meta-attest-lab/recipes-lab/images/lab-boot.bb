SUMMARY = "The image that tools/oetest/boot_test.go boots"
LICENSE = "MIT"
LAB_BOOT_INSTALL ?= ""
IMAGE_INSTALL = "base-files lab-busybox lab-guest ${LAB_BOOT_INSTALL}"
IMAGE_FEATURES = ""
IMAGE_LINGUAS = ""
inherit image
# image.bbclass adds run-postinsts, which is not here.
PACKAGE_INSTALL = "${IMAGE_INSTALL}"

# Where the guest finds them without knowing the version of the kernel.
lab_boot_modules() {
    install -d ${IMAGE_ROOTFS}/t/modules
    find ${IMAGE_ROOTFS}${nonarch_base_libdir}/modules -name '*.ko' -exec cp {} ${IMAGE_ROOTFS}/t/modules/ \;
}
ROOTFS_POSTPROCESS_COMMAND += "${@'lab_boot_modules' if d.getVar('LAB_BOOT_INSTALL') else ''}"
