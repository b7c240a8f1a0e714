package appraise

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/meta-attest/meta-attest/tools/internal/bootlog"
)

// guid is the stored form of a GUID of which the text is known.
func guid(t testing.TB, text string) bootlog.GUID {
	t.Helper()
	var g bootlog.GUID
	var a uint32
	var b, c uint16
	var d, e []byte
	if _, err := fmt.Sscanf(strings.ReplaceAll(text, "-", " "), "%x %x %x %x %x", &a, &b, &c, &d, &e); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	le.PutUint32(g[:], a)
	le.PutUint16(g[4:], b)
	le.PutUint16(g[6:], c)
	copy(g[8:], d)
	copy(g[10:], e)
	return g
}

// logWriter makes the log of a boot by shim and GRUB.
type logWriter struct {
	t   testing.TB
	log bootlog.Log
}

// add measures measured, and says data of it; nil: the same.
func (w *logWriter) add(pcr uint32, kind bootlog.Type, data, measured []byte) {
	if measured == nil {
		measured = data
	}
	one, two := sha1.Sum(measured), sha256.Sum256(measured)
	w.log.Events = append(w.log.Events, bootlog.Event{Index: len(w.log.Events), PCR: pcr, Type: kind, Data: data,
		Digests: []bootlog.Digest{{Alg: bootlog.SHA1, Sum: one[:]}, {Alg: bootlog.SHA256, Sum: two[:]}}})
}

func (w *logWriter) variable(pcr uint32, kind bootlog.Type, vendor, name string, value []byte) {
	g := guid(w.t, vendor)
	le := binary.LittleEndian
	data := slices.Clone(g[:])
	letters := utf16.Encode([]rune(name))
	data = le.AppendUint64(data, uint64(len(letters)))
	data = le.AppendUint64(data, uint64(len(value)))
	for _, l := range letters {
		data = le.AppendUint16(data, l)
	}
	w.add(pcr, kind, append(data, value...), nil)
}

func (w *logWriter) text(pcr uint32, text string, measured []byte) {
	if measured == nil {
		_, rest, _ := strings.Cut(text, ": ")
		measured = append([]byte(rest), 0)
	}
	w.add(pcr, bootlog.IPL, append([]byte(text), 0), measured)
}

func (w *logWriter) application(content string) {
	le := binary.LittleEndian
	data := make([]byte, 24)
	path := []byte{0x7f, 0xff, 4, 0}
	data = append(le.AppendUint64(data, uint64(len(path))), path...)
	w.add(4, bootlog.BootServicesApplication, data, []byte(content))
}

const owner = "77fa9abd-0359-4d32-bd60-28f4e78f784b"

// signatures is one EFI_SIGNATURE_LIST.
func signatures(t testing.TB, kind bootlog.GUID, data ...string) []byte {
	le := binary.LittleEndian
	g := guid(t, owner)
	size := uint32(16 + len(data[0]))
	b := le.AppendUint32(slices.Clone(kind[:]), 28+size*uint32(len(data)))
	b = le.AppendUint32(le.AppendUint32(b, 0), size)
	for _, d := range data {
		b = append(append(b, g[:]...), d...)
	}
	return b
}

// digestOf is a SHA-256 as a text of bytes.
func digestOf(content string) string {
	sum := sha256.Sum256([]byte(content))
	return string(sum[:])
}

const cmdline = "(hd0,gpt2)/vmlinuz-6.12 root=/dev/sda2 ro"

