package boottest

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/policies"
	"github.com/meta-attest/meta-attest/tools/boottest/vm"
)

// policyCase is a ready policy on a machine with systemd and a /var that is written to.
type policyCase struct {
	squashfs      bool   // the root is one, and /var is ext4; else one ext4 is both
	sign          string // flags of attest sign
	unsigned, new string // what comes of an unsigned program in the image, and of one that the device wrote
}

// hashMutable labels what such a system writes to. The policy needs a signature all the same.
const hashMutable = "--rule 'sign:/etc/ima/**' --rule 'hash:/etc/**' --rule 'hash:/var/**'"

var policyCases = map[string]policyCase{
	"measure-only":                {unsigned: "ran", new: "ran"},
	"appraise-executables":        {unsigned: noSignature, new: noSignature},
	"appraise-immutable":          {squashfs: true, unsigned: noSignature, new: noSignature},
	"hashed":                      {unsigned: "EACCES missing-hash", new: "ran"},
	"fs-verity":                   {squashfs: true, unsigned: noSignature, new: "EACCES no-verity-digest"},
	"meta-integrity-appraise-all": {sign: hashMutable, unsigned: "EACCES missing-hash", new: "ran"},
	"meta-integrity-hashed":       {sign: hashMutable, unsigned: "EACCES missing-hash", new: "ran"},
	"meta-integrity-simple":       {unsigned: "ran", new: "ran"},
}

// TestPolicies boots systemd under each ready policy.
func TestPolicies(t *testing.T) {
	names, err := policies.Names()
	if err != nil {
		t.Fatal(err)
	}
	if want := slices.Sorted(maps.Keys(policyCases)); !slices.Equal(names, want) {
		t.Fatalf("policies are %v, tried are %v", names, want)
	}
	l := openLab(t)
	l.prepare(t)
	l.makeSystemd(t, nil)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			text, err := policies.Text(name)
			if err != nil {
				t.Fatal(err)
			}
			c := policyCases[name]
			cases := c.cases(text)
			l.boot(t, machine{append: systemdOnly + " rw", images: l.makePolicy(t, c, text, cases), cases: cases})
		})
	}
}

// cases are those of one policy.
func (c policyCase) cases(text []byte) []testCase {
	rules := 1 // compiled in
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			rules++
		}
	}
	var mount []testCase
	if c.squashfs {
		mount = []testCase{{"/var is mounted", "mount /dev/vdb /var ext4 rw", "ok"}}
	}
	return append(mount,
		testCase{"systemd says that it loaded the policy", "logged Successfully loaded the IMA custom policy /etc/ima/ima-policy", "yes"},
		testCase{"its rules, and the one that is compiled in", "rules", strconv.Itoa(rules)},
		testCase{"signed program with shared libraries", "run /bin/bash -c pwd", "/"},
		testCase{"program without a label", "run /t/unsigned/busybox echo ran", c.unsigned},
		testCase{"a file is written to /var", "copy /bin/busybox /var/new/busybox", "ok"},
		testCase{"and once more", "write /var/new/busybox \x7f", "ok"},
		testCase{"a program is written to /var", "copy /bin/busybox /var/program/busybox", "ok"},
		testCase{"it is run", "run /var/program/busybox echo ran", c.new},
	)
}

// makePolicy changes the root for a policy, and makes images of it.
func (l *lab) makePolicy(t *testing.T, c policyCase, text []byte, cases []testCase) []string {
	t.Helper()
	for name, text := range map[string]string{"plan": vm.Plan(cases), "etc/ima/ima-policy": string(text)} {
		if err := os.WriteFile(filepath.Join(l.dir, "systemd", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l.script(t, l.wrap, `
attest sign systemd --key keys/p256.key --cert keys/p256.crt --progress none --rule 'skip:/t/unsigned/**' `+c.sign+`
rm -f systemd.img
`)
	if c.squashfs {
		l.script(t, l.wrap, `
mksquashfs systemd systemd.img -xattrs -comp zstd -Xcompression-level 1 -no-progress -quiet > /dev/null
mke2fs -q -t ext4 -F -O verity -b 4096 var.img 32M
`)
		return []string{"systemd.img", "var.img"}
	}
	l.script(t, l.wrap, "mke2fs -q -t ext4 -I 512 -b 4096 -E root_owner=0:0 -d systemd systemd.img 192M")
	return []string{"systemd.img"}
}
