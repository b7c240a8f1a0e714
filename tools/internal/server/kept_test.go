package server

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/evidence/evidencetest"
)

// TestKeptEvidence: a device that changes its verdict with each attestation does not fill the
// database, and its verdict changes all the same.
func TestKeptEvidence(t *testing.T) {
	w := newWorld(t)
	w.s.kept.full = w.s.kept.step << 20 // a MiB
	d := w.trustedSoft("d")
	junk := make([]byte, 300<<10)
	_, _ = rand.Read(junk) // never fails: crypto/rand
	kept := func() (events, bytes int) {
		t.Helper()
		all, err := w.store.Events(t.Context(), d.ID, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			if e.Kind != "verdict" {
				continue
			}
			events++
			if len(e.Evidence) > 0 {
				raw, err := w.store.Evidence(t.Context(), e.Evidence)
				if err != nil {
					t.Fatal(err)
				}
				bytes += len(raw)
			}
		}
		return events, bytes
	}
	flap := func(i int) {
		t.Helper()
		w.clock.pass(2 * time.Second)
		w.lie(d, func(c *evidence.Collected) {
			junk[i]++
			c.Collected[1].Data.Entries = base64.StdEncoding.EncodeToString(junk)
			if i%2 == 0 {
				c.Collected[0].Data.Signature[10] ^= 1
			}
		})
	}
	for i := range 20 {
		flap(i)
	}
	events, size := kept()
	if events != 21 || size == 0 || size > 1<<20 {
		t.Errorf("%d verdicts, and %d bytes of evidence", events, size)
	}
	w.clock.pass(time.Hour)
	if err := d.Session(w.verifierOf()); err != nil {
		t.Fatal(err)
	}
	flap(20)
	if _, more := kept(); more <= size {
		t.Error("an hour later evidence is not kept either")
	}
}

// TestEvidenceThatGrows: evidence that is too large to be kept is judged all the same. As
// JSON a letter may take six.
func TestEvidenceThatGrows(t *testing.T) {
	w := newWorld(t)
	d := w.trustedSoft("d")
	location, asked, err := d.Negotiate(w.verifierOf())
	if err != nil {
		t.Fatal(err)
	}
	c := d.Collect(asked)
	c.Collected[1].Data.Entries = strings.Repeat("<", 12<<20)
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false)
	if err := e.Encode(evidence.NewDocument("", c)); err != nil {
		t.Fatal(err)
	}
	if a := w.send("PATCH", w.verifier+location, d.Token, body.Bytes()); a.status != http.StatusAccepted {
		t.Errorf("%d %s", a.status, a.body)
	}
	w.expect(d.ID, "broken", "malformed")
}

// lie has d attest with something else than it collected.
func (w *world) lie(d *evidencetest.Device, how func(*evidence.Collected)) {
	w.t.Helper()
	location, asked, err := d.Negotiate(w.verifierOf())
	if err != nil {
		w.t.Fatal(err)
	}
	c := d.Collect(asked)
	how(&c)
	if _, err := d.Submit(w.verifierOf(), location, c); err != nil {
		w.t.Fatal(err)
	}
}
