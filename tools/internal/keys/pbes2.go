package keys

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"hash"

	"golang.org/x/crypto/scrypt"
)

// This file is PBES2 of RFC 8018 section 6.2, in which openssl and PKCS#11 tools encrypt
// PKCS#8. It is not a module because the one that everybody uses, youmark/pkcs8, panics when
// the data is no multiple of the block, believes any cost that the file asks for, and does
// not know hmacWithSHA512.

var (
	oidPBES2  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidScrypt = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11} // RFC 7914 section 7

	oidHMACWithSHA1   = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 7}
	oidHMACWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
	oidHMACWithSHA384 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 10}
	oidHMACWithSHA512 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 11}

	oidDESEDE3CBC = asn1.ObjectIdentifier{1, 2, 840, 113549, 3, 7}
	oidAES128CBC  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}
	oidAES192CBC  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 22}
	oidAES256CBC  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
)

// What a file may ask of us before anybody has shown to know its passphrase.
const (
	maxIterations   = 10_000_000 // some 5 s; openssl's default is 2048
	maxScryptMemory = 256 << 20  // bytes, 128*N*r; openssl's own limit is 32 MiB
	maxScryptLanes  = 16
)

// iterations is what OWASP's password storage guide asks of PBKDF2 with HMAC-SHA-256: 0.2 s.
// It is not scrypt because openssl refuses scrypt at a cost that would be worth it.
const iterations = 600_000

type encryptedPrivateKeyInfo struct {
	Algorithm pkix.AlgorithmIdentifier
	Data      []byte
}

type pbes2Params struct {
	KDF    pkix.AlgorithmIdentifier
	Cipher pkix.AlgorithmIdentifier
}

type pbkdf2Params struct {
	Salt       []byte
	Iterations int
	KeyLength  int                      `asn1:"optional"`
	PRF        pkix.AlgorithmIdentifier `asn1:"optional"` // hmacWithSHA1 if absent
}

type scryptParams struct {
	Salt      []byte
	N, R, P   int
	KeyLength int `asn1:"optional"`
}

// decryptPKCS8 returns the PrivateKeyInfo in an EncryptedPrivateKeyInfo of RFC 5958. The
// error is [ErrPassphrase] when the passphrase is not the file's.
func decryptPKCS8(der, passphrase []byte) ([]byte, error) {
	var info encryptedPrivateKeyInfo
	var params pbes2Params
	if err := unmarshal(der, &info); err != nil {
		return nil, fmt.Errorf("read EncryptedPrivateKeyInfo: %w", err)
	}
	if !info.Algorithm.Algorithm.Equal(oidPBES2) {
		return nil, fmt.Errorf("encryption %v: %w, use openssl pkcs8 -topk8 -v2 aes-256-cbc", info.Algorithm.Algorithm, ErrUnsupported)
	}
	if err := unmarshal(info.Algorithm.Parameters.FullBytes, &params); err != nil {
		return nil, fmt.Errorf("read PBES2 parameters: %w", err)
	}
	keySize, newBlock, err := blockCipher(params.Cipher.Algorithm)
	if err != nil {
		return nil, err
	}
	key, err := deriveKey(params.KDF, passphrase, keySize)
	if err != nil {
		return nil, err
	}
	block, err := newBlock(key)
	if err != nil {
		return nil, fmt.Errorf("start cipher: %w", err)
	}
	var iv []byte
	if err := unmarshal(params.Cipher.Parameters.FullBytes, &iv); err != nil {
		return nil, fmt.Errorf("read initialisation vector: %w", err)
	}
	size := block.BlockSize()
	if len(iv) != size || len(info.Data) == 0 || len(info.Data)%size != 0 {
		return nil, fmt.Errorf("%d bytes of data and %d of initialisation vector do not fit blocks of %d", len(info.Data), len(iv), size)
	}
	plain := make([]byte, len(info.Data))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, info.Data)
	return unpad(plain, size)
}

// unpad removes the padding of RFC 8018 section 6.1.1. A wrong passphrase shows there, or,
// once in 256 times, in that no PrivateKeyInfo comes to light.
func unpad(plain []byte, size int) ([]byte, error) {
	n := int(plain[len(plain)-1])
	if n < 1 || n > size || !bytes.HasSuffix(plain, bytes.Repeat([]byte{byte(n)}, n)) {
		return nil, ErrPassphrase
	}
	plain = plain[:len(plain)-n]
	var any asn1.RawValue
	if unmarshal(plain, &any) != nil || any.Tag != asn1.TagSequence {
		return nil, ErrPassphrase
	}
	return plain, nil
}

