// Attest-init is the /init of an initramfs. It gives the kernel certificates and a signed
// IMA policy, checks that it took both, and starts the real system:
//
//  1. mounts /proc, /sys, securityfs and /dev; loads the modules that /etc/modules lists, a
//     path a line, in that order;
//  2. adds /etc/keys/x509_ima*.der to the keyring .ima and, where told to, x509_evm*.der to
//     .evm, switches EVM on and closes its setup;
//  3. loads the policy by its path, if it is in the initramfs;
//  4. mounts the root read-only, makes it /, and adds the certificates of its /etc/keys. Its
//     /dev, /proc and /sys must be directories, not links;
//  5. loads the policy of the root, if the initramfs had none;
//  6. executes init.
//
// Called attest-switch-root, by an /init that has mounted the root on FOLDER, it begins with the
// certificates, and takes that root. The caller executes it, so that it is process 1:
//
//	exec attest-switch-root FOLDER
//
// The command line of the kernel says what to do:
//
//	attest=enforce     go no further if anything failed, or if the kernel was told to let things
//	                   pass (ima_appraise=, evm=), or if the policy has no rule "appraise". The
//	                   default, attest=log, tells and goes on
//	attest.policy=PATH of the policy, /etc/ima/ima-policy unless set; none leaves it to systemd
//	attest.evm=1       add certificates to .evm, switch EVM on, and close its setup
//	root= rootfstype= rootflags= rootwait rootdelay= ro rw init=
//	                   what they mean to the kernel; a root is a /dev/NAME or a PARTUUID=
//	panic=N            what follows a refusal: 0, the default, powers off; N > 0 reboots after N
//	                   seconds, as a boot loader that counts attempts wants it; N < 0 at once
//
// An archive of cpio keeps no labels. A policy in the initramfs therefore has the value of
// its security.ima beside it in a file NAME.sig, and that of its security.evm in NAME.evm:
//
//	getfattr --only-values -n security.ima ima-policy > ima-policy.sig
//
// What is checked: the kernel took each certificate, and .ima and .evm are not empty. The last
// rules that it shows are those of the policy by their number, order and actions; their
// conditions are not compared. A kernel that shows no rules (CONFIG_IMA_READ_POLICY is not
// set) must have removed its file policy, as it does when it accepts one.
//
// A policy in the initramfs is bound to it. One in the root is any that was signed with a key
// in .ima: who can write to the root can put another one, of an older release, in its place.
//
// Where the kernel checks no signatures of policies, or takes certificates that no CA of
// it signed (Debian's does neither), only those of the initramfs are loaded.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where everything is. Paths of /sys, /proc and /dev are the same before and after the switch.
const (
	securityDir = "/sys/kernel/security"
	keysDir     = "/etc/keys"
	runDir      = "/run"
	newRoot     = "/newroot"
)

// otherName is what an /init calls this program by that has mounted the root. Words and
// variables are no way to tell: the kernel passes on those that it does not know.
const otherName = "attest-switch-root"

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "attest-init: error: this is the /init of an initramfs, not a command")
		os.Exit(1)
	}
	err := boot()
	tell(levelCritical, "refused: "+err.Error())
	halt()
}

// boot starts the system, and returns only if it must not.
func boot() error {
	if err := mountSystem(); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	o, err := parseCmdline(string(line))
	if err != nil {
		return err
	}
	b := &booter{options: o, newRoot: newRoot}
	if filepath.Base(os.Args[0]) == otherName {
		if len(os.Args) != 2 || !filepath.IsAbs(os.Args[1]) {
			return fmt.Errorf("usage: %s FOLDER", otherName)
		}
		b.newRoot, b.mounted = filepath.Clean(os.Args[1]), true
	}
	for _, step := range []func() error{b.loadModules, b.addCertificates, b.closeEVM, b.loadPolicyOfInitramfs} {
		if err := b.judge(step()); err != nil {
			return err
		}
	}
	if err := b.switchRoot(); err != nil {
		return err // there is nothing to go on to
	}
	for _, step := range []func() error{checkSystem, b.addCertificates, b.loadPolicyOfRoot} {
		if err := b.judge(step()); err != nil {
			return err
		}
	}
	return b.start()
}

// booter is what the steps of a boot know.
type booter struct {
	options
	newRoot string // where the root is to be, before it is /
	mounted bool   // it is there already
	inRoot  bool   // / is the real root
	loaded  bool   // a policy is in force
}

// judge passes an error on where the command line says enforce, else tells it.
func (b *booter) judge(err error) error {
	if err == nil || b.enforce {
		return err
	}
	for _, line := range strings.Split(err.Error(), "\n") {
		tell(levelError, line+"; going on, because attest=enforce is not on the command line")
	}
	return nil
}

// start replaces this program by the real init.
func (b *booter) start() error {
	if b.writable {
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT, ""); err != nil {
			return fmt.Errorf("mount root read-write: %w", err)
		}
	}
	return explainExec(b.init, unix.Exec(b.init, append([]string{b.init}, b.initArgs...), os.Environ()))
}

// Levels of the kernel's log. "quiet" shows those below 4.
const (
	levelCritical = 2
	levelError    = 3
	levelInfo     = 6
)

// tell writes one line through the kernel's log: on the console no other can cut it in two.
func tell(level int, text string) {
	text = strings.ReplaceAll(text, "\n", "; ")
	// Opened for each line, and never made: /dev may have moved to the new root.
	log, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err == nil {
		_, err = fmt.Fprintf(log, "<%d>attest: %s\n", level, text)
		log.Close()
	}
	if err != nil {
		fmt.Println("attest: " + text)
	}
}

// halt ends the machine as panic= says.
func halt() {
	text, _ := os.ReadFile("/proc/sys/kernel/panic")
	seconds, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	how := unix.LINUX_REBOOT_CMD_RESTART
	if seconds == 0 {
		how = unix.LINUX_REBOOT_CMD_POWER_OFF
	}
	time.Sleep(time.Duration(max(seconds, 0)) * time.Second)
	err := unix.Reboot(how)
	tell(levelCritical, fmt.Sprintf("halt: %v", err)) // and the kernel panics, as we end
}
