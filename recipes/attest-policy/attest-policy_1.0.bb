# Who loads it, from /etc/ima/ima-policy: attest-init; or systemd, before it starts anything else (its
# PACKAGECONFIG has ima, unless somebody took it out). Nobody does in a system with another init
# and no attest-init: there the policies of the kernel are left, ima_policy= on its command line.
SUMMARY = "IMA policy, where attest-init and systemd load it"
DESCRIPTION = "ATTEST_POLICY as /etc/ima/ima-policy. What a kernel would refuse, or what never does what it says, fails the build; the log of do_compile has the warnings."
HOMEPAGE = "https://github.com/meta-attest/meta-attest"
SECTION = "security"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${ATTEST_BASE}/COPYING.MIT;md5=fff198021500c834bee15c1eb026ecf5"

DEPENDS = "attest-native"

SRC_URI = ""
S = "${UNPACKDIR}"

inherit attest-sanity

ATTEST_NEEDS = ""
# ATTEST_POLICY may be another for each machine, and so may the kernel be.
PACKAGE_ARCH = "${MACHINE_ARCH}"
INHIBIT_DEFAULT_DEPS = "1"

# The Linux that is to load it, "6.6": of the preferred version of the preferred kernel. Without one the
# newest is meant that attest knows.
POLICY_KERNEL ?= "${@policy_kernel(d)}"

def policy_kernel(d):
    import re
    version = d.getVar('PREFERRED_VERSION_' + (d.getVar('PREFERRED_PROVIDER_virtual/kernel') or '')) or ''
    known = re.match(r'\d+\.\d+(?=[.%]|$)', version)
    return known.group(0) if known else ''

python () {
    if not d.getVar('ATTEST_POLICY'):
        raise bb.parse.SkipRecipe('ATTEST_POLICY is empty: name one of policies/ or a file')
}

python do_compile() {
    import shutil
    policy = attest_policy_file(d)
    shutil.copyfile(policy, d.expand('${B}/ima-policy'))
    kernel = d.getVar('POLICY_KERNEL')
    attest_run(d, ['policy', 'check', policy] + (['--kernel', kernel] if kernel else []))
}
do_compile[file-checksums] += "${@attest_policy_file(d)}:True"

do_install() {
    install -d ${D}${sysconfdir}/ima
    install -m 0644 ${B}/ima-policy ${D}${sysconfdir}/ima/
}
