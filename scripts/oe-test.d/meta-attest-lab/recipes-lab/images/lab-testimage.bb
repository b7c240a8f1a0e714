SUMMARY = "The image that testimage boots: a root shell on the serial line, after the policy was loaded"
LICENSE = "MIT"
IMAGE_INSTALL = "base-files lab-busybox"
IMAGE_FEATURES = "allow-empty-password empty-root-password allow-root-login"
IMAGE_LINGUAS = ""
inherit image
# image.bbclass adds run-postinsts, which is not here.
PACKAGE_INSTALL = "${IMAGE_INSTALL}"

IMAGE_CLASSES += "testimage"
TEST_SUITES = "attest"
do_testimage[depends] += "lab-qmp-native:do_populate_sysroot"
# The host's QEMU, without KVM and without a network of its own.
TEST_RUNQEMUPARAMS = "slirp nographic"
QEMU_USE_KVM = ""
SERIAL_CONSOLES = "115200;ttyS0"
QB_DEFAULT_FSTYPE = "ext4"
TESTIMAGE_BOOT_PATTERNS = "search_reached_prompt send_login_user search_login_succeeded search_cmd_finished"
TESTIMAGE_BOOT_PATTERNS[search_reached_prompt] = "Please press Enter"
TESTIMAGE_BOOT_PATTERNS[send_login_user] = "\n"
TESTIMAGE_BOOT_PATTERNS[search_login_succeeded] = "/ # "
TESTIMAGE_BOOT_PATTERNS[search_cmd_finished] = "/ # $"

# busybox is no systemd, and there is no initramfs: its init loads the policy itself.
lab_inittab() {
    cat > ${IMAGE_ROOTFS}${sysconfdir}/inittab <<'END'
::sysinit:/bin/mount -t proc proc /proc
::sysinit:/bin/mount -t sysfs sysfs /sys
::sysinit:/bin/mount -t securityfs securityfs /sys/kernel/security
::sysinit:/bin/mount -t tmpfs tmpfs /run
::sysinit:/bin/sh -c 'echo /etc/ima/ima-policy > /sys/kernel/security/ima/policy'
ttyS0::askfirst:/bin/sh
END
}
ROOTFS_POSTPROCESS_COMMAND += "lab_inittab"

# runqemu takes the host's QEMU; the folder that it is told has none here, and then it would ask bitbake, which is busy.
lab_host_qemu() {
    sed -i 's|^staging_bindir_native = .*|staging_bindir_native = /usr/bin|' ${IMGDEPLOYDIR}/${IMAGE_NAME}.qemuboot.conf
}
do_write_qemuboot_conf[postfuncs] += "lab_host_qemu"