// grubBoot is the log of a boot with Secure Boot.
func grubBoot(t testing.TB) *bootlog.Log {
	w := &logWriter{t: t}
	spec := []byte("Spec ID Event03\x00\x00\x00\x00\x00\x00\x02\x00\x02\x02\x00\x00\x00\x04\x00\x14\x00\x0b\x00\x20\x00\x00")
	parsed, err := bootlog.Parse(append(append(make([]byte, 4), append([]byte{3, 0, 0, 0}, make([]byte, 20)...)...), append(binary.LittleEndian.AppendUint32(nil, uint32(len(spec))), spec...)...))
	if err != nil {
		t.Fatal(err)
	}
	w.log = *parsed
	w.add(0, bootlog.CRTMVersion, []byte{'1', 0, 0, 0}, nil)
	w.add(0, bootlog.PlatformFirmwareBlob, make([]byte, 16), []byte("firmware"))
	w.variable(7, bootlog.VariableDriverConfig, globalVariable, "SecureBoot", []byte{1})
	w.variable(7, bootlog.VariableDriverConfig, globalVariable, "PK", signatures(t, bootlog.CertX509, "platform key"))
	w.variable(7, bootlog.VariableDriverConfig, globalVariable, "KEK", signatures(t, bootlog.CertX509, "exchange key"))
	w.variable(7, bootlog.VariableDriverConfig, imageSecurity, "db", signatures(t, bootlog.CertX509, "one key", "two key"))
	w.variable(7, bootlog.VariableDriverConfig, imageSecurity, "dbx", signatures(t, bootlog.CertSHA256, digestOf("bad 1"), digestOf("bad 2")))
	w.variable(1, bootlog.VariableBoot, globalVariable, "BootOrder", []byte{0, 0})
	w.add(4, bootlog.EFIAction, []byte("Calling EFI Application from Boot Option"), nil)
	for pcr := range uint32(8) {
		w.add(pcr, bootlog.Separator, make([]byte, 4), nil)
	}
	w.add(5, bootlog.GPTEvent, make([]byte, 100), nil)
	g := guid(t, owner)
	w.variable(7, bootlog.VariableAuthority, imageSecurity, "db", append(g[:], digestOf("shim")...))
	w.application("shim")
	w.text(14, "MokList", []byte("owner's keys"))
	w.text(14, "MokListX", []byte("owner's bad keys"))
	w.variable(7, bootlog.VariableAuthority, shimLock, "SbatLevel", []byte("sbat,1"))
	w.application("grub")
	w.text(9, "(hd0,gpt1)/EFI/grub.cfg", []byte("config"))
	w.text(8, "grub_cmd: linux /vmlinuz-6.12", nil)
	w.application("kernel")
	w.text(9, "(hd0,gpt2)/vmlinuz-6.12", []byte("vmlinuz"))
	w.text(8, "kernel_cmdline: "+cmdline, nil)
	w.text(9, "(hd0,gpt2)/initramfs-6.12.img", []byte("initrd"))
	w.add(5, bootlog.EFIAction, []byte("Exit Boot Services Invocation"), nil)
	w.add(5, bootlog.EFIAction, []byte("Exit Boot Services Returned with Success"), nil)
	return &w.log
}

// refstateOf is the reference state of grubBoot.
func refstateOf() map[string]any {
	x := func(s string) string { return fmt.Sprintf("0x%x", s) }
	sum := func(s string) map[string]any { return map[string]any{"sha256": x(digestOf(s))} }
	keys := func(data ...string) (all []any) {
		for _, d := range data {
			all = append(all, map[string]any{"SignatureOwner": owner, "SignatureData": x(d)})
		}
		return all
	}
	return map[string]any{"has_secureboot": true,
		"scrtm_and_bios": []any{map[string]any{"scrtm": sum("1\x00\x00\x00"), "platform_firmware": []any{sum("firmware")}}},
		"pk":             keys("platform key"), "kek": keys("exchange key"), "db": keys("one key", "two key", "three key"), "dbx": keys(digestOf("bad 1")),
		"vendor_db": []any{}, "mokdig": []any{sum("owner's keys")}, "mokxdig": []any{sum("owner's bad keys")},
		"kernels": []any{map[string]any{"shim_authcode_sha256": x(digestOf("shim")), "grub_authcode_sha256": x(digestOf("grub")),
			"kernel_authcode_sha256": x(digestOf("kernel")), "initrd_plain_sha256": x(digestOf("initrd")), "kernel_cmdline": `\(hd0,gpt2\)/vmlinuz\-6\.12\ root=/dev/sda[0-9]\ ro`}},
	}
}

// bootCase is a boot and a reference state, and what Keylime and this package say of them.
type bootCase struct {
	name          string
	change        func(l *bootlog.Log, r map[string]any)
	ours, keylime bool // fits
}

func kernelOf(r map[string]any) map[string]any { return r["kernels"].([]any)[0].(map[string]any) }

