package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const policyFile = securityDir + "/ima/policy"

// loadPolicyOfInitramfs loads the policy that came with this program, if one did.
func (b *booter) loadPolicyOfInitramfs() error {
	if b.policy == "" || !exists(b.policy) {
		return nil
	}
	path := b.policy
	if exists(path + ".sig") {
		labelled, err := labelPolicy(path)
		if err != nil {
			return err
		}
		defer unix.Unmount(stage, 0)
		path = labelled
	}
	return b.loadPolicy(path)
}

// loadPolicyOfRoot loads the policy of the root, which anybody could have written: so the
// kernel must be one that checks its signature.
func (b *booter) loadPolicyOfRoot() error {
	if b.policy == "" || b.loaded {
		return nil
	}
	if !exists(b.policy) {
		return fmt.Errorf("no policy %s, neither in the initramfs nor in the root", b.policy)
	}
	if err := demandsSignature(); err != nil {
		return fmt.Errorf("load policy %s of the root: %w", b.policy, err)
	}
	return b.loadPolicy(b.policy)
}

// demandsSignature fails unless the kernel takes policies by their path only, which it
// does when it will appraise them: ima_write_policy looks at that before at the text.
func demandsSignature() error {
	f, err := os.OpenFile(policyFile, os.O_WRONLY, 0)
	if err != nil {
		return openedPolicy(err)
	}
	defer f.Close()
	switch _, err := f.WriteString("attest-init asks whether this must be signed"); {
	case errors.Is(err, unix.EACCES):
		return nil
	case errors.Is(err, unix.EINVAL):
		return errors.New("this kernel does not check signatures of policies (CONFIG_IMA_APPRAISE_REQUIRE_POLICY_SIGS)")
	default:
		return fmt.Errorf("ask the kernel whether it checks signatures: %w", err)
	}
}

// openedPolicy explains why the policy cannot be opened for writing.
func openedPolicy(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist) && exists(securityDir+"/ima"):
		return fmt.Errorf("%w: a policy was loaded before", err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: this kernel has no IMA (CONFIG_IMA, CONFIG_SECURITYFS)", err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: a policy was loaded before", err)
	}
	return err
}

// loadPolicy has the kernel read the policy at path, and checks that its rules are in force.
// Under enforce one of them must appraise: with others alone every program runs.
func (b *booter) loadPolicy(path string) error {
	text, err := readFile(path, maxPolicy)
	if err != nil {
		return err
	}
	if err := writePolicyPath(path); err != nil {
		return fmt.Errorf("load policy %s: %w", path, err)
	}
	rules := actions(text)
	if err := inForce(rules); err != nil {
		return fmt.Errorf("policy %s is not in force: %w", path, err)
	}
	if b.enforce && !slices.Contains(rules, "appraise") {
		return fmt.Errorf("policy %s appraises nothing, which contradicts attest=enforce", path)
	}
	b.loaded = true
	tell(levelInfo, fmt.Sprintf("policy %s is in force", path))
	return nil
}

// writePolicyPath makes the kernel read the policy; it takes effect when the file is closed.
func writePolicyPath(path string) error {
	f, err := os.OpenFile(policyFile, os.O_WRONLY, 0)
	if err != nil {
		return openedPolicy(err)
	}
	log := openAudit()
	_, err = f.WriteString(path)
	switch {
	case errors.Is(err, unix.EACCES):
		err = fmt.Errorf("%w: the kernel refused its signature: %s", err, log.cause())
	case errors.Is(err, unix.EINVAL):
		err = fmt.Errorf("%w: the kernel does not understand a rule; the log names it", err)
	}
	return errors.Join(err, f.Close())
}

// inForce compares the rules of the kernel with those that were to be loaded. The kernel
// writes rules its own way, so what is compared is their number, order and action.
func inForce(want []string) error {
	text, err := os.ReadFile(policyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // CONFIG_IMA_READ_POLICY is not set: the file goes when a policy is accepted
	case err != nil:
		return err
	}
	return compareActions(actions(text), want)
}

// compareActions wants the last rules of the kernel to be ours: those before are its own.
func compareActions(have, want []string) error {
	if len(want) == 0 {
		return errors.New("it has no rules")
	}
	if len(have) < len(want) || !slices.Equal(have[len(have)-len(want):], want) {
		return fmt.Errorf("the kernel has %d rules (%s), which do not end in the %d of the file (%s)",
			len(have), strings.Join(have, " "), len(want), strings.Join(want, " "))
	}
	return nil
}

// actions lists the first word of each rule.
func actions(text []byte) []string {
	var list []string
	for line := range bytes.Lines(text) {
		words := strings.Fields(string(line))
		if len(words) > 0 && !strings.HasPrefix(words[0], "#") {
			list = append(list, words[0])
		}
	}
	return list
}

// stage is a tmpfs that lives as long as the kernel reads a policy from it.
const stage = "/attest-policy"

// labelPolicy copies a policy and its labels to where a label can be.
func labelPolicy(path string) (string, error) {
	text, err := readFile(path, maxPolicy)
	if err != nil {
		return "", err
	}
	if err := mountAt("tmpfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return "", err
	}
	copied := stage + "/ima-policy"
	umask := unix.Umask(0) // not chmod afterwards: EVM may refuse that
	err = os.WriteFile(copied, text, 0o644)
	unix.Umask(umask) // init inherits it
	if err != nil {
		return "", err
	}
	for suffix, name := range map[string]string{".sig": "security.ima", ".evm": "security.evm"} {
		label, err := readFile(path+suffix, maxSmall)
		if errors.Is(err, fs.ErrNotExist) && suffix == ".evm" {
			continue
		}
		if err == nil {
			err = unix.Setxattr(copied, name, label, 0)
		}
		if err != nil {
			return "", fmt.Errorf("label policy %s with %s: %w", path, suffix, err)
		}
	}
	return copied, nil
}
