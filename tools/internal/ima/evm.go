package ima

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// EVMXattrs are the extended attributes that an EVM signature covers, in the order in
// which the kernel hashes them: evm_config_default_xattrnames of
// security/integrity/evm/evm_main.c.
var EVMXattrs = []string{
	"security.selinux",
	"security.SMACK64",
	"security.SMACK64EXEC",
	"security.SMACK64TRANSMUTE",
	"security.SMACK64MMAP",
	"security.apparmor",
	XattrIMA,
	XattrCapability,
}

// Layout is what EVM's hash of the inode depends on in the kernel that will check it:
// the size of its unsigned long and its byte order.
type Layout struct {
	Bits  int // 32 or 64
	Order binary.AppendByteOrder
}

func (l Layout) String() string {
	order := "little-endian"
	if l.Order == binary.AppendByteOrder(binary.BigEndian) {
		order = "big-endian"
	}
	return fmt.Sprintf("%d-bit %s", l.Bits, order)
}

// targets maps the names that uname -m, Yocto's TARGET_ARCH, Debian and Go give to an
// architecture. m68k is left out on purpose: its ABI packs struct h_misc tighter.
var targets = func() map[string]Layout {
	m := map[string]Layout{}
	for layout, names := range map[Layout]string{
		{64, binary.LittleEndian}: "x86_64 amd64 aarch64 arm64 riscv64 loongarch64 mips64el mips64le mips64r6el mipsisa64r6el powerpc64le ppc64le ppc64el",
		{32, binary.LittleEndian}: "i386 i486 i586 i686 386 arm armel armhf armv6l armv7l armv8l riscv32 mipsel mipsle mipsisa32r6el microblazeel sh4 powerpcle xtensa",
		{64, binary.BigEndian}:    "aarch64_be mips64 mipsisa64r6 powerpc64 ppc64 s390x sparc64",
		{32, binary.BigEndian}:    "armeb mips mipsisa32r6 microblaze powerpc ppc sparc hppa",
	} {
		for name := range strings.FieldsSeq(names) {
			m[name] = layout
		}
	}
	return m
}()

// ParseTarget returns the layout of an architecture's kernel.
func ParseTarget(name string) (Layout, error) {
	l, ok := targets[name]
	if !ok {
		return Layout{}, fmt.Errorf("target %q is unknown: use one of %s", name, strings.Join(Targets(), " "))
	}
	return l, nil
}

// Targets are the names that [ParseTarget] knows, sorted.
func Targets() []string { return slices.Sorted(maps.Keys(targets)) }

// ErrNoIMA means that EVM has nothing to protect: the kernel refuses a signature of
// metadata for a file without security.ima (evm_calc_hmac_or_hash, -EPERM).
var ErrNoIMA = errors.New("file has no security.ima for EVM to protect")

// Inode is the metadata that an EVM signature covers.
type Inode struct {
	UID, GID uint32
	Mode     uint16            // with the file type bits: 0100644
	Xattrs   map[string][]byte // by name; names that EVM does not cover are ignored
}

// EVMDigest computes what an EVM portable signature signs: the values of the covered
// attributes, then struct h_misc with inode number and generation left zero
// (evm_calc_hmac_or_hash and hmac_add_misc of security/integrity/evm/evm_crypto.c).
func EVMDigest(algo HashAlgo, l Layout, in Inode) ([]byte, error) {
	if len(in.Xattrs[XattrIMA]) == 0 {
		return nil, ErrNoIMA
	}
	h, err := algo.New()
	if err != nil {
		return nil, err
	}
	for _, name := range EVMXattrs {
		h.Write(in.Xattrs[name])
	}
	misc := make([]byte, l.Bits/8, 24)
	misc = l.Order.AppendUint32(misc, 0)
	misc = l.Order.AppendUint32(misc, in.UID)
	misc = l.Order.AppendUint32(misc, in.GID)
	misc = l.Order.AppendUint16(misc, in.Mode)
	misc = append(misc, 0, 0)
	h.Write(misc)
	return h.Sum(nil), nil
}
