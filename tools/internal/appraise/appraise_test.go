package appraise

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

var (
	one = release("1.0", "usr/sbin/init", "init", "init", "usr/bin/bash", "bash 1", "bash", "usr/bin/ls", "ls", "coreutils", "usr/share/a b", "text", "data")
	two = release("2.0", "usr/sbin/init", "init", "init", "usr/bin/bash", "bash 2", "bash", "usr/bin/ls", "ls", "coreutils", "usr/bin/new", "new", "new")
)

// signingKey is a key with its certificate in PEM.
func signingKey(t testing.TB, name string) (key *ecdsa.PrivateKey, cert *x509.Certificate, text string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, SubjectKeyId: []byte(name)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return key, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func label(t testing.TB, of ima.XattrType, key *ecdsa.PrivateKey, cert *x509.Certificate, sum []byte) []byte {
	t.Helper()
	id, err := ima.KeyID(cert)
	if err != nil {
		t.Fatal(err)
	}
	x, err := ima.Sign(of, key, id, ima.SHA256, sum)
	if err != nil {
		t.Fatal(err)
	}
	return x.Append(nil)
}

// told is a verdict in short: status, release, and each reason's code, entry, path and package.
func told(v Verdict) string {
	s := string(v.Status) + " " + v.Release
	for _, r := range v.Reasons {
		s += fmt.Sprintf("; %s", r.Code)
		if r.Entry != nil {
			s += fmt.Sprintf(" %d", *r.Entry)
		}
		if r.PCR != nil {
			s += fmt.Sprintf(" PCR %d", *r.PCR)
		}
		s += strings.TrimRight(" "+r.Path+" "+r.Package, " ")
		if len(r.Expected) == 0 && r.Code == CodeChangedFile || r.Advice == "" {
			s += " INCOMPLETE"
		}
	}
	return s
}

func TestAppraise(t *testing.T) {
	key, cert, text := signingKey(t, "vendor")
	_, _, stranger := signingKey(t, "stranger")
	zeros := strings.Repeat("00", 32)
	tests := []struct {
		name  string
		rules string
		run   func(d *device)
		want  string
	}{
		{"fits both", "", func(d *device) { d.file("/usr/sbin/init", content("init")) }, "trusted 1.0"},
		{"fits the second", "", func(d *device) { d.file("/usr/bin/bash", content("bash 2")) }, "trusted 2.0"},
		{"a space is an underscore", "", func(d *device) { d.file("/usr/share/a_b", content("text")) }, "trusted 1.0"},
		{"nothing but boot_aggregate", "", func(d *device) {}, "unverified 1.0; nothing_measured"},
		{"unknown", "", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.file("/tmp/evil", content("evil"))
		}, "untrusted 1.0; unknown_file 2 /tmp/evil"},
		{"changed", "", func(d *device) { d.file("/usr/bin/ls", content("evil")) }, "untrusted 1.0; nothing_measured; changed_file 1 /usr/bin/ls coreutils"},
		{"content of another file", "", func(d *device) {
			d.file("/usr/bin/bash", content("bash 2"))
			d.file("/usr/bin/ls", content("bash 2"))
		}, "untrusted 2.0; changed_file 2 /usr/bin/ls coreutils"},
		{"copied", "", func(d *device) {
			d.file("/usr/bin/bash", content("bash 2"))
			d.file("/tmp/sh", content("bash 2"))
		}, "untrusted 2.0; moved_file 2 /tmp/sh bash"},
		{"relocated", `relocated = ["/sysroot/**"]`, func(d *device) { d.file("/sysroot/usr/bin/ls", content("ls")) }, "trusted 1.0"},
		{"relocated, of one release", `relocated = ["/sysroot/**"]`, func(d *device) { d.file("/sysroot/bin/new", content("new")) }, "trusted 2.0"},
		{"relocated elsewhere", `relocated = ["/sysroot/**"]`, func(d *device) { d.file("/mnt/usr/bin/ls", content("ls")) }, "untrusted 1.0; nothing_measured; moved_file 1 /mnt/usr/bin/ls coreutils"},
		{"mixture", "", func(d *device) {
			d.file("/usr/bin/bash", content("bash 1"))
			d.file("/usr/bin/ls", content("ls"))
			d.file("/usr/bin/new", content("new"))
		}, "untrusted 1.0; other_release 3 /usr/bin/new new"},
		{"path of another release", "", func(d *device) {
			d.file("/usr/bin/bash", content("bash 1"))
			d.file("/usr/bin/new", content("old"))
		}, "untrusted 1.0; unknown_file 2 /usr/bin/new new"},
		{"algorithm", "", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.entry("ima-ng", "sha512:", hashOf(ima.SHA512, []byte("ls")), "/usr/bin/ls")
		}, "untrusted 1.0; digest_algorithm 2 /usr/bin/ls coreutils"},
		{"fs-verity is no content", "", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.entry("ima-ngv2", "verity:sha256:", content("ls"), "/usr/bin/ls")
		}, "untrusted 1.0; digest_algorithm 2 /usr/bin/ls coreutils"},
		{"weak", "", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.entry("ima-ng", "sha1:", hashOf(ima.SHA1, []byte("ls")), "/usr/bin/ls")
		}, "untrusted 1.0; weak_digest 2 /usr/bin/ls"},
		{"weak in an excluded folder", `exclude = [{path = "/var/**"}]`, func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.entry("ima-ng", "sha1:", hashOf(ima.SHA1, []byte("x")), "/var/x")
		}, "trusted 1.0"},
		{"excluded", `exclude = [{path = "/var/**"}]`, func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.file("/var/lib/x", content("x"))
		}, "trusted 1.0"},
		{"excluded alone proves nothing", `exclude = [{path = "/var/**"}]`, func(d *device) { d.file("/var/lib/x", content("x")) }, "unverified 1.0; nothing_measured"},
		{"not excluded by a prefix", `exclude = [{path = "/var/**"}]`, func(d *device) { d.file("/varnish", content("x")) }, "untrusted 1.0; nothing_measured; unknown_file 1 /varnish"},
		{"not excluded by dots", `exclude = [{path = "/var/**"}]`, func(d *device) { d.file("/var/../usr/bin/ls", content("x")) }, "untrusted 1.0; nothing_measured; unknown_file 1 /var/../usr/bin/ls"},
		{"no path from the root", `exclude = [{path = "/var/**"}]`, func(d *device) { d.file("memfd:x", content("x")) }, "untrusted 1.0; nothing_measured; unknown_file 1 memfd:x"},
		{"violation", "", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.violation("/usr/bin/ls")
		}, "untrusted 1.0; violation 2 /usr/bin/ls"},
		{"violation accepted", `violations = "warn"`, func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.violation("/usr/bin/ls")
		}, "trusted 1.0"},
		{"violation is not excluded", `exclude = [{path = "/var/**"}]`, func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.violation("/var/log/x")
		}, "untrusted 1.0; violation 2 /var/log/x"},
		{"violation accepted by path", `violation = [{path = "/var/**", action = "warn"}]`, func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.violation("/var/log/x")
			d.violation("/etc/x")
		}, "untrusted 1.0; violation 3 /etc/x"},
		{"violation as boot_aggregate", `violations = "warn"`, func(d *device) {
			d.reset()
			d.violation("boot_aggregate")
			d.file("/usr/bin/ls", content("ls"))
		}, "untrusted 1.0; boot_aggregate_missing 0 boot_aggregate"},
		{"signed", "[[signature]]\npath = \"/opt/**\"\ncertificates = ['''" + text + "''']", func(d *device) {
			d.entry("ima-sig", "sha256:", content("app"), "/opt/app", label(t, ima.Signature, key, cert, content("app")))
		}, "trusted 1.0"},
		{"signed elsewhere", "[[signature]]\npath = \"/opt/**\"\ncertificates = ['''" + text + "''']", func(d *device) {
			d.entry("ima-sig", "sha256:", content("app"), "/tmp/app", label(t, ima.Signature, key, cert, content("app")))
		}, "untrusted 1.0; nothing_measured; unknown_file 1 /tmp/app"},
		{"signed, other content", "[[signature]]\npath = \"/opt/**\"\ncertificates = ['''" + text + "''']", func(d *device) {
			d.entry("ima-sig", "sha256:", content("evil"), "/opt/app", label(t, ima.Signature, key, cert, content("app")))
		}, "untrusted 1.0; nothing_measured; signature 1 /opt/app"},
		{"signed by a stranger", "[[signature]]\npath = \"/opt/**\"\ncertificates = ['''" + stranger + "''']", func(d *device) {
			d.entry("ima-sig", "sha256:", content("app"), "/opt/app", label(t, ima.Signature, key, cert, content("app")))
		}, "untrusted 1.0; nothing_measured; unknown_file 1 /opt/app"},
		{"signed, no rule", "", func(d *device) {
			d.entry("ima-sig", "sha256:", content("app"), "/opt/app", label(t, ima.Signature, key, cert, content("app")))
		}, "untrusted 1.0; nothing_measured; unknown_file 1 /opt/app"},
		{"portable signature of the same bytes", "[[signature]]\npath = \"/opt/**\"\ncertificates = ['''" + text + "''']", func(d *device) {
			d.entry("ima-sig", "sha256:", content("app"), "/opt/app", label(t, ima.PortableSignature, key, cert, content("app")))
		}, "untrusted 1.0; nothing_measured; unknown_file 1 /opt/app"},
		{"signed fs-verity", "[[signature]]\npath = \"/opt/**\"\ncertificates = ['''" + text + "''']", func(d *device) {
			d.entry("ima-sigv2", "verity:sha256:", content("tree"), "/opt/app", label(t, ima.VeritySignature, key, cert, content("tree")))
		}, "trusted 1.0"},
		{"fs-verity signature over content", "[[signature]]\npath = \"/opt/**\"\ncertificates = ['''" + text + "''']", func(d *device) {
			d.entry("ima-sigv2", "ima:sha256:", content("tree"), "/opt/app", label(t, ima.VeritySignature, key, cert, content("tree")))
		}, "untrusted 1.0; nothing_measured; unknown_file 1 /opt/app"},
		{"signed, other algorithm of the same size", "[[signature]]\npath = \"/opt/**\"\ncertificates = ['''" + text + "''']", func(d *device) {
			d.entry("ima-sig", "sm3:", content("app"), "/opt/app", label(t, ima.Signature, key, cert, content("app")))
		}, "untrusted 1.0; nothing_measured; unknown_file 1 /opt/app"},
		{"key", "[[buffer]]\nname = \".ima\"\ncertificates = ['''" + text + "''']", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.buffer(".ima", cert.Raw)
		}, "trusted 1.0"},
		{"key in another keyring", "[[buffer]]\nname = \".ima\"\ncertificates = ['''" + text + "''']", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.buffer(".evm", cert.Raw)
		}, "untrusted 1.0; unknown_buffer 2 .evm"},
		{"command line of one release", "[[buffer]]\nname = \"kexec-cmdline\"\nrelease = \"2.0\"\ndigests = [\"sha256:" + hex.EncodeToString(content("quiet")) + "\"]", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.buffer("kexec-cmdline", []byte("quiet"))
		}, "trusted 2.0"},
		{"any", "[[buffer]]\nname = \"selinux-state\"\nany = true", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.buffer("selinux-state", []byte("anything"))
		}, "trusted 1.0"},
		{"file passed off as a buffer", "[[buffer]]\nname = \"selinux-state\"\nany = true", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.file("selinux-state", content("evil"))
		}, "untrusted 1.0; unknown_file 2 selinux-state"},
		{"buffer named as a file", "", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.buffer("/usr/bin/ls", []byte("ls"))
		}, "untrusted 1.0; unknown_buffer 2 /usr/bin/ls"},
		{"buffer by the fields, not the name, of its template", "[[buffer]]\nname = \"kexec-cmdline\"\nany = true", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.entry("d-ng|n-ng|buf", "sha256:", content("quiet"), "kexec-cmdline", []byte("quiet"))
		}, "trusted 1.0"},
		{"such a buffer named as a file", "", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.entry("d-ng|n-ng|buf", "sha256:", content("ls"), "/usr/bin/ls", []byte("ls"))
		}, "untrusted 1.0; unknown_buffer 2 /usr/bin/ls"},
		{"boot_aggregate of another boot", "", func(d *device) {
			d.extend(ima.SHA256, 4, content("kernel"))
			d.file("/usr/bin/ls", content("ls"))
		}, "untrusted 1.0; boot_aggregate_mismatch 0 boot_aggregate"},
		{"boot_aggregate missing", "", func(d *device) {
			d.reset()
			d.file("/usr/bin/ls", content("ls"))
		}, "untrusted 1.0; nothing_measured; boot_aggregate_missing 0 /usr/bin/ls"},
		{"boot_aggregate twice", "", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.aggregate()
		}, "untrusted 1.0; boot_aggregate_again 2 boot_aggregate"},
		{"kexec", "kexec = true", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.aggregate()
		}, "trusted 1.0"},
		{"kexec, made up", "kexec = true", func(d *device) {
			d.file("/usr/bin/ls", content("ls"))
			d.file("boot_aggregate", content("x"))
		}, "untrusted 1.0; boot_aggregate_mismatch 2 boot_aggregate"},
		{"boot_aggregate of a bank that is not quoted", "weak_digests = true", func(d *device) {
			d.reset()
			d.entry("ima-ng", "sha1:", d.boots(ima.SHA1), "boot_aggregate")
			d.file("/usr/bin/ls", content("ls"))
		}, "untrusted 1.0; boot_aggregate_mismatch 0 boot_aggregate"},
		{"required", `required = ["/usr/bin/ls"]`, func(d *device) { d.file("/usr/bin/bash", content("bash 1")) }, "unverified 1.0; required_missing /usr/bin/ls"},
		{"required and measured", `required = ["/usr/bin/ls"]`, func(d *device) { d.file("/usr/bin/ls", content("ls")) }, "trusted 1.0"},
		{"required and changed", `required = ["/usr/bin/ls"]`, func(d *device) { d.file("/usr/bin/ls", content("x")) },
			"untrusted 1.0; nothing_measured; required_missing /usr/bin/ls; changed_file 1 /usr/bin/ls coreutils"},
		{"pinned", "[[pcr]]\nindex = 7\nvalues = [\"sha256:" + zeros + "\"]", func(d *device) { d.file("/usr/bin/ls", content("ls")) }, "trusted 1.0"},
		{"pinned to another", "[[pcr]]\nindex = 7\nvalues = [\"sha256:" + strings.Repeat("11", 32) + "\"]", func(d *device) { d.file("/usr/bin/ls", content("ls")) },
			"untrusted 1.0; pcr_mismatch PCR 7"},
		{"pinned for the other release", "[[pcr]]\nindex = 7\nrelease = \"1.0\"\nvalues = [\"sha256:" + strings.Repeat("11", 32) + "\"]", func(d *device) { d.file("/usr/bin/ls", content("ls")) }, "trusted 2.0"},
		{"pinned and not quoted", "[[pcr]]\nindex = 11\nvalues = [\"sha256:" + zeros + "\"]", func(d *device) { d.file("/usr/bin/ls", content("ls")) }, "unverified 1.0; pcr_not_quoted PCR 11"},
		{"not quoted, and changed", "[[pcr]]\nindex = 11\nvalues = [\"sha256:" + zeros + "\"]", func(d *device) { d.file("/usr/bin/ls", content("x")) },
			"untrusted 1.0; nothing_measured; changed_file 1 /usr/bin/ls coreutils; pcr_not_quoted PCR 11"},
		{"bank", `bank = "sha384"`, func(d *device) { d.file("/usr/bin/ls", content("ls")) }, "unverified 1.0; pcr_not_quoted PCR 10"},
		{"secure boot without a log", "firmware.secure_boot = true", func(d *device) { d.file("/usr/bin/ls", content("ls")) }, "unverified 1.0; firmware_log_missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDevice(t)
			tt.run(d)
			ref := compile(t, tt.rules, two, one)
			v, s := judged(t, d.attest(0), ref, State{})
			if got := told(v); sorted(got) != sorted(tt.want) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if v.Schema != Schema || (v.Status == Trusted) != (len(v.Reasons) == 0) {
				t.Errorf("verdict %+v", v)
			}
			b, err := s.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			var again State
			if err := again.UnmarshalBinary(b); err != nil {
				t.Fatal(err)
			}
			// Nothing new: the verdict is the same, of the state that was kept.
			next, _ := judged(t, d.attest(-1), ref, again)
			if diff := cmp.Diff(v, next); diff != "" {
				t.Errorf("-first +next\n%s", diff)
			}
		})
	}
}

