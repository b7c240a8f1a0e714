# Signs kernel modules, those of the kernel's recipe and those of recipes that inherit module, with a
# key that the build of the kernel never sees.
#
#   DISTRO_FEATURES:append = " integrity modsign"      in local.conf, for all recipes
#
# MODSIGN_PRIVKEY   the private key: a PEM file or a key URI (pkcs11:, hashivault://); default
#                   ${ATTEST_KEY_DIR}/modsign.key
# MODSIGN_X509      its certificate, issued by ATTEST_CA; default ${ATTEST_KEY_DIR}/modsign.crt
#
# How it works. CONFIG_MODULE_SIG_KEY would compile the certificate into the kernel: beside the CA, where
# its key could issue certificates for .ima (Linux does not ask whether an issuer is a CA), and into .ima
# itself. And the key would lie in ${B}, from where kernel.bbclass copies it into work-shared for others to
# sign with. Here neither is so: each signature carries the certificate, and the kernel accepts that
# because ATTEST_CA issued it. A module that is not signed is refused also from an initramfs, where IMA
# sees no labels. The other side of it: every certificate that ATTEST_CA issued may sign modules.
#
# Signing is the last step of do_install, so that packages, sysroot and the tarball of modules
# have the same files; a new key runs do_install again, not do_compile. Before it modules are stripped of
# debugging information, as do_package would, had they no signature to lose (INHIBIT_PACKAGE_STRIP = "1"
# leaves it there, and then modules are large). CONFIG_MODULE_COMPRESS is an error: what is compressed
# cannot be signed.

inherit attest-variables
# Other recipes have nothing to be checked for.
inherit_defer ${@'attest-sanity' if attest_has_modules(d) else ''}

ATTEST_NEEDS:append = " MODSIGN_PRIVKEY MODSIGN_X509"

def attest_has_modules(d):
    return bb.data.inherits_class('kernel', d) or bb.data.inherits_class('module', d)

python () {
    if not attest_has_modules(d):
        return
    kernel = bb.data.inherits_class('kernel', d)
    if kernel and not bb.data.inherits_class('attest-kernel', d):
        raise bb.parse.SkipRecipe('meta-attest: this kernel would not trust ATTEST_CA, which issued the certificate of who signs its modules: '
            'in a bbappend, inherit attest-kernel')
    if kernel:
        fragment = d.expand('${ATTEST_BASE}/recipes/linux/files/modsign.cfg')
        d.appendVar('ATTEST_KERNEL_FRAGMENTS', ' ' + fragment)
        d.appendVarFlag('do_configure', 'file-checksums', ' %s:True' % fragment)
    for name in ('MODSIGN_PRIVKEY', 'MODSIGN_X509', 'ATTEST_CA'):
        value = d.getVar(name)
        if value and not attest_is_uri(value):
            d.appendVarFlag('do_install', 'file-checksums', ' %s:True' % value)
    d.appendVarFlag('do_install', 'depends', ' attest-native:do_populate_sysroot')
    d.appendVarFlag('do_install', 'postfuncs', ' attest_modsign_strip attest_modsign')
    if attest_is_uri(d.getVar('MODSIGN_PRIVKEY')):
        d.setVarFlag('do_install', 'network', '1')
}

ATTEST_MODULES = "${D}${nonarch_base_libdir}/modules"
ATTEST_MODULES[doc] = "Where attest-modsign looks for modules."

attest_modsign_strip() {
    if [ "${INHIBIT_PACKAGE_STRIP}" != 1 ] && [ -d ${ATTEST_MODULES} ]; then
        find ${ATTEST_MODULES} -name '*.ko' -type f -exec ${KERNEL_STRIP} --strip-debug --remove-section=.comment --remove-section=.note --preserve-dates {} +
    fi
}

python attest_modsign() {
    if not os.path.isdir(d.getVar('ATTEST_MODULES')):
        return
    args = ['kernel', 'modules', d.getVar('ATTEST_MODULES'), '--key', d.getVar('MODSIGN_PRIVKEY'), '--cert', d.getVar('MODSIGN_X509'),
        '--ca', d.getVar('ATTEST_CA')]
    for warning in attest_run(d, args + attest_arguments(d)):
        bb.warn(warning)
}
