# Says what is wrong with the settings of this layer, and the line that mends it, before anything
# is built. attest-image and attest-kernel inherit it; nothing is to be set.
#
# When a recipe is parsed, what the variables alone tell: a name that no variable has, no key, a file that
# is not there, "integrity" missing in DISTRO_FEATURES, an unknown policy, ima-evm-rootfs of
# meta-integrity beside us. The recipe is skipped then: BitBake gives the reason to whoever builds it, and
# to nobody else. Each file that was asked for is a dependency of the parsed recipe, so that the answer
# is found anew when it comes or goes.
#
# What only a look into the files tells (expired, of another pair, published) attest says, in do_attest_check of
# attest-image: it runs in every build, beside the first tasks, and so warns of published keys in every build.

inherit attest-variables

python () {
    if not d.getVar('ATTEST_EXEMPT'):
        problems = attest_problems(d)
        if problems:
            raise bb.parse.SkipRecipe('\n  '.join(['meta-attest: these settings cannot be built with:'] + problems))
}

ATTEST_EXEMPT[doc] = "Set by attest-image for images that hold no labels."

# ATTEST_NEEDS: which of ATTEST_KEY, ATTEST_CERT and ATTEST_CA the recipe uses.
ATTEST_NEEDS ??= "ATTEST_CA"
ATTEST_NEEDS[doc] = "Set by the classes: variables that must name files which are there."

def attest_problems(d):
    problems = attest_unknown_names(d) + attest_missing_files(d) + attest_policy_problem(d) + attest_agent_problems(d)
    if not bb.utils.contains('DISTRO_FEATURES', 'integrity', True, False, d):
        problems.append('DISTRO_FEATURES has no "integrity", without which kernel, certificates and policy stay as they were. '
            'In local.conf: DISTRO_FEATURES:append = " integrity"')
    if bb.data.inherits_class('ima-evm-rootfs', d):
        problems.append('ima-evm-rootfs of meta-integrity is inherited, too, and would sign again: take it out of IMAGE_CLASSES or INHERIT')
    manifest = d.getVar('ATTEST_MANIFEST')
    if manifest and os.path.normpath('/' + manifest.lstrip('/')) != manifest:
        problems.append('ATTEST_MANIFEST = "%s": give a whole path in the image, beginning with /' % manifest)
    for name in ('ATTEST_EVM', 'ATTEST_ALLOW_DEBUG_KEYS', 'ATTEST_ALLOW_EXPIRED', 'ATTEST_SECRETS_EXECUTE'):
        value = d.getVar(name)
        if value not in ('0', '1', ''):
            problems.append('%s = "%s": use "1" or "0"' % (name, value))
    return problems

def attest_unknown_names(d):
    """Variables that nothing reads: with a letter wrong, the setting would silently not be made."""
    import difflib
    names = set(name.split(':')[0] for name in d if name.startswith('ATTEST_'))
    known = sorted(name for name in names if d.getVarFlag(name, 'doc'))
    problems = []
    for name in sorted(names.difference(known)):
        if not d.getVar(name, False):
            continue
        near = difflib.get_close_matches(name, known, 1, 0.5)
        problems.append('there is no variable %s%s' % (name, '; did you mean %s = "%s"?' % (near[0], d.getVar(name, False)) if near else
            '. If another layer reads it: %s[doc] = "..."' % name))
    return problems

def attest_missing_files(d):
    """Settings that name no file, or one that is not there."""
    problems = []
    needs = d.getVar('ATTEST_NEEDS').split()
    if 'ATTEST_KEY' in needs and not d.getVar('ATTEST_KEY'):
        return ['no key to sign with: there is no default, on purpose. Make keys (attest keys init, attest keys issue), and in local.conf: '
            'ATTEST_KEY_DIR = "/path/of/the/keys"']
    if d.getVar('ATTEST_KEY_DIR') and not os.path.isabs(d.getVar('ATTEST_KEY_DIR')):
        return ['ATTEST_KEY_DIR = "%s": give a whole path, beginning with /' % d.getVar('ATTEST_KEY_DIR')]
    for name in needs + ['ATTEST_CONFIG', 'ATTEST_PASSPHRASE_FILE']:
        path = d.getVar(name) or ''
        if not path and name in needs:
            problems.append('%s is not set. In local.conf: ATTEST_KEY_DIR = "/path/of/the/keys"' % name)
        elif path and not attest_is_uri(path):
            problems.extend(attest_missing_file(d, name, path))
    return problems

