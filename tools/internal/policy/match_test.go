package policy

import (
	"slices"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// rulesOf parses rules for Linux 6.1.
func rulesOf(t *testing.T, text string) []*Rule {
	t.Helper()
	p, err := Parse([]byte(text), Version{6, 1})
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return p.Rules()
}

func TestDecide(t *testing.T) {
	ext4, _ := FindFilesystem("ext4")
	proc, _ := FindFilesystem("proc")
	squashfs, _ := FindFilesystem("squashfs")
	exec := Event{Func: BprmCheck, Mask: MayExec, FS: ext4}
	with := func(e Event, edit func(*Event)) Event { edit(&e); return e }
	for _, c := range []struct {
		name, text        string
		e                 Event
		measure, appraise int // lines of the rules that decide
	}{
		{"first of each class", "measure func=BPRM_CHECK\nmeasure\nappraise\n", exec, 1, 3},
		{"dont decides", "dont_measure fsmagic=0xef53\nmeasure\nappraise\n", exec, 1, 3},
		{"other hook", "measure func=MMAP_CHECK\nappraise func=BPRM_CHECK\n", exec, 0, 2},
		{"dont of a class without do", "dont_measure\nappraise\n", exec, 0, 2},
		{"proc", "dont_appraise fsname=proc\nappraise\n", Event{Func: FileCheck, Mask: MayRead, FS: proc}, 0, 1},
		{"uuid is taken for the right one", "appraise fsuuid=8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6\n", exec, 0, 1},
		{"no uuid", "appraise fsuuid=8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6\n", with(exec, func(e *Event) { e.FS = squashfs }), 0, 0},
		{"null uuid", "appraise fsuuid=00000000-0000-0000-0000-000000000000\n", with(exec, func(e *Event) { e.FS = squashfs }), 0, 1},
		{"mask is all of it", "measure mask=MAY_READ\nappraise mask=^MAY_READ\n", Event{Func: FileCheck, Mask: MayRead | MayWrite, FS: ext4}, 0, 2},
		{"uid", "measure uid=0\nappraise uid>999\n", with(exec, func(e *Event) { e.UID = 1000 }), 0, 2},
		{"euid or, for root, uid", "measure euid=1000\nappraise euid=0\n", with(exec, func(e *Event) { e.UID = 1000 }), 1, 2},
		{"euid of others", "measure euid=1000\nappraise euid=5\n", with(exec, func(e *Event) { e.UID, e.EUID = 1000, 5 }), 0, 2},
		{"owner", "measure fowner<1000\nappraise fgroup=5\n", with(exec, func(e *Event) { e.FOwner, e.FGroup = 1000, 5 }), 0, 2},
		{"object", "measure obj_type=bin_t\nappraise obj_user=x\n", with(exec, func(e *Event) { e.Object = "system_u:object_r:bin_t:s0" }), 1, 0},
		{"subject is not known", "measure subj_type=init_t\nappraise\n", exec, 0, 2},
		{"keyring", "measure func=KEY_CHECK keyrings=.evm\nmeasure func=KEY_CHECK keyrings=.ima|.x gid=5\n", Event{Func: KeyCheck, Data: ".ima"}, 2, 0},
		{"keys need a rule for them", "measure\n", Event{Func: KeyCheck, Data: ".ima"}, 0, 0},
		{"critical data", "measure func=CRITICAL_DATA\n", Event{Func: CriticalData, Data: "selinux"}, 1, 0},
	} {
		d := Decide(rulesOf(t, c.text), &c.e, Version{6, 1})
		got := [2]int{}
		for i, r := range []*Rule{d.Measure, d.Appraise} {
			if r != nil {
				got[i] = r.Line
			}
		}
		if got != [2]int{c.measure, c.appraise} {
			t.Errorf("%s: lines %v, want %d and %d", c.name, got, c.measure, c.appraise)
		}
	}
}

func TestDecideMergesDemands(t *testing.T) {
	d := Decide(rulesOf(t, "measure digest_type=verity permit_directio\nappraise appraise_type=imasig appraise_algos=sha512\n"),
		&Event{Func: BprmCheck, Mask: MayExec}, Version{6, 1})
	if want := (Demands{Imasig: true, Verity: true, DirectIO: true, algos: 1 << ima.SHA512}); d.Demands != want {
		t.Errorf("got %+v, want %+v", d.Demands, want)
	}
	if d.Unsure != nil || !d.Measured() || !d.Appraised() {
		t.Errorf("got %+v", d)
	}
}

func TestUnsure(t *testing.T) {
	d := Decide(rulesOf(t, "dont_appraise subj_type=rpm_t\nappraise\n"), &Event{Func: BprmCheck, Mask: MayExec}, Version{6, 1})
	if len(d.Unsure) != 1 || d.Unsure[0].Line != 1 || !d.Appraised() {
		t.Errorf("got %+v", d)
	}
}

func TestRefusal(t *testing.T) {
	value := func(kind ima.XattrType, version uint8, algo ima.HashAlgo) []byte {
		x := ima.Xattr{Type: kind, Version: version, Hash: algo, Digest: make([]byte, algo.Size()), Signature: []byte("signature")}
		return x.Append(nil)
	}
	hash, sigv2, sigv3 := value(ima.DigestNG, 0, ima.SHA256), value(ima.Signature, 2, ima.SHA256), value(ima.Signature, 3, ima.SHA256)
	verity := value(ima.VeritySignature, 3, ima.SHA256)
	portable := value(ima.PortableSignature, 2, ima.SHA256)
	const any, sig, fsv, algo = "appraise\n", "appraise appraise_type=imasig\n", "appraise digest_type=verity appraise_type=sigv3\n", "appraise appraise_algos=sha512\n"
	const mod, v3 = "appraise func=MODULE_CHECK appraise_type=imasig|modsig\n", "appraise appraise_type=sigv3\n"
	for _, c := range []struct {
		name, kernel, text string
		l                  Labels
		want               string
	}{
		{"not appraised", "6.1", "measure\n", Labels{}, ""},
		{"none", "6.1", any, Labels{}, "missing-hash"},
		{"none, signature", "6.1", sig, Labels{}, "IMA-signature-required"},
		{"none, verity", "6.1", fsv, Labels{}, "verity-signature-required"},
		{"hash", "6.1", any, Labels{IMA: hash}, ""},
		{"hash for signature", "6.1", sig, Labels{IMA: hash}, "IMA-signature-required"},
		{"hash for verity", "6.1", fsv, Labels{IMA: hash}, "verity-signature-required"},
		{"signature", "6.1", sig, Labels{IMA: sigv2}, ""},
		{"signature for hash", "6.1", any, Labels{IMA: sigv2}, ""},
		{"signature for verity", "6.1", fsv, Labels{IMA: sigv2}, "verity-signature-required"},
		{"verity", "6.1", fsv, Labels{IMA: verity}, ""},
		{"verity for signature", "6.1", sig, Labels{IMA: verity}, "IMA-signature-required"},
		{"verity for hash", "6.1", any, Labels{IMA: verity}, "invalid-verity-signature"},
		{"verity of old", "5.15", any, Labels{IMA: verity}, "unknown-ima-data"},
		{"version 3 of old", "6.1", sig, Labels{IMA: sigv3}, "invalid-signature-version"},
		{"version 3", "7.1", sig, Labels{IMA: sigv3}, ""},
		{"version 3 demanded", "7.1", v3, Labels{IMA: sigv2}, "IMA-sigv3-required"},
		{"malformed", "6.1", any, Labels{IMA: sigv2[:5]}, "unknown-ima-data"},
		{"other hash", "6.1", algo, Labels{IMA: sigv2}, "denied-hash-algorithm"},
		{"evm missing", "6.1", sig, Labels{IMA: sigv2, EVMOn: true}, "missing-HMAC"},
		{"evm malformed", "6.1", sig, Labels{IMA: sigv2, EVM: hash, EVMOn: true}, "invalid-HMAC"},
		{"evm", "6.1", sig, Labels{IMA: sigv2, EVM: portable, EVMOn: true}, ""},
		{"evm makes up for it", "6.1", sig, Labels{IMA: hash, EVM: portable, EVMOn: true}, ""},
		{"evm of old does not", "5.10", sig, Labels{IMA: hash, EVM: portable, EVMOn: true}, "IMA-signature-required"},
		{"evm is off", "6.1", sig, Labels{IMA: hash, EVM: portable}, "IMA-signature-required"},
		{"appended", "6.1", mod, Labels{Appended: true}, ""},
		{"appended, hash", "6.1", mod, Labels{IMA: hash, Appended: true}, ""},
		{"appended, not asked for", "6.1", "appraise func=MODULE_CHECK appraise_type=imasig\n", Labels{Appended: true}, "IMA-signature-required"},
		{"nothing appended", "6.1", mod, Labels{}, "IMA-signature-required"},
	} {
		kernel, err := ParseVersion(c.kernel)
		if err != nil {
			t.Fatal(err)
		}
		p, err := Parse([]byte(c.text), kernel)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		d := Decide(p.Rules(), &Event{Func: ModuleCheck, Mask: MayRead}, kernel)
		if got := d.Refusal(c.l, kernel); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestExplain(t *testing.T) {
	signed := (&ima.Xattr{Type: ima.Signature, Version: 2, Hash: ima.SHA256, Signature: []byte("x")}).Append(nil)
	hashed := (&ima.Xattr{Type: ima.DigestNG, Hash: ima.SHA256, Digest: make([]byte, 32)}).Append(nil)
	elf, script := []byte("\x7fELF\x02"), []byte("#!/bin/sh\n")
	const all = "appraise func=BPRM_CHECK appraise_type=imasig\nappraise func=MMAP_CHECK appraise_type=imasig\n" +
		"appraise func=MODULE_CHECK appraise_type=imasig\nappraise func=FIRMWARE_CHECK appraise_type=imasig\n" +
		"appraise func=FILE_CHECK fowner=0\nmeasure func=BPRM_CHECK\n"
	for _, c := range []struct {
		name string
		fs   string
		f    File
		want map[Use]string
	}{
		{"program", "ext4", File{Path: "usr/bin/x", Mode: 0o755, Head: elf, Labels: Labels{IMA: signed}}, map[Use]string{UseExec: "", UseMmap: "", UseRead: ""}},
		{"program without label", "ext4", File{Path: "usr/bin/x", Mode: 0o755, Head: elf},
			map[Use]string{UseExec: "missing-hash", UseMmap: "IMA-signature-required", UseRead: "missing-hash"}},
		{"script of a user", "ext4", File{Path: "home/x", Mode: 0o755, UID: 5, Head: script}, map[Use]string{UseExec: "IMA-signature-required", UseRead: "", UseWrite: ""}},
		{"library", "ext4", File{Path: "usr/lib/x.so", Mode: 0o644, Head: elf, Labels: Labels{IMA: hashed}}, map[Use]string{UseMmap: "IMA-signature-required", UseRead: ""}},
		{"module", "ext4", File{Path: "lib/modules/6.1/x.ko", Mode: 0o644, Head: elf, Labels: Labels{IMA: signed}}, map[Use]string{UseModule: "", UseRead: ""}},
		{"packed module", "ext4", File{Path: "lib/modules/6.1/x.ko.xz", Mode: 0o644, Labels: Labels{IMA: signed}}, map[Use]string{UseModule: RefusedModule, UseRead: ""}},
		{"firmware", "ext4", File{Path: "lib/firmware/x", Mode: 0o644, Labels: Labels{IMA: hashed}}, map[Use]string{UseFirmware: "IMA-signature-required", UseRead: ""}},
		{"machine-id, signed", "ext4", File{Path: "etc/machine-id", Mode: 0o444, Labels: Labels{IMA: signed}}, map[Use]string{UseRead: "", UseWrite: RefusedWrite}},
		{"machine-id, hashed", "ext4", File{Path: "etc/machine-id", Mode: 0o444, Labels: Labels{IMA: hashed}}, map[Use]string{UseRead: "", UseWrite: ""}},
		{"machine-id, read-only", "squashfs", File{Path: "etc/machine-id", Mode: 0o444, Labels: Labels{IMA: signed}}, map[Use]string{UseRead: ""}},
		{"log", "ext4", File{Path: "var/log/x", Mode: 0o644}, map[Use]string{UseRead: "missing-hash", UseWrite: "missing-hash"}},
		{"kernel", "ext4", File{Path: "boot/vmlinuz-6.1", Mode: 0o644, UID: 5}, map[Use]string{UseRead: "", UseKexec: ""}},
		{"initramfs", "ext4", File{Path: "boot/initrd.img", Mode: 0o644, UID: 5}, map[Use]string{UseRead: "", UseInitramfs: ""}},
		{"policy", "ext4", File{Path: "etc/ima/ima-policy", Mode: 0o644, UID: 5}, map[Use]string{UseRead: "", UsePolicy: ""}},
	} {
		fs, ok := FindFilesystem(c.fs)
		if !ok {
			t.Fatal(c.fs)
		}
		s := &System{Kernel: Version{6, 1}, FS: fs}
		outcomes := s.Explain(rulesOf(t, all), &c.f)
		if len(outcomes) != len(c.want) {
			t.Errorf("%s: got %d uses, want %d: %v", c.name, len(outcomes), len(c.want), outcomes)
		}
		for _, o := range outcomes {
			want, ok := c.want[o.Use]
			if !ok || o.Refused != want {
				t.Errorf("%s: %s: got %q, want %q (%v)", c.name, o.Use, o.Refused, want, ok)
			}
			if measured := o.Measured != nil; measured != (o.Use == UseExec) {
				t.Errorf("%s: %s: measured %v", c.name, o.Use, measured)
			}
		}
	}
}

// TestExplainPackedModule: only a kernel that is known to unpack a module takes it from a file.
func TestExplainPackedModule(t *testing.T) {
	signed := (&ima.Xattr{Type: ima.Signature, Version: 2, Hash: ima.SHA256, Signature: []byte("x")}).Append(nil)
	rules := rulesOf(t, "appraise func=MODULE_CHECK appraise_type=imasig\n")
	config := func(set ...string) func(string) bool {
		return func(option string) bool { return slices.Contains(set, option) }
	}
	const unpacks, xz, gz = "CONFIG_MODULE_DECOMPRESS", "CONFIG_MODULE_COMPRESS_XZ", "CONFIG_MODULE_COMPRESS_GZIP"
	for _, c := range []struct {
		path   string
		kernel Version
		config func(string) bool
		want   string
	}{
		{"lib/modules/x.ko", Version{5, 15}, nil, ""},
		{"lib/modules/x.ko.xz", Version{6, 1}, nil, RefusedModule},
		{"lib/modules/x.ko.xz", Version{6, 1}, config(unpacks, xz), ""},
		{"lib/modules/x.ko.xz", Version{5, 16}, config(unpacks, xz), RefusedModule},
		{"lib/modules/x.ko.xz", Version{6, 1}, config(xz), RefusedModule},
		{"lib/modules/x.ko.xz", Version{6, 1}, config(unpacks, gz), RefusedModule},
		{"lib/modules/x.ko.gz", Version{6, 1}, config(unpacks, gz), ""},
		{"lib/modules/x.ko.zst", Version{6, 6}, config(unpacks, gz, xz), RefusedModule},
	} {
		s := &System{Kernel: c.kernel, Config: c.config}
		outcomes := s.Explain(rules, &File{Path: c.path, Labels: Labels{IMA: signed}})
		if got := outcomes[1]; got.Use != UseModule || got.Refused != c.want {
			t.Errorf("%s, Linux %v: got %+v, want %q", c.path, c.kernel, got, c.want)
		}
	}
}

// TestExplainImmutable: a portable EVM signature keeps a file with a digest from being
// written to, where EVM is on.
func TestExplainImmutable(t *testing.T) {
	hashed := (&ima.Xattr{Type: ima.DigestNG, Hash: ima.SHA256, Digest: make([]byte, 32)}).Append(nil)
	portable := (&ima.Xattr{Type: ima.PortableSignature, Version: 2, Hash: ima.SHA256, Signature: []byte("x")}).Append(nil)
	for _, c := range []struct {
		kernel Version
		evmOn  bool
		want   string
	}{
		{Version{6, 1}, true, RefusedWrite},
		{Version{6, 1}, false, ""},
		{Version{5, 10}, true, ""},
	} {
		s := &System{Kernel: c.kernel}
		f := File{Path: "var/x", Labels: Labels{IMA: hashed, EVM: portable, EVMOn: c.evmOn}}
		outcomes := s.Explain(rulesOf(t, "appraise fowner=0\n"), &f)
		if got := outcomes[1]; got.Use != UseWrite || got.Refused != c.want {
			t.Errorf("Linux %v, EVM %v: got %+v, want %q", c.kernel, c.evmOn, got, c.want)
		}
	}
}

func TestNewFile(t *testing.T) {
	ext4, _ := FindFilesystem("ext4")
	erofs, _ := FindFilesystem("erofs")
	for _, c := range []struct {
		text string
		fs   Filesystem
		uid  uint32
		want int
	}{
		{"appraise fowner=0\n", ext4, 0, 0},
		{"measure\nappraise fowner=0 appraise_type=imasig\n", ext4, 0, 2},
		{"appraise fowner=0 appraise_type=imasig\n", ext4, 5, 0},
		{"appraise appraise_type=imasig\n", erofs, 0, 0},
		{"appraise func=BPRM_CHECK appraise_type=imasig\n", ext4, 0, 0},
	} {
		s := &System{Kernel: Version{6, 1}, FS: c.fs, Process: Process{UID: c.uid}}
		line := 0
		if r := s.NewFile(rulesOf(t, c.text)); r != nil {
			line = r.Line
		}
		if line != c.want {
			t.Errorf("%q: line %d, want %d", c.text, line, c.want)
		}
	}
}
