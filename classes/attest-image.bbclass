# Signs every file of an image, last of all, and writes a signed manifest beside the image.
#
#   DISTRO_FEATURES:append = " integrity"
#   IMAGE_CLASSES += "attest-image"            in local.conf, for all images; or, in a recipe of an
#   ATTEST_KEY_DIR = "/secure/keys"            image: inherit attest-image
#
# ATTEST_KEY_DIR         what "attest keys init" and "attest keys issue" made: ima.key signs, ima.crt is its
#                        certificate, root.crt the CA. There is no default, on purpose.
# ATTEST_KEY             instead of ima.key: a PEM file, "pkcs11:token=build;object=ima", "hashivault://ima", ...
# ATTEST_CERT            instead of ima.crt
# ATTEST_CA              instead of root.crt; also what the kernel gets (attest-kernel)
# ATTEST_PASSPHRASE_FILE file whose first line is the passphrase of the key, or the PIN of the token
# ATTEST_KEY_ENV         "VAULT_ADDR VAULT_TOKEN": variables of your shell that a KMS needs
# ATTEST_CONFIG          rules of what is signed, hashed or skipped; first match wins, no match: signed
#                            [[rule]]
#                            path = "/var/**"
#                            action = "skip"
# ATTEST_POLICY          IMA policy that the image gets, a name (attest policy list) or a path. The default is
#                        "appraise-executables", or for settings of meta-integrity its IMA_EVM_POLICY; "" is none.
# ATTEST_VERIFIER_URL, ATTEST_VERIFIER_CA
#                        "https://attest.example.com:8881" and the CA of its certificate, PEM: the image gets
#                        attest-agent, which reports there. systemd starts it; another init has to be told to:
#                        at:5:respawn:/usr/bin/attest-agent run
#                        ATTEST_REGISTRAR_URL, where the registrar is not there at port 8891.
# ATTEST_NOTICE_CA       "/secure/notices.crt": who signs the verifier's notices of other devices, PEM
# ATTEST_ACTIONS         "isolate-peer /secure/actions/stop-pump": programs that the device runs on such notices, as root, from
#                        /etc/attest/actions.d, where they are signed as all files are. Names are those of the examples
#                        in tools/attest-agent/actions. systemd starts them; another init has to be told to:
#                        ac:5:respawn:/usr/bin/attest-agent act --watch
# ATTEST_SECRETS_EXECUTE "1": the device runs what a secret of the verifier says is to be run, as the user attest
# ATTEST_LISTEN, ATTEST_LISTEN_CA
#                        "0.0.0.0:9002" and the CA of those who may call there, PEM: the device is polled, as Keylime does
#                        it, at the address from which it reaches the registrar. Where that is none at which it is
#                        reached, contact = "192.0.2.7:9002" is in /etc/attest/agent.d/*.toml of the device.
# ATTEST_MANIFEST        where such an image has its own manifest, by which attest-agent verify checks it without a
#                        network: "/usr/share/attest/image.attest.json", some 500 bytes a file; "" is none
# ATTEST_IVERSION        "/ /data": mount points that get iversion in /etc/fstab, without which IMA does not
#                        see changes on filesystems of older kernels
# ATTEST_EVM             "1": EVM portable signatures, too. ATTEST_TARGET = "x86_64" where the kernel is
#                        not of TARGET_ARCH.
# ATTEST_SIGN_ARGS       further arguments of attest sign: "--hash sha512", "--verity"
# ATTEST_ALLOW_DEBUG_KEYS, ATTEST_ALLOW_EXPIRED   "1", for tests and for old images
# Each with its default, and those of meta-integrity: attest-variables.bbclass.
#
# What you get, in DEPLOY_DIR_IMAGE: IMAGE_NAME.attest.json and a link to it without the date, an in-toto
# statement of every file, the same bytes for the same image, key and REPRODUCIBLE_TIMESTAMP_ROOTFS; in the
# image: /etc/keys/x509_ima.der, with ATTEST_EVM x509_evm.der, and the package attest-policy. systemd loads the
# policy; with another init, an initramfs has to (attest-initramfs, or attest-init-link of attest), and an image in
# which nobody seems to gets a warning. Prove an unpacked or mounted image:
#   attest verify DIR --ca root.crt --all --manifest X.attest.json
#
# When. A function after do_image: do_rootfs, every ROOTFS_ and IMAGE_PREPROCESS_COMMAND, whoever
# appended them, and postfuncs of classes and recipes come before, under the same pseudo. What changes
# the tree in do_image_<type> comes too late. Running do_image again signs again; what is not signed any
# more loses its label. A new certificate or new rules run do_image again, not do_rootfs; a key has no
# part in that, since a key without its certificate is refused, in every build, by do_attest_check.
# log.do_image has the number of files, and a warning of each rule that decides over no file.
#
# Which images keep labels (measured, unless it says not):
#   ext2 ext3 ext4  yes. Inodes get 512 bytes (-I 512, before your EXTRA_IMAGECMD, which wins): in those
#                   of 256 bytes, each file's label takes a block of 4 KiB of its own. Both need more than no
#                   labels: if it does not fit, raise IMAGE_OVERHEAD_FACTOR or IMAGE_ROOTFS_EXTRA_SPACE.
#   btrfs           yes
#   squashfs* erofs* yes; "-no-xattrs" and "-x -1" in EXTRA_IMAGECMD are errors
#   tar* container  yes, through IMAGE_CMD_TAR; unpack with: tar --xattrs --xattrs-include='*'
#   jffs2           yes, with --with-xattr, which is added
#   ubi ubifs       yes by its documentation; mtd-utils-native has xattr unless that was taken out. Not tried.
#   wic             as the filesystems in it. --no-fstab-update is added: wic would write /etc/fstab
#                   into a signed image, and the device would refuse it. List your mounts in base-files.
#                   For ext4, add to the partition in the .wks: --mkfs-extraopts "-F -i 8192 -I 512"
#   f2fs            no: sload.f2fs drops them
#   cpio cramfs vfat no: there is no place for them
# Where an image is signed and also made as a type that loses labels, the build warns, unless
# ATTEST_UNLABELLED_FSTYPES lists it. An image of such types only, as initramfs images are, is not
# signed and needs no key: sign the whole instead (in a UKI, by Secure Boot).
# IMAGE_GEN_DEBUGFS makes a second tree with debugging information; it is not signed.

