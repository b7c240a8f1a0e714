package payload

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrNotMemory means that the folder is on a disk, where what is erased can be found.
var ErrNotMemory = errors.New("not on tmpfs or ramfs")

// Folder is where payloads lie, each in a folder of its name. It is not safe for concurrent
// use by two processes.
type Folder struct {
	path string
	root *os.Root
}

// MakeFolder makes the folder at name for a user: by root, before it becomes that user. One
// that is there has to be the caller's or that user's with mode 0700, so that a wrong name
// takes no folder of the system's away; root takes any such folder for itself.
func MakeFolder(name string, uid, gid int) error {
	// The folder above is not a secret, and the user has to pass it.
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	made := os.Mkdir(name, 0o700)
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return fmt.Errorf("make folder: %w", made)
	}
	dir, err := openDir(name)
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	defer dir.Close()
	var at unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &at); err != nil {
		return fmt.Errorf("make folder %s: %w", name, err)
	}
	if owner := int(at.Uid); made != nil && (at.Mode&0o7777 != 0o700 || owner != uid && owner != os.Geteuid() && uid != 0) {
		return fmt.Errorf("make folder %s: it is there, of user %d with mode %04o: name another one, or remove it", name, owner, at.Mode&0o7777)
	}
	if made == nil { // whatever the umask is; of another's folder it would need CAP_FOWNER
		err = dir.Chmod(0o700)
	}
	if err := errors.Join(err, dir.Chown(uid, gid)); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	return nil
}

// InMemory says whether the folder at name is on tmpfs or ramfs, or would be if it were made.
func InMemory(name string) bool {
	for {
		var disk unix.Statfs_t
		err := unix.Statfs(name, &disk)
		if err == nil {
			return inMemory(&disk)
		}
		above := filepath.Dir(name)
		if !errors.Is(err, fs.ErrNotExist) || above == name {
			return false
		}
		name = above
	}
}

func inMemory(disk *unix.Statfs_t) bool {
	magic := uint32(disk.Type) // signed on 32 bits
	return magic == unix.TMPFS_MAGIC || magic == unix.RAMFS_MAGIC
}

func openDir(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// OpenFolder opens the folder at name, for this user alone. It refuses one that is not in
// memory, with [ErrNotMemory], that is a symbolic link, or that anybody else may enter.
func OpenFolder(name string) (*Folder, error) {
	dir, err := openDir(name)
	if err != nil {
		return nil, fmt.Errorf("open payload folder: %w", err)
	}
	defer dir.Close()
	var disk unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &disk); err != nil {
		return nil, fmt.Errorf("open payload folder %s: %w", name, err)
	}
	if !inMemory(&disk) {
		return nil, fmt.Errorf("open payload folder %s: %w: mount one there, or name a folder in /run", name, ErrNotMemory)
	}
	var at unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &at); err != nil {
		return nil, fmt.Errorf("open payload folder %s: %w", name, err)
	}
	if int(at.Uid) != os.Geteuid() || at.Mode&0o7777 != 0o700 {
		return nil, fmt.Errorf("open payload folder %s: user %d has it with mode %04o, not %d with 0700", name, at.Uid, at.Mode&0o7777, os.Geteuid())
	}
	// By its number, so that it is the folder that was looked at.
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open payload folder %s: %w", name, err)
	}
	return &Folder{name, root}, nil
}

// Close closes the folder and erases nothing.
func (f *Folder) Close() error { return f.root.Close() }

// Path is where the payload of this name lies.
func (f *Folder) Path(name string) string { return filepath.Join(f.path, name) }

// Put writes p in the place of what is there under its name. Whoever opens a path sees the
// old files or the new ones, and after a crash either are there.
func (f *Folder) Put(p *Payload) (err error) {
	if err := p.Check(); err != nil {
		return err
	}
	fresh := "." + rand.Text()
	// After an exchange this is the old payload, after an error a part of the new one.
	defer func() { err = errors.Join(err, f.remove(fresh)) }()
	if err := f.root.Mkdir(fresh, 0o700); err != nil {
		return fmt.Errorf("write payload %s: %w", p.Name, err)
	}
	for _, file := range p.Files {
		if err := f.write(fresh, file, file.Name == p.Run); err != nil {
			return fmt.Errorf("write payload %s: %w", p.Name, err)
		}
	}
	if err := f.exchange(fresh, p.Name); err != nil {
		return fmt.Errorf("write payload %s: %w", p.Name, err)
	}
	return nil
}

func (f *Folder) write(dir string, file File, run bool) error {
	if err := f.root.MkdirAll(path.Join(dir, path.Dir(file.Name)), 0o700); err != nil {
		return err
	}
	mode := file.Mode&0o700 | 0o600
	if run {
		mode = 0o700
	}
	return f.root.WriteFile(path.Join(dir, file.Name), file.Data, mode)
}

func (f *Folder) exchange(fresh, name string) error {
	_, err := f.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return f.root.Rename(fresh, name)
	}
	if err != nil {
		return err
	}
	dir, err := f.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Renameat2(int(dir.Fd()), fresh, int(dir.Fd()), name, unix.RENAME_EXCHANGE)
}

// Erase removes the payload of this name, if it is there.
func (f *Folder) Erase(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	return f.remove(name)
}

func (f *Folder) remove(name string) error {
	if err := f.root.RemoveAll(name); err != nil {
		return fmt.Errorf("erase payload: %w", err)
	}
	return nil
}

// EraseAll removes all that is in the folder, also what is not of this package.
func (f *Folder) EraseAll() error {
	dir, err := f.root.Open(".")
	if err != nil {
		return fmt.Errorf("erase payloads: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		err = errors.Join(err, f.remove(name))
	}
	if err != nil {
		return fmt.Errorf("erase payloads: %w", err)
	}
	return nil
}
