package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/evidence/evidencetest"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/release"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

const lists = "../ima/testdata/lists/"

// measured gives d the list and the PCRs of a real boot, and returns a policy of what it ran.
// padded is what Linux before 5.8 would have made of PCR 10 in the other banks.
func measured(t *testing.T, d *evidencetest.Device, name string) (runtime map[string]any, buffers string, padded []byte) {
	t.Helper()
	read := func(suffix string) []byte {
		b, err := os.ReadFile(lists + name + suffix)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	d.List = read(".binary_runtime_measurements")
	for line := range strings.Lines(string(read(".pcrs"))) {
		where, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		bank, index, _ := strings.Cut(where, ":")
		pcr, err := strconv.Atoi(index)
		if err != nil {
			t.Fatal(err)
		}
		if d.PCRs[bank][pcr], err = hex.DecodeString(value); err != nil {
			t.Fatal(err)
		}
	}
	digests, names := map[string][]string{}, []string{}
	padded = make([]byte, sha256.Size)
	for r := ima.NewListReader(d.List, ima.Form{Order: binary.LittleEndian, Hash: ima.SHA1}, 0); ; {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		extended := make([]byte, sha256.Size)
		copy(extended, e.Digest)
		if e.Violation {
			copy(extended, bytes.Repeat([]byte{0xff}, 20))
		}
		sum := sha256.Sum256(append(padded, extended...))
		padded = sum[:]
		path := string(e.Path)
		switch {
		case len(e.Buffer) > 0 && !slices.Contains(names, path):
			names = append(names, path)
			buffers += fmt.Sprintf("[[buffer]]\nname = %q\nany = true\n", path)
		case len(e.Buffer) == 0 && e.Index > 0 && !e.Violation && utf8.ValidString(path):
			digests[path] = append(digests[path], hex.EncodeToString(e.File.Sum))
		}
	}
	buffers += "[[exclude]]\npath = \"/w/h*\"\n" // one is not UTF-8, which JSON cannot have
	runtime = runtimePolicy()
	runtime["digests"] = digests
	return runtime, buffers, padded
}

// TestWeakBanks: the lists of real boots under the PCRs of kernels that know SHA-1 alone.
// They are refused unless the rules say that just this is to be taken.
func TestWeakBanks(t *testing.T) {
	t.Parallel()
	const weak = "weak_digests = true\nviolations = \"warn\"\nkexec = true\n"
	zero := make([]byte, sha256.Size)
	for _, c := range []struct {
		name, list, rules, pcr10 string
		status                   store.Status
		codes                    string
	}{
		{"SHA-1 alone", "debian-sha1", weak + `bank = "sha1"`, "none", store.Trusted, ""},
		{"SHA-1 alone, template ima", "debian-ima", weak + `bank = "sha1"`, "none", store.Trusted, ""},
		{"SHA-1 alone, refused", "debian-sha1", weak, "none", store.Broken, "log_missing"},
		{"before 5.8", "debian-sha1", weak + `padding = "before-5.8"`, "padded", store.Trusted, ""},
		{"before 5.8, a violation", "debian-tcb-violation-seabios", weak + `padding = "before-5.8"`, "padded", store.Trusted, ""},
		{"before 5.8, refused", "debian-sha1", weak, "padded", store.Broken, "ima_pcr_mismatch"},
		{"another padding", "debian-tcb-violation-seabios", weak + `padding = "no-hash"`, "padded", store.Broken, "ima_pcr_mismatch"},
		{"padding that is none", "debian-sha1", weak + `padding = "before-5.8"`, "real", store.Broken, "ima_pcr_mismatch"},
		{"a SHA-256 bank, SHA-1 files", "debian-sha1", weak, "real", store.Trusted, ""},
		{"a SHA-256 bank, SHA-1 refused", "debian-sha1", "violations = \"warn\"", "real", store.Untrusted, "weak_digest"},
		{"another PCR", "debian-sha1", weak + `ima_pcrs = [11]`, "real", store.Broken, "log_missing"},
		{"one more PCR", "debian-sha1", weak + `ima_pcrs = [10, 11]`, "real", store.Trusted, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			d := evidencetest.New(t, "old")
			runtime, buffers, padded := measured(t, d, c.list)
			switch c.pcr10 {
			case "none":
				d.PCRs["sha256"][10] = zero
			case "padded":
				d.PCRs["sha256"][10] = padded
			}
			w.enrolSoft(d)
			w.api("POST", "/policies/image?activate=true", map[string]any{"schema": release.Schema, "rules": c.rules + "\n" + buffers, "runtime_policy": runtime}, http.StatusCreated)
			w.assign(d.ID, "image")
			w.judge(d, c.status, c.codes)
			if c.status == store.Trusted { // and goes on from there
				_, asked, err := d.Negotiate(w.verifierOf())
				if err != nil || *asked.Requested[1].Parameters.Offset == 0 {
					t.Errorf("asked for %+v, %v", asked.Requested, err)
				}
				w.judge(d, c.status, "")
			}
		})
	}
}

// TestWeakPolicyChanges: evidence that was asked for by a weak policy does not count for a
// strict one, nor the other way round; the device comes again with all.
func TestWeakPolicyChanges(t *testing.T) {
	t.Parallel()
	const weak = "weak_digests = true\nviolations = \"warn\"\nkexec = true\n"
	w := newWorld(t)
	d := evidencetest.New(t, "old")
	runtime, buffers, padded := measured(t, d, "debian-sha1")
	d.PCRs["sha256"][10] = padded
	w.enrolSoft(d)
	for name, rules := range map[string]string{"weak": weak + `padding = "before-5.8"`, "strict": weak} {
		w.api("POST", "/policies/"+name+"?activate=true", map[string]any{"schema": release.Schema, "rules": rules + "\n" + buffers, "runtime_policy": runtime}, http.StatusCreated)
	}
	w.assign(d.ID, "weak")
	w.judge(d, store.Trusted, "")
	location, asked, err := d.Negotiate(w.verifierOf())
	if err != nil {
		t.Fatal(err)
	}
	w.assign(d.ID, "strict")
	v, err := d.Submit(w.verifierOf(), location, d.Collect(asked))
	if err != nil || len(v.Reasons) != 1 || v.Reasons[0].Code != "need_whole" {
		t.Fatalf("%+v, %v", v, err)
	}
	w.judge(d, store.Broken, "ima_pcr_mismatch")
	w.assign(d.ID, "weak")
	w.judge(d, store.Trusted, "")
	var x = w.api("GET", "/devices/old/verdict", nil, http.StatusOK)
	a := w.send("GET", w.verifier+"/api/v1/evidence/"+x["event"].(map[string]any)["evidence"].(string), w.admin, nil)
	b, err := evidence.DecodeBody[evidence.Bundle](bytes.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Verify(); err != nil {
		t.Errorf("what was kept is not verified again: %v", err)
	}
	b.Terms = evidence.Terms{}
	if _, _, err := b.Verify(); evidence.CodeOf(err) != evidence.CodeMismatch {
		t.Errorf("without its terms: %v", err)
	}
}
