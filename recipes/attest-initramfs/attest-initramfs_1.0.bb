# For initramfs images that OE-core's initramfs-framework makes. In one that needs no more than to find the
# root, attest-init does it alone: install attest-init-link in place of initramfs-framework-base.
#
# The module runs after the root is mounted, and in place of finish: once a policy is loaded that
# appraises programs, no program of an initramfs runs any more, since an archive of cpio has no
# labels, and a policy that left out the initramfs's filesystem would leave out every tmpfs. So it
# executes attest-switch-root, which loads certificates and policy, enters the root and executes init.
#
# On the kernel's command line: attest=enforce (nothing goes on after a failure), attest.policy=, attest.evm=, ro,
# rw, init=, as attest-init takes them. Leave out what opens a shell before: the module debug, init_fatal_sh.
SUMMARY = "initramfs-framework module that loads certificates and an IMA policy"
DESCRIPTION = "Executes attest-switch-root in place of the module finish; with the label of ATTEST_POLICY, which an archive of cpio cannot hold."
HOMEPAGE = "https://github.com/meta-attest/meta-attest"
SECTION = "security"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${ATTEST_BASE}/COPYING.MIT;md5=fff198021500c834bee15c1eb026ecf5"

DEPENDS = "attest-native"

SRC_URI = "file://attest"
S = "${UNPACKDIR}"
B = "${WORKDIR}/build"

inherit attest-sanity

# The policy is signed by itself: its label lies beside it, as there is no place for it in an archive.
ATTEST_NEEDS = "${@'ATTEST_KEY ATTEST_CERT' if d.getVar('ATTEST_POLICY') else ''}"
PACKAGE_ARCH = "${MACHINE_ARCH}"
INHIBIT_DEFAULT_DEPS = "1"

python do_compile() {
    import shutil
    if not d.getVar('ATTEST_POLICY'):
        return
    policy = d.expand('${B}/ima-policy')
    shutil.copyfile(attest_policy_file(d), policy)
    args = ['policy', 'sign', policy, '--beside', '--key', d.getVar('ATTEST_KEY'), '--cert', d.getVar('ATTEST_CERT')]
    if bb.utils.to_boolean(d.getVar('ATTEST_EVM')):
        args += ['--evm', '--target', d.getVar('ATTEST_TARGET')]
    for warning in attest_run(d, args + attest_arguments(d)):
        bb.warn(warning)
}
do_compile[cleandirs] = "${B}"
# As in attest-image the certificate stands for the key.
do_compile[file-checksums] += "${@'%s:True %s:True' % (attest_policy_file(d), d.getVar('ATTEST_CERT')) if d.getVar('ATTEST_POLICY') else ''}"
# nooelint: oelint.task.network - the key may be in a service
do_compile[network] = "${@'1' if attest_is_uri(d.getVar('ATTEST_KEY')) else '0'}"

do_install() {
    install -D -m 0755 ${S}/attest ${D}/init.d/95-attest
    for label in sig evm; do
        [ ! -e ${B}/ima-policy.$label ] || install -D -m 0644 ${B}/ima-policy.$label ${D}${sysconfdir}/ima/ima-policy.$label
    done
}

FILES:${PN} += "/init.d"
RDEPENDS:${PN} = "${@'attest-policy' if d.getVar('ATTEST_POLICY') else ''} attest-certificates attest-init initramfs-framework-base"
# What meta-integrity calls it.
RPROVIDES:${PN} += "initramfs-framework-ima"
