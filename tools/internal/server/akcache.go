package server

import (
	"sync"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// akCache holds parsed attestation keys by their public area, as parsing one costs as much
// as verifying a signature. Of two generations the older is forgotten when the younger is
// full: a key that is in use is in one of them, and no more than twice the bound are held.
type akCache struct {
	mu         sync.Mutex
	young, old map[string]*evidence.AK
}

const maxYoungAKs = 50_000 // at some 1.5 KB

func newAKCache() *akCache { return &akCache{young: map[string]*evidence.AK{}} }

func (k *akCache) parse(public []byte) (*evidence.AK, error) {
	if ak := k.find(string(public)); ak != nil {
		return ak, nil
	}
	ak, err := evidence.ParseAK(public)
	if err != nil {
		return nil, err
	}
	k.put(string(public), ak)
	return ak, nil
}

func (k *akCache) find(public string) *evidence.AK {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ak := k.young[public]; ak != nil {
		return ak
	}
	ak := k.old[public]
	if ak != nil {
		k.keep(public, ak)
	}
	return ak
}

func (k *akCache) put(public string, ak *evidence.AK) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keep(public, ak)
}

func (k *akCache) keep(public string, ak *evidence.AK) {
	if len(k.young) >= maxYoungAKs {
		k.old, k.young = k.young, map[string]*evidence.AK{}
	}
	k.young[public] = ak
}
