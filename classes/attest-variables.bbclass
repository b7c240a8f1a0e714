# The variables of this layer: what each means, and its default. Set them in local.conf or in a
# distro's configuration; every class and recipe that reads one inherits this class.
#
# Three lines of local.conf sign every image, and have it enforce that (ATTEST_POLICY):
#
#   DISTRO_FEATURES:append = " integrity"
#   IMAGE_CLASSES += "attest-image"
#   ATTEST_KEY_DIR = "/secure/keys"       as "attest keys init" and "attest keys issue" make it
#
# Names of ATTEST_ variables that have no [doc] are refused as typing errors; a layer that has its
# own declares them: ATTEST_MINE[doc] = "...".
#
# The variables of meta-integrity, the layer, are honoured: where one of ours is not set, theirs counts.
#   IMA_EVM_KEY_DIR             for ATTEST_KEY_DIR, with the names of files that it has there
#   IMA_EVM_PRIVKEY             for ATTEST_KEY
#   IMA_EVM_X509                for ATTEST_CERT
#   IMA_EVM_ROOT_CA             for ATTEST_CA
#   IMA_EVM_POLICY              for ATTEST_POLICY; its older name IMA_EVM_POLICY_SYSTEMD, too. As there, who sets
#                               none, but IMA_EVM_KEY_DIR or IMA_EVM_PRIVKEY, gets none.
#   IMA_EVM_ROOTFS_SIGNED       find expression, "usr lib -type f": sign only what find prints; its older
#                               name IMA_EVM_ROOTFS_FILES, too. Rules of ATTEST_CONFIG go before.
#   IMA_EVM_ROOTFS_HASHED       find expression: a digest and no signature for what find prints
#   IMA_EVM_ROOTFS_IVERSION     for ATTEST_IVERSION
#   IMA_EVM_EVMCTL_KEY_PASSWORD the passphrase itself; ATTEST_PASSPHRASE_FILE keeps it out of "bitbake -e"
#   MODSIGN_KEY_DIR, MODSIGN_PRIVKEY, MODSIGN_X509
# Expressions may have -type, -name, -path and their relatives, -prune, -maxdepth, -mindepth, -print,
# ! -a -o and parentheses; any other word is an error that names it.
#
# No path is part of a signature: moving the keys builds nothing anew. What signs or packages a file
# has it in its [file-checksums].

ATTEST_BASE[doc] = "Folder of the layer's repository; set by the layer."

ATTEST_KEY_DIR ??= ""
ATTEST_KEY_DIR[doc] = "Folder with ima.key, ima.crt, root.crt, ... as attest keys makes it. No default, on purpose."
ATTEST_KEY ??= "${@'${ATTEST_KEY_DIR}/ima.key' if d.getVar('ATTEST_KEY_DIR') else d.getVar('IMA_EVM_PRIVKEY')}"
ATTEST_KEY[doc] = "Private key that signs files: a PEM file, or a URI (pkcs11:..., hashivault://..., awskms://...)."
ATTEST_CERT ??= "${@'${ATTEST_KEY_DIR}/ima.crt' if d.getVar('ATTEST_KEY_DIR') else d.getVar('IMA_EVM_X509')}"
ATTEST_CERT[doc] = "Certificate of ATTEST_KEY, PEM or DER; goes into the image, where the kernel loads it."
ATTEST_CA ??= "${@'${ATTEST_KEY_DIR}/root.crt' if d.getVar('ATTEST_KEY_DIR') else d.getVar('IMA_EVM_ROOT_CA')}"
ATTEST_CA[doc] = "CA that issued ATTEST_CERT, PEM or DER; compiled into the kernel."
ATTEST_PASSPHRASE_FILE ??= ""
ATTEST_PASSPHRASE_FILE[doc] = "File whose first line is the passphrase of the private keys, or the PIN of the token."
ATTEST_KEY_ENV ??= ""
ATTEST_KEY_ENV[doc] = "Names of variables of the shell that ran bitbake which a KMS or token needs, such as VAULT_ADDR VAULT_TOKEN."
ATTEST_ALLOW_DEBUG_KEYS ??= "0"
ATTEST_ALLOW_DEBUG_KEYS[doc] = "1: keys whose private half is published may sign; a warning in every build."
ATTEST_ALLOW_EXPIRED ??= "0"
ATTEST_ALLOW_EXPIRED[doc] = "1: ATTEST_CERT may have expired, to build an old image again. Linux does not look at the date."

