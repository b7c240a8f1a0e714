package payload

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// tmpfs makes a folder on a tmpfs.
func tmpfs(t *testing.T) string {
	t.Helper()
	var disk unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &disk); err != nil || disk.Type != unix.TMPFS_MAGIC {
		t.Skipf("/dev/shm is no tmpfs (%v): folders in memory are not tested", err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "payload-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func open(t *testing.T) *Folder {
	t.Helper()
	f, err := OpenFolder(tmpfs(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// files are the names below f with their modes, and the content of plain files.
func files(t *testing.T, f *Folder) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := fs.WalkDir(f.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		all[name] = info.Mode().String()
		if info.Mode().IsRegular() {
			b, err := f.root.ReadFile(name)
			all[name] += " " + string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestPut(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	f := open(t)
	if err := f.Put(sample()); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"web": "drwx------", "web/bin": "drwx------", "web/key.pem": "-rw------- key",
		"web/bin/start.sh": "-rwx------ #!/bin/sh\n", "web/empty": "-rw------- "}
	if d := cmp.Diff(want, files(t, f)); d != "" {
		t.Errorf("first (-want +got):\n%s", d)
	}
	second := &Payload{Name: "web", Revision: 4, Files: []File{{"key.pem", 0o644, []byte("new")}}}
	other := &Payload{Name: "db", Files: []File{{"a", 0o600, []byte("b")}}}
	if err := errors.Join(f.Put(second), f.Put(other)); err != nil {
		t.Fatal(err)
	}
	want = map[string]string{"web": "drwx------", "web/key.pem": "-rw------- new", "db": "drwx------", "db/a": "-rw------- b"}
	if d := cmp.Diff(want, files(t, f)); d != "" {
		t.Errorf("second (-want +got):\n%s", d)
	}
	if err := errors.Join(f.Erase("web"), f.Erase("web")); err != nil {
		t.Fatal(err)
	}
	delete(want, "web")
	delete(want, "web/key.pem")
	if d := cmp.Diff(want, files(t, f)); d != "" {
		t.Errorf("after Erase (-want +got):\n%s", d)
	}
	if f.Erase("../x") == nil || f.Put(&Payload{Name: "x", Files: []File{{"../a", 0o600, nil}}}) == nil {
		t.Error("a step out of the folder was taken")
	}
	if err := os.WriteFile(filepath.Join(f.path, "strange"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.EraseAll(); err != nil {
		t.Fatal(err)
	}
	if all := files(t, f); len(all) != 0 {
		t.Errorf("after EraseAll: %v", all)
	}
}

// TestExchange reads a file again and again while it is replaced: it is always there.
func TestExchange(t *testing.T) {
	f := open(t)
	p := &Payload{Name: "x", Files: []File{{"a", 0o600, []byte("one")}}}
	if err := f.Put(p); err != nil {
		t.Fatal(err)
	}
	done, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(failed)
		for {
			select {
			case <-done:
				return
			default:
			}
			if b, err := os.ReadFile(filepath.Join(f.Path("x"), "a")); err != nil || string(b) != "one" {
				// The folder that was passed may be erased before the file in it is opened:
				// only a second look tells that from a gap.
				if _, err := os.Lstat(f.Path("x")); err != nil {
					failed <- err
					return
				}
			}
		}
	}()
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
		if err := f.Put(p); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	if err := <-failed; err != nil {
		t.Errorf("the payload was away: %v", err)
	}
}

// TestPutStopped leaves the old payload whole when the new one cannot be written.
func TestPutStopped(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: a tmpfs that is full cannot be mounted")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Skipf("a tmpfs that is full cannot be mounted here: %v", err)
	}
	defer unix.Unmount(dir, 0)
	f, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Put(&Payload{Name: "x", Files: []File{{"a", 0o600, []byte("one")}}}); err != nil {
		t.Fatal(err)
	}
	if err := f.Put(&Payload{Name: "x", Files: []File{{"a", 0o600, make([]byte, 100<<10)}}}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full folder: %v", err)
	}
	if d := cmp.Diff(map[string]string{"x": "drwx------", "x/a": "-rw------- one"}, files(t, f)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestOpenFolderRefused(t *testing.T) {
	if _, err := OpenFolder(t.TempDir()); err == nil {
		t.Error("a folder that others may enter was taken")
	}
	disk := t.TempDir()
	if err := os.Chmod(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	var at unix.Statfs_t
	if err := unix.Statfs(disk, &at); err != nil {
		t.Fatal(err)
	}
	if at.Type == unix.TMPFS_MAGIC {
		t.Log("the temporary folder is a tmpfs: that a disk is refused is not tested")
	} else if _, err := OpenFolder(disk); !errors.Is(err, errNotMemory) {
		t.Errorf("a disk: %v", err)
	}
	dir := tmpfs(t)
	if !InMemory(dir) || !InMemory(dir+"/not/there") || InMemory("/proc") || at.Type != unix.TMPFS_MAGIC && InMemory(disk+"/none") {
		t.Error("what is in memory is not told from what is not")
	}
	link := dir + "/link"
	if err := errors.Join(os.Mkdir(dir+"/real", 0o700), os.Symlink("real", link), os.WriteFile(dir+"/file", nil, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{link, dir + "/file", dir + "/none"} {
		if _, err := OpenFolder(name); err == nil {
			t.Errorf("%s was taken", name)
		}
		if err := MakeFolder(name, os.Getuid(), os.Getgid()); (err == nil) != strings.HasSuffix(name, "none") {
			t.Errorf("make %s: %v", name, err)
		}
	}
	for _, mode := range []uint32{0o750, 0o701, 0o1700, 0o2700, 0o500} {
		if err := unix.Chmod(dir+"/real", mode); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenFolder(dir + "/real"); err == nil {
			t.Errorf("mode %o was taken", mode)
		}
	}
}

// TestUser makes a folder as root and uses it as another user, as the agent does.
func TestUser(t *testing.T) {
	const user = 65534
	if dir := os.Getenv("PAYLOAD_TEST_FOLDER"); dir != "" {
		f, err := OpenFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Put(sample()), f.Put(sample()), f.Erase("web"), f.Put(sample()), f.EraseAll(), f.Put(sample())); err != nil {
			t.Fatal(err)
		}
		return
	}
	if os.Getuid() != 0 {
		t.Skip("not root: the folder of another user is not tested")
	}
	above := tmpfs(t)
	dir := above + "/agent/secrets"
	if err := errors.Join(os.Chmod(above, 0o755), MakeFolder(dir, user, user)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFolder(dir); err == nil {
		t.Error("the folder of another user was taken")
	}
	program := filepath.Join(above, "test")
	b, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(program, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.run", "^(TestUser|TestPut|TestExchange|TestOpenFolderRefused)$")
	cmd.Dir, cmd.Env = above, append(os.Environ(), "PAYLOAD_TEST_FOLDER="+dir, "TMPDIR=/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("as user %d: %v\n%s", user, err, out)
	}
	info, err := os.Stat(dir + "/web/key.pem")
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != user {
		t.Errorf("the user's file: %v", err)
	}
	// What was left by another process of the agent is root's to take back.
	if err := MakeFolder(dir, 0, 0); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.EraseAll(); err != nil {
		t.Fatal(err)
	}
}

// TestMakeFolderOfOthers: a setting that names a folder of the system's takes nothing away.
func TestMakeFolderOfOthers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: to give folders away is not tested")
	}
	for name, mode := range map[string]uint32{"run": 0o755, "shm": 0o1777, "group": 0o750} {
		dir := tmpfs(t) + "/" + name
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(dir+"/pid", nil, 0o644), unix.Chmod(dir, mode)); err != nil {
			t.Fatal(err)
		}
		if err := MakeFolder(dir, 65534, 65534); err == nil {
			t.Errorf("%s was given away", name)
		}
		var at unix.Stat_t
		if err := unix.Stat(dir, &at); err != nil || at.Uid != 0 || at.Mode&0o7777 != mode {
			t.Errorf("%s: of user %d with mode %o: %v", name, at.Uid, at.Mode, err)
		}
	}
	dir := tmpfs(t)
	if err := errors.Join(os.Chown(dir, 1, 1), os.WriteFile(dir+"/x", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := MakeFolder(dir, 65534, 65534); err == nil {
		t.Error("a folder of another user was given away")
	}
}
