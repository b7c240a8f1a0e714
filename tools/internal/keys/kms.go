package keys

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/sigstore/sigstore/pkg/signature/kms"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/hashivault" // hashivault:// and openbao://
	"github.com/sigstore/sigstore/pkg/signature/options"
)

// openKMS opens a key of a key management service through sigstore. Where the service is, and
// who asks, stands in the environment: VAULT_ADDR and VAULT_TOKEN for the built-in provider.
func openKMS(ctx context.Context, uri string, _ Options) (*Key, error) {
	// ctx, not the one of an attempt: a plug-in's client keeps the deadline that it finds here.
	service, err := kms.Get(ctx, uri, crypto.SHA256)
	if errors.Is(err, exec.ErrNotFound) {
		built := kms.SupportedProviders()
		slices.Sort(built)
		return nil, fmt.Errorf("%s: open key: %w (built in: %s)", uri, err, strings.Join(built, " "))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: open key: %w", uri, err)
	}
	public, err := retry(ctx, func(ctx context.Context) (crypto.PublicKey, error) {
		return guard(ctx, func() (crypto.PublicKey, error) {
			return service.PublicKey(options.WithContext(ctx))
		})
	})
	if err != nil {
		return nil, fmt.Errorf("%s: read public key: %w", uri, err)
	}
	sign := func(ctx context.Context, digest []byte, hash crypto.Hash) ([]byte, error) {
		return guard(ctx, func() ([]byte, error) {
			return service.SignMessage(nil, options.WithContext(ctx), options.WithDigest(digest), options.WithCryptoSignerOpts(hash))
		})
	}
	return &Key{Signer: newRemote(ctx, uri, public, sign), URI: uri, Remote: true, Deterministic: isRSA(public)}, nil
}

// guard calls f, which is sigstore's: its Vault client does not look at a context, and its
// plug-in client follows a nil pointer when a program answers {}.
func guard[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("answer is not usable: %v", p)
			}
			done <- r
		}()
		r.value, r.err = f()
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}
