# For an initramfs. An image that attest-image signs gets its certificates there: by a package, a new one would
# mean do_rootfs.
SUMMARY = "Certificates of the signing key, where the kernel and attest-init load them"
DESCRIPTION = "/etc/keys/x509_ima.der is ATTEST_CERT in DER; with ATTEST_EVM, x509_evm.der is the same, as one key makes both kinds of signatures. A kernel takes them only if the CA that is compiled in signed them."
HOMEPAGE = "https://github.com/meta-attest/meta-attest"
SECTION = "security"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${ATTEST_BASE}/COPYING.MIT;md5=fff198021500c834bee15c1eb026ecf5"

DEPENDS = "attest-native"

SRC_URI = ""
S = "${UNPACKDIR}"

inherit attest-sanity

ATTEST_NEEDS = "ATTEST_CERT"
# ATTEST_CERT may be another for each machine.
PACKAGE_ARCH = "${MACHINE_ARCH}"
INHIBIT_DEFAULT_DEPS = "1"

python do_compile() {
    attest_run(d, ['keys', 'convert', d.getVar('ATTEST_CERT'), '--output', d.expand('${B}/x509_ima.der')])
}
do_compile[file-checksums] += "${ATTEST_CERT}:True"

do_install() {
    install -d ${D}${sysconfdir}/keys
    install -m 0644 ${B}/x509_ima.der ${D}${sysconfdir}/keys/
    if ${@bb.utils.contains('ATTEST_EVM', '1', 'true', 'false', d)}; then
        install -m 0644 ${B}/x509_ima.der ${D}${sysconfdir}/keys/x509_evm.der
    fi
}

# What meta-integrity calls it.
RPROVIDES:${PN} += "ima-evm-keys"
