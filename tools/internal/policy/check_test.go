package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// codes are findings as "code@line", those that options cannot tell apart left out.
func codes(findings []Finding, leave ...Code) []string {
	var got []string
	for _, f := range findings {
		skip := false
		for _, c := range leave {
			skip = skip || f.Code == c
		}
		if !skip {
			got = append(got, fmt.Sprintf("%s@%d", f.Code, f.Line))
		}
	}
	return got
}

// complete are rules without a finding, that others can stand before.
const complete = `appraise func=MMAP_CHECK appraise_type=imasig
appraise func=MODULE_CHECK appraise_type=imasig
appraise func=FIRMWARE_CHECK appraise_type=imasig
appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig
appraise func=POLICY_CHECK appraise_type=imasig
`

func TestCheck(t *testing.T) {
	const uuid = "8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6"
	for _, c := range []struct {
		name, kernel, fs, text string
		want                   []string
	}{
		{"good", "6.1", "", "measure func=BPRM_CHECK\nmeasure func=MMAP_CHECK mask=MAY_EXEC\n", nil},
		{"good appraisal", "6.1", "", complete, nil},

		{"refused", "6.1", "", "measur\nmeasure\n", []string{"refused@1"}},
		{"too new", "5.4", "", "measure func=BPRM_CHECK\nmeasure gid=0\n", []string{"too-new@2"}},
		{"all lines", "5.4", "", "x\nmeasure gid=0\ny\n", []string{"refused@1", "too-new@2", "refused@3"}},
		{"newer kernel", "8.0", "", "measure\n", []string{"kernel@0"}},
		{"unterminated", "6.1", "", "measure", []string{"unterminated@1"}},
		{"long line", "6.1", "", "#" + strings.Repeat("x", 4095) + "\n#" + strings.Repeat("x", 4094) + "\nmeasure\n", []string{"long-line@1"}},
		{"modsig", "6.1", "", "appraise func=MODULE_CHECK appraise_type=imasig|modsig\n", []string{"config@1", "policy-not-signed@0"}},
		{"keys", "6.1", "", "measure func=KEY_CHECK keyrings=.ima\n", []string{"config@1"}},
		{"lsm", "6.1", "", "measure obj_type=x\n", []string{"config@1"}},

		// What an earlier rule of the same class decides.
		{"shadowed exception", "6.1", "", "measure\ndont_measure fsmagic=0x9fa0\n", []string{"shadowed@2"}},
		{"redundant", "6.1", "", "measure func=BPRM_CHECK\nmeasure func=BPRM_CHECK mask=MAY_EXEC\n", []string{"redundant@2"}},
		{"other class", "6.1", "", "measure func=BPRM_CHECK\naudit func=BPRM_CHECK\n", nil},
		{"narrower first", "6.1", "", "dont_measure fsmagic=0x9fa0\nmeasure\n", []string{}},
		{"stricter never decides", "6.1", "", "appraise func=MODULE_CHECK\nappraise func=MODULE_CHECK appraise_type=imasig\n",
			[]string{"hash-accepted@1", "shadowed@2", "policy-not-signed@0"}},
		{"range", "6.1", "", "dont_measure uid<1000\nmeasure uid=0\n", []string{"shadowed@2"}},
		{"range within", "6.1", "", "dont_measure uid>10\ndont_measure uid>100\ndont_measure uid>5\nmeasure\n", []string{"redundant@2"}},
		{"other id", "6.1", "", "dont_measure uid=0\ndont_measure euid=0\nmeasure\n", nil},
		{"mask within", "6.1", "", "measure func=FILE_CHECK mask=^MAY_READ\nmeasure func=FILE_CHECK mask=MAY_READ\n", []string{"redundant@2", "exact-mask@2"}},
		{"mask apart", "6.1", "", "measure func=FILE_CHECK mask=MAY_READ\nmeasure func=FILE_CHECK mask=^MAY_READ\n", []string{"exact-mask@1"}},
		{"func by another name", "6.1", "", "measure func=FILE_MMAP\ndont_measure func=MMAP_CHECK\n", []string{"shadowed@2"}},
		{"name and number", "6.1", "", "dont_measure fsmagic=0x9fa0\ndont_measure fsname=proc\nmeasure\n", []string{"redundant@2"}},
		{"number of several", "6.1", "", "dont_measure fsname=ext4\nmeasure fsmagic=0xef53\n", nil},
		{"keyrings", "6.1", "", "measure func=KEY_CHECK keyrings=.ima|.evm\nmeasure func=KEY_CHECK keyrings=.evm\n", []string{"config@1", "redundant@2"}},
		{"keys are apart", "6.1", "", "measure\nmeasure func=CRITICAL_DATA\n", nil},
		{"other pcr", "6.1", "", "measure func=BPRM_CHECK\nmeasure func=BPRM_CHECK pcr=11\n", []string{"shadowed@2"}},
		{"other template", "6.1", "", "measure func=BPRM_CHECK template=ima-sig\nmeasure func=BPRM_CHECK\n", []string{"shadowed@2"}},
		{"setxattr", "6.1", "", "appraise func=SETXATTR_CHECK appraise_algos=sha256\nappraise func=SETXATTR_CHECK appraise_algos=sha256\n", []string{"shadowed@2"}},
		{"labels", "6.1", "", "dont_measure obj_type=a\ndont_measure obj_type=a obj_user=b\ndont_measure obj_type=c\nmeasure\n", []string{"config@1", "redundant@2"}},

		// What nothing meets.
		{"mask of exec", "6.1", "", "measure func=BPRM_CHECK mask=MAY_READ\n", []string{"never-matches@1"}},
		{"mask of module", "6.1", "", "measure func=MODULE_CHECK mask=MAY_EXEC\n", []string{"never-matches@1"}},
		{"append alone", "6.1", "", "measure mask=MAY_APPEND\nmeasure mask=^MAY_APPEND\n", []string{"never-matches@1"}},
		{"no id", "6.1", "", "measure uid<0\nmeasure fowner>4294967294\n", []string{"never-matches@1", "never-matches@2"}},
		{"two filesystems", "6.1", "", "measure fsname=xfs fsmagic=0x9fa0\n", []string{"never-matches@1"}},
		{"unknown filesystem", "6.1", "", "measure fsname=ext5\nmeasure fsmagic=0x1234567\n", []string{"unknown-filesystem@1", "unknown-filesystem@2"}},
		{"subtype", "6.19", "", "measure fsname=ext4 fs_subtype=sshfs\nmeasure fsname=fuse fs_subtype=sshfs\n", []string{"never-matches@1"}},
		{"carriage return", "6.1", "", "measure fsname=ext4\r\n", []string{"unknown-filesystem@1", "never-matches@1"}},
		{"ignored id", "6.1", "", "measure func=CRITICAL_DATA gid=0\n", []string{"ignored@1"}},
		{"ignored text", "6.1", "", "measure fsuuid=" + uuid + "z\n", []string{"ignored@1", "fsuuid@1"}},
		{"ignored flag", "6.6", "", "appraise func=POLICY_CHECK appraise_type=imasig appraise_flag=check_blacklist\n", []string{"ignored@1"}},
		{"setxattr for a label", "6.1", "", "appraise func=SETXATTR_CHECK appraise_algos=sha256 obj_type=x\n", []string{"ignored@1", "config@1"}},
		{"cmdline of old", "5.4", "", "measure func=KEXEC_CMDLINE uid=0\n", []string{"ignored@1"}},

		// fsuuid= fails open.
		{"fsuuid", "6.1", "", "measure fsuuid=" + uuid + "\n", []string{"fsuuid@1"}},
		{"fsuuid on squashfs", "6.1", "squashfs", "measure fsuuid=" + uuid + "\n", []string{"fsuuid@1", "no-rule@0"}},
		{"fsuuid on overlay", "6.1", "overlay", "appraise func=POLICY_CHECK fsuuid=" + uuid + " appraise_type=imasig\n", []string{"fsuuid@1", "no-rule@0", "policy-not-signed@0"}},
		{"fsuuid on erofs", "6.1", "erofs", "measure fsuuid=" + uuid + "\n", []string{"fsuuid@1"}},
		{"fsuuid and fsname", "6.1", "", "measure fsname=squashfs fsuuid=" + uuid + "\n", []string{"never-matches@1"}},
		{"fsuuid of nothing", "6.1", "", "measure fsuuid=00000000-0000-0000-0000-000000000000\n", []string{"fsuuid@1"}},
		{"nothing done", "6.1", "ext4", "dont_appraise fsmagic=0x9fa0\ndont_measure\n", []string{"no-rule@0"}},
		{"other filesystem", "6.1", "squashfs", "measure fsmagic=0xef53\n", []string{"no-rule@0"}},
		{"measured, not appraised", "6.1", "squashfs", "measure func=BPRM_CHECK\nappraise func=BPRM_CHECK fsmagic=0xef53 appraise_type=imasig\n",
			[]string{"programs@2", "scripts@2", "libraries@2", "hooks@2", "tmpfs@2", "no-rule@0", "policy-not-signed@0"}},
		{"measured and appraised", "6.1", "ext4", "measure func=BPRM_CHECK\n" + complete, nil},
		{"appraised by label", "6.1", "ext4", "measure\nappraise func=MMAP_CHECK obj_type=x appraise_type=imasig\n", []string{"config@2", "policy-not-signed@0"}},

		// What appraisal misses, and what it should not meet.
		{"exec only", "6.1", "", "appraise func=BPRM_CHECK appraise_type=imasig\n", []string{"scripts@1", "libraries@1", "hooks@1", "tmpfs@1", "policy-not-signed@0"}},
		{"exec and read", "6.1", "", "appraise func=BPRM_CHECK appraise_type=imasig\nappraise func=FILE_CHECK mask=^MAY_READ fowner=1 appraise_type=imasig\n" + complete, []string{"scripts@1", "tmpfs@1"}},
		{"exec and read of root", "6.1", "", "appraise func=BPRM_CHECK appraise_type=imasig\nappraise func=FILE_CHECK mask=^MAY_READ fowner=0 fsmagic=0xef53 appraise_type=imasig\n" + complete, []string{"tmpfs@1"}},
		{"exec and open to exec", "6.1", "", "appraise func=BPRM_CHECK appraise_type=imasig\nappraise func=FILE_CHECK mask=MAY_EXEC fowner=1 appraise_type=imasig\n" + complete, []string{"scripts@1", "tmpfs@1"}},
		{"exec of root, the rest of a user", "6.1", "", "appraise func=BPRM_CHECK fowner=0 appraise_type=imasig\nappraise uid=1000 appraise_type=imasig\n",
			[]string{"programs@1", "scripts@1", "libraries@1", "hooks@1", "tmpfs@1", "policy-not-signed@0"}},
		{"exec by users", "6.1", "", "appraise func=BPRM_CHECK uid>0 appraise_type=imasig\n" + complete, []string{"programs@1", "scripts@1", "tmpfs@1"}},
		{"exec on another filesystem", "6.1", "", "appraise func=BPRM_CHECK fsname=xfs appraise_type=imasig\nappraise func=FILE_CHECK fsname=xfs appraise_type=imasig\nappraise func=MMAP_CHECK fsname=ext4 appraise_type=imasig\n",
			[]string{"libraries@1", "hooks@1", "tmpfs@1", "policy-not-signed@0"}},
		{"exec on an unknown filesystem", "6.1", "", "appraise fsmagic=0x1234567 appraise_type=imasig\n", []string{"tmpfs@1", "unknown-filesystem@1"}},
		{"exec on one disk", "6.1", "", "appraise func=BPRM_CHECK fsuuid=" + uuid + " appraise_type=imasig\n" + complete, []string{"scripts@1", "tmpfs@1", "fsuuid@1"}},
		{"exec on all disks but one", "6.1", "", "dont_appraise fsuuid=" + uuid + "\nappraise func=BPRM_CHECK appraise_type=imasig\n" + complete, []string{"fsuuid@1", "scripts@2", "tmpfs@2"}},
		{"policies of root", "6.1", "", "dont_appraise func=POLICY_CHECK uid=0\n" + complete, []string{"policy-not-signed@0"}},
		{"tmpfs runs", "6.1", "", "dont_appraise fsmagic=0x1021994\nappraise func=BPRM_CHECK appraise_type=imasig\n" + complete, []string{"tmpfs@1", "scripts@2"}},
		{"tmpfs unmeasured", "6.1", "", "dont_measure fsmagic=0x1021994\nmeasure func=BPRM_CHECK\n", []string{"tmpfs-not-measured@1"}},
		{"tmpfs unread", "6.1", "", "dont_measure fsmagic=0x1021994 func=FILE_CHECK\nmeasure func=BPRM_CHECK\n", nil},
		{"kernel's files", "6.1", "", "appraise func=FILE_CHECK appraise_type=imasig\n" + complete, []string{"kernel-filesystem@1"}},
		{"kernel's files of root", "6.1", "", "appraise fowner=0 appraise_type=imasig\n", []string{"programs@1", "tmpfs@1", "kernel-filesystem@1"}},
		{"files of others", "6.1", "", "appraise func=FILE_CHECK fowner=5 appraise_type=imasig\n" + complete, nil},
		{"no label", "6.1", "", "appraise func=FILE_CHECK fsname=vfat appraise_type=imasig\n" + complete, []string{"no-label@1"}},
		{"no label there", "6.1", "vfat", complete, []string{"no-label@1", "no-label@2", "no-label@3", "no-label@4", "no-label@5"}},
		{"verity", "6.1", "", "appraise func=FILE_CHECK fowner=5 digest_type=verity appraise_type=sigv3\n" + complete, []string{"no-verity@1"}},
		{"verity on squashfs", "6.1", "squashfs", "appraise func=FILE_CHECK fowner=5 digest_type=verity appraise_type=sigv3\n" + complete, []string{"no-verity@1"}},
		{"verity on ext4", "6.1", "", "appraise func=FILE_CHECK fowner=5 fsname=ext4 digest_type=verity appraise_type=sigv3\n" + complete, nil},
		{"verity merged", "6.1", "", "measure func=MMAP_CHECK digest_type=verity\n" + complete, []string{"merged@2"}},
		{"verity decided", "6.1", "", "measure func=MMAP_CHECK digest_type=verity fsname=ext4\nappraise func=MMAP_CHECK digest_type=verity fsname=ext4 appraise_type=sigv3\n" + complete, nil},
		{"direct io", "6.1", "", "measure permit_directio\n" + complete, []string{"directio@1"}},
		{"direct io elsewhere", "6.1", "", "measure func=BPRM_CHECK permit_directio\n" + complete, nil},
		{"weak hash", "6.1", "", "appraise func=FIRMWARE_CHECK appraise_type=imasig appraise_algos=sha1,sha256\n" + complete, []string{"weak-hash@1", "shadowed@4"}},
		{"labels are lost", "5.4", "", "dont_appraise func=FILE_CHECK\n" + complete, []string{"loses-labels@1"}},
		{"labels are kept", "6.1", "", "dont_appraise func=FILE_CHECK\n" + complete, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			kernel, err := ParseVersion(c.kernel)
			if err != nil {
				t.Fatal(err)
			}
			o := Options{Kernel: kernel}
			if c.fs != "" {
				fs, ok := FindFilesystem(c.fs)
				if !ok {
					t.Fatal("unknown filesystem")
				}
				o.FS = &fs
			}
			got := codes(Check([]byte(c.text), o))
			if len(got)+len(c.want) > 0 && !cmp.Equal(got, c.want) {
				t.Errorf("%s\n%s", c.text, cmp.Diff(c.want, got))
			}
		})
	}
}

