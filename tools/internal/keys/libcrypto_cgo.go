//go:build cgo && linux

package keys

// RSA signatures are made by the libcrypto of the machine when there is one, because
// crypto/rsa takes up to three times as long. Measured with BenchmarkRSASign on one core of an
// Intel Xeon with AVX-512, Go 1.26.8 and OpenSSL 3.0.22:
//
//	            crypto/rsa   libcrypto
//	RSA-2048       0.74 ms      0.28 ms
//	RSA-3072       2.21 ms      1.54 ms
//	RSA-4096       4.96 ms      3.42 ms
//
// An image has ten thousand files. ECDSA is not done here: Go needs 0.02 ms for P-256.
//
// libcrypto is opened at run time, and its functions are declared here, so that neither
// headers nor the library are needed to build, and a machine without them signs with
// crypto/rsa. Both make the same bytes. OpenSSL 1.1 is not tried: there, the functions
// that choose padding and digest are macros.

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>

typedef struct evp_pkey_st EVP_PKEY;
typedef struct evp_pkey_ctx_st EVP_PKEY_CTX;
typedef struct evp_md_st EVP_MD;

enum { PKEY_RSA = 6, PKCS1_PADDING = 1 }; // EVP_PKEY_RSA, RSA_PKCS1_PADDING

static struct {
	EVP_PKEY *(*d2i_PrivateKey)(int, EVP_PKEY **, const unsigned char **, long);
	void (*EVP_PKEY_free)(EVP_PKEY *);
	EVP_PKEY_CTX *(*EVP_PKEY_CTX_new)(EVP_PKEY *, void *);
	void (*EVP_PKEY_CTX_free)(EVP_PKEY_CTX *);
	int (*EVP_PKEY_sign_init)(EVP_PKEY_CTX *);
	int (*EVP_PKEY_CTX_set_rsa_padding)(EVP_PKEY_CTX *, int);
	int (*EVP_PKEY_CTX_set_signature_md)(EVP_PKEY_CTX *, const EVP_MD *);
	int (*EVP_PKEY_sign)(EVP_PKEY_CTX *, unsigned char *, size_t *, const unsigned char *, size_t);
	const EVP_MD *(*EVP_get_digestbyname)(const char *);
	unsigned long (*ERR_get_error)(void);
	void (*ERR_error_string_n)(unsigned long, char *, size_t);
	void (*ERR_clear_error)(void);
} lib;

// load opens the library so and finds its functions; 1 if all are there. To be called once.
static int load(const char *so) {
	void *h = dlopen(so, RTLD_NOW | RTLD_LOCAL);
	if (h == NULL)
		return 0;
#define FIND(f) if ((*(void **)&lib.f = dlsym(h, #f)) == NULL) { dlclose(h); return 0; }
	FIND(d2i_PrivateKey)
	FIND(EVP_PKEY_free)
	FIND(EVP_PKEY_CTX_new)
	FIND(EVP_PKEY_CTX_free)
	FIND(EVP_PKEY_sign_init)
	FIND(EVP_PKEY_CTX_set_rsa_padding)
	FIND(EVP_PKEY_CTX_set_signature_md)
	FIND(EVP_PKEY_sign)
	FIND(EVP_get_digestbyname)
	FIND(ERR_get_error)
	FIND(ERR_error_string_n)
	FIND(ERR_clear_error)
	return 1;
}

// why writes the oldest error of this thread to err: the queue belongs to the thread, and a
// goroutine may be on another one after it returned to Go.
static void why(const char *step, char *err, size_t size) {
	unsigned long e = lib.ERR_get_error();
	int n = snprintf(err, size, "%s: ", step);
	if (e != 0)
		lib.ERR_error_string_n(e, err + n, size - n);
	else
		snprintf(err + n, size - n, "no reason given");
}

static EVP_PKEY *parse(const unsigned char *der, long len, char *err, size_t size) {
	lib.ERR_clear_error();
	EVP_PKEY *key = lib.d2i_PrivateKey(PKEY_RSA, NULL, &der, len);
	if (key == NULL)
		why("d2i_PrivateKey", err, size);
	return key;
}

static void release(EVP_PKEY *key) { lib.EVP_PKEY_free(key); }

