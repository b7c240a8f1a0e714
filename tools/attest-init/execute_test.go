package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestExplainExec runs files that the kernel refuses, and has each refusal explained.
func TestExplainExec(t *testing.T) {
	dir := t.TempDir()
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Skip(err)
	}
	loader := elfInterpreter(bytes.NewReader(program), program)
	if loader == "" || !strings.HasPrefix(loader, "/lib") {
		t.Skipf("/bin/true is no program with an interpreter, but with %q", loader)
	}
	missing := "/none" + loader[5:]
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	lost := write("lost", strings.Replace(string(program), loader, missing, 1), 0o755)
	write("plain", "#!/bin/sh\n", 0o644)
	for name, c := range map[string]struct{ path, want string }{
		"missing":                    {filepath.Join(dir, "none"), "it does not exist"},
		"folder":                     {dir, "it is not a regular file"},
		"mode":                       {filepath.Join(dir, "plain"), "it is not executable"},
		"loader is missing":          {lost, "its interpreter " + missing + " does not exist"},
		"script without interpreter": {write("a", "#! \t/none/sh -e\n", 0o755), "its interpreter /none/sh does not exist"},
		"interpreter's mode":         {write("b", "#!"+dir+"/plain\n", 0o755), "its interpreter " + dir + "/plain is not executable"},
		"interpreter's loader":       {write("c", "#!"+lost+"\n", 0o755), "its interpreter " + missing + " does not exist"},
	} {
		err := unixExec(c.path)
		got := explainExec(c.path, err)
		if !strings.HasPrefix(got.Error(), "execute "+c.path+": ") || !strings.HasSuffix(got.Error(), ": "+c.want) {
			t.Errorf("%s: %v is explained as %q, want %q", name, err, got, c.want)
		}
	}
	// What the policy refuses, of files that could be executed.
	script := write("script", "#!/bin/sh\n", 0o755)
	if err := explainExec(script, unix.EACCES); err.Error() != "execute "+script+": permission denied: the policy appraises it, and its label does not hold: there is none" {
		t.Error(err)
	}
	if err := explainExec(script, unix.ENOEXEC); err.Error() != "execute "+script+": exec format error" {
		t.Error(err)
	}
	label := func(path string) {
		if err := unix.Setxattr(path, "security.ima", []byte{4, 4, 0}, 0); err != nil {
			t.Skipf("no label can be written, so that those of interpreters are not looked at: %v", err)
		}
	}
	label(script)
	if err := explainExec(script, unix.EACCES); !strings.HasSuffix(err.Error(), "the policy appraises its interpreter /bin/sh, and its label does not hold: there is none") {
		t.Error(err)
	}
	static := write("static", "no program", 0o755)
	label(static)
	if err := explainExec(static, unix.EACCES); !strings.HasSuffix(err.Error(), ": the policy appraises it, and its label does not hold") {
		t.Error(err)
	}
	script = write("twice", "#!"+static+"\n", 0o755)
	label(script)
	if err := explainExec(script, unix.EACCES); !strings.HasSuffix(err.Error(), ": the policy appraises it or its interpreter "+static+", and its label does not hold") {
		t.Error(err)
	}
}

// unixExec is the error of execve(2) in another process.
func unixExec(path string) error {
	err := exec.Command(path).Run()
	for _, e := range []syscall.Errno{unix.EACCES, unix.ENOENT} {
		if err != nil && strings.HasSuffix(err.Error(), e.Error()) {
			return e
		}
	}
	return err
}

func FuzzElfInterpreter(f *testing.F) {
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		f.Skip(err)
	}
	f.Add(program[:4096])
	f.Fuzz(func(t *testing.T, file []byte) {
		if got := elfInterpreter(bytes.NewReader(file), file[:min(len(file), maxScriptLine)]); len(got) > unix.PathMax || strings.Contains(got, "\x00") {
			t.Errorf("interpreter %q", got)
		}
	})
}
