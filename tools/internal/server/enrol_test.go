package server

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// register sends a registration and returns the credential, if there is one.
func (m *machine) register(id string, r evidence.Registration) (answer, evidence.Challenge) {
	m.w.t.Helper()
	a := m.w.send("POST", m.w.registrar+"/v2.6/agents/"+id, "", r)
	if a.status != http.StatusOK {
		return a, evidence.Challenge{}
	}
	c, err := evidence.DecodeAnswer[evidence.Challenge](bytes.NewReader(a.body))
	if err != nil {
		m.w.t.Fatal(err)
	}
	return a, c.Results
}

// record is what a test compares: all that an enrolment could change.
func (w *world) record(id string) string {
	w.t.Helper()
	d, err := w.store.Device(w.t.Context(), id, w.clock.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := json.Marshal(d)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// TestTakeover is CVE-2025-13609, the unauthenticated delete of Keylime's registrar, and
// CVE-2023-38201: whatever a stranger sends, the enrolled record stays, and nothing that
// comes back helps to guess.
func TestTakeover(t *testing.T) {
	t.Parallel()
	for _, any := range []bool{false, true} {
		w := newWorld(t, func(o *Options) { o.AnyID = any })
		m, thief := w.machine(tpmtest.Start(t)), w.machine(tpmtest.Start(t))
		m.enrol()
		before := w.record(m.id)

		if a, _ := thief.register(m.id, thief.registration()); a.status != http.StatusForbidden {
			t.Errorf("another TPM under the id: %d %s", a.status, a.body)
		}
		mixed := m.registration()
		mixed.AK = thief.ak.Public()
		if a, _ := thief.register(m.id, mixed); a.status != http.StatusForbidden {
			t.Errorf("the EK of one TPM, the AK of another: %d %s", a.status, a.body)
		}
		mixed = thief.registration()
		mixed.AK = m.ak.Public()
		if a, _ := thief.register(thief.id, mixed); a.status != http.StatusForbidden {
			t.Errorf("an AK that another device has: %d %s", a.status, a.body)
		}
		// The thief may ask for a challenge that only the owner's TPM can read.
		if a, _ := thief.register(m.id, m.registration()); a.status != http.StatusOK {
			t.Errorf("register again: %d %s", a.status, a.body)
		}
		for _, tag := range []string{"00", strings.Repeat("00", 48), strings.Repeat("ff", 48), strings.Repeat("00", 48), strings.Repeat("00", 48)} {
			a := w.send("PUT", w.registrar+"/v2.1/agents/"+m.id, "", evidence.Activation{AuthTag: tag})
			if a.status != http.StatusForbidden && a.status != http.StatusBadRequest {
				t.Errorf("activate with %q: %d %s", tag, a.status, a.body)
			}
		}
		if after := w.record(m.id); after != before {
			t.Errorf("the record was %s\nand is   %s", before, after)
		}
		m.session() // and the device goes on
	}
}

// TestTries: a challenge dies of wrong answers.
func TestTries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.machine(tpmtest.Start(t))
	_, c := m.register(m.id, m.registration())
	right := evidence.Activation{AuthTag: evidence.AuthTag(m.open(c), m.id)}
	for range store.MaxTries {
		a := w.send("PUT", w.registrar+"/v2.1/agents/"+m.id, "", evidence.Activation{AuthTag: strings.Repeat("0", 96)})
		if a.status != http.StatusForbidden {
			t.Fatalf("a wrong answer: %d %s", a.status, a.body)
		}
		if strings.Contains(string(a.body)+w.log.String(), right.AuthTag) {
			t.Error("the right answer was told")
		}
	}
	if a := w.send("PUT", w.registrar+"/v2.1/agents/"+m.id, "", right); a.status != http.StatusForbidden {
		t.Errorf("the right answer after %d wrong ones: %d %s", store.MaxTries, a.status, a.body)
	}
	m.enrol()
}

// TestCertificates: issue #679 of Keylime. The registrar itself looks who made the TPM.
func TestCertificates(t *testing.T) {
	t.Parallel()
	emulator, other := tpmtest.Start(t), tpmtest.Start(t)
	ca, err := evidence.NewCAStore(emulator.RootCA, emulator.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(o *Options) { o.EKCA, o.TOFU = ca, false })
	m := w.machine(emulator)
	bad := m.registration()
	for name, cert := range map[string]*string{"none": nil, "empty": new(string), "not base64": ptr("%%%"),
		"another's": w.machine(other).registration().EKCert, "junk": ptr(base64.StdEncoding.EncodeToString([]byte("junk")))} {
		bad.EKCert = cert
		if a, _ := m.register(m.id, bad); a.status != http.StatusForbidden && a.status != http.StatusBadRequest {
			t.Errorf("certificate %s: %d %s", name, a.status, a.body)
		}
	}
	m.enrol()
	if v := w.api("GET", "/devices/"+m.id, nil, 200); v["alarm"] != nil {
		t.Errorf("an alarm about a TPM with a good certificate: %v", v["alarm"])
	}
}

func ptr(s string) *string { return &s }

// TestTrustOnFirstUse: such a device is enrolled, and says so wherever it is shown.
func TestTrustOnFirstUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.machine(tpmtest.Start(t))
	m.enrol()
	v := w.api("GET", "/devices/"+m.id, nil, 200)
	if alarm, _ := v["alarm"].(string); alarm == "" {
		t.Errorf("no alarm in %v", v)
	}
	events, err := w.store.Events(t.Context(), m.id, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(events, func(e store.Event) bool { return e.Kind == "ek-not-verified" }) {
		t.Errorf("no event in %+v", events)
	}
}

// TestNames: the id is the hash of the EK, or what an operator gave to this EK.
func TestNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m, other := w.machine(tpmtest.Start(t)), w.machine(tpmtest.Start(t))
	if a, _ := m.register("kitchen", m.registration()); a.status != http.StatusForbidden {
		t.Errorf("a name of its own choice: %d %s", a.status, a.body)
	}
	w.policy("image", "/sbin/init")
	w.api("POST", "/devices", map[string]any{"id": "kitchen", "ek_tpm": base64.StdEncoding.EncodeToString(m.ek.Public), "group": "house",
		"labels": map[string]string{"floor": "1"}, "policies": []string{"image"}}, http.StatusCreated)
	w.api("POST", "/devices", map[string]any{"id": "hall"}, http.StatusBadRequest)
	w.api("POST", "/devices", map[string]any{"id": "hall", "colour": "red"}, http.StatusBadRequest)
	w.api("POST", "/devices", map[string]any{"ek_hash": other.id, "policies": []string{"image"}}, http.StatusCreated)
	if a, _ := other.register("kitchen", other.registration()); a.status != http.StatusForbidden {
		t.Errorf("another TPM under the name: %d %s", a.status, a.body)
	}
	m.id = "kitchen"
	for _, d := range []*machine{m, other} {
		d.runFile("/sbin/init")
		d.enrol()
		d.session()
		d.expect(store.Trusted, "")
	}
	page := w.api("GET", "/devices?group=house&status=trusted", nil, 200)
	if devices := page["devices"].([]any); len(devices) != 1 {
		t.Errorf("devices of the group: %v", devices)
	}
	page = w.api("GET", "/devices?limit=1", nil, 200)
	page = w.api("GET", "/devices?limit=1&after="+page["next"].(string), nil, 200)
	if devices := page["devices"].([]any); len(devices) != 1 {
		t.Errorf("second page: %v", devices)
	}
	w.api("DELETE", "/devices/kitchen", nil, http.StatusNoContent)
	if a := w.send("POST", w.verifier+"/v3.0/agents/kitchen/attestations", m.token, []byte("{}")); a.status != http.StatusUnauthorized {
		t.Errorf("the session of a deleted device: %d %s", a.status, a.body)
	}
}
