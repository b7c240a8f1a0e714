# Makes a kernel refuse what is not signed: its configuration gets what IMA needs, and it trusts the
# certificates of ATTEST_CA and no others. Both are looked at in what was built, not in what was
# asked for.
#
#   inherit attest-kernel        in a kernel recipe, linux-yocto or any other that inherits kernel
#
# With "integrity" in DISTRO_FEATURES each kernel recipe whose name begins with linux- has it.
#
# ATTEST_CA                  file with the certificates to compile in, PEM or DER; in PEM, several. Linux lets
#                            each of them issue certificates for the keyrings .ima and .evm, so all have to be CAs.
# ATTEST_KERNEL_FRAGMENTS    configuration fragments, of which the last one counts; default recipes/linux/files/attest.cfg.
#                            Yours is demanded, too: ATTEST_KERNEL_FRAGMENTS:append = " ${THISDIR}/files/tpm-spi.cfg"
# ATTEST_KERNEL_OPTIONAL     symbols that a machine need not have; default TCG_CRB, which needs ACPI
# ATTEST_ALLOW_DEBUG_KEYS    "1": ATTEST_CA may be one whose private key is published
#
# do_configure appends the fragments to what the recipe's own ways (defconfig, .scc, .cfg) made, so they
# have the last word; a .cfg or defconfig of SRC_URI that says otherwise is named in a warning. Then it
# fails for each symbol that Kconfig dropped, and says why. do_compile fails if the certificates in
# vmlinux are not those of ATTEST_CA.
#
# Tasks run again when the content of the files changes; where they lie is in no signature, nor in the
# kernel: .config names attest-ca.pem, a copy in ${B} that has nothing but certificates.

inherit attest-variables
# A bbappend that begins with linux- meets recipes that are no kernels.
inherit_defer ${@'attest-sanity' if bb.data.inherits_class('kernel', d) else ''}

ATTEST_KERNEL_FRAGMENTS ??= "${ATTEST_BASE}/recipes/linux/files/attest.cfg"
ATTEST_KERNEL_FRAGMENTS[doc] = "Configuration fragments whose every symbol a kernel has to have."
ATTEST_KERNEL_FRAGMENTS[vardepvalue] = "${@' '.join(map(os.path.basename, d.getVar('ATTEST_KERNEL_FRAGMENTS').split()))}"
ATTEST_KERNEL_OPTIONAL ??= "TCG_CRB"
ATTEST_KERNEL_OPTIONAL[doc] = "Symbols of the fragments, without CONFIG_, that a kernel need not have."

python () {
    if not bb.data.inherits_class('kernel', d):
        return
    files = d.getVar('ATTEST_KERNEL_FRAGMENTS').split() + [d.getVar('ATTEST_CA') or '']
    d.appendVarFlag('do_configure', 'file-checksums', ''.join(' %s:True' % f for f in files if f))
    d.appendVarFlag('do_configure', 'depends', ' attest-native:do_populate_sysroot')
    d.appendVarFlag('do_configure', 'postfuncs', ' attest_kernel_ca attest_kernel_merge attest_kernel_check')
    d.appendVarFlag('do_compile', 'postfuncs', ' attest_kernel_trust')
}

def attest_kernel(d, *args):
    """Runs attest kernel, and returns what it finds."""
    import subprocess
    bb.note('attest kernel %s' % ' '.join(args))
    attest = subprocess.run(('attest', 'kernel') + args, env=attest_environment(d), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    bb.note(attest.stdout + attest.stderr)
    if attest.returncode not in (0, 4):
        bb.fatal(attest_message(attest.stderr.splitlines()) or 'attest ended with %d' % attest.returncode)
    return attest.stdout.splitlines() if attest.returncode else []

def attest_kernel_fragments(d):
    """Arguments that name the fragments, with that of the CA."""
    files = d.getVar('ATTEST_KERNEL_FRAGMENTS').split() + [d.expand('${B}/attest-ca.cfg')]
    return [arg for f in files for arg in ('--fragment', f)]

python attest_kernel_ca() {
    args = ['kernel', 'ca', d.getVar('ATTEST_CA'), '--output', d.expand('${B}/attest-ca.pem')]
    args += [arg for arg in attest_arguments(d) if arg in ('--allow-debug-keys', '--allow-expired')]
    for warning in attest_run(d, args):
        bb.warn(warning)
    with open(d.expand('${B}/attest-ca.cfg'), 'w') as f:
        f.write('CONFIG_SYSTEM_TRUSTED_KEYS="attest-ca.pem"\n')
}
attest_kernel_ca[dirs] = "${B}"

attest_kernel_merge() {
    # A line before each, in case the one before does not end in a newline.
    for i in ${ATTEST_KERNEL_FRAGMENTS} ${B}/attest-ca.cfg; do
        echo
        cat $i
    done >> ${B}/.config
    ${KERNEL_CONFIG_COMMAND}
}
attest_kernel_merge[dirs] = "${B}"

python attest_kernel_check() {
    import glob
    fragments = attest_kernel_fragments(d)
    for pattern in ('*.cfg', '*/*.cfg', 'defconfig', '*/defconfig'):
        for own in sorted(glob.glob(os.path.join(d.getVar('UNPACKDIR'), pattern))):
            if '/kernel-meta/' not in own:
                for line in attest_kernel(d, 'config', '--partial', *fragments, own):
                    bb.warn('%s; what ATTEST_KERNEL_FRAGMENTS say counts' % line)
    lost = attest_kernel(d, 'config', *fragments, '--optional', ','.join(d.getVar('ATTEST_KERNEL_OPTIONAL').split()),
        '--source', d.getVar('S'), '--arch', d.getVar('ARCH'), d.expand('${B}/.config'))
    if lost:
        bb.fatal('\n  '.join(['this kernel cannot be what ATTEST_KERNEL_FRAGMENTS ask for, Kconfig changed:'] + lost))
}

python attest_kernel_trust() {
    found = attest_kernel(d, 'certificates', d.expand('${B}/vmlinux'), '--ca', d.expand('${B}/attest-ca.pem'))
    if found:
        bb.fatal('\n  '.join(['the kernel does not trust ATTEST_CA, and that alone:'] + found))
}
