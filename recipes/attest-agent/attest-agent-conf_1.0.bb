# Set in local.conf:
#
#   ATTEST_VERIFIER_URL = "https://attest.example.com:8881"
#   ATTEST_VERIFIER_CA = "/secure/verifier-ca.crt"      a file in PEM: who signed the verifier's certificate
#
# and, if wanted:
#
#   ATTEST_REGISTRAR_URL = "https://attest.example.com:8891"
#   ATTEST_NOTICE_CA = "/secure/notices.crt"             who signs notices of other devices
#   ATTEST_ACTIONS = "isolate-peer /secure/stop-pump"    what the device runs on them, as root
#   ATTEST_SECRETS_EXECUTE = "1"                         secrets may say what is to be run
#   ATTEST_LISTEN = "0.0.0.0:9002"                       the device is polled, as Keylime does it
#   ATTEST_LISTEN_CA = "/secure/keylime-ca.crt"          who may
#
# attest-agent verify, on the device, asks whether ATTEST_CA issued the certificates of the image, and whether its files are
# what the manifest says that attest-image put into it (ATTEST_MANIFEST).
#
# A device that is told more has it in /etc/attest/agent.d/*.toml.
SUMMARY = "The verifier that attest-agent reports to"
DESCRIPTION = "/etc/attest: agent.toml, the CA certificates of the verifier and of the image, and actions.d, the programs that notices start."
HOMEPAGE = "https://github.com/meta-attest/meta-attest"
SECTION = "security"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${ATTEST_BASE}/COPYING.MIT;md5=fff198021500c834bee15c1eb026ecf5"

SRC_URI = ""
S = "${UNPACKDIR}"

inherit attest-variables attest-sanity

PACKAGE_ARCH = "${MACHINE_ARCH}"
INHIBIT_DEFAULT_DEPS = "1"
# No keys: nothing is signed here.
ATTEST_EXEMPT = "1"

python () {
    if not attest_has_agent(d):
        raise bb.parse.SkipRecipe('ATTEST_VERIFIER_URL is not set')
    problems = attest_agent_problems(d)
    if problems:
        raise bb.parse.SkipRecipe('\n  '.join(['meta-attest: these settings cannot be built with:'] + problems))
}

def attest_agent_files(d):
    """Files of the build host that are in the package."""
    return [path for path in map(d.getVar, ('ATTEST_VERIFIER_CA', 'ATTEST_NOTICE_CA', 'ATTEST_LISTEN_CA', 'ATTEST_CA')) if path] + attest_action_files(d)

do_configure[noexec] = "1"
do_compile[noexec] = "1"

SETTINGS = "${sysconfdir}/attest/agent.toml"

# NAME VARIABLE FILE
attest_file() {
    ! grep -q -e 'PRIVATE KEY-----' "$3" || bbfatal "$2: $3 has a private key, too, which everybody could read in the image: give the certificate alone"
    install -m 0644 "$3" ${D}${sysconfdir}/attest/$1
}

# SETTING NAME VARIABLE FILE
attest_certificate() {
    [ -n "$4" ] || return 0
    grep -q -e '-----BEGIN CERTIFICATE-----' "$4" || bbfatal "$3: $4 is no certificate in PEM"
    attest_file "$2" "$3" "$4"
    printf '%s = "%s"\n' $1 ${sysconfdir}/attest/$2 >> ${D}${SETTINGS}
}

# SETTING VALUE
attest_setting() {
    [ -z "$2" ] || printf '%s = "%s"\n' $1 "$2" >> ${D}${SETTINGS}
}

do_install() {
    install -d ${D}${sysconfdir}/attest/agent.d ${D}${sysconfdir}/attest/actions.d
    : > ${D}${SETTINGS}
    attest_setting verifier_url "${ATTEST_VERIFIER_URL}"
    attest_setting registrar_url "${ATTEST_REGISTRAR_URL}"
    attest_certificate ca verifier-ca.crt ATTEST_VERIFIER_CA "${ATTEST_VERIFIER_CA}"
    if [ -n "${ATTEST_CA}" ]; then
        attest_file image-ca.crt ATTEST_CA "${ATTEST_CA}"
        attest_setting manifest_ca ${sysconfdir}/attest/image-ca.crt
        attest_setting manifest "${ATTEST_MANIFEST}"
    fi
    attest_certificate notice_ca notices.crt ATTEST_NOTICE_CA "${ATTEST_NOTICE_CA}"
    attest_setting secrets_execute "${@'1' if d.getVar('ATTEST_SECRETS_EXECUTE') == '1' else ''}"
    attest_setting listen "${ATTEST_LISTEN}"
    attest_certificate listen_ca listen-ca.crt ATTEST_LISTEN_CA "${ATTEST_LISTEN_CA}"
    for action in ${@' '.join("'%s'" % path for path in attest_action_files(d))}; do
        install -m 0755 "$action" ${D}${sysconfdir}/attest/actions.d/
    done
    chmod 0644 ${D}${SETTINGS}
}
do_install[file-checksums] += "${@' '.join('%s:True' % path for path in attest_agent_files(d))}"

CONFFILES:${PN} = "${SETTINGS}"
RDEPENDS:${PN} = "${@'attest-agent-actions' if d.getVar('ATTEST_ACTIONS') else 'attest-agent'}"
