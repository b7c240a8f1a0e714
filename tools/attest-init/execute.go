package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxInterpreters is how many files the kernel opens for one execve(2), scripts of scripts
// included (exec_binprm of fs/exec.c), and the one of an ELF file.
const maxInterpreters = 7

// explainExec says which file err, of execve(2), is about: path itself, or an interpreter
// that it names. The kernel tells neither.
func explainExec(path string, err error) error {
	fail := func(why string) error { return fmt.Errorf("execute %s: %w: %s", path, err, why) }
	if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("execute %s: %w", path, err)
	}
	var chain []string // path and its interpreters, as a person calls them
	unlabelled := ""
	name, file := "it", path
	for file != "" && len(chain) < maxInterpreters {
		why, next := examine(file)
		if why != "" {
			return fail(name + " " + why)
		}
		chain = append(chain, name)
		if unlabelled == "" && !labelled(file) {
			unlabelled = name
		}
		name, file = "its interpreter "+next, next
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("execute %s: %w", path, err)
	case unlabelled != "":
		return fail("the policy appraises " + unlabelled + ", and its label does not hold: there is none")
	}
	return fail("the policy appraises " + strings.Join(chain, " or ") + ", and its label does not hold")
}

// labelled is true also where nobody can tell.
func labelled(file string) bool {
	_, err := unix.Getxattr(file, "security.ima", nil)
	return !errors.Is(err, unix.ENODATA)
}

// examine says why a file would not be executed, whatever the policy, or which interpreter
// it names.
func examine(file string) (why, interpreter string) {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "does not exist", ""
	case err != nil:
		return "cannot be looked at: " + err.Error(), ""
	case !info.Mode().IsRegular():
		return "is not a regular file", ""
	case info.Mode()&0o111 == 0:
		return "is not executable", ""
	}
	// A policy may forbid to read it, too: then it is the label.
	interpreter, err = readInterpreter(file)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return "cannot be read: " + err.Error(), ""
	}
	return "", interpreter
}

// Sizes that Linux reads: BINPRM_BUF_SIZE, and of an ELF file at most a page of program headers.
const (
	maxScriptLine = 256
	maxPrograms   = 4096
)

// readInterpreter returns the interpreter that a script or an ELF file names, "" for none.
func readInterpreter(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, maxScriptLine)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", err
	}
	head = head[:n]
	if script, ok := bytes.CutPrefix(head, []byte("#!")); ok {
		line, _, _ := bytes.Cut(script, []byte("\n"))
		if words := strings.FieldsFunc(string(line), func(r rune) bool { return r == ' ' || r == '\t' || r == 0 }); len(words) > 0 {
			return words[0], nil
		}
		return "", nil
	}
	return elfInterpreter(f, head), nil
}

// elfInterpreter reads the segment PT_INTERP (elf(5)), "" without one.
func elfInterpreter(f io.ReaderAt, head []byte) string {
	if len(head) < 64 || !bytes.HasPrefix(head, []byte("\x7fELF")) {
		return ""
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[5] == 2 { // ELFDATA2MSB
		order = binary.BigEndian
	}
	const wide, interp = 2, 3 // ELFCLASS64, PT_INTERP
	table, count, size := uint64(order.Uint32(head[28:])), int(order.Uint16(head[44:])), 32
	if head[4] == wide {
		table, count, size = order.Uint64(head[32:]), int(order.Uint16(head[56:])), 56
	}
	for i := range min(count, maxPrograms/size) {
		p := make([]byte, size)
		if _, err := f.ReadAt(p, int64(table)+int64(i*size)); err != nil {
			return ""
		}
		if order.Uint32(p) != interp {
			continue
		}
		at, length := uint64(order.Uint32(p[4:])), uint64(order.Uint32(p[16:]))
		if head[4] == wide {
			at, length = order.Uint64(p[8:]), order.Uint64(p[32:])
		}
		path := make([]byte, min(length, unix.PathMax))
		if _, err := f.ReadAt(path, int64(at)); err != nil {
			return ""
		}
		path, _, _ = bytes.Cut(path, []byte{0})
		return string(path)
	}
	return ""
}