inherit attest-variables attest-sanity

ATTEST_NEEDS = "ATTEST_KEY ATTEST_CERT ATTEST_CA"
ATTEST_EXEMPT = "${@'' if attest_types(d)[0] else '1'}"

def attest_types(d):
    """IMAGE_FSTYPES in two: those that keep labels, and those that do not."""
    loses = ('cpio', 'cramfs', 'f2fs', 'vfat')
    types = [t for t in (d.getVar('IMAGE_FSTYPES') or '').split() if t != 'wicenv']
    return [t for t in types if t.split('.')[0] not in loses], [t for t in types if t.split('.')[0] in loses]

IMAGE_CMD_TAR:append = " --xattrs --xattrs-include='security.*'"
EXTRA_IMAGECMD:prepend:ext2 = "-I 512 "
EXTRA_IMAGECMD:prepend:ext3 = "-I 512 "
EXTRA_IMAGECMD:prepend:ext4 = "-I 512 "
EXTRA_IMAGECMD:append:jffs2 = " --with-xattr"
WIC_CREATE_EXTRA_ARGS:append = " --no-fstab-update"

# Before OE-core's own text, which it runs with its output kept: what mkfs says of a full filesystem tells
# nobody which variable made it so small.
oe_mkext234fs:prepend() {
    if [ -z "$attest_mkfs_log" ]; then
        attest_mkfs_log=${T}/attest-mkfs.$1
        # Not "||": behind it "set -e" would not count.
        set +e
        (set -e; oe_mkext234fs "$@") > $attest_mkfs_log 2>&1
        ret=$?
        set -e
        cat $attest_mkfs_log
        if [ $ret != 0 ] && grep -q 'Could not allocate' $attest_mkfs_log; then
            bbfatal "the files and their labels do not fit into $1 of $ROOTFS_SIZE KiB: raise IMAGE_OVERHEAD_FACTOR (it is ${IMAGE_OVERHEAD_FACTOR}), IMAGE_ROOTFS_EXTRA_SPACE (KiB) or IMAGE_ROOTFS_SIZE (KiB)"
        fi
        return $ret
    fi
}

# To PACKAGE_INSTALL, which images that set it do not make from IMAGE_INSTALL.
PACKAGE_INSTALL:append = " ${@'attest-policy' if d.getVar('ATTEST_POLICY') and not d.getVar('ATTEST_EXEMPT') else ''}"
PACKAGE_INSTALL:append = " ${@'attest-agent attest-agent-conf' if attest_has_agent(d) and not d.getVar('ATTEST_EXEMPT') else ''}"

# A tree to which the certificate for .evm or a manifest was added keeps it.
do_rootfs[vardeps] += "ATTEST_EVM ATTEST_MANIFEST"

