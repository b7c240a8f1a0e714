package policy

import (
	"bytes"
	"path"
	"strings"
)

// Use is something that happens to a file on a running system.
type Use string

// Uses of a file.
const (
	UseExec      Use = "exec"      // a program or a script is run
	UseMmap      Use = "mmap"      // a shared library is mapped
	UseRead      Use = "read"      // it is opened for reading
	UseWrite     Use = "write"     // it is opened for writing
	UseModule    Use = "module"    // it is loaded as a kernel module
	UseFirmware  Use = "firmware"  // it is loaded into a device
	UseKexec     Use = "kexec"     // it is booted by kexec
	UseInitramfs Use = "initramfs" // likewise
	UsePolicy    Use = "policy"    // it is loaded as an IMA policy
)

// Uses are all of them, in the order in which they are shown.
func Uses() []Use {
	return []Use{UseExec, UseMmap, UseRead, UseWrite, UseModule, UseFirmware, UseKexec, UseInitramfs, UsePolicy}
}

// calls are the hooks that a use goes through.
func (u Use) calls() []call {
	switch u {
	case UseExec:
		return []call{{hook: FileCheck, mask: MayExec}, {hook: BprmCheck, mask: MayExec}, {hook: CredsCheck, mask: MayExec}}
	case UseMmap:
		return []call{{hook: MmapCheckReqprot, mask: MayExec}, {hook: MmapCheck, mask: MayExec}}
	case UseRead:
		return []call{{hook: FileCheck, mask: MayRead}}
	case UseWrite:
		return []call{{hook: FileCheck, mask: MayWrite}, {hook: FileCheck, mask: MayRead | MayWrite}}
	case UseModule:
		return []call{{hook: ModuleCheck, mask: MayRead}}
	case UseFirmware:
		return []call{{hook: FirmwareCheck, mask: MayRead}}
	case UseKexec:
		return []call{{hook: KexecKernelCheck, mask: MayRead}}
	case UseInitramfs:
		return []call{{hook: KexecInitramfsCheck, mask: MayRead}}
	default:
		return []call{{hook: PolicyCheck, mask: MayRead}}
	}
}

// File is what is known of a regular file.
type File struct {
	Path       string // relative to the root
	Mode       uint16 // permissions
	UID, GID   uint32
	Head, Tail []byte // of the content: at least 4 and 28 bytes, if it has as many
	Object     string // security label, user:role:type; empty if it has none
	Labels
}

// appendedMagic ends a file with an appended signature (include/linux/module_signature.h).
const appendedMagic = "~Module signature appended~\n"

// Uses are what may happen to f, by its path and its first bytes.
func (f *File) Uses() []Use {
	elf := bytes.HasPrefix(f.Head, []byte("\x7fELF"))
	name := path.Base(f.Path)
	var uses []Use
	for _, u := range []struct {
		use Use
		is  bool
	}{
		{UseExec, f.Mode&0o111 != 0 && (elf || bytes.HasPrefix(f.Head, []byte("#!")))},
		{UseMmap, elf && !f.module()},
		{UseRead, true},
		{UseWrite, Mutable(f.Path)},
		{UseModule, f.module()},
		{UseFirmware, strings.HasPrefix(f.Path, "lib/firmware/") || strings.HasPrefix(f.Path, "usr/lib/firmware/")},
		{UseKexec, strings.HasPrefix(f.Path, "boot/") && hasPrefix(name, "vmlinu", "bzImage", "zImage", "Image")},
		{UseInitramfs, strings.HasPrefix(f.Path, "boot/") && hasPrefix(name, "initrd", "initramfs")},
		{UsePolicy, f.Path == "etc/ima/ima-policy"},
	} {
		if u.is {
			uses = append(uses, u.use)
		}
	}
	return uses
}

// module says whether f is a kernel module.
func (f *File) module() bool {
	elf := bytes.HasPrefix(f.Head, []byte("\x7fELF"))
	return strings.HasSuffix(f.Path, ".ko") && (elf || strings.Contains(f.Path, "lib/modules/")) || f.compressedModule()
}

// compressedModule says whether f is a kernel module that somebody has to unpack.
func (f *File) compressedModule() bool {
	ext := path.Ext(f.Path)
	return strings.HasSuffix(f.Path, ".ko"+ext) && decompressors[ext] != ""
}

