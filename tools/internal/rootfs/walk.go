package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// File is one name in a tree, as the kernel sees it.
type File struct {
	Path       string // relative to the root, slash-separated
	Mode       uint16 // st_mode: file type and permissions
	UID, GID   uint32
	Nlink      uint32
	Size       int64 // bytes
	Rdev       [2]uint32
	ctime      unix.StatxTimestamp
	dev, ino   uint64
	mount      uint64
	mountKnown bool
}

// Regular says whether f is a regular file.
func (f *File) Regular() bool { return f.Mode&unix.S_IFMT == unix.S_IFREG }

// Dir says whether f is a directory.
func (f *File) Dir() bool { return f.Mode&unix.S_IFMT == unix.S_IFDIR }

// ID is the device and the inode number of f: two names with the same are one file.
func (f *File) ID() (dev, ino uint64) { return f.dev, f.ino }

// inode names a file apart from its names.
type inode struct{ dev, ino uint64 }

func (f *File) inode() inode { return inode{f.dev, f.ino} }

// names counts the names that are still to come of files that a walk has met.
type names map[inode]uint32

// first says whether f is the first name of its file.
func (n names) first(f File) bool {
	if f.Nlink < 2 {
		return true
	}
	left, again := n[f.inode()]
	if !again {
		left = f.Nlink
	}
	if left--; left == 0 {
		delete(n, f.inode())
	} else {
		n[f.inode()] = left
	}
	return !again
}

// sameMount compares mount ids where the kernel tells them (Linux 5.8): the device
// number misses bind mounts, and differs between files of one overlayfs.
func (f *File) sameMount(g *File) bool {
	if f.mountKnown && g.mountKnown {
		return f.mount == g.mount
	}
	return f.dev == g.dev
}

// statx fills all but the path; flags are those of statx(2).
func statx(dirfd int, name string, flags int) (File, error) {
	var st unix.Statx_t
	err := unix.Statx(dirfd, name, flags|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st)
	if err != nil {
		return File{}, err
	}
	return File{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: st.Nlink, Size: int64(st.Size), ctime: st.Ctime,
		Rdev: [2]uint32{st.Rdev_major, st.Rdev_minor},
		dev:  unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino,
		mount: st.Mnt_id, mountKnown: st.Mask&unix.STATX_MNT_ID != 0,
	}, nil
}

// Tree is an opened root directory.
type Tree struct {
	labels Labels
	root   string // absolute: libc's view of a path must not depend on a working directory
	dir    *os.File
	top    File
}

// Open opens the root directory of a tree whose labels and owners labels knows.
func Open(root string, labels Labels) (*Tree, error) {
	if root == "" {
		return nil, errors.New("the path of the tree is empty")
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(abs, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open directory", Path: root, Err: err}
	}
	dir := os.NewFile(uintptr(fd), abs)
	top, err := statx(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		dir.Close()
		return nil, &fs.PathError{Op: "statx", Path: root, Err: err}
	}
	return &Tree{labels: labels, root: abs, dir: dir, top: top}, nil
}

// Close closes the tree.
func (t *Tree) Close() error { return t.dir.Close() }

// Contains says whether path, which need not exist, lies in the tree.
func (t *Tree) Contains(path string) (bool, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return false, err
	}
	if path, err = filepath.EvalSymlinks(filepath.Dir(path)); err != nil {
		return false, err
	}
	for {
		f, err := statx(unix.AT_FDCWD, path, 0)
		if err != nil {
			return false, err
		}
		if f.inode() == t.top.inode() {
			return true, nil
		}
		if path == "/" {
			return false, nil
		}
		path = filepath.Dir(path)
	}
}

// ErrBusy means that another process is signing the tree.
var ErrBusy = errors.New("another process is signing this tree")

// lock keeps a second signer out: both would say that every file has their label.
func (t *Tree) lock() (unlock func(), err error) {
	fd := int(t.dir.Fd())
	err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%s: %w", t.root, ErrBusy)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", t.root, err)
	}
	return func() { unix.Flock(fd, unix.LOCK_UN) }, nil
}