ATTEST_CONFIG ??= ""
ATTEST_CONFIG[doc] = "File of rules that say what is signed, hashed or skipped (attest.toml); its folder of drop-ins counts, too."
ATTEST_POLICY ??= "${@attest_default_policy(d)}"
ATTEST_POLICY[doc] = "IMA policy of the image: a name in policies/ (attest policy list), or a path; appraise-executables unless set. Empty: none is installed."
ATTEST_EVM ??= "0"
ATTEST_EVM[doc] = "1: EVM portable signatures, too, which cover owner, mode and capabilities."
ATTEST_TARGET ??= "${TARGET_ARCH}"
ATTEST_TARGET[doc] = "Architecture of the kernel that checks EVM signatures: another than TARGET_ARCH for a 32-bit userland on a 64-bit kernel."
ATTEST_SIGN_ARGS ??= ""
ATTEST_SIGN_ARGS[doc] = "Further arguments of attest sign: --hash sha512, --verity, --jobs 4, ..."
ATTEST_UNLABELLED_FSTYPES ??= ""
ATTEST_UNLABELLED_FSTYPES[doc] = "Words of IMAGE_FSTYPES that may lose the labels of a signed image, such as cpio.gz: no warning."
ATTEST_IVERSION ??= "${IMA_EVM_ROOTFS_IVERSION}"
ATTEST_IVERSION[doc] = "Mount points that get iversion in /etc/fstab."
ATTEST_KERNEL_FRAGMENTS[doc] = "Kernel configuration fragments that attest-kernel adds and demands."
ATTEST_KERNEL_OPTIONAL[doc] = "Kernel symbols of them that a machine need not have."
ATTEST_KERNEL_OWN[doc] = "Of attest-kernel: where the recipe's own fragments lie."
ATTEST_MODSIGN_FRAGMENT[doc] = "Of attest-modsign: kernel configuration for signed modules."
ATTEST_VERIFIER_URL ??= ""
ATTEST_VERIFIER_URL[doc] = "Verifier that the agent in the image reports to."
ATTEST_VERIFIER_CA ??= ""
ATTEST_VERIFIER_CA[doc] = "CA of that verifier's certificate, a file."
ATTEST_REGISTRAR_URL ??= ""
ATTEST_REGISTRAR_URL[doc] = "Registrar of the agent in the image, where it is not on the verifier's host at port 8891."
ATTEST_NOTICE_CA ??= ""
ATTEST_NOTICE_CA[doc] = "Certificate that signs the verifier's notices of other devices (attest-verifier certificate notices), a file in PEM. Empty: none is asked for."
ATTEST_ACTIONS ??= ""
ATTEST_ACTIONS[doc] = "Programs that the device runs on notices, as root: names in tools/attest-agent/actions (isolate-peer, remove-ssh-keys), or paths of files."
ATTEST_SECRETS_EXECUTE ??= "0"
ATTEST_SECRETS_EXECUTE[doc] = "1: the device runs what a secret of the verifier says is to be run, as the agent's user."
ATTEST_LISTEN ??= ""
ATTEST_LISTEN[doc] = "Address at which Keylime's verifier polls the device: 0.0.0.0:9002. Empty: no port is opened, and the agent has no code for one."
ATTEST_LISTEN_CA ??= ""
ATTEST_LISTEN_CA[doc] = "CA of those who may call at ATTEST_LISTEN, a file in PEM."
ATTEST_MANIFEST ??= "${datadir}/attest/image.attest.json"
ATTEST_MANIFEST[doc] = "Where an image with the agent has its manifest, for attest-agent verify. Empty: it has none, and files are checked by their labels alone."
ATTEST_SELFTEST_IMAGE ??= "attest-image-minimal"
ATTEST_SELFTEST_IMAGE[doc] = "Image that oe-selftest -r attest builds."
ATTEST_SELFTEST_KERNEL ??= "${PREFERRED_PROVIDER_virtual/kernel}"
ATTEST_SELFTEST_KERNEL[doc] = "Kernel recipe that oe-selftest -r attest configures."

IMA_EVM_KEY_DIR ??= ""
IMA_EVM_PRIVKEY ??= "${@'${IMA_EVM_KEY_DIR}/privkey_ima.pem' if d.getVar('IMA_EVM_KEY_DIR') else ''}"
IMA_EVM_X509 ??= "${@'${IMA_EVM_KEY_DIR}/x509_ima.der' if d.getVar('IMA_EVM_KEY_DIR') else ''}"
IMA_EVM_ROOT_CA ??= "${@'${IMA_EVM_KEY_DIR}/ima-local-ca.pem' if d.getVar('IMA_EVM_KEY_DIR') else ''}"
IMA_EVM_POLICY_SYSTEMD ??= ""
IMA_EVM_POLICY ??= "${IMA_EVM_POLICY_SYSTEMD}"
IMA_EVM_ROOTFS_FILES ??= ""
IMA_EVM_ROOTFS_SIGNED ??= "${IMA_EVM_ROOTFS_FILES}"
IMA_EVM_ROOTFS_HASHED ??= ""
IMA_EVM_ROOTFS_IVERSION ??= ""
IMA_EVM_EVMCTL_KEY_PASSWORD ??= ""

