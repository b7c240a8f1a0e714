package keys

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

const (
	maxKeyFile  = 64 << 10 // an RSA-4096 key in PEM has 3.3 KiB; a chain may follow it
	maxCertFile = 1 << 20
)

// readFile reads a whole file that has at most limit bytes.
func readFile(path string, limit int64) (content []byte, info os.FileInfo, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, nil, err
	}
	content, err = io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, nil, err
	case len(content) == 0:
		return nil, nil, fmt.Errorf("%s: file is empty", path)
	case int64(len(content)) > limit:
		return nil, nil, fmt.Errorf("%s: larger than %d bytes", path, limit)
	}
	return content, info, nil
}

func openPEM(_ context.Context, path string, o Options) (*Key, error) {
	text, info, err := readFile(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	private, err := parsePrivate(path, text, o)
	if err != nil {
		return nil, err
	}
	signer, done, err := localSigner(private, path)
	if err != nil {
		return nil, err
	}
	key := &Key{Signer: signer, URI: path, Deterministic: true, close: done}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		key.Warnings = append(key.Warnings, fmt.Sprintf("%s: private key has mode %04o: others may read or change it", path, mode))
	}
	return key, nil
}

// parsePrivate returns the only private key in text, which came from the file name.
func parsePrivate(name string, text []byte, o Options) (any, error) {
	block, err := privateBlock(name, text)
	if err != nil {
		return nil, err
	}
	der := block.Bytes
	//lint:ignore SA1019 OpenSSL before 1.0 and genrsa -traditional write this; nothing here does
	if x509.IsEncryptedPEMBlock(block) {
		return parseLegacy(name, block, o)
	}
	if block.Type == "ENCRYPTED PRIVATE KEY" {
		passphrase, err := o.passphrase(name)
		if err != nil {
			return nil, err
		}
		if der, err = decryptPKCS8(der, passphrase); err != nil {
			return nil, fmt.Errorf("%s: decrypt private key: %w", name, err)
		}
		block = &pem.Block{Type: "PRIVATE KEY"}
	}
	key, err := parseDER(block.Type, der)
	if err != nil {
		return nil, fmt.Errorf("%s: parse private key: %w", name, err)
	}
	return key, nil
}

// privateBlock finds the one private key of a PEM file. Other blocks may stand beside it:
// CONFIG_MODULE_SIG_KEY wants key and certificate in one file, openssl ecparam writes the curve.
func privateBlock(name string, text []byte) (*pem.Block, error) {
	var found *pem.Block
	other := ""
	for rest := text; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		switch {
		case block == nil && found != nil:
			return found, nil
		case block == nil && other != "":
			return nil, fmt.Errorf("%s: holds no private key but a %s", name, other)
		case block == nil:
			return nil, fmt.Errorf("%s: not a PEM file", name)
		case !strings.HasSuffix(block.Type, "PRIVATE KEY"):
			other = strings.ToLower(block.Type)
		case found != nil:
			return nil, fmt.Errorf("%s: holds more than one private key", name)
		default:
			found = block
		}
	}
}

// parseLegacy decrypts what OpenSSL calls the traditional format (RFC 1421).
func parseLegacy(name string, block *pem.Block, o Options) (any, error) {
	passphrase, err := o.passphrase(name)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 see parsePrivate
	der, err := x509.DecryptPEMBlock(block, passphrase)
	if errors.Is(err, x509.IncorrectPasswordError) {
		return nil, fmt.Errorf("%s: decrypt private key: %w", name, ErrPassphrase)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: decrypt private key: %w", name, err)
	}
	key, err := parseDER(block.Type, der)
	if err != nil {
		// The format has no check but its padding, which a wrong key fits once in 256 times.
		return nil, fmt.Errorf("%s: decrypt private key: %w", name, ErrPassphrase)
	}
	return key, nil
}

func parseDER(blockType string, der []byte) (any, error) {
	switch blockType {
	case "PRIVATE KEY":
		return x509.ParsePKCS8PrivateKey(der)
	case "RSA PRIVATE KEY":
		return x509.ParsePKCS1PrivateKey(der)
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(der)
	default:
		return nil, fmt.Errorf("PEM block %q: %w", blockType, ErrUnsupported)
	}
}

// MarshalPrivate writes a private key as PKCS#8 in PEM, encrypted if passphrase is not nil.
func MarshalPrivate(key crypto.Signer, passphrase []byte) ([]byte, error) {
	if passphrase == nil {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("marshal private key: %w", err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
	}
	if len(passphrase) == 0 {
		return nil, ErrNoPassphrase // AES with a key that everybody can compute
	}
	der, err := encryptPKCS8(key, passphrase)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der}), nil
}

// ReadCertificates reads the certificates of a file: PEM, in which other blocks are passed
// over, or one in DER. There is at least one, in the order of the file.
func ReadCertificates(path string) ([]*x509.Certificate, error) {
	content, _, err := readFile(path, maxCertFile)
	if err != nil {
		return nil, err
	}
	return ParseCertificates(path, content)
}

// ParseCertificates is [ReadCertificates] of what was read from the file name already.
func ParseCertificates(name string, content []byte) ([]*x509.Certificate, error) {
	block, rest := pem.Decode(content)
	if block == nil {
		cert, err := x509.ParseCertificate(content)
		if err != nil {
			return nil, fmt.Errorf("%s: neither PEM nor a certificate in DER: %w", name, err)
		}
		return []*x509.Certificate{cert}, nil
	}
	var certs []*x509.Certificate
	other := ""
	for ; block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			other = strings.ToLower(block.Type)
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: parse certificate %d: %w", name, len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s: holds no certificate but a %s", name, other)
	}
	return certs, nil
}