func TestCheckConfig(t *testing.T) {
	text := "measure func=KEY_CHECK\nappraise func=MODULE_CHECK appraise_type=imasig|modsig\nappraise func=POLICY_CHECK appraise_type=imasig\n"
	all := map[string]bool{"CONFIG_IMA_APPRAISE": true, configModsig: true, configKeys: true}
	for _, without := range []string{"", "CONFIG_IMA_APPRAISE", configModsig, configKeys} {
		f := Check([]byte(text), Options{Kernel: Version{6, 1}, Config: func(option string) bool { return all[option] && option != without }})
		want := map[string]int{"": 0, "CONFIG_IMA_APPRAISE": 1, configModsig: 1, configKeys: 1}[without]
		if len(f) != want {
			t.Errorf("without %q: %v", without, f)
		}
		for _, f := range f {
			if f.Severity != SeverityError || f.Code != CodeConfig || !strings.Contains(f.Message, without) {
				t.Errorf("without %q: %v", without, f)
			}
		}
	}
}

// TestFindingPlace: findings name the word that they are about.
func TestFindingPlace(t *testing.T) {
	f := Check([]byte("# x\n measure  func=BPRM_CHECK mask=MAY_READ\n"), Options{Kernel: Version{6, 1}})
	if len(f) != 1 || f[0].Line != 2 || f[0].Column != 27 || f[0].Token != "mask=MAY_READ" {
		t.Errorf("got %+v", f)
	}
}