// sorted takes the order of reasons out of the comparison.
func sorted(told string) string {
	parts := strings.Split(told, "; ")
	for i := range parts {
		for k := i + 1; k < len(parts); k++ {
			if i > 0 && parts[k] < parts[i] {
				parts[i], parts[k] = parts[k], parts[i]
			}
		}
	}
	return strings.Join(parts, "; ")
}

func TestNoReference(t *testing.T) {
	d := newDevice(t)
	d.file("/usr/bin/ls", content("ls"))
	c := d.attest(0)
	for name, ref := range map[string]*Reference{"nil": nil, "no releases": compile(t, "")} {
		v, _, err := Appraise(c, ref, State{})
		if err != nil || told(v) != "unverified ; no_policy" {
			t.Errorf("%s: %s, %v", name, told(v), err)
		}
	}
	for _, c := range []*evidence.Claims{nil, {}} {
		v, _, err := Appraise(c, compile(t, "", one), State{})
		if err != nil || told(v) != "unverified ; no_claims" {
			t.Errorf("%v: %s", err, told(v))
		}
	}
}

// TestNeedWhole: a state of another reference, boot or place does not go on.
func TestNeedWhole(t *testing.T) {
	ref := compile(t, "", one)
	d := newDevice(t)
	d.file("/usr/bin/ls", content("ls"))
	_, s := judged(t, d.attest(0), ref, State{})
	d.file("/usr/bin/bash", content("bash 1"))
	c := d.attest(-1)
	if v, _ := judged(t, c, ref, s); v.Counts.Entries != 3 || v.Status != Trusted {
		t.Errorf("%+v", v)
	}
	other := compile(t, "", one, two)
	for name, try := range map[string]struct {
		ref  *Reference
		prev State
	}{"reference": {other, s}, "no state": {ref, State{}}} {
		v, kept, err := Appraise(c, try.ref, try.prev)
		if !errors.Is(err, ErrNeedWhole) || told(v) != "unverified ; need_whole" || !cmp.Equal(kept, try.prev, cmp.AllowUnexported(State{})) {
			t.Errorf("%s: %v, %s", name, err, told(v))
		}
	}
	// A state that was lost in between: the quote after the next begins too late for it.
	d.file("/usr/sbin/init", content("init"))
	if v, kept, err := Appraise(d.attest(-1), ref, s); !errors.Is(err, ErrNeedWhole) || v.Status != Unverified || !cmp.Equal(kept, s, cmp.AllowUnexported(State{}, state{})) {
		t.Errorf("a gap: %v, %s", err, told(v))
	}
	if s.Continues(other) || !s.Continues(ref) || s.Continues(nil) {
		t.Error("Continues")
	}
	if v, _ := judged(t, d.attest(0), other, s); told(v) != "trusted 1.0" {
		t.Error(told(v))
	}
}

