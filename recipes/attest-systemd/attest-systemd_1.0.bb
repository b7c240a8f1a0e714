# For policies under which the kernel writes a digest into security.ima of each file that is made or changed
# ("appraise" without func=, as the policies of meta-integrity have it). It does so when the file is closed,
# so after the fsync of who wrote it, and the filesystem need not write it down for a long time (systemd
# issue 2619). After a power cut the label is then of older content, or missing, and the file cannot be
# opened: machine-id and random-seed are written in every, or in the first, boot. The policies of
# this layer that appraise what runs have no need of it.
#
# A package of drop-ins, and no bbappend: systemd stays as it was built.
SUMMARY = "Has systemd write labels of its state to the disk at once"
DESCRIPTION = "Drop-ins for systemd-machine-id-commit.service and systemd-random-seed.service."
HOMEPAGE = "https://github.com/meta-attest/meta-attest"
SECTION = "security"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${ATTEST_BASE}/COPYING.MIT;md5=fff198021500c834bee15c1eb026ecf5"

inherit features_check allarch
REQUIRED_DISTRO_FEATURES = "integrity systemd"

SRC_URI = "file://sync-start.conf file://sync-stop.conf"
S = "${UNPACKDIR}"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    units=${D}${systemd_system_unitdir}
    install -D -m 0644 ${S}/sync-start.conf $units/systemd-machine-id-commit.service.d/attest.conf
    install -D -m 0644 ${S}/sync-start.conf $units/systemd-random-seed.service.d/attest.conf
    install -D -m 0644 ${S}/sync-stop.conf $units/systemd-random-seed.service.d/attest-stop.conf
}

FILES:${PN} += "${systemd_system_unitdir}"
