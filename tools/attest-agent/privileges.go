package main

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"syscall"

	"github.com/meta-attest/meta-attest/tools/internal/tpm"
)

// becomeUser gives up root for good, once all is open that only root can open. Where the
// agent was not started by root, nothing is to be given up.
func (a *agent) becomeUser() error {
	name := a.config.get("user")
	if name == "" || syscall.Getuid() != 0 {
		return nil
	}
	uid, gid, err := lookupUser(name)
	if err != nil {
		return err
	}
	if uid == 0 {
		return nil
	}
	if err := a.folder.give(uid, gid); err != nil {
		return err
	}
	if a.listener != nil {
		if err := a.listener.spool.makeFolder(uid, gid); err != nil {
			return err
		}
	}
	if err := a.notices.makeFolder(uid, gid); err != nil {
		return err
	}
	a.makeSecretsFolder(uid, gid)
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(gid, gid, gid), syscall.Setresuid(uid, uid, uid)); err != nil {
		return fmt.Errorf("become user %s: %w", name, err)
	}
	if syscall.Setuid(0) == nil {
		return fmt.Errorf("become user %s: the way back to root is open", name)
	}
	return nil
}

// lookupUser takes a name, or a number that no file has to know.
func lookupUser(name string) (uid, gid int, err error) {
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), int(n), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, fmt.Errorf("user %q: %w", name, errNoUser)
	}
	if uid, err = strconv.Atoi(u.Uid); err == nil {
		gid, err = strconv.Atoi(u.Gid)
	}
	return uid, gid, err
}

// needsRoot says whether only a new process can go on: the TPM has to be opened again, and
// this user may not.
func needsRoot(err error) bool { return errors.Is(err, tpm.ErrDenied) }
