package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseCmdline(t *testing.T) {
	base := options{policy: "/etc/ima/ima-policy", wait: defaultWait, init: "/sbin/init", root: "/dev/vda"}
	with := func(change func(*options)) options {
		o := base
		change(&o)
		return o
	}
	for _, c := range []struct {
		line string
		want options
		err  string
	}{
		{"root=/dev/vda", base, ""},
		{"console=ttyS0 root=/dev/sda1 quiet root=/dev/vda\n", base, ""},
		{"root=/dev/vda attest=log", base, ""},
		{"root=/dev/vda attest=enforce attest=log", with(func(o *options) { o.enforce = true }), ""},
		{"root=/dev/vda attest.evm=1 attest.policy=/p", with(func(o *options) { o.evm, o.policy = true, "/p" }), ""},
		{"root=/dev/vda attest.policy=none", with(func(o *options) { o.policy = "" }), ""},
		{`root=/dev/vda rootfstype=erofs,ext4 rootflags="a=b,c d" rw`, with(func(o *options) {
			o.fstypes, o.flags, o.writable = []string{"erofs", "ext4"}, "a=b,c d", true
		}), ""},
		{`"root=/dev/vda" rw ro rootwait rootdelay=2`, with(func(o *options) { o.wait, o.delay = forever, 2*time.Second }), ""},
		{"root=/dev/vda rootwait=30 init=/bin/sh -- -c x=y", with(func(o *options) {
			o.wait, o.init, o.initArgs = 30*time.Second, "/bin/sh", []string{"-c", "x=y"}
		}), ""},
		{"root=/dev/vda attest=enforce ima_appraise=enforce", with(func(o *options) { o.enforce = true }), ""},
		{"root=/dev/vda ima_appraise=fix", with(func(o *options) { o.permissive = "ima_appraise=fix" }), ""},
		{"quiet", with(func(o *options) { o.root = "" }), ""},
		{"root=/dev/vda attest=enforce ima_appraise=log", options{}, "ima_appraise=log contradicts attest=enforce"},
		{"root=/dev/vda attest=enforce evm=fix", options{}, "evm=fix contradicts attest=enforce"},
		{"root=/dev/vda attest=enforce ima-appraise=log", options{}, "ima-appraise=log contradicts attest=enforce"},
		{"root=/dev/vda attest=enforce --=x ima_appraise=log", options{}, "ima_appraise=log contradicts attest=enforce"},
		{"root=/dev/vda attest=enforce\vima_appraise=log", options{}, "ima_appraise=log contradicts attest=enforce"},
		{"root=/dev/vda attest=enforce\fima_appraise=log", options{}, "ima_appraise=log contradicts attest=enforce"},
		{"root=/dev/vda attest=enforce\rima_appraise=log", options{}, "ima_appraise=log contradicts attest=enforce"},
		{"root=/dev/vda attest=enforce x\xa0ima_appraise=log", options{}, "ima_appraise=log contradicts attest=enforce"},
		{"root=/dev/vda attest=enforce x\u00a0ima_appraise=log", options{}, "ima_appraise=log contradicts attest=enforce"},
		{"root=/dev/vda attest=enforce x\u0085ima_appraise=log", with(func(o *options) { o.enforce = true }), ""},
		{"root=/dev/vda attest=enforce -- ima_appraise=log", with(func(o *options) {
			o.enforce, o.initArgs = true, []string{"ima_appraise=log"}
		}), ""},
		{"root=/dev/vda attest=enfroce", options{}, "use attest=enforce or attest=log"},
		{"root=/dev/vda attest", options{}, "use attest=enforce or attest=log"},
		{"root=/dev/vda attest.evm=on", options{}, "use attest.evm=1"},
		{"root=/dev/vda attest=enforce attest.policy=none", options{}, "contradicts"},
		{"root=/dev/vda attest.policy=p", options{}, "not an absolute path"},
		{"root=/dev/vda init=sh", options{}, "not an absolute path"},
		{"root=/dev/vda rootwait=x", options{}, "rootwait=x"},
		{"root=/dev/vda rootdelay=-1", options{}, "rootdelay=-1"},
	} {
		got, err := parseCmdline(c.line)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: error %v, want %q", c.line, err, c.err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, %v\nwant %+v", c.line, got, err, c.want)
		}
	}
}

func FuzzParseCmdline(f *testing.F) {
	f.Add(`root=/dev/vda attest=enforce rootflags="a b" -- x`)
	f.Fuzz(func(t *testing.T, line string) {
		o, err := parseCmdline(line)
		if err == nil && (o.init[0] != '/' || o.policy == "" && o.enforce || o.policy != "" && o.policy[0] != '/') {
			t.Errorf("%q: accepted as %+v", line, o)
		}
		if err == nil && !o.enforce && slices.Contains(strings.Split(strings.Split(line, `"`)[0], " "), "attest=enforce") && !strings.Contains(line, "--") {
			t.Errorf("%q: not enforced", line)
		}
	})
}