func hasPrefix(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// System is where a policy is in force.
type System struct {
	Kernel  Version
	FS      Filesystem
	Process // who uses the files
	// Config tells whether the kernel was built with an option; nil if that is not known.
	Config func(option string) bool
}

// Outcome is what a policy says of one use of a file. Rules are nil where none applies.
type Outcome struct {
	Use      Use
	Measured *Rule
	Appraise *Rule
	// Refused is why the kernel refuses the use, in the words of its audit record, or in
	// those of this package, which have spaces.
	Refused string
	Unsure  []*Rule // rules that could apply as well: see [Decision]
}

// Reasons for a refusal that the kernel gives no cause for.
const (
	RefusedWrite  = "a signed file cannot be written to"
	RefusedModule = "kmod unpacks it and uses init_module(2), which a policy with func=MODULE_CHECK refuses unless module.sig_enforce is on; a kernel with CONFIG_MODULE_DECOMPRESS unpacks it itself"
)

// decompressSince is the first version that can unpack kernel modules itself
// (CONFIG_MODULE_DECOMPRESS), so that IMA sees the file.
var decompressSince = Version{5, 17}

// decompressors are the options for the compressions that it then knows, by the end of
// the name of a module.
var decompressors = map[string]string{
	".gz": "CONFIG_MODULE_COMPRESS_GZIP", ".xz": "CONFIG_MODULE_COMPRESS_XZ", ".zst": "CONFIG_MODULE_COMPRESS_ZSTD",
}

// unpacks says whether the kernel is known to unpack a compressed module itself.
func (s *System) unpacks(f *File) bool {
	return !s.Kernel.Before(decompressSince) && s.Config != nil &&
		s.Config("CONFIG_MODULE_DECOMPRESS") && s.Config(decompressors[path.Ext(f.Path)])
}

// Explain says what rules do to the uses of a file.
func (s *System) Explain(rules []*Rule, f *File) []Outcome {
	var outcomes []Outcome
	for _, use := range f.Uses() {
		if use == UseWrite && s.FS.readOnly() {
			continue
		}
		o := Outcome{Use: use}
		for _, c := range use.calls() {
			e := &Event{Func: c.hook, Mask: c.mask, Process: s.Process, FS: s.FS, FOwner: f.UID, FGroup: f.GID, Object: f.Object}
			d := Decide(rules, e, s.Kernel)
			s.merge(&o, &d, f)
		}
		outcomes = append(outcomes, o)
	}
	return outcomes
}

// merge adds what is decided on one of the hooks of a use.
func (s *System) merge(o *Outcome, d *Decision, f *File) {
	if o.Measured == nil && d.Measured() {
		o.Measured = d.Measure
	}
	o.Unsure = append(o.Unsure, d.Unsure...)
	if !d.Appraised() || o.Refused != "" {
		return
	}
	o.Appraise = d.Appraise
	labels := f.Labels
	labels.Appended = bytes.HasSuffix(f.Tail, []byte(appendedMagic))
	o.Refused = d.Refusal(labels, s.Kernel)
	switch {
	case o.Refused != "":
	case o.Use == UseWrite && f.immutable(s.Kernel):
		o.Refused = RefusedWrite
	case o.Use == UseModule && f.compressedModule() && d.Appraise.Func == ModuleCheck && !s.unpacks(f):
		o.Refused = RefusedModule
	}
}

// mutable are files that a running system writes to. A name that ends in a slash is a folder.
var mutable = []string{
	"var/", "run/", "tmp/", "home/", "root/", "srv/", "mnt/", "media/",
	"etc/machine-id", "etc/adjtime", "etc/hostname", "etc/resolv.conf", "etc/mtab", "etc/.pwd.lock", "etc/.updated",
	"etc/passwd", "etc/passwd-", "etc/shadow", "etc/shadow-", "etc/group", "etc/group-", "etc/gshadow", "etc/gshadow-",
	"etc/subuid", "etc/subgid", "etc/ld.so.cache", "etc/fake-hwclock.data", "etc/random-seed", "etc/timestamp",
	"etc/udev/hwdb.bin", "etc/ssh/ssh_host_", "etc/dropbear/", "etc/network/run/", "etc/NetworkManager/system-connections/",
	"etc/wpa_supplicant/", "etc/alternatives/", "boot/grub/grubenv", "boot/grub2/grubenv", "boot/loader/random-seed",
}

// Mutable says whether a running system is likely to write to the file.
func Mutable(path string) bool {
	for _, m := range mutable {
		if path == m || strings.HasSuffix(m, "/") && strings.HasPrefix(path, m) || strings.HasSuffix(m, "_") && strings.HasPrefix(path, m) {
			return true
		}
	}
	return false
}

// NewFile says what happens to files that the process makes: the rule that demands a
// signature of them, which they cannot have, or nil.
func (s *System) NewFile(rules []*Rule) *Rule {
	e := &Event{Func: FileCheck, Mask: MayRead, Process: s.Process, FS: s.FS, FOwner: s.UID, FGroup: s.GID}
	d := Decide(rules, e, s.Kernel)
	if d.Appraised() && d.Imasig && !s.FS.readOnly() {
		return d.Appraise
	}
	return nil
}