// TestOverlap has the pairs of which ima-evm-utils' ima_policy_check.test is made, as far
// as the kernel itself decides about them: there a pair of different hooks, or of
// different actions, counts as an overlap because a test may cause both.
func TestOverlap(t *testing.T) {
	for _, c := range []struct {
		a, b             string
		overlaps, covers bool // covers: a has all of b
	}{
		{"measure func=FILE_CHECK uid=0", "measure uid=1 func=FILE_CHECK", false, false},
		{"measure func=FILE_CHECK uid=0 mask=MAY_READ", "measure uid=0 mask=MAY_EXEC func=FILE_CHECK", false, false},
		{"appraise func=FILE_CHECK", "appraise uid=0", true, false},
		{"appraise uid=0", "appraise func=FILE_CHECK uid=0", true, true},
		{"measure func=FILE_CHECK", "dont_measure func=FILE_CHECK", true, true},
		{"measure func=FILE_CHECK", "measure func=MMAP_CHECK", false, false},
		{"measure func=MMAP_CHECK", "measure func=MMAP_CHECK_REQPROT", false, false},
		{"measure func=FILE_CHECK mask=MAY_EXEC", "measure func=FILE_CHECK mask=^MAY_EXEC", true, true}, // nothing else goes with MAY_EXEC
		{"measure func=FILE_CHECK mask=^MAY_READ", "measure func=FILE_CHECK mask=^MAY_EXEC", false, false},
		{"measure func=FILE_CHECK mask=^MAY_READ", "measure func=FILE_CHECK mask=^MAY_WRITE", true, false},
		{"measure func=FILE_CHECK uid>0", "measure func=FILE_CHECK uid>1", true, true},
		{"measure func=FILE_CHECK uid>1", "measure func=FILE_CHECK uid<1", false, false},
		{"measure func=FILE_CHECK uid>1", "measure func=FILE_CHECK uid<3", true, false},
		{"measure func=FILE_CHECK", "measure func=PATH_CHECK", true, true},
		{"measure euid=0", "measure euid=1", true, false}, // a process can have both
		{"measure fowner=0 fgroup=0", "measure fowner=0", true, false},
		{"measure fsname=ext4", "measure fsmagic=0xef53", true, false},
		{"measure fsname=ext4", "measure fsmagic=0x9fa0", false, false},
		{"measure fsmagic=0xef53", "measure fsname=ext4", true, true},
		{"measure obj_type=a", "measure obj_type=b", false, false},
		{"measure obj_type=a", "measure obj_type=a subj_type=b", true, true},
		{"measure fsuuid=8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6", "measure fsuuid=8bcbe394-4f13-4144-be8e-5aa9ea2ce2f7", false, false},
		{"measure func=KEY_CHECK keyrings=.ima", "measure func=KEY_CHECK keyrings=.evm", false, false},
		{"measure func=KEY_CHECK", "measure func=KEY_CHECK keyrings=.evm", true, true},
		{"measure", "measure func=KEY_CHECK", false, false},
		{"measure", "measure func=KEXEC_CMDLINE", true, true},
		{"measure mask=MAY_READ", "measure func=KEXEC_CMDLINE", false, false},
	} {
		kernel := Version{6, 6}
		p, err := Parse([]byte(c.a+"\n"+c.b+"\n"), kernel)
		if err != nil {
			t.Fatalf("%s | %s: %v", c.a, c.b, err)
		}
		a, b := p.Rules()[0], p.Rules()[1]
		if got := a.overlaps(b, kernel); got != c.overlaps || b.overlaps(a, kernel) != got {
			t.Errorf("%s | %s: overlaps %v", c.a, c.b, got)
		}
		if got := a.covers(b, kernel); got != c.covers {
			t.Errorf("%s | %s: covers %v", c.a, c.b, got)
		}
	}
}
