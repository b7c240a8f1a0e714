package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/tpm"
)

// Results of a check. A note is worth knowing and stops no attestation.
const (
	resultOK   = "ok"
	resultFail = "FAIL"
	resultNote = "note"
)

// finding is the result of one check.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"`
	Detail string `json:"detail"`
	Mend   string `json:"mend,omitempty"` // what to type or to change
}

// examination is doctor at work.
type examination struct {
	config   *Config
	findings []finding
}

func (e *examination) ok(check, format string, args ...any) {
	e.findings = append(e.findings, finding{check, resultOK, printable(fmt.Sprintf(format, args...), maxShown), ""})
}

func (e *examination) fail(check, mend, format string, args ...any) {
	e.findings = append(e.findings, finding{check, resultFail, printable(fmt.Sprintf(format, args...), maxShown), mend})
}

func (e *examination) note(check, mend, format string, args ...any) {
	e.findings = append(e.findings, finding{check, resultNote, printable(fmt.Sprintf(format, args...), maxShown), mend})
}

var errSick = errors.New("something is wrong")

func runDoctor(ctx context.Context, in *invocation) error {
	fs := newFlags("doctor", "Checks what attestation needs, one line each: ok, FAIL with what mends it, or a note. It changes\nnothing. The exit code is 4 if a check failed.")
	cf := addConfigFlags(fs)
	asJSON := fs.Bool("json", false, "print one JSON document (schema attest.doctor/v1)")
	if err := fs.parse(in); err != nil {
		return err
	}
	c, err := cf.load(os.Environ())
	if err != nil {
		return err
	}
	e := &examination{config: c}
	e.kernel()
	e.policy()
	e.labels()
	e.tpm()
	e.network(ctx)
	e.agent()
	e.secrets()
	if *asJSON {
		out := json.NewEncoder(in.stdout)
		out.SetIndent("", "  ")
		err = out.Encode(map[string]any{"schema": "attest.doctor/v1", "findings": e.findings})
	} else {
		err = e.print(in.stdout)
	}
	failed := 0
	for _, f := range e.findings {
		if f.Result == resultFail {
			failed++
		}
	}
	if err == nil && failed > 0 {
		err = &exitCode{exitFindings, fmt.Errorf("%w: %d of %d checks failed", errSick, failed, len(e.findings))}
	}
	return err
}

func (e *examination) print(w io.Writer) error {
	for _, f := range e.findings {
		if _, err := fmt.Fprintf(w, "%-4s  %-12s %s\n", f.Result, f.Check, f.Detail); err != nil {
			return err
		}
		if f.Mend != "" {
			if _, err := fmt.Fprintf(w, "      %-12s -> %s\n", "", f.Mend); err != nil {
				return err
			}
		}
	}
	return nil
}

// kernel looks at the measurement list: that there is one, and in which template and hash.
func (e *examination) kernel() {
	const check = "kernel"
	l, err := openList(e.config.get("ima_list"), false)
	if err != nil {
		mend := "build the kernel with CONFIG_IMA=y and CONFIG_SECURITYFS=y, and mount securityfs: mount -t securityfs securityfs /sys/kernel/security"
		if errors.Is(err, fs.ErrPermission) {
			mend = "run as root"
		}
		e.fail(check, mend, "%v", err)
		return
	}
	defer l.file.Close()
	r := ima.StreamList(io.NewSectionReader(l.file, 0, maxList), l.form, 0)
	var last, file string
	n := 0
	for {
		m, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			e.fail(check, "send the list to whoever maintains this agent: "+e.config.get("ima_list"), "%v", err)
			return
		}
		last, file = m.Template.Name, m.File.Hash.String()
		n++
	}
	if n == 0 {
		e.fail(check, "boot with a TPM that the kernel finds before IMA starts (its driver built in, not a module)", "the measurement list is empty")
		return
	}
	e.ok(check, "%d measurements, template %s", n, last)
	if last == "ima" || file == ima.SHA1.String() || file == ima.MD5.String() {
		e.fail("template", "boot with ima_template=ima-sig ima_hash=sha256", "template %s with file digests of %s: collisions can be made", last, file)
		return
	}
	e.ok("template", "file digests of %s", file)
}

// policy looks whether a policy was loaded that measures.
func (e *examination) policy() {
	const check = "policy"
	dir := filepath.Dir(e.config.get("ima_list"))
	text, err := os.ReadFile(filepath.Join(dir, "policy"))
	switch rules := strings.Count(string(text), "\n"); {
	case err == nil && strings.Contains("\n"+string(text), "\nmeasure "):
		e.ok(check, "%d rules, some of which measure", rules)
		return
	case err == nil:
		e.fail(check, "load a policy that measures (ATTEST_POLICY), or boot with ima_policy=tcb", "%d rules, none of which measures", rules)
		return
	}
	// Without CONFIG_IMA_READ_POLICY the list has to tell.
	l, err := openList(e.config.get("ima_list"), false)
	if err != nil {
		e.note(check, "", "cannot be told without a measurement list")
		return
	}
	defer l.file.Close()
	if err := l.count(); err != nil || l.entries < 2 {
		e.fail(check, "load a policy that measures (ATTEST_POLICY), or boot with ima_policy=tcb", "nothing but boot_aggregate was measured")
		return
	}
	e.ok(check, "the kernel does not show it, and measures by it")
}

