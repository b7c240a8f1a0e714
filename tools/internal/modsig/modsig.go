// Package modsig writes and reads the signature at the end of a Linux kernel module: a
// PKCS#7 SignedData (RFC 2315), struct module_signature and a marker
// (include/linux/module_signature.h, scripts/sign-file.c), as of Linux 6.12.
//
// Sign writes what sign-file does, and puts the certificate into the message, too. The kernel then takes the
// module if a compiled-in CA issued that certificate (pkcs7_validate_trust of
// crypto/asymmetric_keys/pkcs7_trust.c), and the certificate itself need not be compiled in,
// where its key could issue certificates for the keyring .ima: restrict_link_by_signature does
// not ask whether an issuer is a CA.
package modsig

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
)

const marker = "~Module signature appended~\n"

// trailerSize is that of struct module_signature: algo, hash, id_type, signer_len, key_id_len,
// three bytes of nothing and sig_len, big endian.
const trailerSize = 12

// idPKCS7 is PKEY_ID_PKCS7; the other fields are 0 with it.
const idPKCS7 = 2

// ErrFormat means that a module ends in the marker, but not in a signature.
var ErrFormat = errors.New("appended signature is damaged")

// Split returns a module without its signature, and the PKCS#7 message, nil if it has none.
// Both point into module.
func Split(module []byte) (content, message []byte, err error) {
	rest, signed := bytes.CutSuffix(module, []byte(marker))
	if !signed {
		return module, nil, nil
	}
	if len(rest) < trailerSize {
		return nil, nil, fmt.Errorf("%w: nothing before its marker", ErrFormat)
	}
	trailer := rest[len(rest)-trailerSize:]
	rest = rest[:len(rest)-trailerSize]
	want := [8]byte{2: idPKCS7}
	if !bytes.Equal(trailer[:8], want[:]) {
		return nil, nil, fmt.Errorf("%w: not PKCS#7", ErrFormat)
	}
	size := binary.BigEndian.Uint32(trailer[8:])
	if uint64(size) >= uint64(len(rest)) {
		return nil, nil, fmt.Errorf("%w: its size is %d bytes, in a file of %d", ErrFormat, size, len(module))
	}
	at := len(rest) - int(size)
	return rest[:at], rest[at:], nil
}

var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidRSA        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

// algorithms of a hash: of the digest itself, and of an ECDSA signature over it.
var algorithms = map[crypto.Hash]struct{ digest, ecdsa asn1.ObjectIdentifier }{
	crypto.SHA256: {asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
	crypto.SHA384: {asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}},
	crypto.SHA512: {asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}},
}

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content signedData `asn1:"explicit,tag:0"`
}

type signedData struct {
	Version     int
	Digests     []pkix.AlgorithmIdentifier `asn1:"set"`
	Content     struct{ Type asn1.ObjectIdentifier }
	Certificate asn1.RawValue
	Signers     []signerInfo `asn1:"set"`
}

type signerInfo struct {
	Version   int
	Signer    issuerAndSerial
	Digest    pkix.AlgorithmIdentifier
	Algorithm pkix.AlgorithmIdentifier
	Signature []byte
}

type issuerAndSerial struct {
	Issuer asn1.RawValue
	Serial *big.Int
}

// Sign returns the bytes that make content a signed module when they follow it. The key is
// that of cert; an RSA signature is PKCS#1 v1.5. hash is SHA-256, SHA-384 or SHA-512.
func Sign(content []byte, key crypto.Signer, cert *x509.Certificate, hash crypto.Hash) ([]byte, error) {
	oids, ok := algorithms[hash]
	if !ok {
		return nil, fmt.Errorf("sign with %v: not a hash that modules are signed with", hash)
	}
	digestAlgorithm := pkix.AlgorithmIdentifier{Algorithm: oids.digest} // no NULL, as sign-file (RFC 5754, section 2)
	var algorithm pkix.AlgorithmIdentifier
	switch cert.PublicKey.(type) {
	case *rsa.PublicKey:
		algorithm = pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue}
	case *ecdsa.PublicKey:
		algorithm = pkix.AlgorithmIdentifier{Algorithm: oids.ecdsa}
	default:
		return nil, fmt.Errorf("sign with a key of type %T: neither RSA nor ECDSA", cert.PublicKey)
	}
	h := hash.New()
	h.Write(content)
	// No signed attributes: the kernel refuses them on modules (pkcs7_verify), and there is no date then.
	signature, err := key.Sign(nil, h.Sum(nil), hash)
	if err != nil {
		return nil, err
	}
	// Issuer and serial number, not the key id: by them alone pkcs7_find_key finds a certificate in the message.
	s := signedData{
		Version:     1,
		Digests:     []pkix.AlgorithmIdentifier{digestAlgorithm},
		Certificate: asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: cert.Raw},
		Signers: []signerInfo{{
			Version:   1,
			Signer:    issuerAndSerial{asn1.RawValue{FullBytes: cert.RawIssuer}, cert.SerialNumber},
			Digest:    digestAlgorithm,
			Algorithm: algorithm,
			Signature: signature,
		}},
	}
	s.Content.Type = oidData
	message, err := asn1.Marshal(contentInfo{oidSignedData, s})
	if err != nil {
		return nil, fmt.Errorf("encode PKCS#7: %w", err)
	}
	out := append(message, 0, 0, idPKCS7, 0, 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(len(message)))
	return append(out, marker...), nil
}