// find is the nth event of a sort.
func find(l *bootlog.Log, pcr uint32, kind bootlog.Type, n int) *bootlog.Event {
	for i := range l.Events {
		if e := &l.Events[i]; e.PCR == pcr && e.Type == kind {
			if n--; n < 0 {
				return e
			}
		}
	}
	return nil
}

func drop(l *bootlog.Log, e *bootlog.Event) {
	l.Events = slices.DeleteFunc(l.Events, func(o bootlog.Event) bool { return o.Index == e.Index })
}

func cmdlineCase(pattern string) func(*bootlog.Log, map[string]any) {
	return func(_ *bootlog.Log, r map[string]any) { kernelOf(r)["kernel_cmdline"] = pattern }
}

func bootCases(t testing.TB) []bootCase {
	type log = bootlog.Log
	type ref = map[string]any
	config, authority, ipl := bootlog.VariableDriverConfig, bootlog.VariableAuthority, bootlog.IPL
	return []bootCase{
		{"as it is", func(*log, ref) {}, true, true},
		{"another kernel is allowed too", func(_ *log, r ref) {
			other := maps.Clone(kernelOf(r))
			other["kernel_authcode_sha256"] = "0x" + strings.Repeat("0", 64)
			r["kernels"] = append([]any{other}, r["kernels"].([]any)...)
		}, true, true},
		{"another kernel", func(_ *log, r ref) { kernelOf(r)["kernel_authcode_sha256"] = "0x" + strings.Repeat("0", 64) }, false, false},
		{"another shim", func(_ *log, r ref) { kernelOf(r)["shim_authcode_sha256"] = "0x" + strings.Repeat("0", 64) }, false, false},
		{"another initrd", func(_ *log, r ref) { kernelOf(r)["initrd_plain_sha256"] = "0x" + strings.Repeat("0", 64) }, false, false},
		{"two initrds", func(l *log, _ ref) { l.Events = append(l.Events, *find(l, 9, ipl, 2)) }, false, false},
		{"the kernel is measured twice", func(l *log, _ ref) {
			l.Events = append(l.Events, *find(l, 4, bootlog.BootServicesApplication, 2))
		}, true, true},
		{"one more program", func(l *log, _ ref) {
			l.Events = append(l.Events, *find(l, 4, bootlog.BootServicesApplication, 0))
		}, false, false},
		{"no kernels", func(_ *log, r ref) { r["kernels"] = []any{} }, false, false},
		{"another firmware", func(l *log, _ ref) { drop(l, find(l, 0, bootlog.PlatformFirmwareBlob, 0)) }, false, false},
		{"command line: end is missing", cmdlineCase(`\(hd0,gpt2\)/vmlinuz\-6\.12`), false, false},
		{"command line: begins with any", cmdlineCase(`.*root=/dev/sda2 ro`), true, true},
		{"command line: alternative", cmdlineCase(`x|` + `\(hd0,gpt2\)/vmlinuz.*`), false, false},
		{"command line: alternative first", cmdlineCase(`\(hd0,gpt2\)/vmlinuz\-6\.12 root=/dev/sda2 ro|x`), true, true},
		{"command line: any", cmdlineCase(`.*`), false, true},
		{"command line: look-ahead", cmdlineCase(`(?!x)\(hd0,gpt2\)/vmlinuz\-6\.12 root=/dev/sda2 ro`), false, true},
		{"command line: broken", cmdlineCase(`[`), false, false},
		{"command line is not what was measured", func(l *log, _ ref) {
			e := find(l, 8, ipl, 1)
			e.Digests = slices.Clone(find(l, 9, ipl, 0).Digests)
		}, false, true},
		{"Secure Boot is off", func(l *log, _ ref) {
			e := find(l, 7, config, 0)
			w := &logWriter{t: t}
			w.variable(7, config, globalVariable, "SecureBoot", []byte{0})
			w.log.Events[0].Index = e.Index
			*e = w.log.Events[0]
		}, false, false},
		{"Secure Boot is not measured", func(l *log, _ ref) { drop(l, find(l, 7, config, 0)) }, false, true},
		{"Secure Boot is to be off", func(_ *log, r ref) { r["has_secureboot"] = false }, false, false},
		{"another platform key", func(_ *log, r ref) {
			r["pk"].([]any)[0].(map[string]any)["SignatureData"] = "0x00"
		}, false, false},
		{"a key of another owner", func(_ *log, r ref) {
			r["kek"].([]any)[0].(map[string]any)["SignatureOwner"] = "00000000-0000-0000-0000-000000000000"
		}, false, false},
		{"a key in db too many", func(_ *log, r ref) { r["db"] = r["db"].([]any)[:1] }, false, false},
		{"db comes twice", func(l *log, _ ref) {
			i := slices.IndexFunc(l.Events, func(e bootlog.Event) bool { return e.Index == find(l, 7, config, 3).Index })
			l.Events = slices.Insert(l.Events, i, l.Events[i])
		}, false, false},
		{"dbx does not forbid enough", func(_ *log, r ref) {
			r["dbx"] = append(r["dbx"].([]any), map[string]any{"SignatureOwner": owner, "SignatureData": "0x" + strings.Repeat("0", 64)})
		}, false, false},
		{"dbx is not measured", func(l *log, _ ref) { drop(l, find(l, 7, config, 4)) }, false, true},
		{"dbx of the policy is empty", func(_ *log, r ref) { r["dbx"] = []any{} }, true, true},
		{"db is not what was measured", func(l *log, _ ref) {
			e := find(l, 7, config, 3)
			e.Digests = slices.Clone(find(l, 7, config, 0).Digests)
		}, false, true},
		{"a variable behind the separator", func(l *log, _ ref) {
			e := *find(l, 7, config, 4)
			drop(l, &e)
			l.Events = append(l.Events, e)
		}, false, true},
		{"another list of keys of shim", func(_ *log, r ref) { r["mokdig"] = []any{} }, false, false},
		{"no list of keys of shim", func(l *log, _ ref) { drop(l, find(l, 14, ipl, 0)) }, true, true},
		{"an unknown authority", func(l *log, _ ref) {
			w := &logWriter{t: t}
			w.variable(7, authority, shimLock, "Other", []byte{1})
			l.Events = append(l.Events, w.log.Events[0])
		}, false, false},
		{"an unknown event", func(l *log, _ ref) { e := *find(l, 8, ipl, 0); e.PCR = 11; l.Events = append(l.Events, e) }, false, false},
		{"an unknown file", func(l *log, _ ref) {
			e := *find(l, 9, ipl, 0)
			e.Data = []byte("/boot/other\x00")
			l.Events = append(l.Events, e)
		}, false, false},
		{"an error before the separator", func(l *log, _ ref) {
			e := find(l, 3, bootlog.Separator, 0)
			w := &logWriter{t: t}
			w.add(3, bootlog.Separator, []byte{1, 0, 0, 0}, nil)
			w.log.Events[0].Index = e.Index
			*e = w.log.Events[0]
		}, false, false},
		{"an unknown action", func(l *log, _ ref) {
			w := &logWriter{t: t}
			w.add(4, bootlog.EFIAction, []byte("Exit Boot Services Invocation"), nil)
			l.Events = append(l.Events, w.log.Events[0])
		}, false, false},
		{"an event that extends nothing", func(l *log, _ ref) {
			e := bootlog.Event{Type: bootlog.NoAction, Data: []byte("StartupLocality\x00\x03"), Digests: []bootlog.Digest{{Alg: bootlog.SHA1, Sum: make([]byte, 20)}, {Alg: bootlog.SHA256, Sum: make([]byte, 32)}}}
			l.Events = slices.Insert(l.Events, 1, e)
		}, true, false},
		{"a member that is unknown", func(_ *log, r ref) { r["kernel"] = []any{} }, false, true},
		{"a member that is missing", func(_ *log, r ref) { delete(r, "dbx") }, false, false},
		{"digits in capitals", func(_ *log, r ref) {
			kernelOf(r)["shim_authcode_sha256"] = "0x" + strings.ToUpper(fmt.Sprintf("%x", digestOf("shim")))
		}, false, false},
		{"the digest fits in SHA-1 only", func(_ *log, r ref) {
			one := sha1.Sum([]byte("owner's keys"))
			r["mokdig"] = []any{map[string]any{"sha1": fmt.Sprintf("0x%x", one)}}
		}, false, true},
	}
}

