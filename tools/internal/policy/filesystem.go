package policy

import "slices"

// Filesystem is what conditions see of a filesystem.
type Filesystem struct {
	Name    string // of its type, s_type->name
	Magic   uint64
	Subtype string
	UUID    UUID // zero for none
	AnyUUID bool // it has one, which is not known
}

// hasUUID says whether a condition fsuuid=u is met.
func (f *Filesystem) hasUUID(u UUID) bool { return f.AnyUUID || f.UUID == u }

// trait is what a kind of filesystem can hold.
type trait uint8

const (
	hasUUID   trait = 1 << iota // a UUID of its own
	hasXattr                    // security.ima
	hasVerity                   // fs-verity
	isKernel                    // made by the kernel; everybody reads it and nobody can label it
	isFixed                     // cannot be written to
)

// filesystems are those of Linux on which files are read (include/uapi/linux/magic.h).
// A magic number may belong to several.
var filesystems = []struct {
	name   string
	magic  uint64
	traits trait
}{
	{"ext4", 0xef53, hasUUID | hasXattr | hasVerity},
	{"ext3", 0xef53, hasUUID | hasXattr},
	{"ext2", 0xef53, hasUUID | hasXattr},
	{"xfs", 0x58465342, hasUUID | hasXattr},
	{"btrfs", 0x9123683e, hasUUID | hasXattr | hasVerity},
	{"f2fs", 0xf2f52010, hasUUID | hasXattr | hasVerity},
	{"bcachefs", 0xca451a4e, hasUUID | hasXattr},
	{"ubifs", 0x24051905, hasUUID | hasXattr},
	{"jffs2", 0x72b6, hasXattr},
	{"nilfs2", 0x3434, hasUUID},
	{"reiserfs", 0x52654973, hasUUID | hasXattr},
	{"jfs", 0x3153464a, hasUUID | hasXattr},
	{"ocfs2", 0x7461636f, hasUUID | hasXattr},
	{"gfs2", 0x01161970, hasUUID | hasXattr},
	{"squashfs", 0x73717368, hasXattr | isFixed},
	{"erofs", 0xe0f5e1e2, hasUUID | hasXattr | isFixed},
	{"cramfs", 0x28cd3d45, isFixed},
	{"romfs", 0x7275, isFixed},
	{"overlay", 0x794c7630, hasXattr},
	{"ecryptfs", 0xf15f, hasXattr},
	{"fuse", 0x65735546, hasXattr},
	{"fuseblk", 0x65735546, hasXattr},
	{"virtiofs", 0x65735546, hasXattr},
	{"9p", 0x01021997, hasXattr},
	{"nfs", 0x6969, 0},
	{"nfs4", 0x6969, 0},
	{"ceph", 0x00c36400, hasXattr},
	{"cifs", 0xff534d42, 0},
	{"smb3", 0xfe534d42, 0},
	{"vfat", 0x4d44, 0},
	{"msdos", 0x4d44, 0},
	{"exfat", 0x2011bab0, 0},
	{"ntfs3", 0x7366746e, hasXattr},
	{"hfsplus", 0x482b, hasXattr},
	{"iso9660", 0x9660, isFixed},
	{"udf", 0x15013346, 0},
	{"minix", 0x137f, 0},
	{"tmpfs", 0x01021994, hasXattr},
	{"devtmpfs", 0x01021994, hasXattr},
	{"rootfs", 0x01021994, hasXattr}, // the initramfs; ramfs in a kernel without CONFIG_TMPFS
	{"ramfs", 0x858458f6, 0},
	{"rootfs", 0x858458f6, 0},
	{"hugetlbfs", 0x958458f6, 0},
	{"proc", 0x9fa0, isKernel},
	{"sysfs", 0x62656572, isKernel},
	{"debugfs", 0x64626720, isKernel},
	{"tracefs", 0x74726163, isKernel},
	{"securityfs", 0x73636673, isKernel},
	{"selinuxfs", 0xf97cff8c, isKernel},
	{"smackfs", 0x43415d53, isKernel},
	{"apparmorfs", 0x5a3c69f0, isKernel},
	{"cgroup", 0x27e0eb, isKernel},
	{"cgroup2", 0x63677270, isKernel},
	{"devpts", 0x1cd1, isKernel},
	{"binfmt_misc", 0x42494e4d, isKernel},
	{"configfs", 0x62656570, isKernel},
	{"efivarfs", 0xde5e81e4, isKernel},
	{"pstore", 0x6165676c, isKernel},
	{"bpf", 0xcafe4a11, isKernel},
	{"nsfs", 0x6e736673, isKernel},
	{"autofs", 0x0187, isKernel},
	{"mqueue", 0x19800202, isKernel},
	{"resctrl", 0x07655821, isKernel},
	{"rpc_pipefs", 0x67596969, isKernel},
	{"fusectl", 0x65735543, isKernel},
}

// FindFilesystem returns the filesystem of the given type, such as "ext4". If filesystems
// of that type have UUIDs, its UUID is not known.
func FindFilesystem(name string) (Filesystem, bool) {
	for _, f := range filesystems {
		if f.name == name {
			return Filesystem{Name: f.name, Magic: f.magic, AnyUUID: f.traits&hasUUID != 0}, true
		}
	}
	return Filesystem{}, false
}

// traits returns what filesystems of this type can hold.
func (f *Filesystem) traits() trait {
	for _, k := range filesystems {
		if k.name == f.Name && k.magic == f.Magic {
			return k.traits
		}
	}
	return 0
}

// readOnly says whether nothing is ever written to filesystems of this type.
func (f *Filesystem) readOnly() bool {
	return f.traits()&isFixed != 0
}

// kinds returns the filesystems that the conditions of r on name and magic number let
// pass, and whether there are such conditions.
func (r *Rule) kinds() (kinds []Filesystem, limited bool) {
	for _, k := range filesystems {
		if (r.FSName == "" || r.FSName == k.name) && (r.FSMagic == nil || *r.FSMagic == k.magic) {
			kinds = append(kinds, Filesystem{Name: k.name, Magic: k.magic})
		}
	}
	return kinds, r.FSName != "" || r.FSMagic != nil
}

// knownFS says whether the name and the magic number in the conditions of r are known,
// each by itself.
func (r *Rule) knownFS() (name, magic bool) {
	name, magic = r.FSName == "", r.FSMagic == nil
	for _, k := range filesystems {
		name = name || k.name == r.FSName
		magic = magic || k.magic == *r.FSMagic
	}
	return name, magic
}

// none says that kinds of filesystems, of which there is at least one, all lack a trait.
func none(kinds []Filesystem, t trait) bool {
	return len(kinds) > 0 && !slices.ContainsFunc(kinds, func(f Filesystem) bool { return f.traits()&t != 0 })
}