// TestReboot: a boot that was lost does not follow the device into the next.
func TestReboot(t *testing.T) {
	ref := compile(t, "", one)
	d := newDevice(t)
	d.file("/tmp/evil", content("evil"))
	v, s := judged(t, d.attest(0), ref, State{})
	if v.Status != Untrusted {
		t.Fatal(told(v))
	}
	d.file("/usr/bin/ls", content("ls"))
	if v, s = judged(t, d.attest(-1), ref, s); v.Status != Untrusted {
		t.Fatal(told(v))
	}
	d.boot()
	d.file("/usr/bin/ls", content("ls"))
	if v, _ = judged(t, d.attest(-1), ref, s); told(v) != "trusted 1.0" || v.Counts.Entries != 2 {
		t.Error(told(v))
	}
}

// TestBounds: whatever a boot does, its state stays small and its verdict short.
func TestBounds(t *testing.T) {
	ref := compile(t, `exclude = [{path = "/var/**"}]`, one)
	d := newDevice(t)
	for i := range 300 {
		d.file(fmt.Sprintf("/tmp/%0*d", 4000, i), content("x"))
		d.file(fmt.Sprintf("/var/%0*d", 4000, i), content("x"))
	}
	v, s := judged(t, d.attest(0), ref, State{})
	if len(v.Reasons) != maxListed+1 || v.Omitted != 300-maxListed || v.Counts.Misfits != 300 || v.Counts.Excluded != 300 || len(v.Notes) != maxNotes {
		t.Errorf("%d reasons, %d omitted, %+v, %d notes", len(v.Reasons), v.Omitted, v.Counts, len(v.Notes))
	}
	b, err := s.MarshalBinary()
	if err != nil || len(b) > maxState {
		t.Errorf("state of %d bytes, %v", len(b), err)
	}
	if err := new(State).UnmarshalBinary(b); err != nil {
		t.Error(err)
	}
}