// sign returns 1, or 0 and the reason in err. Results are compared with 1: these functions
// return 0 or a negative number when they fail, and -2 is true.
static int sign(EVP_PKEY *key, const char *md, const unsigned char *digest, size_t digest_len,
		unsigned char *sig, size_t *sig_len, char *err, size_t size) {
	int ok = 0;
	const char *step;
	lib.ERR_clear_error();
	EVP_PKEY_CTX *ctx = lib.EVP_PKEY_CTX_new(key, NULL);
	const EVP_MD *type = lib.EVP_get_digestbyname(md);

	if (step = "EVP_PKEY_CTX_new", ctx == NULL)
		;
	else if (step = "EVP_get_digestbyname", type == NULL)
		;
	else if (step = "EVP_PKEY_sign_init", lib.EVP_PKEY_sign_init(ctx) != 1)
		;
	else if (step = "EVP_PKEY_CTX_set_rsa_padding", lib.EVP_PKEY_CTX_set_rsa_padding(ctx, PKCS1_PADDING) != 1)
		;
	else if (step = "EVP_PKEY_CTX_set_signature_md", lib.EVP_PKEY_CTX_set_signature_md(ctx, type) != 1)
		;
	else if (step = "EVP_PKEY_sign", lib.EVP_PKEY_sign(ctx, sig, sig_len, digest, digest_len) != 1)
		;
	else
		ok = 1;
	if (!ok)
		why(step, err, size);
	lib.EVP_PKEY_CTX_free(ctx);
	return ok;
}
*/
import "C"

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync"
	"unsafe"
)

// loadLibcrypto finds a libcrypto once for the process; dlopen would give the same one again.
var loadLibcrypto = sync.OnceValue(func() error {
	for _, name := range []string{"libcrypto.so.3", "libcrypto.so.4"} {
		so := append([]byte(name), 0)
		if C.load((*C.char)(unsafe.Pointer(&so[0]))) == 1 {
			return nil
		}
	}
	return errors.New("no libcrypto of OpenSSL 3 or later")
})

// evpKey is an RSA key in libcrypto. One EVP_PKEY serves all threads; each signature has
// a context of its own.
type evpKey struct {
	*rsa.PublicKey
	pkey *C.EVP_PKEY
}

// libcryptoSigner gives key to libcrypto, and believes it after one signature that crypto/rsa
// verifies: PKCS#1 v1.5 leaves no room for another correct one.
func libcryptoSigner(key *rsa.PrivateKey) (crypto.Signer, func() error, error) {
	if err := loadLibcrypto(); err != nil {
		return nil, nil, err
	}
	der := x509.MarshalPKCS1PrivateKey(key)
	var reason [256]C.char
	pkey := C.parse((*C.uchar)(&der[0]), C.long(len(der)), &reason[0], C.size_t(len(reason)))
	clear(der)
	if pkey == nil {
		return nil, nil, fmt.Errorf("libcrypto: %s", C.GoString(&reason[0]))
	}
	signer := &evpKey{&key.PublicKey, pkey}
	done := func() error { C.release(pkey); return nil }
	probe := make([]byte, crypto.SHA256.Size())
	sig, err := signer.Sign(nil, probe, crypto.SHA256)
	if err == nil {
		err = rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, probe, sig)
	}
	if err != nil {
		return nil, nil, errors.Join(err, done())
	}
	return signer, done, nil
}

func (k *evpKey) Public() crypto.PublicKey { return k.PublicKey }

func (k *evpKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	var md []byte
	switch h := opts.HashFunc(); h {
	case crypto.SHA256:
		md = []byte("SHA256\x00")
	case crypto.SHA384:
		md = []byte("SHA384\x00")
	case crypto.SHA512:
		md = []byte("SHA512\x00")
	default:
		return nil, fmt.Errorf("libcrypto: hash %v: %w", h, ErrUnsupported)
	}
	if len(digest) != opts.HashFunc().Size() {
		return nil, fmt.Errorf("libcrypto: digest has %d bytes", len(digest))
	}
	sig := make([]byte, k.Size())
	n := C.size_t(len(sig))
	var reason [256]C.char
	ok := C.sign(k.pkey, (*C.char)(unsafe.Pointer(&md[0])), (*C.uchar)(&digest[0]), C.size_t(len(digest)),
		(*C.uchar)(&sig[0]), &n, &reason[0], C.size_t(len(reason)))
	if ok != 1 {
		return nil, fmt.Errorf("libcrypto: %s", C.GoString(&reason[0]))
	}
	if int(n) != len(sig) {
		return nil, fmt.Errorf("libcrypto: signature has %d bytes, not %d", n, len(sig))
	}
	return sig, nil
}