func blockCipher(oid asn1.ObjectIdentifier) (keySize int, newBlock func([]byte) (cipher.Block, error), err error) {
	switch {
	case oid.Equal(oidAES128CBC):
		return 16, aes.NewCipher, nil
	case oid.Equal(oidAES192CBC):
		return 24, aes.NewCipher, nil
	case oid.Equal(oidAES256CBC):
		return 32, aes.NewCipher, nil
	case oid.Equal(oidDESEDE3CBC):
		return 24, des.NewTripleDESCipher, nil
	default:
		return 0, nil, fmt.Errorf("cipher %v: %w", oid, ErrUnsupported)
	}
}

func deriveKey(kdf pkix.AlgorithmIdentifier, passphrase []byte, size int) ([]byte, error) {
	switch {
	case kdf.Algorithm.Equal(oidPBKDF2):
		var p pbkdf2Params
		if err := unmarshal(kdf.Parameters.FullBytes, &p); err != nil {
			return nil, fmt.Errorf("read PBKDF2 parameters: %w", err)
		}
		newHash, err := pseudoRandom(p.PRF.Algorithm)
		if err != nil {
			return nil, err
		}
		if p.Iterations < 1 || p.Iterations > maxIterations {
			return nil, fmt.Errorf("PBKDF2 with %d iterations: %w", p.Iterations, ErrUnsupported)
		}
		return pbkdf2.Key(newHash, string(passphrase), p.Salt, p.Iterations, size)
	case kdf.Algorithm.Equal(oidScrypt):
		var p scryptParams
		if err := unmarshal(kdf.Parameters.FullBytes, &p); err != nil {
			return nil, fmt.Errorf("read scrypt parameters: %w", err)
		}
		if p.N < 2 || p.R < 1 || p.P < 1 || p.P > maxScryptLanes || p.N > maxScryptMemory/128/p.R {
			return nil, fmt.Errorf("scrypt with N=%d r=%d p=%d: %w", p.N, p.R, p.P, ErrUnsupported)
		}
		return scrypt.Key(passphrase, p.Salt, p.N, p.R, p.P, size)
	default:
		return nil, fmt.Errorf("key derivation %v: %w", kdf.Algorithm, ErrUnsupported)
	}
}

func pseudoRandom(oid asn1.ObjectIdentifier) (func() hash.Hash, error) {
	switch {
	case len(oid) == 0, oid.Equal(oidHMACWithSHA1):
		return sha1.New, nil
	case oid.Equal(oidHMACWithSHA256):
		return sha256.New, nil
	case oid.Equal(oidHMACWithSHA384):
		return sha512.New384, nil
	case oid.Equal(oidHMACWithSHA512):
		return sha512.New, nil
	default:
		return nil, fmt.Errorf("pseudorandom function %v: %w", oid, ErrUnsupported)
	}
}

// encryptPKCS8 encrypts a private key with AES-256-CBC and a key from PBKDF2, which every
// openssl and evmctl reads.
func encryptPKCS8(private any, passphrase []byte) ([]byte, error) {
	plain, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("marshal private key: %w", err)
	}
	salt, iv := make([]byte, 16), make([]byte, aes.BlockSize)
	rand.Read(salt) // never fails
	rand.Read(iv)
	key, err := pbkdf2.Key(sha256.New, string(passphrase), salt, iterations, 32)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("start cipher: %w", err)
	}
	n := aes.BlockSize - len(plain)%aes.BlockSize
	plain = append(plain, bytes.Repeat([]byte{byte(n)}, n)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(plain, plain)

	kdf, errKDF := algorithm(oidPBKDF2, pbkdf2Params{Salt: salt, Iterations: iterations,
		PRF: pkix.AlgorithmIdentifier{Algorithm: oidHMACWithSHA256, Parameters: asn1.NullRawValue}})
	enc, errCipher := algorithm(oidAES256CBC, iv)
	pbes2, errPBES2 := algorithm(oidPBES2, pbes2Params{KDF: kdf, Cipher: enc})
	if err := errors.Join(errKDF, errCipher, errPBES2); err != nil {
		return nil, fmt.Errorf("marshal PBES2 parameters: %w", err)
	}
	return asn1.Marshal(encryptedPrivateKeyInfo{Algorithm: pbes2, Data: plain})
}

func algorithm(oid asn1.ObjectIdentifier, params any) (pkix.AlgorithmIdentifier, error) {
	der, err := asn1.Marshal(params)
	return pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: asn1.RawValue{FullBytes: der}}, err
}

// unmarshal is asn1.Unmarshal for values that nothing may follow.
func unmarshal(der []byte, v any) error {
	rest, err := asn1.Unmarshal(der, v)
	if err == nil && len(rest) > 0 {
		return fmt.Errorf("%d bytes follow", len(rest))
	}
	return err
}
