package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// result is what came of a case.
type result struct {
	text    string
	refused bool // there may be an audit record
}

// verb does something; its text is what it has to say beside "ok".
type verb struct {
	args int // at least
	do   func(args []string) (string, error)
}

// verbs of a plan. FILE is an absolute path; a TEXT may have many words.
var verbs = map[string]verb{
	"run":         {1, runProgram},                                                                         // FILE ARGUMENT...
	"mmap":        {1, func(a []string) (string, error) { return mmap(a, unix.PROT_READ|unix.PROT_EXEC) }}, // FILE
	"mprotect":    {1, func(a []string) (string, error) { return mmap(a, unix.PROT_READ) }},                // FILE
	"module":      {2, func(a []string) (string, error) { return module(a, loadFile) }},                    // FILE NAME
	"module-data": {2, func(a []string) (string, error) { return module(a, loadData) }},                    // FILE NAME
	"policy":      {1, policy},                                                                             // FILE, or a rule as TEXT
	"refusal":     {1, refusal},                                                                            // FILE: where the kernel refuses that policy
	"rules":       {0, rules},                                                                              // counts those in force
	"add-key":     {2, addKey},                                                                             // KEYRING FILE
	"has-key":     {2, hasKey},                                                                             // KEYRING TEXT
	"logged":      {1, logged},                                                                             // TEXT
	"read":        {1, func(a []string) (string, error) { return readText(a[0]) }},                         // FILE
	"write":       {2, write},                                                                              // FILE TEXT
	"chmod":       {2, chmod},                                                                              // MODE FILE
	"chown":       {2, chown},                                                                              // UID FILE
	"label":       {3, label},                                                                              // FILE NAME HEX
	"unlabel":     {2, func(a []string) (string, error) { return "", unix.Removexattr(a[0], a[1]) }},       // FILE NAME
	"copy":        {2, copyFile},                                                                           // FILE TO
	"mount":       {3, mount},                                                                              // DEVICE FOLDER TYPE [ro|rw]
	"verity":      {1, enableVerity},                                                                       // FILE
}

// try does one case.
func try(name string, args []string) result {
	v, ok := verbs[name]
	if !ok || len(args) < v.args {
		return result{text: fmt.Sprintf("no verb %q with %d arguments", name, len(args))}
	}
	text, err := v.do(args)
	var errno unix.Errno
	var exit *exec.ExitError
	switch {
	case errors.As(err, &errno):
		return result{unix.ErrnoName(errno), true}
	case errors.As(err, &exit):
		return result{fmt.Sprintf("exit %d", exit.ExitCode()), true}
	case err != nil:
		return result{err.Error(), false}
	case text != "":
		return result{text, false}
	}
	return result{"ok", false}
}

// runProgram returns the first line of what the program prints.
func runProgram(args []string) (string, error) {
	var out bytes.Buffer
	c := exec.Command(args[0], args[1:]...)
	c.Stdout, c.Stderr = &out, os.Stdout
	err := c.Run()
	line, _, _ := strings.Cut(out.String(), "\n")
	return line, err
}

// mmap maps a file with these rights, and asks for the right to execute it if it has it not.
func mmap(args []string, rights int) (string, error) {
	f, err := os.Open(args[0])
	if err != nil {
		return "", err
	}
	defer f.Close()
	page, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), rights, unix.MAP_PRIVATE)
	if err != nil {
		return "", err
	}
	defer unix.Munmap(page)
	if rights&unix.PROT_EXEC == 0 {
		err = unix.Mprotect(page, rights|unix.PROT_EXEC)
	}
	return "", err
}

// module loads a module in that way, and unloads it.
func module(args []string, load func(string) error) (string, error) {
	if err := load(args[0]); err != nil {
		return "", err
	}
	return "", unix.DeleteModule(args[1], 0)
}

func loadFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

func loadData(path string) error {
	image, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return unix.InitModule(image, "")
}

const policyPath = "/sys/kernel/security/ima/policy"

func policy(args []string) (string, error) {
	f, err := os.OpenFile(policyPath, os.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(strings.Join(args, " "))
	return "", errors.Join(err, f.Close())
}

func rules([]string) (string, error) {
	text, err := readText(policyPath)
	return strconv.Itoa(strings.Count(text, "\n") + 1), err
}

// findKeyring looks a keyring of the kernel up by its name.
func findKeyring(name string) (int, error) {
	text, err := readText("/proc/keys")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 8 && f[7] == "keyring" && f[8] == name+":" {
			id, err := strconv.ParseInt(f[0], 16, 32)
			return int(id), err
		}
	}
	return 0, fmt.Errorf("no keyring %s", name)
}

func addKey(args []string) (string, error) {
	ring, err := findKeyring(args[0])
	if err != nil {
		return "", err
	}
	der, err := os.ReadFile(args[1])
	if err != nil {
		return "", err
	}
	_, err = unix.AddKey("asymmetric", "", der, ring)
	return "", err
}

// hasKey says whether a key of the keyring has a text in its description: subject and key id.
func hasKey(args []string) (string, error) {
	ring, err := findKeyring(args[0])
	if err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, ring, buf, 0)
	if err != nil {
		return "", err
	}
	for i := 0; i+4 <= min(n, len(buf)); i += 4 {
		id := *(*int32)(unsafe.Pointer(&buf[i]))
		text, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, int(id))
		if err != nil {
			return "", err
		}
		if strings.Contains(text, strings.Join(args[1:], " ")) {
			return "yes", nil
		}
	}
	return "no", nil
}

func logged(args []string) (string, error) {
	found, err := inLog(strings.Join(args, " "))
	if found {
		return "yes", err
	}
	return "no", err
}

func write(args []string) (string, error) {
	f, err := os.OpenFile(args[0], os.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(strings.Join(args[1:], " "))
	return "", errors.Join(err, f.Close())
}

func chmod(args []string) (string, error) {
	mode, err := strconv.ParseUint(args[0], 8, 12)
	if err != nil {
		return "", err
	}
	return "", unix.Chmod(args[1], uint32(mode))
}

func chown(args []string) (string, error) {
	uid, err := strconv.Atoi(args[0])
	if err != nil {
		return "", err
	}
	return "", unix.Chown(args[1], uid, -1)
}

func label(args []string) (string, error) {
	value, err := hex.DecodeString(args[2])
	if err != nil {
		return "", err
	}
	return "", unix.Setxattr(args[0], args[1], value, 0)
}

// copyFile copies content and permissions, but no labels, as cp does.
func copyFile(args []string) (string, error) {
	data, err := os.ReadFile(args[0])
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(args[1]), 0o755); err != nil {
		return "", err
	}
	return "", os.WriteFile(args[1], data, 0o755)
}

func mount(args []string) (string, error) {
	flags := uintptr(unix.MS_RDONLY)
	if len(args) > 3 && args[3] == "rw" {
		flags = 0
	}
	return "", unix.Mount(args[0], args[1], args[2], flags, "")
}

// enableVerity makes the file immutable, with SHA-256 over blocks of 4096 bytes. It has to be
// open for nobody's writing.
func enableVerity(args []string) (string, error) {
	f, err := os.Open(args[0])
	if err != nil {
		return "", err
	}
	defer f.Close()
	arg := unix.FsverityEnableArg{Version: 1, Hash_algorithm: unix.FS_VERITY_HASH_ALG_SHA256, Block_size: 4096}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.FS_IOC_ENABLE_VERITY, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return "", errno
	}
	return "", nil
}
