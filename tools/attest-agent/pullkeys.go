//go:build !nopull

package main

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"sync"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/payload"
)

// errHasKey means that another payload was sent to an agent that has one: whoever could
// repeat this would exchange what the device runs (CVE-2021-43310).
var errHasKey = errors.New("this agent has its payload, and takes no other until it is started again")

// vault joins the two shares of the key of a payload: the tenant's, which comes with the
// payload, and the verifier's, which comes after a good quote. It opens once.
type vault struct {
	key     *rsa.PrivateKey
	deliver func(*payload.Payload) error

	mu     sync.Mutex
	u      *evidence.UShare
	share  []byte
	joined []byte               // the payload's key
	used   [2][sha256.Size]byte // digests of the messages that made it
}

// putU takes the tenant's share. It may send another one, as long as the verifier has sent
// none: that is an operator who tries again.
func (v *vault) putU(u *evidence.UShare) error {
	share, err := evidence.OpenShare(v.key, u.Share)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.joined != nil {
		return v.same(0, digestU(share, u))
	}
	v.u, v.share = u, share
	return nil
}

// putV takes the verifier's share; done says whether that gave the payload. Without the
// tenant's share it is dropped, and that is no error: Keylime's verifier sends its share
// again after a restart, also to an agent that was started again since and has nothing to
// open, and would give up the device for a refusal.
func (v *vault) putV(id string, sealed *evidence.VShare) (done bool, err error) {
	share, err := evidence.OpenShare(v.key, sealed.Share)
	if err != nil {
		return false, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.joined != nil {
		return false, v.same(1, sha256.Sum256(share))
	}
	if v.u == nil {
		return false, nil
	}
	key := evidence.JoinShares(v.share, share)
	if subtle.ConstantTimeCompare([]byte(evidence.KeyTag(key, id)), []byte(v.u.AuthTag)) != 1 {
		return false, &badRequest{"the shares do not belong together: auth_tag is not that of their key and this agent"}
	}
	if err := v.open(key); err != nil {
		return false, err
	}
	v.used = [2][sha256.Size]byte{digestU(v.share, v.u), sha256.Sum256(share)}
	v.joined, v.u, v.share = key, nil, nil
	return true, nil
}

// open delivers the payload, if one was sent.
func (v *vault) open(key []byte) error {
	if len(v.u.Payload) == 0 {
		return nil
	}
	plain, err := evidence.OpenPayload(key, v.u.Payload)
	if err != nil {
		return err
	}
	p, err := parsePayload(plain)
	if err != nil {
		return &badRequest{err.Error()}
	}
	return v.deliver(p)
}

func digestU(share []byte, u *evidence.UShare) [sha256.Size]byte {
	payload := sha256.Sum256(u.Payload)
	return sha256.Sum256(append(append(append([]byte{}, share...), payload[:]...), u.AuthTag...))
}

// same takes the message that was taken before, which changes nothing, and no other.
func (v *vault) same(i int, digest [sha256.Size]byte) error {
	if subtle.ConstantTimeCompare(v.used[i][:], digest[:]) == 1 {
		return nil
	}
	return errHasKey
}

// prove answers a tenant's challenge; "" where there is no key.
func (v *vault) prove(challenge string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.joined == nil {
		return ""
	}
	return evidence.KeyTag(v.joined, challenge)
}

const (
	payloadName = "keylime"           // of the folder for what Keylime's tenant sent
	payloadRun  = "autorun.sh"        // payload_script of Keylime's agent
	payloadFile = "decrypted_payload" // dec_payload_file of Keylime's agent
	payloadCert = "RevocationNotifier-cert.crt"
)

// parsePayload reads an archive, or takes what is none for one file, as Keylime's agent does.
func parsePayload(plain []byte) (*payload.Payload, error) {
	p := &payload.Payload{Files: []payload.File{{Name: payloadFile, Mode: 0o600, Data: plain}}}
	if len(plain) >= 4 && string(plain[:4]) == "PK\x03\x04" {
		var err error
		if p, err = payload.ParseZip(plain); err != nil {
			return nil, err
		}
	}
	p.Name = payloadName
	for _, f := range p.Files {
		if f.Name == payloadRun {
			p.Run = payloadRun
		}
	}
	return p, p.Check()
}
