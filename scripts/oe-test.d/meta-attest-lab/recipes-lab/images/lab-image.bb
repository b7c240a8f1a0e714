SUMMARY = "A small image, made by OE-core's classes from packages"
LICENSE = "MIT"
IMAGE_INSTALL = "base-files lab-busybox lab-odd"
IMAGE_FEATURES = ""
IMAGE_LINGUAS = ""
inherit image
# image.bbclass adds run-postinsts, which is not here.
PACKAGE_INSTALL = "${IMAGE_INSTALL}"

# Names that no package format takes, and a change that comes after every other class's.
lab_odd_names() {
    # OE-core gives cpio its names a line each.
    case "${IMAGE_FSTYPES}" in
    *cpio*) ;;
    *) printf 'x' > "${IMAGE_ROOTFS}${datadir}/lab-odd/$(printf 'new\nline')" ;;
    esac
    printf 'x' > "${IMAGE_ROOTFS}${datadir}/lab-odd/$(printf 'latin-\351')"
    echo 'late' > ${IMAGE_ROOTFS}${sysconfdir}/lab-late
}
IMAGE_PREPROCESS_COMMAND:append = " lab_odd_names"
