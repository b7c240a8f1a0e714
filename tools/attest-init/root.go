package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mountSystem mounts what the kernel shows itself through.
func mountSystem() error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		kind, at string
		flags    uintptr
	}{
		{"devtmpfs", "/dev", unix.MS_NOSUID},
		{"proc", "/proc", quiet},
		{"sysfs", "/sys", quiet},
		{"securityfs", securityDir, quiet},
	} {
		// The kernel may have mounted /dev (CONFIG_DEVTMPFS_MOUNT does so for a real root only).
		if err := mountAt(m.kind, m.at, m.kind, m.flags, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return nil
}

// mountAt mounts on a folder that it makes if need be.
func mountAt(source, at, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, at, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", source, kind, at, err)
	}
	return nil
}

// loadModules loads what /etc/modules lists, for kernels whose disk drivers are modules.
func (b *booter) loadModules() error {
	if b.mounted {
		return nil
	}
	list, err := readFile("/etc/modules", maxSmall)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(list)) {
		err := loadModule(path)
		switch {
		case err == unix.ENOENT: // by finit_module: the file is there
			return fmt.Errorf("load module %s: %w: it needs another module before it, see the log", path, err)
		case err != nil && !errors.Is(err, unix.EEXIST):
			return fmt.Errorf("load module %s: %w", path, err)
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// switchRoot makes the real root /. What the initramfs held is deleted.
func (b *booter) switchRoot() error {
	if !b.mounted {
		if err := b.mountNewRoot(); err != nil {
			return err
		}
	} else if !isMountPoint(b.newRoot) {
		return fmt.Errorf("no root is mounted on %s", b.newRoot)
	}
	if err := b.judge(checkMountPoints(b.newRoot)); err != nil {
		return err
	}
	if err := b.moveMounts(); err != nil {
		return err
	}
	if err := deleteInitramfs(b.newRoot); err != nil {
		tell(levelInfo, fmt.Sprintf("delete the initramfs: %v", err)) // it only costs memory
	}
	if err := os.Chdir(b.newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := errors.Join(unix.Chroot("."), os.Chdir("/")); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	b.inRoot = true
	return nil
}

func (b *booter) mountNewRoot() error {
	time.Sleep(b.delay)
	if err := os.MkdirAll(b.newRoot, 0o755); err != nil {
		return err
	}
	device, err := b.waitForRoot()
	if err != nil {
		return err
	}
	return b.mountRoot(device)
}

// moveMounts takes what the kernel shows itself through into the root, and /run, if another
// /init has mounted one: a udev that ran there goes on from what it left.
func (b *booter) moveMounts() error {
	folders := mountPoints
	if info, err := os.Lstat(b.newRoot + runDir); err == nil && info.IsDir() && isMountPoint(runDir) {
		folders = append(slices.Clone(folders), runDir)
	}
	for _, at := range folders {
		if err := unix.Mount(at, b.newRoot+at, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s into the root: %w", at, err)
		}
	}
	return nil
}

// isMountPoint says whether a folder of / is on another filesystem.
func isMountPoint(folder string) bool {
	var root, st unix.Stat_t
	return unix.Lstat("/", &root) == nil && unix.Lstat(folder, &st) == nil && st.Dev != root.Dev
}

// mountPoints are moved into the root.
var mountPoints = []string{"/dev", "/proc", "/sys"}

// checkMountPoints wants folders: a link in the root would lead what is moved elsewhere, and
// have its own files read in its place.
func checkMountPoints(root string) error {
	var errs []error
	for _, at := range mountPoints {
		info, err := os.Lstat(root + at)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s%s is not a directory", root, at)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("check mount points of the root: %w", err))
		}
	}
	return errors.Join(errs...)
}

// checkSystem wants the kernel itself behind the files that are read in the root.
func checkSystem() error {
	for at, magic := range map[string]int64{"/proc": unix.PROC_SUPER_MAGIC, securityDir: unix.SECURITYFS_MAGIC} {
		var st unix.Statfs_t
		if err := unix.Statfs(at, &st); err != nil {
			return fmt.Errorf("find filesystem of %s: %w", at, err)
		}
		if int64(st.Type) != magic {
			return fmt.Errorf("%s is not of the kernel: its filesystem is %#x, not %#x", at, st.Type, magic)
		}
	}
	return nil
}

// waitForRoot returns the path of the root's block device once there is one.
func (b *booter) waitForRoot() (string, error) {
	if b.root == "" {
		return "", errors.New("no root= on the command line")
	}
	if !strings.HasPrefix(b.root, "/dev/") && !strings.HasPrefix(b.root, partUUIDPrefix) {
		return "", fmt.Errorf("root=%s: use /dev/NAME or PARTUUID=", b.root)
	}
	const step = 20 * time.Millisecond
	for waited := time.Duration(0); ; waited += step {
		device := b.root
		if id, ok := strings.CutPrefix(b.root, partUUIDPrefix); ok {
			device = findPartition(id)
		}
		if info, err := os.Stat(device); err == nil && info.Mode().Type() == fs.ModeDevice {
			return device, nil
		}
		if waited >= b.wait {
			return "", fmt.Errorf("root=%s: no such block device after %v", b.root, b.wait)
		}
		time.Sleep(step)
	}
}

// mountRoot mounts the root read-only, whatever is to become of it later.
func (b *booter) mountRoot(device string) error {
	kinds := b.fstypes
	if kinds == nil {
		text, err := os.ReadFile("/proc/filesystems")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if kind, ok := strings.CutPrefix(line, "\t"); ok { // others start with "nodev"
				kinds = append(kinds, strings.TrimSpace(kind))
			}
		}
	}
	var errs []error
	for _, kind := range kinds {
		err := unix.Mount(device, b.newRoot, kind, unix.MS_RDONLY, b.flags)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", kind, err))
	}
	return fmt.Errorf("mount root %s: %w", device, errors.Join(errs...))
}

// deleteInitramfs removes what is on the filesystem of /, and nothing of what is mounted on it.
// On a filesystem that keeps anything it does nothing.
func deleteInitramfs(newRoot string) error {
	if !inMemory("/") {
		return errors.New("/ is no initramfs")
	}
	var root unix.Stat_t
	if err := unix.Lstat("/", &root); err != nil {
		return err
	}
	return deleteBelow("/", newRoot, root.Dev)
}

// inMemory says whether a folder is on a filesystem that an initramfs can be on.
func inMemory(folder string) bool {
	var fs unix.Statfs_t
	if err := unix.Statfs(folder, &fs); err != nil {
		return false
	}
	kind := uint32(fs.Type) // signed on some architectures, and RAMFS_MAGIC has the highest bit
	return kind == unix.RAMFS_MAGIC || kind == unix.TMPFS_MAGIC
}

func deleteBelow(dir, newRoot string, dev uint64) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			errs = append(errs, err)
			continue
		}
		if st.Dev != dev {
			continue
		}
		if e.IsDir() {
			errs = append(errs, deleteBelow(path, newRoot, dev))
		}
		if err := os.Remove(path); err != nil && path != newRoot && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