def attest_missing_file(d, name, path):
    if not os.path.isabs(path):
        return ['%s = "%s": give a whole path, beginning with /' % (name, path)]
    bb.parse.mark_dependency(d, path)
    if os.path.isfile(path):
        return []
    try:
        there = 'its folder has %s' % (' '.join(sorted(os.listdir(os.path.dirname(path)))[:12]) or 'no file')
    except FileNotFoundError:
        there = 'its folder is not there'
    except OSError as e:
        there = 'its folder cannot be read: %s' % e.strerror
    return ['%s: there is no file %s; %s' % (name, path, there)]

def attest_policy_problem(d):
    """A policy that is none of ours and no file."""
    import difflib
    policy = d.getVar('ATTEST_POLICY')
    path = attest_policy_file(d)
    if not path:
        return []
    bb.parse.mark_dependency(d, path)
    if os.path.isfile(path):
        return []
    folder = os.path.join(d.getVar('ATTEST_BASE'), 'policies')
    known = sorted(name[:-4] for name in os.listdir(folder) if name.endswith('.ima'))
    # ima_policy_hashed is how meta-integrity names the file.
    wanted = os.path.basename(policy).replace('ima_policy_', 'meta-integrity-').replace('_', '-')
    near = difflib.get_close_matches(wanted, known, 1, 0.5)
    return ['ATTEST_POLICY = "%s": there is no such %s%s (policies: %s)' % (policy, 'file' if '/' in policy else 'policy',
        '; did you mean ATTEST_POLICY = "%s"?' % near[0] if near else '', ' '.join(known))]

def attest_agent_problems(d):
    """What the agent in the image could not work with."""
    import re
    if not attest_has_agent(d):
        without = [name for name in ('ATTEST_VERIFIER_CA', 'ATTEST_NOTICE_CA', 'ATTEST_ACTIONS', 'ATTEST_LISTEN', 'ATTEST_LISTEN_CA') if d.getVar(name)]
        if d.getVar('ATTEST_SECRETS_EXECUTE') == '1':
            without.append('ATTEST_SECRETS_EXECUTE')
        return ['%s: no verifier is named, and so no image has the agent. In local.conf: ATTEST_VERIFIER_URL = "https://HOST:8881"' % ' '.join(without)] if without else []
    problems = []
    for name in ('ATTEST_VERIFIER_URL', 'ATTEST_REGISTRAR_URL'):
        value = d.getVar(name)
        if value and not re.fullmatch(r'https://[^\s"\\?#@]+', value):
            problems.append('%s = "%s": give https://HOST:PORT' % (name, value))
    for name, needs in (('ATTEST_VERIFIER_CA', ''), ('ATTEST_NOTICE_CA', 'ATTEST_ACTIONS'), ('ATTEST_LISTEN_CA', 'ATTEST_LISTEN')):
        path = d.getVar(name)
        if path:
            problems.extend(attest_missing_file(d, name, path))
        elif not needs:
            problems.append('%s is not set: the CA of the certificate of %s, a file in PEM, without which the agent trusts no server' % (name,
                d.getVar('ATTEST_VERIFIER_URL') or d.getVar('ATTEST_REGISTRAR_URL')))
        elif d.getVar(needs):
            problems.append('%s is not set, without which %s = "%s" has no effect: give a file in PEM' % (name, needs, d.getVar(needs)))
    listen = d.getVar('ATTEST_LISTEN')
    if listen and not re.fullmatch(r'(\d+\.\d+\.\d+\.\d+|\[[0-9a-fA-F:.]+\]):\d+', listen):
        problems.append('ATTEST_LISTEN = "%s": give IP:PORT, as 0.0.0.0:9002' % listen)
    if not d.getVar('ATTEST_VERIFIER_URL') and not listen:
        problems.append('ATTEST_REGISTRAR_URL alone is for devices that are polled: set ATTEST_VERIFIER_URL, or ATTEST_LISTEN')
    return problems + attest_action_problems(d)

