SUMMARY = "What makes a device refuse changed files, and lets it look at them"
DESCRIPTION = "attest, to verify files and explain policies on the device, the policy, and the agent where a verifier is named. An image gets its certificates from attest-image."
HOMEPAGE = "https://github.com/meta-attest/meta-attest"
SECTION = "security"

# Its contents depend on ATTEST_POLICY and ATTEST_VERIFIER_URL, which may be of a machine.
PACKAGE_ARCH = "${MACHINE_ARCH}"
inherit packagegroup features_check attest-variables
REQUIRED_DISTRO_FEATURES = "integrity"

# nooelint: oelint.vars.dependsordered - three are expressions
RDEPENDS:${PN} = "\
    ${@'attest-policy' if d.getVar('ATTEST_POLICY') else ''} \
    ${@'attest-agent attest-agent-conf' if attest_has_agent(d) else ''} \
    ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'attest-systemd', '', d)} \
    attest \
    "
# What meta-integrity calls it.
RPROVIDES:${PN} += "packagegroup-ima-evm-utils"