func TestVerdictJSON(t *testing.T) {
	d := newDevice(t)
	d.file("/usr/bin/bash", content("bash 1"))
	d.file("/usr/bin/ls", content("evil"))
	d.file("/tmp/\x1b[31m\n", content("x"))
	ref := compile(t, "", one, two)
	v, _ := judged(t, d.attest(0), ref, State{})
	got, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	digest := ref.Digest()
	want := `{
 "schema": "attest.verdict/v1",
 "status": "untrusted",
 "release": "1.0",
 "policy": "` + hex.EncodeToString(digest[:]) + `",
 "counts": {
  "entries": 4,
  "pending": 0,
  "files": 1,
  "excluded": 0,
  "signed": 0,
  "relocated": 0,
  "violations": 0,
  "violationsAccepted": 0,
  "buffers": 0,
  "aggregates": 1,
  "misfits": 2
 },
 "reasons": [
  {
   "code": "changed_file",
   "entry": 2,
   "path": "/usr/bin/ls",
   "expected": [
    "sha256:` + hex.EncodeToString(content("ls")) + `"
   ],
   "seen": "sha256:` + hex.EncodeToString(content("evil")) + `",
   "release": "1.0",
   "package": "coreutils",
   "advice": "the file is not the one of 1.0 (package coreutils): reinstall it, or allow a release that has it"
  },
  {
   "code": "unknown_file",
   "entry": 3,
   "path": "\"/tmp/\\x1b[31m\\n\"",
   "seen": "sha256:` + hex.EncodeToString(content("x")) + `",
   "release": "1.0",
   "advice": "no release has this file: remove it, or build a release that has it"
  }
 ]
}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	var text strings.Builder
	if err := v.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	wantText := `untrusted: nearest is 1.0, 2 entries do not fit
4 measurements under quotes, 1 files of a release

changed_file  entry 2  /usr/bin/ls
  expected sha256:` + hex.EncodeToString(content("ls")) + `
  seen     sha256:` + hex.EncodeToString(content("evil")) + `
  package  coreutils
  release  1.0
  -> the file is not the one of 1.0 (package coreutils): reinstall it, or allow a release that has it

unknown_file  entry 3  "/tmp/\x1b[31m\n"
  seen     sha256:` + hex.EncodeToString(content("x")) + `
  release  1.0
  -> no release has this file: remove it, or build a release that has it
`
	if diff := cmp.Diff(wantText, text.String()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
