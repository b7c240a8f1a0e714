SUMMARY = "core-image-minimal with every file signed"
DESCRIPTION = "What a device needs to boot, the tools, the certificates and the IMA policy; every file is signed."
HOMEPAGE = "https://github.com/meta-attest/meta-attest"
SECTION = "images"
LICENSE = "MIT"

# What is not signed does not run; ATTEST_POLICY = "measure-only" in local.conf, to begin with, only tells.
IMAGE_INSTALL = "packagegroup-core-boot packagegroup-attest ${CORE_IMAGE_EXTRA_INSTALL}"
IMAGE_LINGUAS = ""
IMAGE_FSTYPES += "ext4 squashfs"

inherit core-image attest-image

# For runqemu: a refused file is named on the console, each time.
QB_KERNEL_CMDLINE_APPEND:append = " audit=1 printk.devkmsg=on"