python () {
    if d.getVar('ATTEST_EXEMPT'):
        return
    attest_refuse_options(d)
    for task in ('do_image', 'do_attest_check'):
        d.appendVarFlag(task, 'depends', ' attest-native:do_populate_sysroot')
        if attest_is_uri(d.getVar('ATTEST_KEY')):
            d.setVarFlag(task, 'network', '1')
    # Here and not in the text of the class, which functions that a recipe adds would follow.
    d.appendVarFlag('do_image', 'postfuncs', ' attest_sign_image')
    for path in filter(None, (d.getVar('ATTEST_CERT'), d.getVar('ATTEST_CONFIG'))):
        d.appendVarFlag('do_image', 'file-checksums', ' %s:True' % path)
    if d.getVar('ATTEST_CONFIG'):
        d.appendVarFlag('do_image', 'file-checksums', ' %s.d/*.toml:True' % d.getVar('ATTEST_CONFIG').removesuffix('.toml'))
    bb.build.addtask('do_attest_check', 'do_build', None, d)
}

def attest_refuse_options(d):
    """Options with which a filesystem that could hold labels does not get them."""
    for prefix, option in (('squashfs', '-no-xattrs'), ('erofs', '-x -1'), ('erofs', '-x-1')):
        for kind in set(t.split('.')[0] for t in attest_types(d)[0] if t.startswith(prefix)):
            local = bb.data.createCopy(d)
            local.setVar('OVERRIDES', '%s:%s' % (kind, d.getVar('OVERRIDES', False)))
            if ' %s ' % option in ' %s ' % ' '.join((local.getVar('EXTRA_IMAGECMD') or '').split()):
                raise bb.parse.SkipRecipe('meta-attest: EXTRA_IMAGECMD:%s has %s, which leaves all signatures out of the image: take it out' % (kind, option))

# In every build, so that its warnings are. Before hours of building it tries what is at hand already:
# key, certificates and rules, on a tree of one file.
do_attest_check[nostamp] = "1"
do_attest_check[cleandirs] = "${WORKDIR}/attest-check"
python do_attest_check() {
    for warning in attest_run(d, ['keys', 'check', '--ca', d.getVar('ATTEST_CA')] + attest_key_arguments(d)):
        bb.warn(warning)
    tree = d.expand('${WORKDIR}/attest-check/tree')
    bb.utils.mkdirhier(tree)
    open(os.path.join(tree, 'file'), 'w').close()
    attest_run(d, ['sign', tree, '--labels', 'dump', '--output', tree + '.labels'] + attest_sign_arguments(d))
    for lost in attest_types(d)[1]:
        if lost not in d.getVar('ATTEST_UNLABELLED_FSTYPES').split():
            bb.warn('%s.%s holds no labels: a kernel that enforces refuses every file in it. Take %s out of IMAGE_FSTYPES, or, if no such kernel runs it, '
                'ATTEST_UNLABELLED_FSTYPES += "%s"' % (d.getVar('IMAGE_LINK_NAME'), lost, lost, lost))
}

python attest_sign_image() {
    attest_set_iversion(d)
    attest_install_certificates(d)
    attest_warn_of_idle_policy(d)
    attest_warn_of_idle_agent(d)
    attest_install_manifest(d)
    folder, name, link = d.getVar('IMGDEPLOYDIR'), d.getVar('IMAGE_NAME') + '.attest.json', d.getVar('IMAGE_LINK_NAME')
    attest_sign_tree(d, os.path.join(folder, name))
    if link:
        link = os.path.join(folder, link + '.attest.json')
        bb.utils.remove(link)
        os.symlink(name, link)
}

def attest_sign_tree(d, manifest):
    attest_run(d, ['sign', d.getVar('IMAGE_ROOTFS'), '--labels', 'libc', '--clear-skipped', '--progress', 'plain', '--manifest', manifest,
        '--name', d.getVar('IMAGE_LINK_NAME') or d.getVar('IMAGE_BASENAME')] + attest_sign_arguments(d))

def attest_install_manifest(d):
    """Puts a manifest of all other files into an image that has the agent. It is a file like others for the one
    beside the image, so that a verifier knows it."""
    import shutil
    name = d.getVar('ATTEST_MANIFEST')
    if not name or not attest_has_agent(d):
        return
    root, made = d.getVar('IMAGE_ROOTFS'), d.expand('${T}/inner.attest.json')
    path = root + name
    bb.utils.remove(path)
    bb.utils.mkdirhier(os.path.dirname(path))
    attest_sign_tree(d, made)
    shutil.copyfile(made, path)
    os.chmod(path, 0o644)
    while path != root:
        os.utime(path, (attest_time(d), attest_time(d)))
        path = os.path.dirname(path)

