package boottest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/cpio"
	"github.com/meta-attest/meta-attest/tools/internal/policy"
)

// vectorsDir is in the root; what is in /etc/ima gets signed.
const vectorsDir = "etc/ima/vectors"

// vector is one of the policies that tools/internal/policy is tested with.
type vector struct {
	name, text string
	want       string // what attest policy check says that the kernel does: "ok", "line N" or "empty"
	lacks      string // an option that the vector is about, and that the lab's kernel does not have
}

// TestKernelPolicies has the kernel read each policy of the vectors of tools/internal/policy,
// and wants it to stop at the line that attest policy check says. A line that no kernel takes
// is put behind each policy: one that was accepted would be the last.
func TestKernelPolicies(t *testing.T) {
	l := openLab(t)
	l.prepare(t)
	o := l.kernelOptions(t)
	var cases, last []testCase
	var lacking []string
	texts, count := map[string]string{}, map[string]int{}
	for _, v := range l.vectors(t, o) {
		kind, _, _ := strings.Cut(v.want, " ")
		c := testCase{v.name, "refusal /" + vectorsDir + "/" + v.name, v.want}
		texts[v.name] = v.text + "nonsense\n"
		switch kind {
		case "ok":
			c[0] += ": ok, but for the line that is added"
			c[2] = fmt.Sprintf("line %d", strings.Count(v.text, "\n")+1)
		case "empty": // with the line it would not be; if it is accepted, nothing comes after it
			texts[v.name] = v.text
			last = append(last, c)
			count[kind]++
			continue
		}
		if v.lacks != "" {
			kind = "lacking"
			lacking = append(lacking, v.name+": "+v.lacks)
		}
		count[kind]++
		cases = append(cases, c)
	}
	cases = append(cases, last...)
	images := l.makeVectors(t, texts, cases)
	l.boot(t, machine{append: "attest.policy=none", images: images, cases: cases, initramfs: []cpio.Entry{
		l.file(t, "etc/keys/x509_ima.der", "keys/p256.der"),
	}})
	if t.Failed() {
		return
	}
	t.Logf("%d policies: the kernel and attest policy check agree (Linux %v: %d ok, %d refused, %d empty)",
		len(cases)-len(lacking), o.Kernel, count["ok"], count["line"], count["empty"])
	t.Logf("%d more, not for what they say but for an option that this kernel has not: it and attest policy check --config agree\n%s",
		len(lacking), strings.Join(lacking, "\n"))
}

// vectors reads the policies. Those that the kernel could not read are named, and left out.
func (l *lab) vectors(t *testing.T, o policy.Options) []vector {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(l.repo, "tools/internal/policy/testdata/kernel/*.txt"))
	if err != nil || len(paths) < 100 {
		t.Fatalf("found %d vectors: %v", len(paths), err)
	}
	var vectors []vector
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		header, text, ok := strings.Cut(string(b), "\n\n")
		if !ok {
			t.Fatalf("%s: no empty line after the header", path)
		}
		v := vector{name: strings.TrimSuffix(filepath.Base(path), ".txt"), text: text, want: firstRefusal(text, o)}
		if !strings.HasSuffix(text, "\n") {
			t.Logf("left out: %s: no newline at its end, so that no line can be added", v.name)
			continue
		}
		for line := range strings.Lines(header) {
			_, options, _ := strings.Cut(line, "config: ")
			for _, option := range strings.Fields(options) {
				if !o.Config(option) {
					v.lacks = option
				}
			}
		}
		vectors = append(vectors, v)
	}
	return vectors
}

// kernelOptions are the version of the lab's kernel and what it was built with.
func (l *lab) kernelOptions(t *testing.T) policy.Options {
	t.Helper()
	modules, err := filepath.Glob(filepath.Join(l.kernel, "modules/*"))
	if err != nil || len(modules) != 1 {
		t.Fatalf("modules of the kernel: %v", modules)
	}
	version, err := policy.ParseVersion(filepath.Base(modules[0]))
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(l.kernel, "config"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(config), "\n")
	return policy.Options{Kernel: version, Config: func(option string) bool { return slices.Contains(lines, option+"=y") }}
}

// firstRefusal is what attest policy check says that the kernel does: the other findings are
// about policies that it takes.
func firstRefusal(text string, o policy.Options) string {
	for _, f := range policy.Check([]byte(text), o) {
		switch {
		case f.Code != policy.CodeRefused && f.Code != policy.CodeTooNew && (f.Code != policy.CodeConfig || f.Severity != policy.SeverityError):
			continue
		case f.Line == 0:
			return "empty"
		}
		return fmt.Sprintf("line %d", f.Line)
	}
	return "ok"
}

// makeVectors makes a root that has these policies, signed.
func (l *lab) makeVectors(t *testing.T, texts map[string]string, cases []testCase) []string {
	t.Helper()
	l.userland(t, "vectors", testPolicy, cases)
	dir := filepath.Join(l.dir, "vectors", vectorsDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range texts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l.script(t, l.wrap, `
attest sign vectors --key keys/p256.key --cert keys/p256.crt --progress none
mke2fs -q -t ext4 -I 512 -b 4096 -U `+rootUUID+` -E root_owner=0:0 -d vectors vectors.img 64M
`)
	return []string{"vectors.img"}
}
