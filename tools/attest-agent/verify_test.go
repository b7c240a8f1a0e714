package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

// system is a signed tree with a manifest, as an image has it.
type system struct {
	t                          *testing.T
	root, manifest, cert, base string
}

func newSystem(t *testing.T) *system {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("security.* attributes and mounts need root")
	}
	base := t.TempDir()
	s := &system{t, filepath.Join(base, "root"), filepath.Join(base, "image.attest.json"), "../../keys-debug/ima.crt", base}
	for _, name := range []string{"sbin/init", "usr/bin/tool", "etc/motd", "proc/.keep", "srv/data"} {
		s.write(name, "content of "+name)
	}
	s.write("etc/machine-id", "")
	tree, err := rootfs.Open(s.root, rootfs.Direct{})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	certs, err := keys.ReadCertificates(s.cert)
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.Open(t.Context(), strings.TrimSuffix(s.cert, ".crt")+".key", keys.Options{AllowDebug: true})
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	signer, err := rootfs.NewSigner(key, true, certs[0], ima.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	w, err := manifest.Create(s.manifest, manifest.Header{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rootfs.Sign(t.Context(), tree, rootfs.SignOptions{Signer: signer, Jobs: 1, Progress: new(rootfs.Progress), Manifest: w}); err != nil {
		t.Skipf("this filesystem takes no labels: %v", err)
	}
	if err := signer.Commit(w); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *system) write(name, content string) {
	s.t.Helper()
	path := filepath.Join(s.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// verify returns the exit code and, of each finding, "path: code".
func (s *system) verify(more ...string) (int, []string) {
	s.t.Helper()
	var out, talk strings.Builder
	args := append([]string{"--root", s.root, "--cert", s.cert, "--config", s.config(), "--json"}, more...)
	in := &invocation{args, &out, &talk}
	code := exitOf(runVerify(context.Background(), in))
	var doc struct {
		Schema   string
		Findings []jsonFinding
		Summary  verifySummary
	}
	if err := json.Unmarshal([]byte(out.String()), &doc); err != nil || doc.Schema != "attest.verify/v1" {
		s.t.Fatalf("%v: %s%s", err, out.String(), talk.String())
	}
	if doc.Summary.Good != (code == 0) || doc.Summary.Findings != int64(len(doc.Findings)) {
		s.t.Errorf("exit code %d with summary %+v", code, doc.Summary)
	}
	var found []string
	for _, f := range doc.Findings {
		found = append(found, f.Path+": "+string(f.Code))
	}
	return code, found
}

func (s *system) config() string {
	path := filepath.Join(s.base, "agent.toml")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *system) mount(args ...string) {
	s.t.Helper()
	dir := args[len(args)-1]
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		s.t.Skipf("mount: %v: %s", err, out)
	}
	s.t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
}

// TestVerify: what is wrong with the running system is found, and what a running system has
// is no finding.
func TestVerify(t *testing.T) {
	s := newSystem(t)
	expect := func(step string, wantCode int, want []string, more ...string) {
		t.Helper()
		code, got := s.verify(more...)
		if code != wantCode || strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s: exit code %d, want %d, findings %q, want %q", step, code, wantCode, got, want)
		}
	}
	with := []string{"--manifest", s.manifest}
	expect("good", 0, nil)
	expect("good, manifest", 0, nil, with...)

	s.write("usr/bin/tool", "another")
	expect("changed", exitFindings, []string{"usr/bin/tool: changed"})
	s.write("usr/bin/tool", "content of usr/bin/tool")
	s.write("usr/bin/evil", "x")
	expect("added, labels only", 0, nil)
	expect("added, all", exitFindings, []string{"usr/bin/evil: unsigned"}, "--all")
	expect("added, manifest", exitFindings, []string{"usr/bin/evil: added"}, with...)
	if err := os.Remove(filepath.Join(s.root, "usr/bin/evil")); err != nil {
		t.Fatal(err)
	}

	text, err := os.ReadFile(s.manifest)
	if err != nil {
		t.Fatal(err)
	}
	s.write("etc/image.attest.json", string(text))
	expect("the manifest is in the system", 0, nil, "--manifest", filepath.Join(s.root, "etc/image.attest.json"))
	s.write("usr/image.attest.json", string(text))
	expect("and once more", exitFindings, []string{"usr/image.attest.json: added"}, "--manifest", filepath.Join(s.root, "etc/image.attest.json"))
	for _, name := range []string{"etc/image.attest.json", "usr/image.attest.json"} {
		if err := os.Remove(filepath.Join(s.root, name)); err != nil {
			t.Fatal(err)
		}
	}

	s.mount("-t", "tmpfs", "none", filepath.Join(s.root, "proc"))
	s.mount("--bind", "/etc/hostname", filepath.Join(s.root, "etc/machine-id"))
	expect("proc and the id of this boot", 0, nil)
	expect("proc hides a file of the manifest", exitFindings, []string{"proc/.keep: missing"}, with...)
	s.mount("-t", "tmpfs", "none", filepath.Join(s.root, "srv"))
	expect("mounted over", exitFindings, []string{"srv: other-mount"})
	expect("mounted over, excepted", 0, nil, "--except", "/srv")
	s.write("srv/new", "x")
	expect("named mount", exitFindings, []string{"srv/new: unsigned"}, "--mount", "/srv", "--all")
}

// TestManifestOfSomebodyElse is not authentic, whatever it says.
func TestManifestOfSomebodyElse(t *testing.T) {
	s := newSystem(t)
	b, err := os.ReadFile(s.manifest)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(s.manifest, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _ := s.verify("--manifest", s.manifest); code != exitNotAuthentic {
		t.Errorf("exit code %d, want %d", code, exitNotAuthentic)
	}
	var out, talk strings.Builder
	args := []string{"--root", s.root, "--cert", s.cert, "--config", s.config(), "--manifest", s.manifest}
	if err := runVerify(context.Background(), &invocation{args, &out, &talk}); err == nil || out.String() != "" {
		t.Errorf("%v, and of files that nobody looked at: %s", err, &out)
	}
}