def attest_install_certificates(d):
    """Puts ATTEST_CERT where kernels look for it. Not by a package, with which a new key would mean do_rootfs.
    attest writes it elsewhere: under pseudo a file belongs to root when a program of libc makes it."""
    import shutil
    made, folder = d.expand('${T}/x509_ima.der'), os.path.join(d.getVar('IMAGE_ROOTFS'), 'etc/keys')
    attest_run(d, ['keys', 'convert', d.getVar('ATTEST_CERT'), '--output', made])
    bb.utils.mkdirhier(folder)
    paths = [os.path.join(folder, 'x509_ima.der')]
    if bb.utils.to_boolean(d.getVar('ATTEST_EVM')):
        paths.append(os.path.join(folder, 'x509_evm.der'))
    for path in paths:
        bb.utils.remove(path)
        shutil.copyfile(made, path)
        os.chmod(path, 0o644)
    for path in paths + [folder, os.path.dirname(folder)]:
        os.utime(path, (attest_time(d), attest_time(d)))

def attest_warn_of_idle_policy(d):
    """Warns of a policy that nobody loads: systemd does, or an initramfs, or a script of the image's own."""
    if d.getVar('INITRAMFS_IMAGE') or not os.path.exists(d.expand('${IMAGE_ROOTFS}${sysconfdir}/ima/ima-policy')) or attest_boot_runs(d, b'ima/policy'):
        return
    bb.warn('nobody loads the policy of this image, so that it does nothing: have systemd (INIT_MANAGER), or an initramfs with attest-initramfs or '
        'attest-init-link (INITRAMFS_IMAGE), or set ATTEST_POLICY = "" and be content with signatures')

def attest_warn_of_idle_agent(d):
    """Warns of an agent, or of its actions, that nobody starts: systemd does."""
    if not os.path.exists(d.expand('${IMAGE_ROOTFS}${bindir}/attest-agent')):
        return
    if d.getVar('ATTEST_ACTIONS') and not attest_boot_runs(d, b'attest-agent act'):
        bb.warn('nobody runs the actions of this image: have systemd (INIT_MANAGER), or a line in its inittab: ac:5:respawn:/usr/bin/attest-agent act --watch')
    if attest_boot_runs(d, b'attest-agent'):
        return
    bb.warn('nobody starts attest-agent in this image, so that it reports nothing: have systemd (INIT_MANAGER), or a line in its inittab: '
        'at:5:respawn:/usr/bin/attest-agent run')

def attest_boot_runs(d, text):
    """Says whether the image has systemd, or a script of its own init that has a text."""
    import glob
    if os.path.exists(d.expand('${IMAGE_ROOTFS}${systemd_unitdir}/systemd')):
        return True
    etc = d.expand('${IMAGE_ROOTFS}${sysconfdir}')
    for path in glob.glob(etc + '/inittab') + glob.glob(etc + '/init.d/*'):
        if os.path.isfile(path):
            with open(path, 'rb') as script:
                if text in script.read():
                    return True
    return False

def attest_time(d):
    """Of every file of an image: reproducible_final_image_task has set it, before."""
    return int(d.getVar('REPRODUCIBLE_TIMESTAMP_ROOTFS') or 0)

def attest_set_iversion(d):
    """Adds iversion to the options that fstab has for each of ATTEST_IVERSION."""
    import re
    points = d.getVar('ATTEST_IVERSION').split()
    if not points:
        return
    path = d.expand('${IMAGE_ROOTFS}${sysconfdir}/fstab')
    with open(path) as fstab:
        text = fstab.read()
    for point in points:
        line = re.compile(r'^([^#\s]\S*\s+%s\s+\S+\s+)(\S+)' % re.escape(point), re.MULTILINE)
        if not line.search(text):
            bb.fatal('ATTEST_IVERSION: fstab of the image mounts nothing at %s' % point)
        text = line.sub(lambda m: m.group(0) if 'iversion' in m.group(2).split(',') else m.group(0) + ',iversion', text)
    with open(path, 'w') as fstab:
        fstab.write(text)
    os.utime(path, (attest_time(d), attest_time(d)))

def attest_key_arguments(d):
    return ['--key', d.getVar('ATTEST_KEY'), '--cert', d.getVar('ATTEST_CERT')] + attest_arguments(d)

def attest_sign_arguments(d):
    import shlex
    args = attest_key_arguments(d)
    for flag, value in (('--config', d.getVar('ATTEST_CONFIG')), ('--find-signed', d.getVar('IMA_EVM_ROOTFS_SIGNED')), ('--find-hashed', d.getVar('IMA_EVM_ROOTFS_HASHED'))):
        if value:
            args += [flag, value]
    if bb.utils.to_boolean(d.getVar('ATTEST_EVM')):
        args += ['--evm', '--target', d.getVar('ATTEST_TARGET')]
    return args + shlex.split(d.getVar('ATTEST_SIGN_ARGS'))
