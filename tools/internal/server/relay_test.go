package server

import (
	"net/http"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/evidence/evidencetest"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// TestRelay: what one device proves does not count for another, in whatever mixture of
// their sessions, challenges and connections; and the verdict is always that of the device
// whose key signed. That a session is not bound to its connection is shown too: SECURITY.md
// says what follows.
func TestRelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.trustedSoft("a"), w.soft("b")
	w.assign(b.ID, "image")
	b.Run("/bin/evil", content("/bin/evil"))
	v := w.verifierOf()
	w.judge(b, store.Untrusted, "unknown_file")

	// b answers its own challenge with what a, which is good, says to the same nonce.
	a.Run("/bin/sh", content("/bin/sh")) // so that there is something to send
	location, asked, err := b.Negotiate(v)
	if err != nil {
		t.Fatal(err)
	}
	if said, err := b.Submit(v, location, a.Collect(asked)); err != nil || said.State != string(store.Broken) {
		t.Errorf("the quote of a for b: %+v, %v", said, err)
	}
	w.expect(b.ID, store.Broken, "quote_signature")
	// b's list under a's quote, with a's values.
	location, asked, err = b.Negotiate(v)
	if err != nil {
		t.Fatal(err)
	}
	mixed := b.Collect(asked)
	mixed.Collected[0] = a.Collect(asked).Collected[0]
	if said, err := b.Submit(v, location, mixed); err != nil || said.State != string(store.Broken) {
		t.Errorf("the quote of a and the list of b: %+v, %v", said, err)
	}

	// The session of one is not good for the other.
	location, asked, err = a.Negotiate(v)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.Send("PATCH", location, b.Token, evidence.NewDocument("", a.Collect(asked)), http.StatusAccepted); !refusedWith(err, http.StatusForbidden, "other_device") {
		t.Errorf("a's attestation with b's token: %v", err)
	}
	if _, _, err := v.Send("PATCH", "/v3.0/agents/b/attestations/latest", b.Token, evidence.NewDocument("", a.Collect(asked)), http.StatusAccepted); !refusedWith(err, http.StatusForbidden, "challenges_expired") {
		t.Errorf("a's attestation at b's path: %v", err)
	}

	// Nobody gets a session with the proof of another, or with one that was seen before.
	id, challenge, err := a.Challenge(v)
	if err != nil {
		t.Fatal(err)
	}
	prove := func(id, agent string, message, signature []byte) error {
		_, _, err := v.Send("PATCH", "/v3.0/sessions/"+id, "", evidence.NewDocument(id, evidence.NewSessionProof(agent, message, signature)), http.StatusOK)
		return err
	}
	message, signature := b.Certify(challenge)
	if err := prove(id, a.ID, message, signature); !refusedWith(err, http.StatusUnauthorized, "proof") {
		t.Errorf("b proves to be a: %v", err)
	}
	id, challenge, err = b.Challenge(v)
	if err != nil {
		t.Fatal(err)
	}
	message, signature = a.Certify(challenge)
	if err := prove(id, a.ID, message, signature); !refusedWith(err, http.StatusUnauthorized, "proof") {
		t.Errorf("a's proof of itself in b's session: %v", err)
	}
	id, challenge, err = a.Challenge(v)
	if err != nil {
		t.Fatal(err)
	}
	message, signature = a.Certify(challenge)
	if err := prove(id, a.ID, message, signature); err != nil {
		t.Error(err)
	}
	if err := prove(id, a.ID, message, signature); !refusedWith(err, http.StatusUnauthorized, "proof") {
		t.Errorf("the same proof again: %v", err)
	}
	if id, _, err = a.Challenge(v); err != nil {
		t.Fatal(err)
	}
	if err := prove(id, a.ID, message, signature); !refusedWith(err, http.StatusUnauthorized, "proof") {
		t.Errorf("the same proof in another session: %v", err)
	}

	// What cannot be told: a's own evidence that came over somebody else's connection. It
	// says the truth about a, whoever carries it.
	carrier := &evidencetest.Verifier{URL: w.verifier, Client: w.pki.client()}
	defer carrier.Client.CloseIdleConnections()
	if said, err := a.Attest(carrier); err != nil || said.State != string(store.Trusted) {
		t.Errorf("carried by somebody else: %+v, %v", said, err)
	}
	b.Reboot()
	b.Run("/sbin/init", content("/sbin/init"))
	b.BootTime = b.BootTime.Add(1e12)
	w.judge(b, store.Trusted, "")
}
