#
# SPDX-License-Identifier: MIT
#
# oe-selftest -r attest
#
# The image is ATTEST_SELFTEST_IMAGE, attest-image-minimal unless set, the kernel that is configured
# ATTEST_SELFTEST_KERNEL. It signs with the published keys
# of keys-debug, and with keys that are made for the test.

import base64
import glob
import json
import os
import shutil
import tempfile

from oeqa.selftest.case import OESelftestTestCase
from oeqa.utils.commands import bitbake, get_bb_var, get_bb_vars, runCmd


class AttestTests(OESelftestTestCase):

    def setUpLocal(self):
        super().setUpLocal()
        layer = get_bb_vars(['ATTEST_BASE', 'ATTEST_SELFTEST_IMAGE'])
        self.image = layer['ATTEST_SELFTEST_IMAGE']
        self.debug_keys = os.path.join(layer['ATTEST_BASE'], 'keys-debug')
        self.keys = tempfile.mkdtemp(prefix='attest-keys-')
        self.addCleanup(shutil.rmtree, self.keys)

    def configure(self, keys, lines=''):
        """Writes the three lines of the README, and more."""
        self.write_config('''
DISTRO_FEATURES:append = " integrity"
IMAGE_CLASSES:append = " attest-image"
ATTEST_KEY_DIR = "%s"
IMAGE_FSTYPES:forcevariable = "ext4"
%s
''' % (keys, lines))

    def make_keys(self, name):
        """Makes keys as the README says."""
        bitbake('attest-native -c addto_recipe_sysroot')
        sysroot = get_bb_var('RECIPE_SYSROOT_NATIVE', 'attest-native')
        folder = os.path.join(self.keys, name)
        ceremony = os.path.join(self.keys, name + '.toml')
        runCmd('attest keys init --print-ceremony > %s' % ceremony, native_sysroot=sysroot)
        for verb in ('init', 'issue'):
            runCmd('attest keys %s --ceremony %s --out %s' % (verb, ceremony, folder), native_sysroot=sysroot)
        return folder

    def deployed(self):
        """Paths of the manifest and of the ext4, without their suffixes."""
        v = get_bb_vars(['DEPLOY_DIR_IMAGE', 'IMAGE_LINK_NAME'], self.image)
        return os.path.join(v['DEPLOY_DIR_IMAGE'], v['IMAGE_LINK_NAME'])

    def signed_files(self):
        """The files that the manifest says are signed, and the key ids in their labels."""
        with open(self.deployed() + '.attest.json') as f:
            statement = json.loads(base64.b64decode(json.load(f)['payload']))
        return {e['path']: e['keyid'] for e in statement['predicate']['entries'] if e.get('label') == 'sigv2' and 'path' in e}

    def check_labels(self):
        """Compares the labels in the ext4 with the manifest, and returns the key id that all have."""
        signed = {p: k for p, k in self.signed_files().items() if p.isascii() and p.isprintable() and not set(p) & set('"\\\n')}
        self.assertGreater(len(signed), 3, 'the manifest has hardly a file')
        with tempfile.NamedTemporaryFile('w', suffix='.debugfs') as commands:
            commands.write(''.join('ea_get -x "/%s" security.ima\n' % path for path in signed))
            commands.flush()
            sysroot = get_bb_var('RECIPE_SYSROOT_NATIVE', self.image)
            out = runCmd('debugfs -f %s %s.ext4' % (commands.name, self.deployed()), native_sysroot=sysroot).output
        labels = dict(zip(signed, [line.split('=', 1)[1] for line in out.splitlines() if line.startswith('security.ima')]))
        for path, keyid in signed.items():
            value = labels.get(path, '').replace(' ', '')
            self.assertTrue(value.startswith('030204' + keyid), '/%s: label %s..., want a signature by %s' % (path, value[:14], keyid))
        self.assertEqual(len(set(signed.values())), 1, 'more than one key signed')
        return set(signed.values()).pop()

    def assert_refused(self, *texts):
        result = bitbake(self.image, ignore_status=True)
        self.assertNotEqual(result.status, 0, 'the image was built')
        for text in texts:
            self.assertIn(text, result.output)

    def test_image_is_signed(self):
        """Every file of the image has the label that the manifest says, and building again changes nothing."""
        self.configure(self.debug_keys, 'ATTEST_ALLOW_DEBUG_KEYS = "1"')
        result = bitbake(self.image)
        self.assertIn('keys-debug', result.output, 'no warning that published keys sign')
        self.check_labels()
        again = bitbake(self.image)
        self.assertNotIn('do_image_ext4: Started', again.output)

    def test_another_key(self):
        """Another key in the same files signs again, and does not make the root filesystem again."""
        keys = self.make_keys('first')
        self.configure(keys)
        bitbake(self.image)
        first = self.check_labels()
        os.rename(self.make_keys('second'), keys + '.new')
        os.rename(keys, keys + '.old')
        os.rename(keys + '.new', keys)
        result = bitbake(self.image)
        self.assertNotIn('task do_rootfs: Started', result.output)
        self.assertNotEqual(self.check_labels(), first)

    def test_mistakes(self):
        """What is wrong is said before anything is built."""
        self.configure(os.path.join(self.keys, 'nowhere'))
        self.assert_refused('ima.key', 'its folder is not there')
        self.configure(self.debug_keys)
        self.assert_refused('everybody has this private key', 'published as keys-debug/')
        self.configure(self.debug_keys, 'ATTEST_ALLOW_DEBUG_KEYS = "1"\nATTEST_POLICI = "appraise-executables"')
        self.assert_refused('did you mean ATTEST_POLICY')
        keys = self.make_keys('pair')
        shutil.copy(os.path.join(self.make_keys('stranger'), 'ima.crt'), os.path.join(keys, 'ima.crt'))
        self.configure(keys)
        self.assert_refused('private key does not belong to the certificate')

    def test_kernel(self):
        """The kernel's configuration has what IMA needs and names the CA, and nothing may be dropped."""
        self.configure(self.debug_keys, 'ATTEST_ALLOW_DEBUG_KEYS = "1"')
        kernel = get_bb_var('ATTEST_SELFTEST_KERNEL', self.image)
        if kernel == 'linux-dummy':
            self.skipTest('the kernel is linux-dummy: set ATTEST_SELFTEST_KERNEL')
        bitbake('%s -c configure' % kernel)
        with open(os.path.join(get_bb_var('B', kernel), '.config')) as f:
            config = f.read().splitlines()
        for line in ('CONFIG_IMA_APPRAISE=y', 'CONFIG_SYSTEM_TRUSTED_KEYS="attest-ca.pem"', '# CONFIG_IMA_APPRAISE_BOOTPARAM is not set'):
            self.assertIn(line, config)
        fragment = os.path.join(self.keys, 'lost.cfg')
        with open(fragment, 'w') as f:
            f.write('CONFIG_NO_SUCH_SYMBOL=y\n')
        self.configure(self.debug_keys, 'ATTEST_ALLOW_DEBUG_KEYS = "1"\nATTEST_KERNEL_FRAGMENTS:append = " %s"' % fragment)
        result = bitbake('%s -c configure' % kernel, ignore_status=True)
        self.assertIn('CONFIG_NO_SUCH_SYMBOL=y became n: this Linux has no such symbol', result.output)
