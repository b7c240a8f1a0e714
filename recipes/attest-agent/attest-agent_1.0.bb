# What it reports to is in attest-agent-conf, so that one build of the program serves all machines of an
# architecture. attest-image puts both into images where ATTEST_VERIFIER_URL is set.
#
# The package attest-agent-actions has what runs programs on notices of other devices, as root, and examples of
# such programs in /usr/share/attest-agent/actions. attest-agent-conf brings it where ATTEST_ACTIONS is set.
#
# PACKAGECONFIG: "pull" adds the port at which Keylime's verifier polls devices. It is there where ATTEST_LISTEN is set,
# and nothing listens until a setting says so.
SUMMARY = "Proves to a verifier what this device runs"
SUMMARY:${PN}-actions = "Runs local programs when the verdict of a device changes"
DESCRIPTION = "Sends TPM quotes and the kernel's measurement list to an attest-verifier, or to Keylime's; verifies the running system without a network; explains what is missing. It has no open port unless it is told to be polled."
HOMEPAGE = "https://github.com/meta-attest/meta-attest"
SECTION = "security"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://src/${GO_IMPORT}/COPYING.MIT;md5=fff198021500c834bee15c1eb026ecf5"

require attest-agent-go-mods.inc
require attest-agent-licenses.inc

# As in attest: the sources lie beside the recipe.
# nooelint: oelint.vars.fileextrapaths oelint.vars.outofcontext
FILESEXTRAPATHS:prepend := "${ATTEST_BASE}:"
IN_SOURCE = "subdir=${BP}/src/${GO_IMPORT}"
SRC_URI += "\
    file://COPYING.MIT;${IN_SOURCE} \
    file://go.mod;${IN_SOURCE} \
    file://go.sum;${IN_SOURCE} \
    file://tools/attest-agent;${IN_SOURCE} \
    file://tools/internal;${IN_SOURCE} \
    "
S = "${UNPACKDIR}/${BP}"

GO_IMPORT = "github.com/meta-attest/meta-attest"
GO_INSTALL = "${GO_IMPORT}/tools/attest-agent"
# The protocol has no HTTP/2, which is a megabyte.
GO_TAGS = "nethttpomithttp2"
GO_TAGS:append = " ${@bb.utils.contains('PACKAGECONFIG', 'pull', '', 'nopull', d)}"

inherit attest-go features_check systemd useradd
REQUIRED_DISTRO_FEATURES = "integrity"

# A static program that needs nothing of the image; see attest.
CGO_ENABLED = "0"
GOBUILDFLAGS:remove:class-target = "-buildmode=pie"
GO_LINKSHARED = ""
GO_RPATH = ""
GO_LINUXLOADER = ""
GO_EXTRA_LDFLAGS += "-buildid="
# Inlining costs half a megabyte, and functions that begin at multiples of 32 bytes 180 kilobytes: neither
# helps one request a minute.
GOBUILDFLAGS:append = " -gcflags=all=-l"
GO_EXTRA_LDFLAGS:append:x86-64 = " -funcalign=1"

PACKAGECONFIG ??= "${@'pull' if d.getVar('ATTEST_LISTEN') else ''}"
PACKAGECONFIG[pull] = ""

SYSTEMD_PACKAGES = "${PN} ${PN}-actions"
SYSTEMD_SERVICE:${PN} = "attest-agent.service"
SYSTEMD_SERVICE:${PN}-actions = "attest-agent-actions.service attest-agent-actions.path"

# Whom the agent becomes once the TPM and the kernel's lists are open.
USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --user-group --no-create-home --home-dir ${localstatedir}/lib/attest-agent --shell /sbin/nologin attest"

do_install() {
    source=${S}/src/${GO_IMPORT}/tools/attest-agent
    install -D -m 0755 ${B}/${GO_BUILD_BINDIR}/attest-agent ${D}${bindir}/attest-agent
    install -d ${D}${datadir}/attest-agent/actions
    install -m 0755 $source/actions/isolate-peer $source/actions/remove-ssh-keys ${D}${datadir}/attest-agent/actions/
    install -D -m 0644 $source/attest-agent.1 ${D}${mandir}/man1/attest-agent.1
    if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
        install -d ${D}${systemd_system_unitdir}
        install -m 0644 $source/attest-agent.service $source/attest-agent-actions.service $source/attest-agent-actions.path ${D}${systemd_system_unitdir}/
    fi
}

PACKAGES =+ "${PN}-actions"
FILES:${PN}-actions += "${datadir}/attest-agent/actions"
RDEPENDS:${PN}-actions = "${PN}"
