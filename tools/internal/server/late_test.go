package server

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/store"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// TestGoodAgain: who heard that a device is overdue hears that it is not, also where that was
// said of it while it attested.
func TestGoodAgain(t *testing.T) {
	t.Parallel()
	e := tpmtest.Start(t)
	for name, during := range map[string]func(w *world, late func()) io.Reader{
		"while it sends": func(w *world, late func()) io.Reader { return &onceReader{do: late} },
		"while it is judged": func(w *world, late func()) io.Reader {
			judge, once := w.s.judge, sync.OnceFunc(late)
			w.s.judge = func(c *evidence.Claims, r *appraise.Reference, s appraise.State) (appraise.Verdict, appraise.State, error) {
				once()
				return judge(c, r, s)
			}
			return bytes.NewReader(nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			e.Reboot()
			w, hooks := withHook(t, 1)
			m := w.enrolled(e)
			m.expect(store.Trusted, "")
			w.clock.pass(w.s.due() - time.Second)
			location, asked := m.negotiate()
			body, err := json.Marshal(evidence.NewDocument("", m.collect(asked)))
			if err != nil {
				t.Fatal(err)
			}
			first := during(w, func() {
				w.clock.pass(2 * time.Second)
				w.s.sweep(t.Context())
			})
			if a := m.directFrom(w.s.Verifier(), "PATCH", location, io.MultiReader(first, bytes.NewReader(body))); a.status != http.StatusAccepted {
				t.Fatalf("%d %s", a.status, a.body)
			}
			w.expect(m.id, store.Trusted, "")
			w.deliver(2)
			got := map[string]bool{}
			for range 2 {
				e, _ := hooks[0].last(t)
				got[e.Data.Status] = true
				hooks[0].got, hooks[0].bodies = hooks[0].got[:1], hooks[0].bodies[:1]
			}
			if !got["overdue"] || !got["trusted"] {
				t.Errorf("told %v", got)
			}
		})
	}
}

// onceReader does something before it has nothing.
type onceReader struct{ do func() }

func (r *onceReader) Read([]byte) (int, error) {
	r.do()
	return 0, io.EOF
}

// TestSecretsSlow: a device that takes its time to ask is not trusted for as long.
func TestSecretsSlow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withSecrets(t))
	m := w.enrolled(tpmtest.Start(t))
	w.putSecret("web", "")
	w.assignSecret("web", map[string][]string{"devices": {m.id}}, nil)
	_, challenge := m.attested(store.Trusted)
	key := m.newKey()
	message, signature, _, err := m.ak.CertifySecretKey(key, evidence.SecretQualifier(m.id, challenge))
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(evidence.NewDocument("", evidence.SecretRequest{Public: key.Public(), Message: message, Signature: signature}))
	if err != nil {
		t.Fatal(err)
	}
	w.clock.pass(w.s.due() - time.Second)
	slow := &onceReader{do: func() { w.clock.pass(2 * time.Second) }}
	a := m.directFrom(w.s.Verifier(), "POST", "/v3.0/agents/"+m.id+"/secrets", io.MultiReader(slow, bytes.NewReader(body)))
	if a.status != http.StatusForbidden || !strings.Contains(string(a.body), "not_trusted") {
		t.Errorf("%d %.200s", a.status, a.body)
	}
}
