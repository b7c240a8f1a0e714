# Set in local.conf:
#
#   ATTEST_VERIFIER_URL = "https://attest.example.com:8881"
#   ATTEST_VERIFIER_CA = "/secure/verifier-ca.crt"      a file in PEM: who signed the verifier's certificate
#
# attest-agent verify, on the device, asks whether ATTEST_CA issued the certificates of the image, and whether its files are
# what the manifest says that attest-image put into it (ATTEST_MANIFEST).
#
# A device that is told more has it in /etc/attest/agent.d/*.toml.
SUMMARY = "The verifier that attest-agent reports to"
DESCRIPTION = "/etc/attest/agent.toml, the CA certificate of the verifier and that of the image, from ATTEST_VERIFIER_URL, ATTEST_VERIFIER_CA and ATTEST_CA."
HOMEPAGE = "https://github.com/meta-attest/meta-attest"
SECTION = "security"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${ATTEST_BASE}/COPYING.MIT;md5=fff198021500c834bee15c1eb026ecf5"

SRC_URI = ""
S = "${UNPACKDIR}"

inherit attest-variables

PACKAGE_ARCH = "${MACHINE_ARCH}"
INHIBIT_DEFAULT_DEPS = "1"

python () {
    import os
    url, ca = d.getVar('ATTEST_VERIFIER_URL'), d.getVar('ATTEST_VERIFIER_CA')
    if not url or not ca:
        raise bb.parse.SkipRecipe('ATTEST_VERIFIER_URL and ATTEST_VERIFIER_CA are not both set')
    if not url.startswith('https://') or '"' in url or '\\' in url:
        raise bb.parse.SkipRecipe('ATTEST_VERIFIER_URL is not https://HOST:PORT')
}

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    grep -q -e '-----BEGIN CERTIFICATE-----' "${ATTEST_VERIFIER_CA}" || bbfatal "ATTEST_VERIFIER_CA: ${ATTEST_VERIFIER_CA} is no certificate in PEM"
    install -d ${D}${sysconfdir}/attest/agent.d
    install -m 0644 "${ATTEST_VERIFIER_CA}" ${D}${sysconfdir}/attest/verifier-ca.crt
    printf 'verifier_url = "%s"\nca = "%s"\n' "${ATTEST_VERIFIER_URL}" "${sysconfdir}/attest/verifier-ca.crt" > ${D}${sysconfdir}/attest/agent.toml
    if [ -n "${ATTEST_CA}" ]; then
        install -m 0644 "${ATTEST_CA}" ${D}${sysconfdir}/attest/image-ca.crt
        printf 'manifest_ca = "%s"\n' "${sysconfdir}/attest/image-ca.crt" >> ${D}${sysconfdir}/attest/agent.toml
        [ -z "${ATTEST_MANIFEST}" ] || printf 'manifest = "%s"\n' "${ATTEST_MANIFEST}" >> ${D}${sysconfdir}/attest/agent.toml
    fi
    chmod 0644 ${D}${sysconfdir}/attest/agent.toml
}
do_install[file-checksums] += "${@' '.join('%s:True' % path for path in (d.getVar('ATTEST_VERIFIER_CA'), d.getVar('ATTEST_CA')) if path)}"

CONFFILES:${PN} = "${sysconfdir}/attest/agent.toml"