// open opens a file of the tree for reading. No symbolic link is followed on the way,
// so that a tree cannot lead out of itself, and no FIFO or device is waited for.
func (t *Tree) open(rel string) (*os.File, error) {
	return t.openResolving(rel, unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
}

// openInside opens a file or directory as a program on the device would: symbolic links
// are followed as if the root of the tree were the root of all.
func (t *Tree) openInside(rel string) (*os.File, error) {
	return t.openResolving(rel, 0, unix.RESOLVE_IN_ROOT)
}

func (t *Tree) openResolving(rel string, flags int, resolve uint64) (*os.File, error) {
	flags |= unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := ignoringEINTR(func() (int, error) {
		fd, err := unix.Openat2(int(t.dir.Fd()), rel, &unix.OpenHow{Flags: uint64(flags), Resolve: resolve})
		if errors.Is(err, unix.ENOSYS) { // before Linux 5.6
			return unix.Openat(int(t.dir.Fd()), rel, flags|unix.O_NOFOLLOW, 0)
		}
		return fd, err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: rel, Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(t.root, rel)), nil
}

func ignoringEINTR(open func() (int, error)) (int, error) {
	for {
		fd, err := open()
		// openat2 answers EAGAIN when a rename elsewhere raced with the resolution.
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// errOtherMount marks a name on which something else is mounted.
var errOtherMount = errors.New("on another mount: not looked into")

// each calls visit for every name below the root, by components in the order of their
// bytes, a directory before what it holds. A name that cannot be looked at is given
// with the error; only an error of visit ends the walk.
func (t *Tree) each(ctx context.Context, visit func(File, error) error) error {
	return t.eachIn(ctx, int(t.dir.Fd()), "", visit)
}

func (t *Tree) eachIn(ctx context.Context, parent int, rel string, visit func(File, error) error) error {
	names, err := readNames(parent)
	if err != nil {
		return visit(File{Path: rel, Mode: unix.S_IFDIR}, fmt.Errorf("read directory: %w", err))
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		f, err := statx(parent, name, unix.AT_SYMLINK_NOFOLLOW)
		f.Path = path.Join(rel, name)
		if err == nil && len(f.Path) >= unix.PathMax {
			err = unix.ENAMETOOLONG
		}
		if err == nil {
			err = t.labels.Stat(t.root+"/"+f.Path, &f)
		}
		if err == nil && !f.sameMount(&t.top) {
			err = errOtherMount
		}
		if err := visit(f, err); err != nil {
			return err
		}
		if err != nil || !f.Dir() {
			continue
		}
		fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			if err := visit(f, fmt.Errorf("open directory: %w", err)); err != nil {
				return err
			}
			continue
		}
		err = t.eachIn(ctx, fd, f.Path, visit)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// readNames returns the names in an open directory, sorted by their bytes.
func readNames(dirfd int) ([]string, error) {
	// A descriptor of its own: the position in the directory belongs to it.
	fd, err := unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(fd), ".")
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

// pending bounds how far the workers may be ahead of a large file that one of them is
// still reading, and with it the memory that waiting results take.
const pending = 4096

// job is a name on its way through [process].
type job[T any] struct {
	file File
	err  error  // of the walk
	done chan T // nil when there is no work to do; closed without a value when it was not done
}

// process walks t and calls work, from n goroutines, for every file that the filter
// wants worked on, then emit for every name in the order of the walk, from one
// goroutine. newWork is called once for each goroutine. When ctx ends, what was begun is
// finished and emitted; when emit fails, what was begun is finished. Either error is returned.
func process[T any](ctx context.Context, t *Tree, n int, wanted func(File) bool,
	newWork func() func(context.Context, File) T, emit func(File, T, error) error) error {
	asked := ctx
	ctx, cancel := context.WithCancel(asked)
	defer cancel()
	var g errgroup.Group
	jobs := make(chan job[T], 16*n) // waking a goroutine for each file would cost more than a small one
	order := make(chan job[T], pending)
	g.Go(func() error {
		defer close(jobs)
		defer close(order)
		return t.each(ctx, func(f File, err error) error {
			j := job[T]{file: f, err: err}
			if err == nil && f.Regular() && wanted(f) {
				j.done = make(chan T, 1)
			}
			select {
			case order <- j:
			case <-ctx.Done():
				return ctx.Err()
			}
			if j.done == nil {
				return nil
			}
			select {
			case jobs <- j:
				return nil
			case <-ctx.Done():
				close(j.done)
				return ctx.Err()
			}
		})
	})
	for range n {
		g.Go(func() error {
			work := newWork()
			for j := range jobs {
				if ctx.Err() != nil {
					close(j.done)
					continue
				}
				j.done <- work(ctx, j.file)
			}
			return nil
		})
	}
	failed := collect(order, emit, cancel)
	err := g.Wait()
	switch {
	case failed != nil:
		return failed
	case err != nil:
		return err
	}
	return asked.Err() // the walk was over, but not the work
}

// collect waits for each result in turn. After the first error of emit it ends the walk,
// and goes on taking jobs so that nobody waits for it.
func collect[T any](order <-chan job[T], emit func(File, T, error) error, cancel func()) error {
	var first error
	for j := range order {
		var result T
		if j.done != nil {
			r, ok := <-j.done
			if !ok {
				continue
			}
			result = r
		}
		if first == nil {
			if first = emit(j.file, result, j.err); first != nil {
				cancel()
			}
		}
	}
	return first
}
