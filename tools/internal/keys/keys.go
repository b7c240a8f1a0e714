// Package keys opens private keys as [crypto.Signer], whatever holds them: a PEM file,
// a PKCS#11 token or a key management service. It makes keys and X.509 certificates as
// Linux wants them for IMA, EVM, modules and Secure Boot, and says what Linux will do
// with a certificate.
//
// A key is refused when it is opened, not when its thousandth signature turns out to be
// useless: one of a kind that the kernel cannot use, a weak one, and one whose private
// half is published (see [DebugName]). What a token or a service returns is verified
// with the public key before a caller sees it.
package keys

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

var (
	// ErrUnsupported means that Linux IMA cannot use a key or a signature of this kind.
	ErrUnsupported = errors.New("not supported")

	// ErrWeak means that the key or signature is of a kind that can be forged today, or
	// that is too short to be trusted for the life of a device.
	ErrWeak = errors.New("too weak")

	// ErrDebugKey means that the private key is published. See [DebugKeyError].
	ErrDebugKey = errors.New("private key is public")

	// ErrNoPassphrase means that a key file is encrypted, or that a token wants a PIN,
	// and that none was given.
	ErrNoPassphrase = errors.New("no passphrase or PIN was given")

	// ErrPassphrase means that the passphrase or PIN is wrong.
	ErrPassphrase = errors.New("wrong passphrase or PIN")
)

// DebugKeyError says that the private half of a key can be downloaded by everybody.
type DebugKeyError struct {
	Key  string // what was to be opened
	Name string // the published key, as in DebugName
}

func (e *DebugKeyError) Error() string {
	return fmt.Sprintf("%s: everybody has this private key: it is published as %s", e.Key, e.Name)
}

// Unwrap makes the error match [ErrDebugKey].
func (e *DebugKeyError) Unwrap() error { return ErrDebugKey }

// Options say how a key may be opened. The zero value opens what needs no secret.
type Options struct {
	// Passphrase returns the passphrase of an encrypted file, or the PIN of a token when
	// the URI names none. It is called at most once, and only when one is needed. Nil,
	// or an empty result: none is known.
	Passphrase func() ([]byte, error)

	// AllowDebug opens keys whose private half is published, too.
	AllowDebug bool
}

// passphrase asks for the secret of what.
func (o Options) passphrase(what string) ([]byte, error) {
	if o.Passphrase == nil {
		return nil, fmt.Errorf("%s: %w", what, ErrNoPassphrase)
	}
	secret, err := o.Passphrase()
	if err != nil {
		return nil, fmt.Errorf("%s: get passphrase: %w", what, err)
	}
	if len(secret) == 0 {
		return nil, fmt.Errorf("%s: %w", what, ErrNoPassphrase)
	}
	return secret, nil
}

// Key is an opened private key, for use by any number of goroutines until Close.
type Key struct {
	crypto.Signer

	// URI is what was opened, without the PIN that it may have held.
	URI string

	// Remote says that each new signature is a call to a token, a service or a program:
	// worth many goroutines at once. Signatures are remembered, so that files of equal
	// content cost one call; failed calls are repeated a few times.
	Remote bool

	// Deterministic says that the same digest gives the same signature in every run: RSA
	// PKCS#1 v1.5 always, ECDSA where RFC 6979 can be chosen, which is for keys in files.
	Deterministic bool

	// Warnings are sentences about the key that a person should read, such as that its
	// file can be read by others.
	Warnings []string

	close func() error
}

// Sign signs digest, which hash.HashFunc() made: SHA-256, SHA-384 or SHA-512. An RSA
// signature is PKCS#1 v1.5, an ECDSA signature is the ASN.1 DER of RFC 3279. rand is not used.
func (k *Key) Sign(rand io.Reader, digest []byte, hash crypto.SignerOpts) ([]byte, error) {
	if _, pss := hash.(*rsa.PSSOptions); pss {
		return nil, fmt.Errorf("%s: RSASSA-PSS: %w", k.URI, ErrUnsupported)
	}
	switch h := hash.HashFunc(); h {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
		if len(digest) != h.Size() {
			return nil, fmt.Errorf("%s: sign: %v digest has %d bytes", k.URI, h, len(digest))
		}
		return k.Signer.Sign(rand, digest, h)
	default:
		return nil, fmt.Errorf("%s: sign a digest of %v: %w", k.URI, h, ErrUnsupported)
	}
}

// Close ends the connection to a token and forgets a local key. No Sign may be running.
func (k *Key) Close() error {
	if k.close == nil {
		return nil
	}
	return k.close()
}

var schemeRE = regexp.MustCompile(`^[a-z][a-z0-9+.-]*://`)

// Open opens the private key that uri names:
//
//	path/to/key.pem      PKCS#8 (also encrypted), PKCS#1 or SEC1
//	pkcs11:token=T;object=O?module-path=/M.so&pin-source=file:/P    (RFC 7512)
//	hashivault://NAME    transit engine of HashiCorp Vault; openbao://NAME that of OpenBao
//	awskms:// gcpkms:// azurekms://    in builds with the tag awskms, gcpkms, azurekms
//	SCHEME://...         asks the program sigstore-kms-SCHEME, a plug-in of sigstore
//
// ctx ends what the key does later, too: calls to a service, and waiting to repeat them.
// The error matches [ErrUnsupported], [ErrWeak], [ErrDebugKey], [ErrNoPassphrase] or
// [ErrPassphrase] where that is the reason.
func Open(ctx context.Context, uri string, o Options) (*Key, error) {
	open := openPEM
	switch {
	case strings.HasPrefix(uri, "pkcs11:"):
		open = openPKCS11
	case schemeRE.MatchString(uri):
		open = openKMS
	}
	key, err := open(ctx, uri, o)
	if err != nil {
		return nil, err
	}
	if err := admit(key.Public(), key.URI, o.AllowDebug); err != nil {
		return nil, errors.Join(err, key.Close())
	}
	return key, nil
}

// admit refuses public keys that nothing should be signed with.
func admit(pub crypto.PublicKey, what string, allowDebug bool) error {
	if err := CheckStrength(pub); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if name, ok := DebugName(pub); ok && !allowDebug {
		return &DebugKeyError{Key: what, Name: name}
	}
	return nil
}

// localSigner is the signer of a key that this process holds.
func localSigner(private any, path string) (signer crypto.Signer, done func() error, err error) {
	switch k := private.(type) {
	case *rsa.PrivateKey:
		if signer, done, err := libcryptoSigner(k); err == nil {
			return signer, done, nil
		}
		return k, nil, nil // slower, same bytes
	case *ecdsa.PrivateKey:
		return deterministic{k}, nil, nil
	default:
		return nil, nil, fmt.Errorf("%s: %s: %w", path, typeName(private), ErrUnsupported)
	}
}

// deterministic signs as RFC 6979 says, so that an image built twice is the same image.
// crypto/ecdsa does so when it gets no source of randomness.
type deterministic struct{ *ecdsa.PrivateKey }

func (d deterministic) Sign(_ io.Reader, digest []byte, hash crypto.SignerOpts) ([]byte, error) {
	return d.PrivateKey.Sign(nil, digest, hash)
}
