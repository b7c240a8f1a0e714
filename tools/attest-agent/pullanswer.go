//go:build !nopull

package main

import (
	"fmt"
	"net/http"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

func (l *listener) identityQuote(r *http.Request, version string) *answer {
	nonce, err := evidence.ParseNonce(r.URL.RawQuery, "nonce")
	if err != nil {
		return refusal(err)
	}
	return l.quote(&evidence.QuoteRequest{Nonce: nonce, WithKey: true}, version, false)
}

func (l *listener) integrityQuote(r *http.Request, version string) *answer {
	q, err := evidence.ParseQuoteRequest(r.URL.RawQuery)
	if err != nil {
		return refusal(err)
	}
	return l.quote(q, version, true)
}

// quote is the TPM's statement, with the logs that belong to it. The quote comes first:
// whatever it says of PCR 10 is then in the list that is read after it.
func (l *listener) quote(q *evidence.QuoteRequest, version string, logs bool) *answer {
	d := l.agent.device
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ak == nil {
		return refusal(errNotEnrolled)
	}
	key := l.agent.identity.shareKey
	results, err := d.polledQuote(q, key)
	if err != nil {
		l.awake()
		return refusal(err)
	}
	results.KeyAlg = evidence.Algorithm(d.public.Key(), version)
	if q.WithKey {
		results.Key = key
	}
	a := success(results)
	if logs {
		results.BootTime = &l.boot
		if a.logs, err = d.polledLogs(q, results); err != nil {
			return refusal(err)
		}
	}
	return a
}

// awake has the main loop look at the TPM.
func (l *listener) awake() {
	select {
	case l.wake <- struct{}{}:
	default: // it is told already
	}
}

func (l *listener) info(id, version string) *answer {
	d := l.agent.device
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.public == nil {
		return refusal(errNotEnrolled)
	}
	// The handle is that of a key which this process alone can use: it tells nobody anything.
	return success(evidence.AgentInfo{ID: id, Hash: d.public.Hash(), KeyAlg: evidence.Algorithm(d.public.Key(), version), Scheme: d.public.Scheme()})
}

func (l *listener) proveKey(r *http.Request) *answer {
	challenge, err := evidence.ParseNonce(r.URL.RawQuery, "challenge")
	if err != nil {
		return refusal(err)
	}
	tag := l.vault.prove(challenge)
	if tag == "" {
		return refusal(&badRequest{"Bootstrap key not yet available."})
	}
	return success(evidence.KeyProof{HMAC: tag})
}

func (l *listener) takeU(r *http.Request) *answer {
	u, err := evidence.DecodeBody[evidence.UShare](r.Body)
	if err == nil {
		err = l.vault.putU(u)
	}
	if err != nil {
		return refusal(fmt.Errorf("take share of the tenant: %w", err))
	}
	return success(nil)
}

func (l *listener) takeV(r *http.Request, id string) *answer {
	v, err := evidence.DecodeBody[evidence.VShare](r.Body)
	var done bool
	if err == nil {
		done, err = l.vault.putV(id, v)
	}
	if err != nil {
		return refusal(fmt.Errorf("take share of the verifier: %w", err))
	}
	if done {
		l.agent.say("the verifier released the key of the payload")
	}
	return success(nil)
}

func (l *listener) takeRevocation(r *http.Request) *answer {
	signed, err := evidence.DecodeBody[evidence.SignedRevocation](r.Body)
	if err == nil {
		err = l.revoke(signed)
	}
	if err != nil {
		return refusal(fmt.Errorf("take notice: %w", err))
	}
	return success(nil)
}
