package keys

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	attempts   = 5
	firstDelay = 200 * time.Millisecond // doubles each time, and half of it is random
	callTime   = time.Minute            // for one attempt; a token may wait for a finger

	// maxRemembered bounds the memory for signatures: 20 MiB of RSA-4096. A tree that has
	// more distinct files than this loses some of the reuse.
	maxRemembered = 32 << 10
)

type signFunc func(ctx context.Context, digest []byte, hash crypto.Hash) ([]byte, error)

// remote is a key whose signatures cost a call. It makes each signature once, repeats
// calls that fail, and believes a result when the public key verifies it.
type remote struct {
	ctx    context.Context // of Open: crypto.Signer has no other way in
	name   string          // for errors
	public crypto.PublicKey
	sign   signFunc
	flight singleflight.Group

	mu   sync.Mutex
	made map[string][]byte // by hash and digest
}

func newRemote(ctx context.Context, name string, public crypto.PublicKey, sign signFunc) *remote {
	return &remote{ctx: ctx, name: name, public: public, sign: sign, made: map[string][]byte{}}
}

func (r *remote) Public() crypto.PublicKey { return r.public }

func (r *remote) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := opts.HashFunc()
	id := hash.String() + string(digest)
	sig, err, _ := r.flight.Do(id, func() (any, error) {
		if sig := r.recall(id); sig != nil {
			return sig, nil
		}
		sig, err := retry(r.ctx, func(ctx context.Context) ([]byte, error) {
			return r.sign(ctx, digest, hash)
		})
		if err == nil {
			err = verify(r.public, digest, hash, sig)
		}
		if err != nil {
			return nil, err
		}
		r.remember(id, sig)
		return sig, nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: sign: %w", r.name, err)
	}
	return append([]byte(nil), sig.([]byte)...), nil // callers may change theirs
}

func (r *remote) recall(id string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.made[id]
}

func (r *remote) remember(id string, sig []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for old := range r.made {
		if len(r.made) < maxRemembered {
			break
		}
		delete(r.made, old)
	}
	r.made[id] = sig
}

// retry calls do until it succeeds, at most five times.
func retry[T any](ctx context.Context, do func(context.Context) (T, error)) (T, error) {
	for n, delay := 1, firstDelay; ; n, delay = n+1, 2*delay {
		result, err := attempt(ctx, do)
		switch {
		case err == nil:
			return result, nil
		case ctx.Err() != nil:
			return result, ctx.Err()
		case n == attempts:
			return result, fmt.Errorf("gave up after %d attempts: %w", n, err)
		}
		select {
		case <-ctx.Done():
			return result, ctx.Err()
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
	}
}

func attempt[T any](ctx context.Context, do func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return do(ctx)
}

// verify checks what a token or service returned: PSS where PKCS#1 v1.5 was wanted, a key
// that was rotated since Open, or garbage must not become the label of a file.
func verify(public crypto.PublicKey, digest []byte, hash crypto.Hash, sig []byte) error {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if rsa.VerifyPKCS1v15(k, hash, digest, sig) == nil {
			return nil
		}
		if rsa.VerifyPSS(k, hash, digest, sig, nil) == nil {
			return fmt.Errorf("signature is RSASSA-PSS: %w, Linux wants PKCS#1 v1.5", ErrUnsupported)
		}
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(k, digest, sig) {
			return nil
		}
	}
	return fmt.Errorf("%d bytes came back that are no signature of the public key", len(sig))
}

func isRSA(public crypto.PublicKey) bool {
	_, ok := public.(*rsa.PublicKey)
	return ok
}
