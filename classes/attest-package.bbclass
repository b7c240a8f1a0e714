# Signs packages while they are made, so that files which a package manager installs or upgrades on
# the device later have labels that the kernel accepts, from the moment they have their names.
#
#   INHERIT += "attest-package"         in local.conf: all packages, and the package manager of the image
#   ATTEST_KEY_DIR = "/secure/keys"
#
# ATTEST_KEY, ATTEST_CERT, ATTEST_CONFIG, ATTEST_EVM, ATTEST_TARGET, ATTEST_PASSPHRASE_FILE, ATTEST_KEY_ENV and
# ATTEST_ALLOW_DEBUG_KEYS mean what they mean to attest-image: see attest-variables.bbclass. A path in
# ATTEST_CONFIG is one in the image: the same rules hold for a file of a package. Another certificate, or
# other rules, make the packages anew, and compile nothing.
#
# deb, ipk  A control file, attest-labels, holds the labels of the files and of the maintainer scripts,
#           signed as a whole. The packages dpkg and opkg get the program attest-labels in the place of
#           dpkg-deb and opkg (the real ones become *.distrib): it verifies the list and each
#           file, and sets labels before dpkg renames a file or opkg runs a script. What does not hold
#           is refused; so is a package without a list: every feed that a device uses must be signed.
#             Signing some recipes only ("inherit attest-package" in them) leaves dpkg and opkg as they
#           are. Labels are then set by hand, on the device: attest-labels apply PACKAGE
# rpm       rpm has signatures of files of its own, which this class adds as "rpmsign --signfiles" does, and a
#           plugin that sets them as labels before a file gets its name. OE-core builds the plugin only where a
#           layer has ima-evm-utils (meta-security does):
#               PACKAGECONFIG:append:pn-rpm = " plugins imaevm"
#           rpm does not label configuration files: add "%_ima_sign_config_files 1" to /etc/rpm/macros for that.
#           A package without signatures is installed, and the kernel refuses what is in it.
#
# What this does not do: see SECURITY.md, "Packages".

inherit attest-variables

DPKG_BUILDCMD:prepend:class-target = "${@attest_package_command(d)}"
OPKGBUILDCMD:prepend:class-target = "${@attest_package_command(d)}"

def attest_package_command(d):
    """The command that stands before the one that makes a package of a folder."""
    import shlex
    args = attest_package_arguments(d, 'build')
    if bb.utils.to_boolean(d.getVar('ATTEST_EVM')):
        args += ['--evm', '--target', d.getVar('ATTEST_TARGET')]
    return ' '.join(map(shlex.quote, args + ['--'])) + ' '

def attest_package_arguments(d, verb):
    args = ['attest', 'package', verb, '--key', d.getVar('ATTEST_KEY'), '--cert', d.getVar('ATTEST_CERT')]
    for flag, name in (('--config', 'ATTEST_CONFIG'), ('--passphrase-file', 'ATTEST_PASSPHRASE_FILE'),
            ('--find-signed', 'IMA_EVM_ROOTFS_SIGNED'), ('--find-hashed', 'IMA_EVM_ROOTFS_HASHED')):
        if d.getVar(name):
            args += [flag, d.getVar(name)]
    for flag, name in (('--allow-debug-keys', 'ATTEST_ALLOW_DEBUG_KEYS'), ('--allow-expired', 'ATTEST_ALLOW_EXPIRED')):
        if bb.utils.to_boolean(d.getVar(name)):
            args.append(flag)
    return args

python () {
    if not bb.data.inherits_class('package', d) or 'class-target' not in d.getVar('OVERRIDES').split(':'):
        return
    if not d.getVar('ATTEST_KEY') or not d.getVar('ATTEST_CERT'):
        raise bb.parse.SkipRecipe('attest-package: no key to sign with: there is no default, on purpose. In local.conf: ATTEST_KEY_DIR = "/path/of/the/keys"')
    for kind, command in (('deb', 'DPKG_BUILDCMD'), ('ipk', 'OPKGBUILDCMD'), ('rpm', 'attest_sign_rpms')):
        task = 'do_package_write_' + kind
        if not bb.data.inherits_class('package_' + kind, d):
            continue
        d.appendVarFlag(task, 'depends', ' attest-native:do_populate_sysroot')
        d.appendVarFlag(task, 'prefuncs', ' attest_package_environment')
        d.appendVarFlag(task, 'vardeps', ' ' + command)
        for path in filter(None, (d.getVar('ATTEST_CERT'), d.getVar('ATTEST_CONFIG'))):
            d.appendVarFlag(task, 'file-checksums', ' %s:True' % path)
        if attest_is_uri(d.getVar('ATTEST_KEY')):
            d.setVarFlag(task, 'network', '1')
        if kind == 'rpm':
            d.appendVarFlag(task, 'postfuncs', ' attest_sign_rpms')
}

python attest_sign_rpms() {
    import glob, subprocess
    rpms = glob.glob(d.expand('${PKGWRITEDIRRPM}/*/*.rpm'))
    if not rpms:
        return
    try:
        bb.note(subprocess.check_output(attest_package_arguments(d, 'sign') + sorted(rpms), stderr=subprocess.STDOUT, text=True))
    except subprocess.CalledProcessError as e:
        bb.fatal(e.output)
}

python attest_package_environment() {
    os.environ.update(attest_secrets(d))
}

# In the packages themselves, so that upgrading dpkg or opkg keeps it.
attest_package_divert() {
    mv ${D}${bindir}/$1 ${D}${bindir}/$1.distrib
    ln -s attest-labels ${D}${bindir}/$1
}
do_install:append:pn-dpkg() {
    attest_package_divert dpkg-deb
}
do_install:append:pn-opkg() {
    attest_package_divert opkg
}
RDEPENDS:${PN}:append:pn-dpkg = " attest-labels"
RDEPENDS:${PN}:append:pn-opkg = " attest-labels"
