package tpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// maxBlob bounds a saved key: two structures of at most some 700 bytes.
const maxBlob = 4096

// AK is a loaded attestation key: a restricted signing key, which signs only what the TPM
// itself made. The caller closes it.
type AK struct {
	tpm     *TPM
	key     tpm2.NamedHandle
	public  tpm2.TPM2BPublic
	private tpm2.TPM2BPrivate
}

// akScheme is a kind of attestation key that [TPM.CreateAK] makes.
type akScheme struct {
	name   string
	public tpm2.TPMTPublic
}

func akSchemes() []akScheme {
	return []akScheme{
		{"rsassa", akRSA(tpm2.TPMAlgRSASSA, tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}))},
		{"rsapss", akRSA(tpm2.TPMAlgRSAPSS, tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAPSS, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: tpm2.TPMAlgSHA256}))},
		{"ecdsa", akECC(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256)},
		{"ecdsa-p384", akECC(tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384)},
	}
}

// Schemes are the names that [TPM.CreateAK] takes: RSA has 2048 bits, ECDSA is on P-256
// with SHA-256 unless the name says P-384, which is with SHA-384.
func Schemes() []string {
	var names []string
	for _, s := range akSchemes() {
		names = append(names, s.name)
	}
	return names
}

func akPublic(alg tpm2.TPMAlgID, params tpm2.TPMUPublicParms) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    alg,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			// Without a password there is nothing to guess, and with NoDA another
			// program's wrong guesses cannot stop attestation.
			NoDA:       true,
			Restricted: true, SignEncrypt: true,
		},
		Parameters: params,
	}
}

func akRSA(scheme tpm2.TPMAlgID, details tpm2.TPMUAsymScheme) tpm2.TPMTPublic {
	return akPublic(tpm2.TPMAlgRSA, tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
		Scheme:  tpm2.TPMTRSAScheme{Scheme: scheme, Details: details},
		KeyBits: 2048,
	}))
}

func akECC(curve tpm2.TPMECCCurve, hash tpm2.TPMAlgID) tpm2.TPMTPublic {
	return akPublic(tpm2.TPMAlgECC, tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Scheme: tpm2.TPMTECCScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash}),
		},
		CurveID: curve,
	}))
}

// CreateAK makes an attestation key with the named scheme, one of [Schemes]. The key lives
// below a storage key of the endorsement hierarchy, so it survives a change of the owner.
func (t *TPM) CreateAK(scheme string) (*AK, error) {
	all := akSchemes()
	i := slices.IndexFunc(all, func(s akScheme) bool { return s.name == scheme })
	if i < 0 {
		return nil, fmt.Errorf("make attestation key: scheme %q is unknown: use one of %v", scheme, Schemes())
	}
	parent, err := t.parent()
	if err != nil {
		return nil, err
	}
	defer t.flush(parent.Handle)
	rsp, err := tpm2.Create{ParentHandle: authorized(parent), InPublic: tpm2.New2B(all[i].public)}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("make attestation key %s: %w", scheme, err)
	}
	return t.load(parent, rsp.OutPublic, rsp.OutPrivate)
}

// LoadAK loads the key that [AK.Blob] saved. Its error is [ErrForeign] when this TPM did
// not make the key.
func (t *TPM) LoadAK(blob []byte) (*AK, error) {
	public, private, err := parseBlob(blob)
	if err != nil {
		return nil, err
	}
	parent, err := t.parent()
	if err != nil {
		return nil, err
	}
	defer t.flush(parent.Handle)
	return t.load(parent, public, private)
}