def attest_action_problems(d):
    """Programs of ATTEST_ACTIONS that are not there, or of the same name."""
    import difflib
    folder = os.path.join(d.getVar('ATTEST_BASE'), 'tools/attest-agent/actions')
    problems, names = [], []
    for word, path in zip(d.getVar('ATTEST_ACTIONS').split(), attest_action_files(d)):
        if '/' in word:
            problems.extend(attest_missing_file(d, 'ATTEST_ACTIONS', path))
        elif not os.path.isfile(path):
            known = sorted(os.listdir(folder))
            near = difflib.get_close_matches(word, known, 1, 0.5)
            problems.append('ATTEST_ACTIONS: there is no action %s%s (actions: %s; others by their whole path)' % (word,
                '; did you mean %s?' % near[0] if near else '', ' '.join(known)))
        name = os.path.basename(path)
        if name in names or not name or name.startswith('.'):
            problems.append('ATTEST_ACTIONS: %s: each needs a name of its own, which begins with no point' % word)
        names.append(name)
    return problems

def attest_arguments(d):
    """Arguments of every attest command that opens keys."""
    args = []
    if d.getVar('ATTEST_PASSPHRASE_FILE'):
        args += ['--passphrase-file', d.getVar('ATTEST_PASSPHRASE_FILE')]
    if bb.utils.to_boolean(d.getVar('ATTEST_ALLOW_DEBUG_KEYS')):
        args.append('--allow-debug-keys')
    if bb.utils.to_boolean(d.getVar('ATTEST_ALLOW_EXPIRED')):
        args.append('--allow-expired')
    return args

def attest_environment(d):
    """The environment of attest."""
    return dict(os.environ, PATH=d.getVar('PATH'), SOURCE_DATE_EPOCH=d.getVar('REPRODUCIBLE_TIMESTAMP_ROOTFS') or '', **attest_secrets(d))

def attest_run(d, args):
    """Runs attest. What it says goes to the log, how far it is to the terminal; returns its
    warnings. If it fails, its errors are those of the task, as one message."""
    import re, subprocess
    bb.note('attest %s' % ' '.join(args))
    said, warning = [], 'attest: warning: '
    with subprocess.Popen(['attest'] + args, env=attest_environment(d), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors='backslashreplace') as attest:
        for line in attest.stdout:
            percent = re.match(r'signing: (\d+)%', line)
            if percent:
                bb.event.fire(bb.build.TaskProgress(int(percent.group(1))), d)
            else:
                said.append(line.rstrip('\n'))
            bb.note(line.rstrip("\n"))
    if attest.returncode != 0:
        bb.fatal(attest_message(said) or 'attest ended with %d' % attest.returncode)
    return [line[len(warning):] for line in said if line.startswith(warning)]

def attest_message(said):
    """The lines of attest that say why it failed: the error and the hint, and before them files, or rules of a policy."""
    import re
    lines = [re.sub('^attest: ', '', line) for line in said if re.match(r'attest: (?!warning: )|.+:\d+:\d+: error: ', line)]
    end = [re.sub('^error: ', '', line) for line in lines if re.match('error: |hint: ', line)]
    files = [line for line in lines if not re.match('error: |hint: ', line)]
    more = ['... and %d lines more, see the log' % (len(files) - 15)] if len(files) > 15 else []
    text = '\n'.join(files[:15] + more + end)
    for flag, variable in ((', or set $ATTEST_KEY_PASSPHRASE', ''), (' and $ATTEST_KEY_PASSPHRASE', ''),
            ('--allow-debug-keys', 'ATTEST_ALLOW_DEBUG_KEYS = "1"'), ('--allow-expired', 'ATTEST_ALLOW_EXPIRED = "1"'),
            ('--passphrase-file FILE', 'ATTEST_PASSPHRASE_FILE = "FILE"'), ('--passphrase-file', 'ATTEST_PASSPHRASE_FILE'),
            ('--find-signed', 'IMA_EVM_ROOTFS_SIGNED'), ('--find-hashed', 'IMA_EVM_ROOTFS_HASHED'), ('--target', 'ATTEST_TARGET'),
            ('unknown flag: ', 'ATTEST_SIGN_ARGS: unknown flag: ')):
        text = text.replace(flag, variable)
    return text