func (c *bootCase) make(t testing.TB) (log, ref []byte) {
	t.Helper()
	l, r := grubBoot(t), refstateOf()
	c.change(l, r)
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return l.Append(nil), text
}

func TestRefstate(t *testing.T) {
	for _, c := range bootCases(t) {
		log, ref := c.make(t)
		l, err := bootlog.Parse(log)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var why []string
		if r, err := parseRefstate(ref); err != nil {
			why = []string{err.Error()}
		} else {
			why = r.misfits(l.Events)
		}
		if fits := len(why) == 0; fits != c.ours {
			t.Errorf("%s: fits is %t, want %t: %q", c.name, fits, c.ours, why)
		}
	}
	for _, empty := range []string{"{}", "null", "[]", "", `{"kernels":[]}`} {
		if err := CheckRefstate([]byte(empty)); err == nil {
			t.Errorf("%q passes for a measured boot policy", empty)
		}
	}
}

// keylimeVerdicts is Keylime's own evaluation of NAME.log by NAME.json, in a folder.
const keylimeVerdicts = `
import json, logging, os, sys
logging.disable(logging.CRITICAL)
from keylime.mba import mba
mba.load_imports(skip_custom_policies=True)
from keylime.mba.elparsing import tpm2_tools_elparser as parser
from keylime.mba.elchecking import policies
policy = policies.get_policy("example")
for name in sorted(os.listdir(sys.argv[1])):
    if not name.endswith(".log"):
        continue
    with open(os.path.join(sys.argv[1], name), "rb") as f:
        failure, log = parser.parse_binary_bootlog(f.read())
    with open(os.path.join(sys.argv[1], name[:-4] + ".json")) as f:
        reference = json.load(f)
    why = "the log cannot be parsed"
    if not failure and log:
        try:
            why = policy.evaluate(reference, log)
        except Exception as e:
            why = "exception: %s" % e
    print(json.dumps([name[:-4], why]))
`

