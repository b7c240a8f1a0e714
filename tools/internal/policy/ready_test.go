package policy

import (
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/policies"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// ready returns the ready policies by name.
func ready(t *testing.T) map[string][]byte {
	t.Helper()
	names, err := policies.Names()
	if err != nil || len(names) < 8 {
		t.Fatalf("got %v, %v", names, err)
	}
	texts := map[string][]byte{}
	for _, name := range names {
		if texts[name], err = policies.Text(name); err != nil {
			t.Fatal(err)
		}
	}
	return texts
}

// TestReadyPolicies: each says which kernel it needs, and no kernel from then on refuses
// it or finds in it what does not do what it says.
func TestReadyPolicies(t *testing.T) {
	for name, text := range ready(t) {
		h, err := policies.ParseHeader(text)
		if err != nil || h.Summary == "" {
			t.Errorf("%s: header %+v: %v", name, h, err)
			continue
		}
		oldest, ok := OldestFor(text)
		if !ok || h.Kernel != oldest.String() {
			t.Errorf("%s: header says Linux %s, it is %v", name, h.Kernel, oldest)
		}
		for kernel := range releases {
			if kernel.Before(oldest) {
				continue
			}
			for _, f := range Check(text, Options{Kernel: kernel, Config: func(string) bool { return true }}) {
				if f.Severity == SeverityError || f.Code == CodeKernelFS || f.Code == CodeFSUUID {
					t.Errorf("%s: Linux %v: %+v", name, kernel, f)
				}
			}
		}
	}
}

// TestReadyPoliciesLetTheKernelsFilesBe: systemd reads and writes these all the time.
func TestReadyPoliciesLetTheKernelsFilesBe(t *testing.T) {
	for name, text := range ready(t) {
		p, err := Parse(text, Newest)
		if err != nil {
			t.Fatal(err)
		}
		for _, fs := range filesystems {
			if fs.traits&isKernel == 0 && fs.name != "tmpfs" && fs.name != "devtmpfs" && fs.name != "rootfs" {
				continue
			}
			for _, mask := range []Mask{MayRead, MayWrite, MayRead | MayWrite, MayWrite | MayAppend} {
				d := Decide(p.Rules(), &Event{Func: FileCheck, Mask: mask, FS: Filesystem{Name: fs.name, Magic: fs.magic}}, Newest)
				if d.Appraised() {
					t.Errorf("%s: a file of %s is appraised by line %d", name, fs.name, d.Appraise.Line)
				}
			}
		}
	}
}

// systemFiles are some of a system with systemd: what it is made of, and what it writes to.
var systemFiles = []File{
	{Path: "usr/lib/systemd/systemd", Mode: 0o755, Head: []byte("\x7fELF")},
	{Path: "usr/bin/script", Mode: 0o755, Head: []byte("#!/bin/sh")},
	{Path: "usr/lib/libc.so.6", Mode: 0o644, Head: []byte("\x7fELF")},
	{Path: "usr/lib/modules/6.1/x.ko", Mode: 0o644},
	{Path: "usr/lib/firmware/x.bin", Mode: 0o644},
	{Path: "boot/vmlinuz", Mode: 0o644},
	{Path: "etc/ima/ima-policy", Mode: 0o644},
	{Path: "etc/fstab", Mode: 0o644},
	{Path: "etc/machine-id", Mode: 0o444},
	{Path: "etc/passwd", Mode: 0o644},
	{Path: "etc/resolv.conf", Mode: 0o644},
	{Path: "var/lib/systemd/random-seed", Mode: 0o600},
	{Path: "var/log/journal/system.journal", Mode: 0o640},
	{Path: "var/lib/app/data", Mode: 0o600, UID: 5},
	{Path: "home/user/file", Mode: 0o600, UID: 1000},
}

// TestReadyPoliciesLetSystemdStart: on a system that is labelled as the policy says, no
// file is refused, and /var can be read and written.
func TestReadyPoliciesLetSystemdStart(t *testing.T) {
	none := func(string) []byte { return nil }
	signed := func(string) []byte {
		return (&ima.Xattr{Type: ima.Signature, Version: 2, Hash: ima.SHA256, Signature: []byte("x")}).Append(nil)
	}
	hashed := func(string) []byte {
		return (&ima.Xattr{Type: ima.DigestNG, Hash: ima.SHA256, Digest: make([]byte, 32)}).Append(nil)
	}
	// of returns the label of the first folder that a path is in.
	of := func(label func(string) []byte, folders string, otherwise func(string) []byte) func(string) []byte {
		return func(path string) []byte {
			if strings.Contains(folders, strings.SplitAfter(path, "/")[0]) {
				return label(path)
			}
			return otherwise(path)
		}
	}
	writable := "etc/ var/ home/ root/"
	for _, c := range []struct {
		name   string
		rootFS string // of what is not below /var and /home, which are on ext4
		label  func(path string) []byte
	}{
		{"measure-only", "ext4", none},
		{"appraise-executables", "ext4", func(path string) []byte {
			if path == "etc/ima/ima-policy" {
				return signed(path)
			}
			return of(none, writable, signed)(path)
		}},
		{"appraise-immutable", "squashfs", of(none, "var/ home/", signed)},
		{"appraise-immutable", "erofs", of(none, "var/ home/", signed)},
		{"hashed", "ext4", func(path string) []byte {
			if strings.Contains(path, "modules/") || strings.Contains(path, "firmware/") || strings.HasPrefix(path, "boot/") || strings.HasSuffix(path, "ima-policy") {
				return signed(path)
			}
			return of(none, writable, hashed)(path)
		}},
		{"fs-verity", "squashfs", of(none, "var/ home/", signed)},
		{"meta-integrity-appraise-all", "ext4", of(hashed, writable, signed)},
		{"meta-integrity-hashed", "ext4", of(hashed, writable, signed)},
		{"meta-integrity-simple", "ext4", none},
	} {
		text, err := policies.Text(c.name)
		if err != nil {
			t.Fatal(err)
		}
		for _, kernel := range []Version{{6, 1}, {6, 12}, Newest} {
			p, err := Parse(text, kernel)
			if err != nil {
				t.Fatal(err)
			}
			s := System{Kernel: kernel}
			for _, f := range systemFiles {
				s.FS, _ = FindFilesystem(c.rootFS)
				if strings.HasPrefix(f.Path, "var/") || strings.HasPrefix(f.Path, "home/") {
					s.FS, _ = FindFilesystem("ext4")
				}
				f.IMA = c.label(f.Path)
				for _, o := range s.Explain(p.Rules(), &f) {
					if o.Refused != "" {
						t.Errorf("%s: Linux %v: %s of %s is refused by line %d: %s", c.name, kernel, o.Use, f.Path, o.Appraise.Line, o.Refused)
					}
				}
			}
			s.FS, _ = FindFilesystem("ext4")
			if r := s.NewFile(p.Rules()); r != nil {
				t.Errorf("%s: files that root makes are refused by line %d", c.name, r.Line)
			}
		}
	}
}

// TestReadyPoliciesRefuse: those that appraise refuse a program without a label.
func TestReadyPoliciesRefuse(t *testing.T) {
	appraise := map[string]bool{"measure-only": false, "meta-integrity-simple": false}
	for name, text := range ready(t) {
		p, err := Parse(text, Newest)
		if err != nil {
			t.Fatal(err)
		}
		s := System{Kernel: Newest}
		for _, kind := range []string{"ext4", "squashfs", "overlay", "xfs"} {
			s.FS, _ = FindFilesystem(kind)
			outcomes := s.Explain(p.Rules(), &File{Path: "usr/bin/x", Mode: 0o755, Head: []byte("\x7fELF")})
			want, ok := appraise[name]
			if refused := outcomes[0].Use == UseExec && outcomes[0].Refused != ""; refused != (want || !ok) {
				t.Errorf("%s: on %s: %+v", name, kind, outcomes[0])
			}
		}
	}
}
