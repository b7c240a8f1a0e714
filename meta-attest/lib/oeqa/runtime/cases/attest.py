#
# SPDX-License-Identifier: MIT
#
# TEST_SUITES = "attest": on a device, or under testimage, what the kernel makes of the image. Commands go
# through the serial console where there is one, else through ssh.

from oeqa.runtime.case import OERuntimeTestCase


class AttestTest(OERuntimeTestCase):

    def run_on_target(self, command):
        """Runs a command, and returns whether it succeeded and what it printed."""
        runner = getattr(self.target, 'runner', None)
        if runner:
            status, output = runner.run_serial(command)
            return status == 1, output
        status, output = self.target.run(command)
        return status == 0, output

    def assert_runs(self, command):
        good, output = self.run_on_target(command)
        self.assertTrue(good, '%s: %s' % (command, output))
        return output

    def test_kernel_has_ima(self):
        """The kernel appraises, and its command line does not switch that off."""
        self.assert_runs('[ -d /sys/kernel/security/ima ] || mount -t securityfs securityfs /sys/kernel/security')
        self.assert_runs('[ -e /sys/kernel/security/ima/ascii_runtime_measurements ]')
        cmdline = self.assert_runs('cat /proc/cmdline')
        for word in ('ima_appraise=off', 'ima_appraise=log', 'ima_appraise=fix'):
            self.assertNotIn(word, cmdline)

    def test_certificate_is_loaded(self):
        """The keyring .ima has a key, which a CA of the kernel vouched for."""
        self.assert_runs(r"grep 'keyring .*\.ima: [1-9]' /proc/keys")
        self.assert_runs('[ -s /etc/keys/x509_ima.der ]')

    def test_policy_is_in_force(self):
        """The rules in force appraise, and nobody can add to them."""
        self.assert_runs('grep appraise /sys/kernel/security/ima/policy')
        good, _ = self.run_on_target('echo "dont_appraise func=BPRM_CHECK" > /sys/kernel/security/ima/policy')
        self.assertFalse(good, 'a rule without a signature was added')

    def test_changed_program_is_refused(self):
        """A signed program runs, and a copy without a label does not."""
        self.assert_runs('/bin/busybox true || /bin/true')
        for folder in ('/var/tmp', '/tmp', '/run'):
            good, _ = self.run_on_target('mkdir -p {0} && cp /bin/busybox {0}/attest-test && [ -x {0}/attest-test ]'.format(folder))
            if good:
                break
        else:
            self.skipTest('no folder that a program can be written to')
        good, output = self.run_on_target('%s/attest-test true' % folder)
        self.run_on_target('rm -f %s/attest-test' % folder)
        self.assertFalse(good, 'a program without a label ran')
        self.assertIn('ermission denied', output)