// TestRefstateKeylime asks Keylime itself, where scripts/keylime has installed it. Every
// difference is one that the table names, and in all but one of them ours is the stricter.
func TestRefstateKeylime(t *testing.T) {
	out, err := exec.Command("../../../scripts/keylime", "python", "--cached").Output()
	if err != nil {
		t.Skip("Keylime is not installed: run scripts/keylime python")
	}
	dir, cases := t.TempDir(), bootCases(t)
	for i, c := range cases {
		log, ref := c.make(t)
		for ext, b := range map[string][]byte{"log": log, "json": ref} {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d.%s", i, ext)), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	cmd := exec.Command(filepath.Join(strings.TrimSpace(string(out)), "bin", "python"), "-c", keylimeVerdicts, dir)
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	if len(lines) != len(cases) {
		t.Fatalf("%d verdicts of %d cases: %s", len(lines), len(cases), text)
	}
	made := filepath.Join(dir, "made")
	cmd = exec.Command(filepath.Join(strings.TrimSpace(string(out)), "bin", "keylime-policy"), "create", "measured-boot", "-e", filepath.Join(dir, "000.log"), "-o", made)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("keylime-policy: %v: %s", err, text)
	}
	ref, err := os.ReadFile(made)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := parseRefstate(ref); err != nil || len(r.misfits(grubBoot(t).Events)) > 0 {
		t.Errorf("what keylime-policy makes of a boot does not fit it: %v %s", err, ref)
	}
	same := 0
	for i, line := range lines {
		var v [2]string
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatal(err)
		}
		c := cases[i]
		if fits := v[1] == ""; fits != c.keylime {
			t.Errorf("%s: Keylime says %t, the table %t: %.300s", c.name, fits, c.keylime, v[1])
		}
		if c.ours == c.keylime {
			same++
		} else {
			t.Logf("intended difference: %s: ours %t, Keylime %t", c.name, c.ours, c.keylime)
		}
	}
	t.Logf("%d of %d cases alike", same, len(cases))
}

func FuzzRefstate(f *testing.F) {
	text, err := json.Marshal(refstateOf())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("{}"))
	l := grubBoot(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRefstate(b)
		if err != nil {
			return
		}
		if len(r.kernels) == 0 || len(r.firmware) == 0 {
			t.Fatal("a reference state without kernels or firmware was taken")
		}
		r.misfits(l.Events)
	})
}
