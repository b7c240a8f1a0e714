package tpm

import (
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// SecretKey is a key on P-256 to which secrets are encrypted. It is made in the null
// hierarchy with a part that is random and never kept: no TPM can make it again, and it is
// gone when it is closed, or at the latest with the boot. It is an [ecdh.KeyExchanger].
type SecretKey struct {
	tpm     *TPM
	key     tpm2.NamedHandle
	public  tpm2.TPM2BPublic
	encoded *ecdh.PublicKey
}

func secretTemplate(x, y []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Decrypt: true,
			// The null hierarchy is another after a TPM Reset only; a saved context of this
			// key is of no use after a TPM Restart either.
			STClear: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y},
		}),
	}
}

// CreateSecretKey makes a key for secrets. The caller closes it.
func (t *TPM) CreateSecretKey() (*SecretKey, error) {
	var random [64]byte
	_, _ = rand.Read(random[:]) // never fails: crypto/rand
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHNull, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(secretTemplate(random[:32], random[32:])),
	}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("make key for secrets: %w", err)
	}
	k := &SecretKey{tpm: t, key: tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}, public: rsp.OutPublic}
	if k.encoded, err = ecdhPublic(rsp.OutPublic); err != nil {
		k.Close()
		return nil, fmt.Errorf("make key for secrets: %w", err)
	}
	return k, nil
}

func ecdhPublic(public tpm2.TPM2BPublic) (*ecdh.PublicKey, error) {
	area, err := public.Contents()
	if err != nil {
		return nil, err
	}
	point, err := area.Unique.ECC()
	if err != nil {
		return nil, err
	}
	x, errX := coordinate(point.X)
	y, errY := coordinate(point.Y)
	if err := errors.Join(errX, errY); err != nil {
		return nil, err
	}
	return ecdh.P256().NewPublicKey(slices.Concat([]byte{4}, x, y))
}

// coordinate is p in 32 bytes: a TPM may leave out zeros at the beginning.
func coordinate(p tpm2.TPM2BECCParameter) ([]byte, error) {
	if len(p.Buffer) > 32 {
		return nil, fmt.Errorf("a coordinate of %d bytes is not of P-256", len(p.Buffer))
	}
	return append(make([]byte, 32-len(p.Buffer)), p.Buffer...), nil
}

// Public is the TPM2B_PUBLIC of the key.
func (k *SecretKey) Public() []byte { return tpm2.Marshal(k.public) }

// Name is the TPM's name of the key.
func (k *SecretKey) Name() []byte { return slices.Clone(k.key.Name.Buffer) }

// PublicKey is the key as crypto knows it.
func (k *SecretKey) PublicKey() *ecdh.PublicKey { return k.encoded }

// Curve is P-256.
func (k *SecretKey) Curve() ecdh.Curve { return ecdh.P256() }

// ECDH has the TPM multiply remote by the key (TPM2_ECDH_ZGen), and returns the x-coordinate.
func (k *SecretKey) ECDH(remote *ecdh.PublicKey) ([]byte, error) {
	if remote.Curve() != ecdh.P256() {
		return nil, errors.New("use key for secrets: the other key is not on P-256")
	}
	point := remote.Bytes()
	rsp, err := tpm2.ECDHZGen{
		KeyHandle: authorized(k.key),
		InPoint: tpm2.New2B(tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}.Execute(k.tpm)
	if err != nil {
		return nil, fmt.Errorf("use key for secrets: %w", err)
	}
	z, err := rsp.OutPoint.Contents()
	if err != nil {
		return nil, fmt.Errorf("use key for secrets: %w", err)
	}
	return coordinate(z.X)
}

// Close frees the key; what was encrypted to it can never be decrypted again.
func (k *SecretKey) Close() { k.tpm.flush(k.key.Handle) }

// CertifySecretKey has the attestation key state that s is in its TPM, with its name,
// attributes and hierarchy, and the counters of this boot, which are also returned by
// themselves. message is the TPMS_ATTEST, signature the TPMT_SIGNATURE.
func (k *AK) CertifySecretKey(s *SecretKey, qualifier []byte) (message, signature []byte, boot tpm2.TPMSClockInfo, err error) {
	rsp, err := tpm2.Certify{
		ObjectHandle:   authorized(s.key),
		SignHandle:     authorized(k.key),
		QualifyingData: tpm2.TPM2BData{Buffer: qualifier},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(k.tpm)
	if err != nil {
		return nil, nil, boot, fmt.Errorf("certify key for secrets: %w", err)
	}
	said, err := rsp.CertifyInfo.Contents()
	if err != nil {
		return nil, nil, boot, fmt.Errorf("certify key for secrets: %w", err)
	}
	return rsp.CertifyInfo.Bytes(), tpm2.Marshal(rsp.Signature), said.ClockInfo, nil
}