func TestCheckMountPoints(t *testing.T) {
	for _, c := range []struct {
		name, at string // what is made there in place of a directory
		make     func(path string) error
		want     string
	}{
		{"directories", "", nil, ""},
		{"a link", "/sys", func(p string) error { return os.Symlink("/etc", p) }, "/sys is not a directory"},
		{"a link to a directory beside it", "/proc", func(p string) error { return os.Symlink("dev", p) }, "/proc is not a directory"},
		{"a file", "/dev", func(p string) error { return os.WriteFile(p, nil, 0o644) }, "/dev is not a directory"},
		{"nothing", "/proc", func(string) error { return nil }, "/proc: no such file or directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			for _, at := range mountPoints {
				var err error
				if at == c.at {
					err = c.make(root + at)
				} else {
					err = os.Mkdir(root+at, 0o755)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			err := checkMountPoints(root)
			if got := err != nil; got != (c.want != "") || got && !strings.HasSuffix(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestPlaces: what is deleted is in memory, and what becomes / is another filesystem than it.
func TestPlaces(t *testing.T) {
	if isMountPoint(t.TempDir()+"/none") || isMountPoint("/") || !isMountPoint("/proc") {
		t.Error("mount points are not told from folders")
	}
	if inMemory("/proc") || inMemory("/none") {
		t.Error("/proc is told for an initramfs")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Skip("/dev/shm is no tmpfs")
	}
	if !inMemory("/dev/shm") {
		t.Error("a tmpfs is not told for one")
	}
}

func TestParseKeyrings(t *testing.T) {
	// Lines of a Linux 6.1.
	const text = `0097ee29 I------     1 perm 1f0b0000     0     0 keyring   .evm: empty
0c5f2c6e I------     1 perm 1f030000     0     0 asymmetri Build time key: 2569061bb02e: X509.rsa 9982cf8f []
1c2e8ac6 I------     1 perm 1f0b0000     0     0 keyring   .ima: 12
2e6ac1b9 I--Q---     2 perm 1f3f0000     0 65534 keyring   _uid.0: empty
`
	got, err := parseKeyrings(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]keyring{
		".evm":   {".evm", 0x97ee29, 0},
		".ima":   {".ima", 0x1c2e8ac6, 12},
		"_uid.0": {"_uid.0", 0x2e6ac1b9, 0},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, bad := range []string{
		"xyz I------     1 perm 1f0b0000     0     0 keyring   .evm: empty",
		"0097ee29 I------     1 perm 1f0b0000     0     0 keyring   .evm: many",
	} {
		if _, err := parseKeyrings(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestCompareActions(t *testing.T) {
	ours := []byte("# comment\n\n measure func=BPRM_CHECK\nappraise func=MMAP_CHECK mask=MAY_EXEC\n")
	for _, c := range []struct {
		kernel string
		ok     bool
	}{
		{"measure func=BPRM_CHECK\nappraise func=MMAP_CHECK mask=MAY_EXEC\n", true},
		{"appraise func=POLICY_CHECK appraise_type=imasig \nmeasure func=BPRM_CHECK\nappraise mask=MAY_EXEC func=MMAP_CHECK\n", true},
		{"appraise func=POLICY_CHECK appraise_type=imasig \n", false},
		{"measure func=BPRM_CHECK\n", false},
		{"appraise func=MMAP_CHECK\nmeasure func=BPRM_CHECK\n", false},
		{"", false},
	} {
		if err := compareActions(actions([]byte(c.kernel)), actions(ours)); (err == nil) != c.ok {
			t.Errorf("%q: %v, want ok %t", c.kernel, err, c.ok)
		}
	}
	if compareActions([]string{"measure"}, actions([]byte("# nothing\n"))) == nil {
		t.Error("an empty policy is in force")
	}
}

// TestPartitionNumber reads tables made by sfdisk.
func TestPartitionNumber(t *testing.T) {
	sfdisk, err := exec.LookPath("sfdisk")
	if err != nil {
		t.Skip("sfdisk is not installed: apt-get install fdisk")
	}
	for _, c := range []struct {
		table, id string
		want      int
	}{
		{"label: gpt\nsize=1M, uuid=01234567-89AB-CDEF-0123-456789ABCDEF\nsize=1M, uuid=11234567-89AB-CDEF-0123-456789ABCDEF\n", "11234567-89ab-cdef-0123-456789abcdef", 2},
		{"label: gpt\nsize=1M, uuid=01234567-89AB-CDEF-0123-456789ABCDEF\n", "01234567-89AB-CDEF-0123-456789ABCDEF", 1},
		{"label: gpt\nsize=1M, uuid=01234567-89AB-CDEF-0123-456789ABCDEF\n", "00000000-0000-0000-0000-000000000000", 0},
		{"label: dos\nlabel-id: 0x1f2e3d4c\nsize=1M\nsize=1M\n", "1f2e3d4c-02", 2},
		{"label: dos\nlabel-id: 0x1f2e3d4c\nsize=1M\nsize=1M\n", "1f2e3d4c-03", 0},
		{"label: dos\nlabel-id: 0x1f2e3d4c\nsize=1M\n", "", 0},
	} {
		image := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(image, make([]byte, 8<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		run := exec.Command(sfdisk, "--quiet", image)
		run.Stdin = strings.NewReader(c.table)
		if out, err := run.CombinedOutput(); err != nil {
			t.Fatalf("sfdisk: %v\n%s", err, out)
		}
		disk, err := os.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		if got := partitionNumber(disk, c.id); got != c.want {
			t.Errorf("%q in %q: got %d, want %d", c.id, c.table, got, c.want)
		}
	}
}

func FuzzPartitionNumber(f *testing.F) {
	f.Add(make([]byte, 2048), "1f2e3d4c-02")
	f.Fuzz(func(t *testing.T, disk []byte, id string) {
		if n := partitionNumber(bytes.NewReader(disk), id); n < 0 || n > maxEntries || n != 0 && id == "" {
			t.Errorf("partition %d", n)
		}
	})
}
