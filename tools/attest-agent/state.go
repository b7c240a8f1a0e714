package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

const (
	schemaState = "attest.agent-state/v1"
	stateFile   = "state.json"
	keyFile     = "ak.tpm" // tpm.AK.Blob: of no use to another TPM
	nextKeyFile = "ak-next.tpm"
	maxKept     = 1 << 20 // bytes of a file of ours that are read
)

// State is what the agent knows of its own past. Only the key beside it is precious:
// without the state the device enrols again, with the same key and the same result.
type State struct {
	Schema    string `json:"schema"`
	ID        string `json:"id,omitempty"` // where enrolled: with this id,
	Registrar string `json:"registrar,omitempty"`
	Key       string `json:"key,omitempty"`     // and this TPM name of the attestation key, hexadecimal
	Contact   string `json:"contact,omitempty"` // and this address and certificate, where it is polled

	// Boot is when this boot began, as the agent first told it: the kernel's own answer
	// changes whenever the clock is set.
	BootID string    `json:"boot_id,omitempty"`
	Boot   time.Time `json:"boot,omitzero"`

	Verdict  *evidence.Verdict `json:"verdict,omitempty"`
	Since    time.Time         `json:"since,omitzero"`    // of Verdict.State
	Attested time.Time         `json:"attested,omitzero"` // when evidence was last taken
	Next     time.Time         `json:"next,omitzero"`     // when it will be sent again

	Failure      string    `json:"failure,omitempty"` // why the last attempt failed
	FailureSince time.Time `json:"failure_since,omitzero"`
	Failures     int       `json:"failures,omitempty"` // in a row
}

// folder is the state folder, held by one agent.
type folder struct {
	path string
	lock *os.File // nil where it is only read
}

// openFolder makes the folder if needed, and holds it until the process ends.
func openFolder(path string) (*folder, error) {
	// The folders above are not the agent's, and the user that it becomes has to pass them.
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("open state folder: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open state folder: %s is no folder", path)
	}
	if info.Mode().Perm() != 0o700 {
		if names, err := os.ReadDir(path); err != nil || len(names) > 0 {
			return nil, fmt.Errorf("open state folder: %s has mode %04o and files: name another one, or chmod 0700 it if it is the agent's alone", path, info.Mode().Perm())
		}
		if err := os.Chmod(path, 0o700); err != nil {
			return nil, fmt.Errorf("protect state folder: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state folder: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errBusy
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &folder{path, lock}, nil
}

func (f *folder) close() {
	if f.lock != nil {
		f.lock.Close()
	}
}

// give makes the folder and what is in it belong to uid and gid.
func (f *folder) give(uid, gid int) error {
	names, err := os.ReadDir(f.path)
	if err != nil {
		return fmt.Errorf("give state folder away: %w", err)
	}
	for _, n := range names {
		if err := giveFile(filepath.Join(f.path, n.Name()), uid, gid); err != nil {
			return fmt.Errorf("give state folder away: %w", err)
		}
	}
	if err := os.Lchown(f.path, uid, gid); err != nil {
		return fmt.Errorf("give state folder away: %w", err)
	}
	return nil
}

// giveFile refuses what is no file of the folder alone: the user that it is given to could
// put a second name of any other file there, and have it.
func giveFile(path string, uid, gid int) error {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.Mode().IsRegular() || st.Nlink != 1 {
		return fmt.Errorf("%s is not a file of the agent's alone: remove it", path)
	}
	return file.Chown(uid, gid)
}

func (f *folder) read(name string) ([]byte, error) {
	file, err := os.OpenFile(filepath.Join(f.path, name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxKept+1))
	if err == nil && len(b) > maxKept {
		err = fmt.Errorf("read %s: more than %d bytes", file.Name(), maxKept)
	}
	return b, err
}

// write replaces a file so that after a power cut it is the old or the new one.
func (f *folder) write(name string, b []byte) error {
	tmp := filepath.Join(f.path, "."+name+".tmp")
	if err := writeSync(tmp, b); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return f.rename("."+name+".tmp", name)
}

// writeSync makes the file anew: one that is there may be another's by a second name.
func writeSync(path string, b []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(b)
	return errors.Join(err, file.Sync(), file.Close())
}

func (f *folder) rename(from, to string) error {
	if err := os.Rename(filepath.Join(f.path, from), filepath.Join(f.path, to)); err != nil {
		return err
	}
	dir, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// state reads the state. One that cannot be read is put aside, as nothing in it is precious.
func (f *folder) state() (*State, error) {
	s := &State{Schema: schemaState}
	b, err := f.read(stateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(b, s); err == nil && s.Schema == schemaState {
		return s, nil
	}
	if f.lock == nil {
		return nil, fmt.Errorf("read state: %s is not of schema %s", filepath.Join(f.path, stateFile), schemaState)
	}
	return &State{Schema: schemaState}, f.rename(stateFile, stateFile+".bad")
}

func (f *folder) save(s *State) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return f.write(stateFile, append(b, '\n'))
}

// retireKey keeps a copy of the saved key under the name of its public part. The key itself
// stays until another takes its place: after a power cut there is one or the other.
func (f *folder) retireKey(blob []byte) error {
	name := "ak-damaged.old"
	if len(blob) >= 2 {
		if n := 2 + int(blob[0])<<8 + int(blob[1]); n <= len(blob) {
			if ak, err := evidence.ParseAK(blob[:n]); err == nil {
				name = "ak-" + hex.EncodeToString(ak.Name()[2:10]) + ".old"
			}
		}
	}
	if old, err := f.read(name); err == nil && !bytes.Equal(old, blob) {
		name = fmt.Sprintf("%s.%d", name, time.Now().UnixNano())
	}
	return f.write(name, blob)
}

// adoptKey puts the key that was enrolled last in the place of the saved one.
func (f *folder) adoptKey() error {
	old, err := f.read(keyFile)
	if err == nil {
		err = f.retireKey(old)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return f.rename(nextKeyFile, keyFile)
}