func parseBlob(blob []byte) (public tpm2.TPM2BPublic, private tpm2.TPM2BPrivate, err error) {
	if len(blob) > maxBlob {
		return public, private, fmt.Errorf("read saved attestation key: %d bytes, at most %d are expected", len(blob), maxBlob)
	}
	first, rest, err := cut2B(blob)
	if err != nil {
		return public, private, err
	}
	second, rest, err := cut2B(rest)
	if err != nil {
		return public, private, err
	}
	if len(rest) != 0 {
		return public, private, fmt.Errorf("read saved attestation key: %d trailing bytes", len(rest))
	}
	if _, err := tpm2.Unmarshal[tpm2.TPMTPublic](first); err != nil {
		return public, private, fmt.Errorf("read saved attestation key: %w", err)
	}
	return tpm2.BytesAs2B[tpm2.TPMTPublic](first), tpm2.TPM2BPrivate{Buffer: second}, nil
}

// cut2B splits b after the sized buffer that it begins with.
func cut2B(b []byte) (first, rest []byte, err error) {
	if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
		return nil, nil, errors.New("read saved attestation key: it is cut short")
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	return b[2:n], b[n:], nil
}

func authorized(h tpm2.NamedHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)}
}

// parent makes the storage key below which attestation keys live.
func (t *TPM) parent() (tpm2.NamedHandle, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
	}.Execute(t)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("make storage key: %w", ownedError(err))
	}
	return tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}, nil
}

func (t *TPM) load(parent tpm2.NamedHandle, public tpm2.TPM2BPublic, private tpm2.TPM2BPrivate) (*AK, error) {
	if err := checkAK(public); err != nil {
		return nil, err
	}
	rsp, err := tpm2.Load{ParentHandle: authorized(parent), InPublic: public, InPrivate: private}.Execute(t)
	if err != nil {
		for _, wrong := range []tpm2.TPMRC{tpm2.TPMRCIntegrity, tpm2.TPMRCBinding, tpm2.TPMRCSize, tpm2.TPMRCSensitive} {
			if errors.Is(err, wrong) {
				return nil, fmt.Errorf("load attestation key: %w: %w", ErrForeign, err)
			}
		}
		return nil, fmt.Errorf("load attestation key: %w", err)
	}
	return &AK{tpm: t, key: tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}, public: public, private: private}, nil
}

// checkAK refuses a key that differs from every template of this package in anything but
// its value: a saved key may have been exchanged for one whose use is less restricted.
func checkAK(public tpm2.TPM2BPublic) error {
	got, err := public.Contents()
	if err != nil {
		return fmt.Errorf("read attestation key: %w", err)
	}
	bare := *got
	for _, s := range akSchemes() {
		bare.Unique, s.public.Unique = tpm2.TPMUPublicID{}, tpm2.TPMUPublicID{}
		if bare.Type == s.public.Type && bytes.Equal(tpm2.Marshal(bare), tpm2.Marshal(s.public)) {
			return nil
		}
	}
	return errors.New("read attestation key: its attributes are none that this program gives")
}

// Blob is what to save: the key's TPM2B_PUBLIC and TPM2B_PRIVATE. The private part is
// encrypted by the TPM and useless elsewhere.
func (k *AK) Blob() []byte { return append(tpm2.Marshal(k.public), tpm2.Marshal(k.private)...) }

// Public is the TPM2B_PUBLIC of the key.
func (k *AK) Public() []byte { return tpm2.Marshal(k.public) }

// Name is the TPM's name of the key: the name algorithm and the digest of the public area.
func (k *AK) Name() []byte { return slices.Clone(k.key.Name.Buffer) }

// Close frees the key's slot in the TPM.
func (k *AK) Close() { k.tpm.flush(k.key.Handle) }

// Certify has the key certify itself with the given challenge: a proof that this program
// can use it. message is the TPMS_ATTEST, signature the TPMT_SIGNATURE.
func (k *AK) Certify(challenge []byte) (message, signature []byte, err error) {
	rsp, err := tpm2.Certify{
		ObjectHandle:   authorized(k.key),
		SignHandle:     authorized(k.key),
		QualifyingData: tpm2.TPM2BData{Buffer: challenge},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(k.tpm)
	if err != nil {
		return nil, nil, fmt.Errorf("certify attestation key: %w", err)
	}
	return rsp.CertifyInfo.Bytes(), tpm2.Marshal(rsp.Signature), nil
}