MODSIGN_KEY_DIR ??= "${ATTEST_KEY_DIR}"
MODSIGN_PRIVKEY ??= "${@attest_modsign_file(d, 'modsign.key', 'privkey_modsign.pem')}"
MODSIGN_X509 ??= "${@attest_modsign_file(d, 'modsign.crt', 'x509_modsign.crt')}"

def attest_modsign_file(d, ours, theirs):
    """A file of MODSIGN_KEY_DIR, which may be one that meta-integrity's scripts filled."""
    folder = d.getVar('MODSIGN_KEY_DIR')
    if not folder:
        return ''
    return os.path.join(folder, ours if folder == d.getVar('ATTEST_KEY_DIR') else theirs)

def attest_default_policy(d):
    """Signatures that nobody asks for are none; but who comes from meta-integrity has what it gave him."""
    return d.getVar('IMA_EVM_POLICY') or ('' if d.getVar('IMA_EVM_PRIVKEY') else 'appraise-executables')

def attest_is_uri(value):
    """Says whether a key is one that attest opens by its URI: there is no file."""
    import re
    return bool(re.match(r'pkcs11:|[a-z][a-z0-9+.-]*://', value or ''))

def attest_uri(value):
    """What a key adds to a signature of a task: a URI, since the content of a file does that."""
    return value if attest_is_uri(value) else ''

def attest_policy_file(d):
    """The path of ATTEST_POLICY, '' for none. Whether it is there is for others to ask."""
    policy = d.getVar('ATTEST_POLICY')
    if not policy or '/' in policy:
        return policy or ''
    return os.path.join(d.getVar('ATTEST_BASE'), 'policies', policy + '.ima')

def attest_action_files(d):
    """Where the programs of ATTEST_ACTIONS are. Whether they are there is for others to ask."""
    folder = os.path.join(d.getVar('ATTEST_BASE'), 'tools/attest-agent/actions')
    return [name if '/' in name else os.path.join(folder, name) for name in d.getVar('ATTEST_ACTIONS').split()]

def attest_has_agent(d):
    """Says whether images get the agent: somebody is named to whom it reports."""
    return bool(d.getVar('ATTEST_VERIFIER_URL') or d.getVar('ATTEST_REGISTRAR_URL'))

def attest_secrets(d):
    """Variables of attest's environment: secrets are in no argument, which everybody on the machine sees, and in no script of a task."""
    secrets = {}
    for name in d.getVar('ATTEST_KEY_ENV').split():
        value = d.getVar('BB_ORIGENV', False).getVar(name)
        if value:
            secrets[name] = value
    if d.getVar('IMA_EVM_EVMCTL_KEY_PASSWORD'):
        secrets['ATTEST_KEY_PASSPHRASE'] = d.getVar('IMA_EVM_EVMCTL_KEY_PASSWORD')
    return secrets

# nooelint: oelint.vars.mispell.unknown - a function
attest_secrets[vardepsexclude] += "BB_ORIGENV"

ATTEST_KEY[vardepvalue] = "${@attest_uri(d.getVar('ATTEST_KEY'))}"
MODSIGN_PRIVKEY[vardepvalue] = "${@attest_uri(d.getVar('MODSIGN_PRIVKEY'))}"
ATTEST_BASE[vardepvalue] = ""
ATTEST_KEY_DIR[vardepvalue] = ""
ATTEST_CERT[vardepvalue] = ""
ATTEST_CA[vardepvalue] = ""
ATTEST_CONFIG[vardepvalue] = ""
ATTEST_ACTIONS[vardepvalue] = "${@' '.join(os.path.basename(path) for path in attest_action_files(d))}"
ATTEST_VERIFIER_CA[vardepvalue] = ""
ATTEST_NOTICE_CA[vardepvalue] = "${@'1' if d.getVar('ATTEST_NOTICE_CA') else ''}"
ATTEST_LISTEN_CA[vardepvalue] = ""
ATTEST_POLICY[vardepvalue] = "${@os.path.basename(d.getVar('ATTEST_POLICY') or '')}"
ATTEST_PASSPHRASE_FILE[vardepvalue] = ""
ATTEST_KEY_ENV[vardepvalue] = ""
IMA_EVM_EVMCTL_KEY_PASSWORD[vardepvalue] = ""
MODSIGN_X509[vardepvalue] = ""
