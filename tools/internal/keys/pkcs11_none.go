//go:build !cgo

package keys

import (
	"context"
	"fmt"
)

// openPKCS11 needs cgo: a PKCS#11 module is a shared library.
func openPKCS11(_ context.Context, uri string, _ Options) (*Key, error) {
	return nil, fmt.Errorf("%s: PKCS#11 keys: %w: this program was built without cgo", withoutPIN(uri), ErrUnsupported)
}