// tpm looks at the TPM and its keys.
func (e *examination) tpm() {
	dev, err := tpm.Open(e.config.get("tpm"))
	if err != nil {
		mend := "load the TPM's driver (modprobe tpm_crb, tpm_tis or tpm_ftpm_tee), or switch the TPM on in the firmware's settings"
		if errors.Is(err, tpm.ErrDenied) {
			mend = "run as root, or as a user of the group tss"
		}
		e.fail("tpm", mend, "%v", err)
		return
	}
	defer dev.Close()
	info, err := dev.Info()
	if err != nil {
		e.fail("tpm", "look at the kernel's log: dmesg | grep -i tpm", "%v", err)
		return
	}
	e.ok("tpm", "%s at %s", info.Manufacturer, e.config.get("tpm"))
	if banks := evidence.SelectionOf(info.Banks); len(banks["sha256"])+len(banks["sha384"])+len(banks["sha512"]) == 0 {
		e.fail("pcr banks", "allocate a bank, and reboot: tpm2_pcrallocate sha256:all", "no bank of SHA-2")
	} else {
		e.ok("pcr banks", "%s", strings.Join(bankNames(banks), ", "))
	}
	e.endorsement(dev)
	e.attestation(dev)
}

func bankNames(banks evidence.Selection) []string {
	var names []string
	for _, n := range []string{"sha256", "sha384", "sha512", "sha1"} {
		if len(banks[n]) > 0 {
			names = append(names, n)
		}
	}
	return names
}

func (e *examination) endorsement(dev *tpm.TPM) {
	const check = "ek"
	ek, err := dev.EK(e.config.get("ek"))
	if err != nil {
		e.fail(check, "clear the password of the endorsement hierarchy: tpm2_changeauth -c e -p OLD", "%v", err)
		return
	}
	defer ek.Close()
	hash, err := hashOf(ek)
	if err != nil {
		e.fail(check, "ask for another with the setting ek", "%s: %v", ek.Template, err)
		return
	}
	ders, err := evidence.CutCertificates(append(ek.Certificate[:len(ek.Certificate):len(ek.Certificate)], ek.Chain...))
	switch {
	case err != nil:
		e.fail(check, "ask the TPM's manufacturer for a certificate, or let the verifier take it without: ek_check = \"tofu\"", "certificate: %v", err)
	case len(ders) == 0:
		e.note(check, "the verifier has to know the key (attest fleet add --ek-hash HASH), or to take it without a certificate: ek_check = \"tofu\"", "%s, without a certificate, hash %s", ek.Template, hash)
	default:
		e.ok(check, "%s with %d certificates, hash %s", ek.Template, len(ders), hash)
	}
}

func (e *examination) attestation(dev *tpm.TPM) {
	const check = "ak"
	blob, err := (&folder{path: e.config.get("state_dir")}).read(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		e.fail(check, "attest-agent enrol", "no attestation key was made yet")
		return
	}
	if err != nil {
		e.fail(check, "run as root", "%v", err)
		return
	}
	ak, err := dev.LoadAK(blob)
	if err != nil {
		e.fail(check, "attest-agent enrol --new-key", "%v", err)
		return
	}
	ak.Close()
	e.ok(check, "the TPM takes the saved key")
}

// agent looks at what the agent did last.
func (e *examination) agent() {
	const check = "agent"
	s, err := (&folder{path: e.config.get("state_dir")}).state()
	switch {
	case err != nil:
		e.fail(check, "run as root", "%v", err)
	case s.ID == "":
		e.fail(check, "attest-agent enrol", "this device is not enrolled")
	case s.Failure != "":
		e.fail(check, "mend what failed above; the agent tries again by itself", "fails since %s: %s", s.FailureSince.Format(time.RFC3339), s.Failure)
	default:
		e.ok(check, "enrolled as %s, verdict: %s", s.ID, describe(s.Verdict))
	}
}

// network looks at the settings, the clock, TLS and both servers.
func (e *examination) network(ctx context.Context) {
	if err := e.config.network(); err != nil {
		e.fail("settings", hintFor(err), "%v", err)
		return
	}
	c, err := newClient(e.config)
	if err != nil {
		e.fail("ca", "copy the CA certificate of the verifier there, in PEM", "%v", err)
		return
	}
	if c.verifier != nil {
		e.ok("settings", "verifier %s, registrar %s, ca %s", c.verifier, c.registrar, e.config.get("ca"))
		e.server(ctx, c, "verifier", c.verifier)
	} else {
		e.ok("settings", "polled at %s, registrar %s, ca %s", e.config.contact, c.registrar, e.config.get("ca"))
	}
	e.server(ctx, c, "registrar", c.registrar)
}

// maxClockError is how wrong the clock may be before certificates are at risk.
const maxClockError = 5 * time.Minute

func (e *examination) server(ctx context.Context, c *client, name string, base *url.URL) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	res, err := c.do(ctx, request{what: "ask for versions", method: http.MethodGet, base: base, path: "/version", content: typeJSON, want: http.StatusOK})
	if err != nil {
		mend := hintFor(err)
		if mend == "" {
			mend = "is it running, and does a firewall let this device reach " + base.Host + "?"
		}
		e.fail(name, mend, "%v", err)
		return
	}
	defer res.Body.Close()
	e.ok(name, "answers at %s", base.Host)
	if date, err := http.ParseTime(res.Header.Get("Date")); err == nil && (name == "verifier" || c.verifier == nil) {
		if off := time.Since(date); off.Abs() > maxClockError {
			e.fail("clock", "set it: timedatectl set-ntp true, or date -s @"+fmt.Sprint(date.Unix()), "%s apart from the %s's", off.Abs().Round(time.Second), name)
		} else {
			e.ok("clock", "like the %s's", name)
		}
	}
}
